"""The most likely path with stays of a least duration, against all paths."""

from itertools import groupby, product

import numpy as np
import pytest
import torch

from pyro_regimes.kernels import ops
from tests import seeds


def brute_force(chain: list[torch.Tensor], n: int) -> tuple[float, tuple[int, ...] | None]:
    """The best of all paths whose inner stays have at least n steps, and its score."""
    num_steps, num_states = chain[2].shape
    best, found = -torch.inf, None
    numbers = [each.numpy() for each in chain]
    for path in product(range(num_states), repeat=num_steps):
        stays = [len(list(stay)) for _, stay in groupby(path)]
        if any(stay < n for stay in stays[1:-1]):
            continue
        total = score(numbers, path)
        if total > best:
            best, found = total, path
    return best, found


def score(chain: list[np.ndarray], path: tuple[int, ...]) -> float:
    initial, transition, logits = chain
    total = float(initial[path[0]] + logits[0, path[0]])
    for step in range(1, len(path)):
        slice_ = transition[0 if len(transition) == 1 else step - 1]
        total += float(slice_[path[step - 1], path[step]] + logits[step, path[step]])
    return total


def make(num_steps: int, num_states: int, varies: bool, seed: int) -> list[torch.Tensor]:
    draw = seeds.generator(seed)
    slices = num_steps - 1 if varies else 1
    shapes = (num_states,), (slices, num_states, num_states), (num_steps, num_states)
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("num_steps, num_states", [(1, 2), (2, 2), (8, 2), (7, 3), (8, 1)])
@pytest.mark.parametrize("varies", [False, True])
def test_it_is_the_best_of_all_paths(
    n: int, num_steps: int, num_states: int, varies: bool
) -> None:
    for seed in range(3):
        chain = make(num_steps, num_states, varies, seed)
        path = ops.min_duration_viterbi(*chain, n)
        assert path.dtype == torch.long
        best, found = brute_force(chain, n)
        assert tuple(path.tolist()) == found
        assert score([each.numpy() for each in chain], found) == pytest.approx(best)


@pytest.mark.parametrize("n", [2, 3])
def test_transitions_and_observations_of_probability_zero(n: int) -> None:
    for seed in range(20):
        chain = make(7, 3, False, seed)
        for each in chain[1:]:
            each[torch.rand(each.shape, generator=seeds.generator(seed)) < 0.25] = -torch.inf
        best, found = brute_force(chain, n)
        path = ops.min_duration_viterbi(*chain, n).tolist()
        assert path == ([-1] * 7 if found is None else list(found))


def test_a_duration_of_one_is_viterbi() -> None:
    chain = make(500, 4, False, 3)
    assert torch.equal(ops.min_duration_viterbi(*chain, 1), ops.viterbi(*chain))
