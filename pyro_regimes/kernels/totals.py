"""Sums over time, and whether all entries are finite; without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.kernels.transforms import are_transforms_active, is_untransformed

_FLOATS = (torch.float32, torch.float64)


def is_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite, for tensors whose numbers Python may look at."""
    value = value.detach() if value.requires_grad else value
    is_served = value.device.type == "cpu" and value.dtype in _FLOATS and value.is_contiguous()
    if is_served and is_untransformed(value) and not are_transforms_active():
        from pyro_regimes.kernels.cpu.finite import all_finite

        return all_finite(value.numpy())
    # A finite sum has finite terms; one that is not may have overflowed.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def sum_over(part: Tensor, dim: int) -> Tensor:
    """``part.sum(dim, keepdim=True)`` of floating-point numbers, without gradients.

    On the CPU the sum is float64 and has one order, so that its digits depend neither on the other
    dims nor on the number of threads.
    """
    if part.device.type != "cpu" or part.dtype not in _FLOATS:
        return part.sum(dim, keepdim=True)
    from pyro_regimes.kernels.cpu.totals import sum_rows

    dim %= part.dim()
    lead, trail = part.shape[:dim], part.shape[dim + 1 :]
    found = sum_rows(part.reshape(lead.numel(), part.shape[dim], trail.numel()))
    return found.reshape(lead + (1,) + trail)
