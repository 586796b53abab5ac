"""The compiled CPU kernel against the reference: sizes that hurt, chains that lose mass."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu import jit, launch, scaled
from tests import seeds
from tests.kernels import adversarial
from tests.kernels.cases import INF, Case, random_chain
from tests.kernels.test_reference import assert_equal

pytestmark = pytest.mark.usefixtures("filled_buffers")


#: The results of the sweep for the filter, which is not asked for.
NOT_FILTERED = np.empty((0, 0, 0)), np.empty(0, dtype=np.bool_)


def values_and_gradients(case: Case, name: str) -> list[Tensor]:
    """What an E-step says, and every gradient of a function of all of it."""
    leaves = [part.clone().requires_grad_() for part in case[:3]]
    with ops.backend(name):
        found = ops.expectations(*leaves, case.lengths)
        forward = ops.log_likelihood(*(leaf.detach() for leaf in leaves), case.lengths)
        generator = seeds.generator(0)
        # The same upstream gradient for both, and on padding too.
        total = sum(
            (part * torch.randn(part.shape, generator=generator, dtype=torch.float64)).sum()
            for part in found
        )
        gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
    return [forward, *(part.detach() for part in found), *gradients]


HURT = {
    f"T={num_steps}, K={num_states}, {slices} slices, N={count}": (
        num_steps, num_states, slices, count
    )
    for num_steps, num_states, slices, count in [
        (1, 1, 1, 1),
        (2, 1, 1, 3),
        (63, 2, 1, 5),
        (257, 3, 1, 2),
        (257, 4, 256, 2),
        (100, 5, 1, 3),
        (100, 7, 99, 1),
        (65, 8, 1, 2),
        (65, 9, 1, 2),
        (31, 17, 30, 2),
        (40, 32, 1, 2),
        (40, 33, 1, 1),
        (20, 128, 1, 1),
        (9, 130, 1, 1),
    ]
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("size", HURT.values(), ids=HURT.keys())
def test_equals_the_reference(size, ragged):
    num_steps, num_states, slices, count = size
    case = random_chain(num_steps, num_states, (count,), slices, seed=num_steps + num_states)
    if ragged:
        generator = seeds.generator(count)
        lengths = torch.randint(1, num_steps + 1, (count,), generator=generator)
        case = case._replace(lengths=lengths)
    pairs = zip(
        values_and_gradients(case, "cpu"), values_and_gradients(case, "reference"), strict=True
    )
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def test_float32_is_exact_to_its_own_rounding():
    """All arithmetic is float64: what is left is the rounding of the results."""
    case = random_chain(1_000, 3, (4,), seed=60, dtype=torch.float32)
    exact = ops.expectations(*(part.double() for part in case[:3]))
    found = ops.expectations(*case)
    assert torch.equal(found.log_likelihood, exact.log_likelihood)
    for actual, expected in zip(found[1:], exact[1:], strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected.float(), rtol=2e-7, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
def test_adversarial_chains(dtype, bound):
    """2,000 chains on which mass fades and comes back; the reference works in log space."""
    count = 0
    for label, case in adversarial.batches(dtype):
        with ops.backend("reference"):
            expected = ops.expectations(*(part.double() for part in case[:3]))
        found = ops.expectations(*case)
        forward = ops.log_likelihood(*case)
        assert adversarial.error(forward, expected.log_likelihood) < bound, label
        for actual, other in zip(found, expected, strict=True):
            assert not actual.isnan().any(), label
            assert adversarial.error(actual, other) < bound, label
        count += len(case.observation)
    assert count == 2_000


def test_a_sequence_is_redone_in_log_space_where_it_must():
    """A = I and gaps of one nat: the scaled sweep reports it, and does not report its neighbour."""
    half = 1_500
    gaps = torch.cat([torch.ones(half), -2.0 * torch.ones(half)]).double()
    observation = torch.stack([torch.stack([gaps, 0 * gaps], -1), torch.zeros(2 * half, 2)])
    redo = np.empty(2, dtype=np.bool_)
    for smoothed in (np.empty((2, 2 * half, 2)), np.empty((0, 0, 0))):
        scaled.sweep(2)(
            np.zeros((1, 2)),
            torch.eye(2).double().log().reshape(1, 1, 2, 2).numpy(),
            observation.numpy(),
            np.full(2, 2 * half),
            np.zeros(2, dtype=np.int64),
            0,
            2,
            np.empty(2),
            smoothed,
            np.empty((2, 1, 2, 2)),
            redo,
            *NOT_FILTERED,
        )
        assert redo.tolist() == [True, False]


def two_blocks(returns: float) -> Case:
    """From left to right: state 0 fades on the way forward, and state 2 on the way back.

    :param returns: nats of the last observation in favour of state 0.
    """
    steps = 120
    observation = torch.zeros(1, steps, 3).double()
    observation[:, :60, 1] = -30.0
    observation[:, :60, 2] = -60.0
    observation[:, 60:, 0] = -30.0
    observation[:, 60:, 1] = -15.0
    observation[:, -1, 0] = returns
    transition = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]]).double()
    initial = torch.tensor([1.0, 0.0, 0.0]).double()
    return Case(initial.log()[None], transition.log()[None, None], observation)


@pytest.mark.parametrize("returns, redone", [(-30.0, False), (400.0, False), (1900.0, True)])
def test_states_that_fade_on_both_ways(returns: float, redone: bool) -> None:
    """In log space only where what was lost may come back."""
    case = two_blocks(returns)
    redo, value = np.empty(1, dtype=np.bool_), np.empty(1)
    smoothed, moved = torch.empty(1, 120, 3).double(), torch.empty(1, 1, 3, 3).double()
    scaled.sweep(3)(
        *(part.numpy() for part in case[:3]),
        np.full(1, 120),
        np.zeros(1, np.int64),
        0,
        1,
        value,
        smoothed.numpy(),
        moved.numpy(),
        redo,
        *NOT_FILTERED,
    )
    assert redo[0] == redone
    with ops.backend("reference"):
        expected = ops.expectations(*case[:3])
    for actual, other in zip(ops.expectations(*case[:3]), expected, strict=True):
        assert_equal(actual, other)


@pytest.mark.parametrize("fading", ["left to right", "tiny start and transitions"])
def test_what_fades_for_good_costs_no_second_pass(fading):
    """A state that no later data ask for is let go, although it could be reached."""
    case = random_chain(4_000, 3, seed=61)
    if fading == "left to right":
        transition = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]).double()
        initial = torch.tensor([1.0, 0.0, 0.0]).double()
    else:  # as EM leaves them
        transition = torch.tensor([[0.9, 0.1, 1e-300], [0.1, 0.9, 0.0], [0.5, 0.5, 0.0]]).double()
        initial = torch.tensor([1.0, 1e-300, 1e-300]).double()
    redo = np.empty(1, dtype=np.bool_)
    args = initial.log()[None], transition.log()[None, None], case.observation[None]
    smoothed, moved = torch.empty(1, 4_000, 3).double(), torch.empty(1, 1, 3, 3).double()
    value = np.empty(1)
    scaled.sweep(3)(
        *(part.numpy() for part in args),
        np.full(1, 4_000),
        np.zeros(1, dtype=np.int64),
        0,
        1,
        value,
        smoothed.numpy(),
        moved.numpy(),
        redo,
        *NOT_FILTERED,
    )
    assert not redo[0]
    with ops.backend("reference"):
        expected = ops.expectations(*args)
    for actual, other in zip((torch.from_numpy(value), smoothed, moved[:, 0]), expected):
        assert_equal(actual, other)


@pytest.mark.parametrize("place", range(3), ids=["initial", "transition", "observation"])
def test_nan_gives_nan_and_stays_with_its_sequence(place):
    case = random_chain(6, 3, (2,), seed=62)
    case[place][0] = math.nan
    found = ops.expectations(*case)
    assert found.log_likelihood[0].isnan() and ops.log_likelihood(*case)[0].isnan()
    assert found.smoothed_probs[0].isnan().all() and found.expected_transitions[0].isnan().all()
    alone = ops.expectations(*(part[1] for part in case[:3]))
    for actual, expected in zip(found, alone, strict=True):
        assert torch.equal(actual[1], expected)


def test_every_transition_impossible():
    case = random_chain(4, 3, seed=63)
    case.transition.fill_(-INF)
    found = ops.expectations(*case)
    assert found.log_likelihood == -INF
    assert not found.smoothed_probs.any() and not found.expected_transitions.any()


def test_huge_logits_neither_overflow_nor_lose_digits():
    """They are free terms, and need not be probabilities."""
    case = random_chain(50, 3, seed=64)
    moved = Case(case.initial + 800, case.transition - 750, case.observation + 1e4)
    exact = ops.log_likelihood(*case) + 800 - 49 * 750 + 50 * 1e4
    assert_equal(ops.log_likelihood(*moved), exact)
    for actual, expected in zip(ops.expectations(*moved)[1:], ops.expectations(*case)[1:]):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def run_python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_are_there_after_a_fork():
    script = """
