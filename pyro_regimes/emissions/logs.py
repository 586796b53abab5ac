r"""Logarithms of probabilities that may be exactly 0, with gradients that are never NaN.

The logarithm of 0 is -inf, and its derivative is defined as 0. A product of a count of 0 with it is
0, as :math:`0^0 = 1`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_regimes.emissions.arithmetic import over_event
from pyro_regimes.kernels.ops import can_be_seen, safe_log


def safe_log_complement(probs: Tensor) -> Tensor:
    """log(1 - p), with value -inf and derivative 0 at 1."""
    certain = probs == 1
    return (-probs.masked_fill(certain, 0.0)).log1p().masked_fill(certain, -torch.inf)


class Outcomes(NamedTuple):
    """Log probabilities of an event and of its complement, float64: counts multiply them."""

    success: Tensor
    failure: Tensor
    dtype: torch.dtype  #: that of the argument


def outcomes_of_probs(probs: Tensor, log: Callable[[Tensor], Tensor] = safe_log) -> Outcomes:
    """log p and log(1 - p)."""
    wide = probs.double()
    return Outcomes(log(wide), safe_log_complement(wide), probs.dtype)


def outcomes_of_logits(logits: Tensor) -> Outcomes:
    """log p and log(1 - p) of a probability with these logits."""
    wide = logits.double()
    return Outcomes(logsigmoid(wide), logsigmoid(-wide), logits.dtype)


def is_empty(mask: Tensor) -> bool:
    """Whether a mask is known to be False everywhere, on the CPU, where asking costs little."""
    return mask.device.type == "cpu" and can_be_seen(mask) and not bool(mask.any())


def times(count: Tensor, logits: Tensor) -> Tensor:
    """``count * logits``, with 0 for a count of 0 of an event of probability 0."""
    impossible = logits == -torch.inf
    if is_empty(impossible):
        return count * logits
    finite = count * logits.masked_fill(impossible, 0.0)
    return finite.masked_fill(impossible & ((count < 0) | (count > 0)), -torch.inf)


def sum_of_products(count: Tensor, logits: Tensor, event_dim: int) -> Tensor:
    """The sum of :func:`times` over the last dims, by a matrix product where it is one.

    :param count: ``(..., T, 1, *event)``.
    :param logits: ``(..., K, *event)``.
    :return: ``(..., T, K)``.
    """
    shared = logits.dim() == 1 + event_dim  # by all sequences and steps
    if event_dim and shared and count.shape[-1 - event_dim] == 1 and is_empty(logits == -torch.inf):
        rows = count.flatten(-event_dim).squeeze(-2)
        return rows @ logits.expand((-1,) + count.shape[-event_dim:]).flatten(1).mT
    return over_event(times(count, logits), event_dim)
