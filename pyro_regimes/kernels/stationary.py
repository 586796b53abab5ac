r"""The stationary distribution of a transition matrix, :math:`\pi = \pi A`, and its M-step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.kernels.transforms import are_transforms_active, is_plain


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
    if not isinstance(transition_probs, Tensor) or not transition_probs.is_floating_point():
        came = getattr(transition_probs, "dtype", type(transition_probs).__name__)
        raise ValueError(
            f"expected transition_probs to be a floating point tensor, got {came}; use "
            "torch.as_tensor(value)"
        )
    if transition_probs.dim() < 2 or transition_probs.shape[-1] != transition_probs.shape[-2]:
        raise ValueError(
            "expected transition_probs to have shape (..., K, K), got "
            f"{tuple(transition_probs.shape)}"
        )
    if _has_kernel(transition_probs):
        compiled = _compiled(transition_probs)
        if compiled is not None:
            return compiled
    total = transition_probs.sum(-1, keepdim=True)
    matrix = transition_probs / total
    order = _recurrent_first(matrix.detach())
    num_states = matrix.shape[-1]
    rows = order.unsqueeze(-1).expand(matrix.shape)
    reduced = matrix.gather(-2, rows).gather(-1, rows.mT)
    weights = []
    for last in range(num_states - 1, 0, -1):
        row = reduced[..., last, :last]
        column = reduced[..., :last, last] / row.sum(-1, keepdim=True)
        weights.append(column)
        reduced = reduced[..., :last, :last] + column.unsqueeze(-1) * row.unsqueeze(-2)
    found = torch.ones_like(matrix[..., 0, :1])
    for column in reversed(weights):  # of the states after the first, in order
        found = torch.cat([found, (found * column).sum(-1, keepdim=True)], -1)
    found = found / found.sum(-1, keepdim=True)
    if not bool((found.detach() >= 0).all() & (total.detach() > 0).all()):  # nor NaN
        raise ValueError(_why_none(transition_probs.detach()))
    return found.gather(-1, order.argsort(-1))


def _has_kernel(*given: Tensor) -> bool:
    """Whether there are compiled kernels for these tensors, matrices ``(..., K, K)`` the first."""
    from pyro_regimes.kernels.cpu.stationary import MAX_STATES

    return (
        all(each.device.type == "cpu" for each in given)
        and 0 < given[0].shape[-1] <= MAX_STATES
        and is_plain(*given)
        and not are_transforms_active()
    )


def _compiled(transition_probs: Tensor) -> Tensor | None:
    """The stationary distributions; None if the compiled kernel does not serve some matrix."""
    from pyro_regimes.kernels.cpu.stationary import fill_stationary

    matrices = transition_probs.detach().double().contiguous()
    found = matrices.new_empty(matrices.shape[:-1])
    size = matrices.shape[-1]
    arrays = matrices.reshape(-1, size, size).numpy(), found.view(-1, size).numpy()
    if not fill_stationary(*arrays, np.empty(len(arrays[0]), dtype=np.bool_)):
        return None
    return found.to(transition_probs.dtype)


def maximise_stationary(
    transitions: Tensor, starts: Tensor, old: Tensor, limits: tuple[int, int, float, float]
) -> tuple[Tensor, Tensor] | None:
    r"""The matrices that maximise :math:`\sum c_{ij} \log A_{ij} + \sum g_i \log \pi_i(A)`.

    :param transitions: c, ``(P, K, K)``.
    :param starts: g, ``(P, K)``.
    :param old: matrices to begin from, ``(P, K, K)``.
    :param limits: the numbers of steps and of halvings, the least gain as a share of Q, and the
        longest step of the logarithm of a probability.
    :return: with the matrices for which they are found, ``(P,)``; None without a kernel.
    """
    if not _has_kernel(old, transitions, starts):
        return None
    from pyro_regimes.kernels.cpu.stationary import maximise_stationary as kernel

    arrays = [each.detach().double().contiguous().numpy() for each in (transitions, starts, old)]
    found = np.empty_like(arrays[2])
    served = np.empty(len(found), dtype=np.bool_)
    kernel(*arrays, torch.finfo(old.dtype).tiny, limits, found, served)
    return torch.from_numpy(found).to(old.dtype), torch.from_numpy(served)


def _reaches(matrix: Tensor) -> Tensor:
    """Whether each state can be reached from each other one, ``(..., K, K)``; itself always."""
    num_states = matrix.shape[-1]
    reached = (matrix > 0).double() + torch.eye(num_states, device=matrix.device).double()
    steps = 1
    while steps < num_states:
        reached, steps = ((reached @ reached) > 0).double(), 2 * steps
    return reached > 0


def _recurrent(matrix: Tensor) -> Tensor:
    """Whether the chain comes back to each state for sure, ``(..., K)``."""
    reached = _reaches(matrix)
    return ~(reached & ~reached.mT).any(-1)


def _recurrent_first(matrix: Tensor) -> Tensor:
    """The states of each matrix, beginning with one to which the chain comes back: ``(..., K)``."""
    states = torch.arange(matrix.shape[-1], device=matrix.device).expand(matrix.shape[:-1])
    if matrix.device.type == "cpu" and bool((matrix > 0).all()):
        return states
    first = _recurrent(matrix).double().argmax(-1, keepdim=True)
    return torch.where(states == 0, first, torch.where(states == first, 0, states))


def _why_none(transition_probs: Tensor) -> str:
    """The message for matrices of which some has no, or no single, stationary distribution."""
    sums = transition_probs.sum(-1)
    wrong = ~((transition_probs >= 0).all(-1) & (sums > 0) & sums.isfinite())
    if bool(wrong.any()):
        return (
            "expected the rows of transition_probs to be non-negative, with a positive sum, got "
            f"{transition_probs[wrong][0].tolist()}"
        )
    return (
        "expected transition_probs with one stationary distribution, got a matrix with several: "
        "some states cannot be reached from others"
    )