import os, torch
from pyro_regimes.kernels import ops
torch.set_num_threads(2)
chain = torch.zeros(2), torch.zeros(1, 2, 2), torch.zeros(64, 2000, 2)
alone = ops.log_likelihood(*chain)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(ops.log_likelihood(*chain), alone) else 1)
print(os.waitpid(child, 0)[1])
"""
    assert run_python(script).strip() == "0"


@pytest.mark.parametrize("num_states", [1, 3, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_sequences_in_a_row(num_states, dtype):
    """Three rows of five sequences, as one sweep and as one call for each sequence.

    One is impossible, one NaN, and one has to be done in log space; with 130 states all are.
    """
    sizes = np.array([4, 1, 700, 20, 3])
    rows, steps, count = 3, int(sizes.sum()), 3 * len(sizes)
    case = random_chain(steps, num_states, (rows,), seed=65, dtype=dtype)
    observation = case.observation.clone()
    observation[1, 2] = -math.inf
    observation[2, 4] = math.nan
    observation[0, 5:705] *= 400.0
    given = [each.numpy() for each in (case.initial, case.transition, observation)]
    lengths = np.tile(sizes, rows)
    begins = np.tile(sizes.cumsum() - sizes, rows)
    smoothed = np.full(observation.shape, np.nan, given[2].dtype)
    moved = np.full((count, 1, num_states, num_states), np.nan, given[2].dtype)
    value, redo = np.full(count, np.nan), np.ones(count, dtype=np.bool_)
    launch.sweep_arrays((*given, lengths, begins), (value, smoothed, moved, redo))
    for n in range(count):
        row, at, size = n // len(sizes), begins[n], lengths[n]
        own = case.initial[row], case.transition[row], observation[row, at : at + size]
        expected = ops.expectations(*own)
        found = torch.tensor(value[n]), torch.from_numpy(smoothed[row, at : at + size])
        found = *found, torch.from_numpy(moved[n, 0])
        torch.testing.assert_close(found, tuple(expected), rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_rows_are_spread_over_threads(threads):
    """Each sequence once, and no piece empty, with one that is longer than all others together."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for sizes in ([100_000] + [1] * 50, [1] * 50 + [100_000], [5_000] * 40, [7]):
            pieces: list[tuple[int, int]] = []
            jit.spread_rows(lambda *piece, to=pieces: to.append(piece), np.array(sizes), 9)
            pieces.sort()
            assert pieces[0][0] == 0 and pieces[-1][1] == len(sizes)
            assert all(one[1] == other[0] for one, other in zip(pieces, pieces[1:]))
            assert all(first < last for first, last in pieces)
            if sizes == [5_000] * 40:
                assert len(pieces) == threads
    finally:
        torch.set_num_threads(before)
