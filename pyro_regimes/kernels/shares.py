"""Probabilities from expected counts."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.kernels.transforms import are_transforms_active, is_untransformed

_FLOATS = (torch.float32, torch.float64)


def shares_of(counts: Tensor, old: Tensor) -> Tensor:
    """Each row of counts over its sum, ``(n, K)``, in the dtype of ``old``.

    A row without counts is NaN. A probability that underflows to 0 is set to the least positive
    number, unless it was 0 before: EM cannot change a zero, and a model that takes its logarithm
    gets NaN gradients.

    :param old: the probabilities before, ``(n, K)``.
    """
    tiny, given = torch.finfo(old.dtype).tiny, (counts, old)
    is_served = all(each.device.type == "cpu" and each.dtype in _FLOATS for each in given)
    if is_served and is_untransformed(*given) and not are_transforms_active():
        from pyro_regimes.kernels.cpu.m_step import fill_shares

        found = torch.empty(old.shape, dtype=old.dtype, device="cpu")
        arrays = (each.detach().contiguous().numpy() for each in given)
        fill_shares(*arrays, tiny, found.numpy())
        return found
    total = counts.sum(-1, keepdim=True)
    probs = (counts / total.masked_fill(~(total > tiny), torch.nan)).to(old.dtype)
    return torch.where(old > 0, probs.clamp(min=tiny), probs)
