"""Sums over time, without gradients on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_over(part: Tensor, dim: int) -> Tensor:
    """``part.sum(dim, keepdim=True)`` of floating-point numbers, without gradients.

    On the CPU the sum is float64 and has one order, so that its digits depend neither on the other
    dims nor on the number of threads.
    """
    if part.device.type != "cpu" or part.dtype not in (torch.float32, torch.float64):
        return part.sum(dim, keepdim=True)
    from pyro_regimes.kernels.cpu.totals import sum_rows

    dim %= part.dim()
    lead, trail = part.shape[:dim], part.shape[dim + 1 :]
    found = sum_rows(part.reshape(lead.numel(), part.shape[dim], trail.numel()))
    return found.reshape(lead + (1,) + trail)
