"""The compiled M-step of stationary chains is that of tensor operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes.chain import stationary
from pyro_regimes.chain.stationary import StationaryCounts, objective
from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu.stationary import MAX_STATES
from tests import seeds


def draw(num_states: int, count: int = 40, seed: int = 0) -> tuple[StationaryCounts, Tensor]:
    """Expected counts of short and of long chains, and matrices from which they may come."""
    generator = seeds.generator(seed + num_states)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    old = uniform(count, num_states, num_states) ** 3 + 1e-9
    sizes = 10 ** (4 * uniform(count, 1, 1))
    counts = sizes * uniform(count, num_states, num_states) ** 4
    firsts = 5 * uniform(count, num_states) ** 2
    return StationaryCounts(counts, firsts), old / old.sum(-1, keepdim=True)


def both(pooled: StationaryCounts, old: Tensor) -> tuple[Tensor, Tensor]:
    return stationary._maximise(pooled, old, 0.0), stationary._climb(pooled, old)


@pytest.mark.parametrize("num_states", [1, 2, 3, 5, MAX_STATES])
def test_the_maximum_of_tensor_operations(num_states):
    pooled, old = draw(num_states)
    found, expected = both(pooled, old)
    assert_close(objective(pooled, found), objective(pooled, expected), rtol=1e-12, atol=1e-12)
    assert_close(found, expected, rtol=0, atol=1e-6)  # Q is flat where a chain is short


def test_the_derivative_vanishes_where_no_entry_is_near_zero():
    pooled, old = draw(3, seed=1)
    pooled = pooled._replace(transitions=pooled.transitions + 50.0)
    found, _ = both(pooled, old)
    score = stationary._score(pooled, found)
    assert float((score.abs() / pooled.transitions.sum((-2, -1), keepdim=True)).max()) < 1e-7


def test_zeros_stay_and_rows_without_counts_are_kept():
    pooled, old = draw(4, seed=2)
    old[:, 0, 2] = old[:, 3, 1] = 0.0
    old = old / old.sum(-1, keepdim=True)
    counts, firsts = pooled.transitions.clone(), pooled.initial.clone()
    counts[::2, 1], firsts[::2, 1] = 0.0, 0.0
    found, expected = both(StationaryCounts(counts, firsts), old)
    assert (found[:, 0, 2] == 0).all() and (found[:, 3, 1] == 0).all()
    assert torch.equal(found[::2, 1], old[::2, 1])
    assert_close(found, expected, rtol=0, atol=1e-6)


def test_float32_is_a_storage_format():
    pooled, old = draw(3, seed=3)
    found, _ = both(pooled, old.float())
    wide, _ = both(pooled, old.float().double())
    assert found.dtype == torch.float32
    assert_close(found, wide.float(), rtol=1e-6, atol=1e-37)


def test_a_matrix_does_not_depend_on_others():
    pooled, old = draw(3, count=7, seed=4)
    together = stationary._maximise(pooled, old, 0.0)
    for index in range(7):
        part = slice(index, index + 1)
        own = StationaryCounts(*(each[part] for each in pooled))
        assert torch.equal(stationary._maximise(own, old[part], 0.0), together[part])


def test_a_chain_that_hardly_moves():
    """I - A + 1 pi is singular to the last digit: the counts' own shares are kept."""
    old = torch.tensor([[[1.0, 1e-300], [1e-300, 1.0]]], dtype=torch.float64)
    counts = torch.tensor([[[50.0, 1e-298], [1e-298, 50.0]]], dtype=torch.float64)
    pooled = StationaryCounts(counts, torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    found = stationary._maximise(pooled, old, 0.0)
    assert found.isfinite().all()
    assert bool(objective(pooled, found) >= objective(pooled, old))


def test_matrices_that_are_not_served_take_tensor_operations():
    """A first state that is left for good."""
    pooled, old = draw(3, count=4, seed=5)
    old[1, 1:, 0] = old[3, 1:, 0] = 0.0
    old = old / old.sum(-1, keepdim=True)
    initial = pooled.initial.clone()
    initial[[1, 3], 0] = 0.0
    pooled = pooled._replace(initial=initial)
    limits = 50, 12, 1e-15, 5.0
    found = ops.maximise_stationary(*pooled, old, limits)
    assert found is not None and found[1].tolist() == [True, False, True, False]
    one, other = both(pooled, old)
    assert_close(one, other, rtol=0, atol=1e-6)


def test_stationary_probs_with_and_without_a_gradient():
    _, probs = draw(5, seed=6)
    probs[3, 1:, 0] = 0.0  # the first state is left for good
    probs = probs / probs.sum(-1, keepdim=True)
    plain = ops.stationary_probs(probs)
    recorded = ops.stationary_probs(probs.clone().requires_grad_())
    assert_close(plain, recorded.detach(), rtol=1e-13, atol=1e-300)
    assert float(plain[3, 0]) == 0.0
    assert_close((plain.unsqueeze(-2) @ probs).squeeze(-2), plain, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "matrix", [torch.eye(3), torch.full((3, 3), -1.0), torch.full((2, 2), float("nan"))]
)
def test_matrices_without_one_distribution_are_refused_as_before(matrix):
    for given in (matrix, matrix.clone().requires_grad_()):
        with pytest.raises(ValueError, match="expected "):
            ops.stationary_probs(given)
