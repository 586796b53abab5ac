"""Logarithms that may be -inf, with gradients that are never NaN."""

from __future__ import annotations

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
