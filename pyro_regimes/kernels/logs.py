"""Logarithms that may be -inf, with gradients that are never NaN."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def safe_log(probs: Tensor) -> Tensor:
    """The logarithm, with value -inf and derivative 0 at 0."""
    impossible = probs == 0
    return probs.masked_fill(impossible, 1.0).log().masked_fill(impossible, -torch.inf)


def logsumexp(terms: Tensor, dim: int = -1) -> Tensor:
    """logsumexp along a dim; -inf, with gradient 0, where all terms are -inf."""
    peak = terms.detach().amax(dim, keepdim=True)
    peak = peak.masked_fill(peak.isinf(), 0.0)
    return safe_log((terms - peak).exp().sum(dim)) + peak.squeeze(dim)


def log_in_one_thread(probs: Tensor) -> Tensor:
    """The logarithm of a small tensor on the CPU without a gradient; -inf at 0.

    That of torch wakes its idle threads, however small the tensor is (:mod:`.cpu.resting`).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return torch.from_numpy(np.log(probs.numpy()))
