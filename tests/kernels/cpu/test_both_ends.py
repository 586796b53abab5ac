"""The sweep from both ends: equal to the reference, and left where a state fades."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu import scales, simd
from pyro_regimes.kernels.cpu.both_ends import meet_from_both_ends, sweep_both_ends
from pyro_regimes.kernels.cpu.jit import compiled
from tests.kernels.cases import Case, random_chain
from tests.kernels.test_reference import assert_equal

FADED = -1e4  # a log-probability that is exactly 0 in the sweep, and not a structural zero


def both(case: Case) -> None:
    """The compiled E-step and the compiled log-likelihood are the reference's."""
    found = {}
    for name in ("cpu", "reference"):
        with ops.backend(name):
            found[name] = *ops.expectations(*case), ops.log_likelihood(*case)
    for one, other in zip(found["cpu"], found["reference"], strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("num_steps", [7, 8, 9, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("num_states", [1, 2, 3, 4, pytest.param(9, marks=pytest.mark.slow)])
def test_lengths_about_the_middle_and_the_blocks(num_steps, num_states):
    both(random_chain(num_steps, num_states, (2,), seed=num_steps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_in_both_halves(dtype):
    """The likely state changes under a chain that stays: sums fall by hundreds of nats."""
    case = random_chain(90, 3, (2,), seed=3, dtype=dtype)
    stay = torch.full((3, 3), -30.0, dtype=dtype).fill_diagonal_(0.0)
    runs = torch.arange(90) // 10 % 3
    observation = case.observation - 60 * (runs[:, None] != torch.arange(3))
    both(Case(case.initial, stay.log_softmax(-1).expand(2, 1, 3, 3), observation))


@pytest.mark.parametrize("shift", [-700.0, 1e3])
def test_transitions_that_are_not_normalised(shift):
    case = random_chain(33, 3, seed=4)
    moved = case._replace(transition=case.transition + shift, observation=case.observation - shift)
    with ops.backend("cpu"):
        value, gamma, xi = ops.expectations(*moved)
        plain = ops.expectations(*case)
    assert_equal(gamma, plain[1])
    assert_equal(xi, plain[2])
    # One of the 33 shifts of the observations is left over.
    torch.testing.assert_close(value, plain[0] - shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("when", [0, 3, 20, 21, 37, 39])
def test_a_state_that_fades_anywhere(when):
    case = random_chain(40, 3, seed=5)
    observation, transition = case.observation.clone(), case.transition.clone()
    observation[when, 0] = FADED
    transition[..., 1, 2] = FADED  # without it, a state that fades is refilled at the next step
    both(case._replace(observation=observation, transition=transition))


def test_a_long_sequence_whose_emissions_are_computed_twice():
    both(random_chain(65_537, 3, seed=6))


def test_no_sequence_depends_on_its_neighbours():
    case = random_chain(50, 3, (3,), seed=7)
    observation = case.observation.clone()
    observation[1, 25, 0] = FADED
    case = case._replace(observation=observation)
    with ops.backend("cpu"):
        together = *ops.expectations(*case), ops.log_likelihood(*case)
        for index in range(3):
            parts = [part[index] for part in case[:3]]
            alone = *ops.expectations(*parts), ops.log_likelihood(*parts)
            for one, other in zip(alone, together, strict=True):
                assert torch.equal(one, other[index])


@compiled
def swept(initial, matrix, observation, peak, checked, remember, smoothed, moved):
    """One sweep of four lanes, three states: its value, and whether it may be used.

    The same of the log-likelihood alone.
    """
    steps, flat = len(observation), np.zeros(16)
    transposed = np.zeros(16)
    for i in range(3):
        for j in range(3):
            flat[4 * i + j] = transposed[4 * j + i] = matrix[i, j]
    room = scales.Room(
        np.empty(4 * steps), np.empty(4 * steps + 8 if remember else 0), flat, transposed,
        np.empty(16), np.empty(4), np.empty(4), np.empty(3),
    )  # fmt: skip
    ones, rows, wide = simd.splat(1.0, 4), simd.splat(0.0, 3), simd.splat(0.0, 8)
    given = initial, observation, steps, peak, checked, room, ones, rows, wide
    alone = meet_from_both_ends(*given)
    return *sweep_both_ends(*given, smoothed, moved, np.empty((0, 0, 0))), *alone


@pytest.mark.parametrize("remember", [False, True])
@pytest.mark.parametrize("num_steps", [8, 9, 40])
def test_which_sequences_it_serves(remember, num_steps):
    case = random_chain(num_steps, 3, seed=8)
    matrix, observation = case.transition[0].exp().numpy(), case.observation.numpy().copy()
    matrix /= matrix.max()
    out = np.empty((num_steps, 3)), np.empty((1, 3, 3))

    def serves(initial, matrix, observation, checked=True):
        given = initial, matrix, observation, float(case.transition.max()), checked, remember
        value, is_served, alone, is_alone_served = swept(*given, *out)
        if is_served:
            assert is_alone_served
        if is_alone_served:  # also where only alpha fades, after the sweeps have met
            moves = torch.from_numpy(matrix).log() + case.transition.max()
            chain = torch.from_numpy(initial), moves[None], torch.from_numpy(observation)
            with ops.backend("reference"):
                assert alone == pytest.approx(float(ops.log_likelihood(*chain)), rel=1e-13)
        return value, is_served

    initial = case.initial.numpy()
    value, is_served = serves(initial, matrix, observation)
    assert is_served
    with ops.backend("reference"):
        expected = ops.expectations(*case)
    assert value == pytest.approx(float(expected[0]), rel=1e-13)
    assert_equal(torch.from_numpy(out[0]), expected[1])
    assert_equal(torch.from_numpy(out[1]), expected[2].reshape(1, 3, 3))
    for when in range(num_steps):
        for logit in (-np.inf, FADED, np.nan, np.inf, 1e16):
            other = observation.copy()
            other[when, 1] = logit
            assert not serves(initial, matrix, other)[1]
    absent = matrix.copy()
    absent[:, 1] = 0.0
    assert not serves(initial, absent, observation)[1]
    assert not serves(np.array([0.0, -np.inf, -math.inf]), matrix, observation)[1]
    assert serves(np.array([0.0, -np.inf, -math.inf]), matrix, observation, checked=False)[1]
