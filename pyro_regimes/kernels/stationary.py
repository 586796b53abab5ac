r"""The stationary distribution of a transition matrix, :math:`\pi = \pi A`."""

from __future__ import annotations

import torch
from torch import Tensor

_DOUBLINGS = 40  # of the steps after which the long run has come


def stationary_probs(transition_probs: Tensor) -> Tensor:
    r"""The stationary distribution of a transition matrix, :math:`\pi = \pi A`.

    It is computed by elimination without subtractions (Grassmann, Taksar and Heyman 1985), so that
    the smallest probability is as accurate as the largest. Rows are normalised first. The result is
    differentiable.

    :param transition_probs: ``(..., K, K)``, (old, new).
    :return: ``(..., K)``, exactly 0 for a state that the chain leaves for good.
    :raises ValueError: if the last two dims differ, or some matrix has several stationary
        distributions, because it has several classes of states that are never left.
    """
    if transition_probs.dim() < 2 or transition_probs.shape[-1] != transition_probs.shape[-2]:
        raise ValueError(
            "expected transition_probs to have shape (..., K, K), got "
            f"{tuple(transition_probs.shape)}"
        )
    matrix = transition_probs / transition_probs.sum(-1, keepdim=True)
    order = _recurrent_first(matrix.detach())
    num_states = matrix.shape[-1]
    rows = order.unsqueeze(-1).expand(matrix.shape)
    reduced = matrix.gather(-2, rows).gather(-1, rows.mT)
    weights, leaving = [], []
    for last in range(num_states - 1, 0, -1):
        row = reduced[..., last, :last]
        total = row.sum(-1, keepdim=True)
        column = reduced[..., :last, last] / total
        leaving.append(total.detach())
        weights.append(column)
        reduced = reduced[..., :last, :last] + column.unsqueeze(-1) * row.unsqueeze(-2)
    if leaving and not bool((torch.cat(leaving, -1) > 0).all()):
        raise ValueError(
            "expected transition_probs with one stationary distribution, got a matrix with "
            "several: some states cannot be reached from others"
        )
    found = torch.ones_like(matrix[..., 0, :1])
    for column in reversed(weights):  # of the states after the first, in order
        found = torch.cat([found, (found * column).sum(-1, keepdim=True)], -1)
    found = found / found.sum(-1, keepdim=True)
    return found.gather(-1, order.argsort(-1))


def _recurrent_first(matrix: Tensor) -> Tensor:
    """The states of each matrix, beginning with one to which the chain comes back: ``(..., K)``."""
    num_states = matrix.shape[-1]
    states = torch.arange(num_states, device=matrix.device).expand(matrix.shape[:-1])
    if matrix.device.type == "cpu" and bool((matrix > 0).all()):
        return states
    # The average of a step and no step has the same limit, and no period.
    power = (matrix + torch.eye(num_states, dtype=matrix.dtype, device=matrix.device)) / 2
    for _ in range(_DOUBLINGS):
        power = power @ power
        power = power / power.sum(-1, keepdim=True)
    first = power[..., 0, :].argmax(-1, keepdim=True)
    return torch.where(states == 0, first, torch.where(states == first, 0, states))
