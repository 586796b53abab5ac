"""The stationary distribution of a transition matrix."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_regimes import stationary_probs
from tests import seeds


def matrices(*shape: int) -> torch.Tensor:
    drawn = torch.rand(shape, generator=seeds.generator(3), dtype=torch.float64)
    return drawn / drawn.sum(-1, keepdim=True)


@pytest.mark.parametrize("num_states", [1, 2, 3, 7])
def test_it_does_not_change_by_a_step(num_states):
    matrix = matrices(4, 2, num_states, num_states)
    probs = stationary_probs(matrix)
    assert probs.shape == (4, 2, num_states)
    assert_close((probs.unsqueeze(-2) @ matrix).squeeze(-2), probs, rtol=1e-13, atol=0)
    assert_close(probs.sum(-1), torch.ones(4, 2).double(), rtol=1e-14, atol=0)


def test_the_smallest_probability_is_as_accurate_as_the_largest():
    """A birth and death chain: pi_i+1 / pi_i = up / down."""
    up, size = 1e-5, 8
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size - 1):
        matrix[i, i + 1], matrix[i + 1, i] = up, 0.5
    matrix += torch.diag(1 - matrix.sum(-1))
    expected = (up / 0.5) ** torch.arange(size).double()
    assert_close(stationary_probs(matrix), expected / expected.sum(), rtol=1e-13, atol=0)


def test_gradients():
    logits = matrices(3, 4, 4).log().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: stationary_probs(each.softmax(-1)), logits)
    assert torch.autograd.gradgradcheck(lambda each: stationary_probs(each.softmax(-1)), logits)
    assert torch.autograd.gradcheck(stationary_probs, matrices(2, 3, 3).requires_grad_())


def test_states_that_are_left_for_good():
    one = torch.tensor([[1.0, 0, 0], [0.2, 0.5, 0.3], [0.1, 0.4, 0.5]])
    last = torch.tensor([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1.0]])
    found = stationary_probs(torch.stack([one, last]))
    assert found.tolist() == [[1, 0, 0], [0, 0, 1]]
    pair = torch.tensor([[0.5, 0.25, 0.25], [0, 0.5, 0.5], [0, 0.25, 0.75]]).double()
    assert_close(stationary_probs(pair), torch.tensor([0, 1 / 3, 2 / 3]).double())


def test_a_state_that_is_left_hardly_ever():
    matrix = torch.tensor([[1 - 1e-13, 1e-13], [0, 1]]).double()
    assert stationary_probs(matrix).tolist() == [0, 1]


def test_a_chain_with_a_period():
    assert_close(stationary_probs(torch.tensor([[0.0, 1], [1, 0]])), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    "matrix, message",
    [
        (torch.eye(2), "one stationary distribution, got a matrix with several"),
        (
            torch.tensor([[0.2, 0.4, 0.4], [0, 1.0, 0], [0, 0, 1.0]]),
            "one stationary distribution, got a matrix with several",
        ),
        (torch.tensor([[0.0, 0.0], [0.5, 0.5]]), r"non-negative, with a positive sum, got \[0.0"),
        (torch.tensor([[1.5, -0.5], [0.5, 0.5]]), r"non-negative, with a positive sum, got \[1.5"),
        (torch.tensor([[torch.nan, 1], [0.5, 0.5]]), r"with a positive sum, got \[nan"),
        (torch.eye(2).long(), "to be a floating point tensor, got torch.int64"),
        ([[1.0]], "to be a floating point tensor, got list; use torch.as_tensor"),
        (torch.ones(2, 3), r"shape \(\.\.\., K, K\), got \(2, 3\)"),
        (torch.ones(2), r"shape \(\.\.\., K, K\), got \(2,\)"),
    ],
)
def test_what_has_none(matrix, message):
    with pytest.raises(ValueError, match=message):
        stationary_probs(matrix)
