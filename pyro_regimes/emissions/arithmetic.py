"""Short functions of tensors that several families use."""

from __future__ import annotations

import torch
from torch import Tensor


def is_at_floor(values: Tensor, floor: float) -> Tensor:
    """Whether variances, or the eigenvalues of covariances ``(..., D)``, are at the floor.

    The tolerance is the rounding error of the largest of them plus 1e-6 of the floor.
    """
    rounding = 64 * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    return values <= floor * (1 + 1e-6) + rounding


def divide(total: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean ``total / weight``; NaN if the weight is 0."""
    tiny = torch.finfo(weight.dtype).tiny
    return total / weight.masked_fill(weight < tiny, torch.nan)


def divide_where_known(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``; if the weight is 0, 0 for a total of 0 and infinity otherwise."""
    known = weight > 0
    ratio = total / weight.masked_fill(~known, 1.0)
    return torch.where(known, ratio, torch.where(total == 0, 0.0, torch.inf))


def as_real(value: Tensor, like: Tensor) -> Tensor:
    """Observations in the dtype in which they meet an argument; integers have no logarithm."""
    dtype = value.dtype if value.is_floating_point() else like.dtype
    return value.to(torch.promote_types(dtype, like.dtype))


def over_event(each: Tensor, event_dim: int) -> Tensor:
    """The sum over the elements of one observation, the last dims."""
    return each.sum(list(range(-event_dim, 0))) if event_dim else each
