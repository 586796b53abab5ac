"""Expected totals of independent observations."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.emissions import moments
from pyro_regimes.emissions.base import Observed
from pyro_regimes.emissions.statistics import Totals
from pyro_regimes.kernels import ops


def take(observed: Observed) -> Totals:
    """The weight and the weighted sum of each element, ``(..., 1 or T, K, *event)``."""
    value = observed.value
    origin = value.new_zeros(value.shape[value.dim() - observed.event_dim :])
    found = moments.take(observed, origin, is_full=False, with_second=False)
    return Totals(found.weight.expand(found.first.shape), found.first)


def over_time(observed: Observed, part: Tensor) -> Tensor:
    """The weighted sum of ``(..., T, K or 1, *event)``, or its terms if the site varies in time."""
    weights = observed.weights.reshape(observed.weights.shape + (1,) * observed.event_dim)
    found = weights * part
    return found if observed.varies else ops.sum_over(found, observed.weights.dim() - 2)


def of_sums(sums: Tensor, event_shape: torch.Size) -> Totals:
    """The same, from the sums of each element, of 1, and of anything else: ``(..., S)``."""
    size, lead = event_shape.numel(), sums.shape[:-1]
    total = sums[..., :size].reshape(lead + event_shape)
    weight = sums[..., size].reshape(lead + (1,) * len(event_shape))
    return Totals(weight.expand(total.shape), total)
