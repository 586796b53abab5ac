"""Chains from left to right: the kernel of two diagonals is equal to the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu import launch, moves, scaled
from tests.kernels.cases import Case, random_chain
from tests.kernels.test_reference import assert_equal

INF = math.inf


def left_to_right(num_steps: int, num_states: int, batch: tuple[int, ...] = (2,), **given) -> Case:
    """A random chain whose states are left for the next one only."""
    case = random_chain(num_steps, num_states, batch, **given)
    steps = torch.arange(num_states)[None] - torch.arange(num_states)[:, None]
    forbidden = (steps != 0) & (steps != 1)
    return case._replace(transition=case.transition.masked_fill(forbidden, -INF))


def check(case: Case) -> None:
    """All results are the reference's, and the kernel of two diagonals computes them."""
    kinds = list(launch._kinds(case.transition.numpy(), len(case.observation)))
    assert [kind for _, _, kind in kinds] == [True]
    found = {}
    for name in ("cpu", "reference"):
        with ops.backend(name):
            found[name] = (
                *ops.expectations(*case),
                ops.log_likelihood(*case),
                ops.filter_logits(*case).exp(),
            )
    for one, other in zip(found["cpu"], found["reference"], strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("num_steps", [1, 2, 8, 9, 60])
@pytest.mark.parametrize("num_states", [5, 8, 10, pytest.param(33, marks=pytest.mark.slow)])
def test_sizes(num_steps, num_states):
    check(left_to_right(num_steps, num_states, seed=num_steps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_that_fade_at_both_ends(dtype):
    """The data leave each state for good, so that most fade in both directions."""
    case = left_to_right(300, 6, dtype=dtype, seed=1)
    current = torch.arange(300) // 50
    logits = -40.0 * (current[:, None] - torch.arange(6)).abs()
    check(case._replace(observation=case.observation + logits.to(dtype)))


def test_only_the_first_state_begins():
    case = left_to_right(50, 7, seed=2)
    start = torch.full((2, 7), -INF, dtype=torch.float64)
    start[:, 0] = 0.0
    check(case._replace(initial=start))


@pytest.mark.parametrize("logit", [-INF, -1e4, -690.0])
def test_a_move_that_is_impossible_or_almost(logit):
    """Later data need the move, and an almost impossible one is not taken for impossible."""
    case = left_to_right(40, 5, seed=3)
    transition, observation = case.transition.clone(), case.observation.clone()
    transition[..., 2, 3] = logit
    observation[:, 20:, :3] -= 2e4 / 20
    check(case._replace(transition=transition, observation=observation))


def test_observations_that_are_impossible():
    case = left_to_right(30, 6, seed=4)
    observation = case.observation.clone()
    observation[0, 10, :4] = -INF
    observation[1, 5] = -INF
    check(case._replace(observation=observation))


def test_a_chain_does_not_depend_on_its_neighbours():
    """Chains of both kinds in one batch: each has the results that it has alone, to the bit."""
    case = random_chain(40, 6, (5,), seed=5)
    other = left_to_right(40, 6, (5,), seed=5)
    mixed = case.transition.clone()
    mixed[[0, 1, 3]] = other.transition[[0, 1, 3]]
    case = case._replace(transition=mixed)
    kinds = list(launch._kinds(mixed.numpy(), 5))
    assert kinds == [(0, 2, True), (2, 3, False), (3, 4, True), (4, 5, False)]
    with ops.backend("cpu"):
        together = *ops.expectations(*case), ops.log_likelihood(*case)
        for index in range(5):
            own = Case(*(each[index : index + 1] for each in case[:3]))
            alone = *ops.expectations(*own), ops.log_likelihood(*own)
            for one, many in zip(alone, together, strict=True):
                assert torch.equal(one[0], many[index])


def test_which_matrices_have_two_diagonals():
    logits = np.full((5, 1, 5, 5), -INF)
    steps = np.arange(5)[None] - np.arange(5)[:, None]
    logits[0, 0][steps == 0] = logits[1, 0][(steps == 0) | (steps == 1)] = 0.0
    logits[2, 0, 0, 2] = logits[3, 0, 1, 0] = logits[4, 0, 0, 4] = -700.0
    found = np.empty(5, dtype=np.bool_)
    moves.find_two_diagonals(logits, found)
    assert found.tolist() == [True, True, False, False, False]


def test_transitions_that_vary_in_time_take_the_whole_matrix():
    case = left_to_right(6, 5, seed=6)
    varying = case.transition.expand(2, 5, 5, 5).contiguous()
    assert list(launch._kinds(varying.numpy(), 2)) == [(0, 2, False)]
    with ops.backend("cpu"):
        one, other = (ops.expectations(*each) for each in (case, case._replace(transition=varying)))
    assert_equal(one[0], other[0])
    assert_equal(one[1], other[1])
    assert_equal(one[2], other[2].sum(1))


def test_a_few_states_take_the_whole_matrix():
    assert scaled.sweep(5, True) is not scaled.sweep(5, False)
    assert list(launch._kinds(left_to_right(6, 4).transition.numpy(), 2)) == [(0, 2, False)]
