"""Expected sums of functions of the observations, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.emissions import moments
from pyro_regimes.emissions.base import Observed
from pyro_regimes.kernels import ops


def over_time(observed: Observed, *parts: Tensor) -> list[Tensor]:
    """The weight and the weighted sums of some functions, ``(..., 1 or T, K, *event)``.

    :param parts: ``(..., T, 1 or K, *event)``, finite wherever a weight is positive or 0.
    """
    weights, event_dim = observed.weights.double(), observed.event_dim
    sums = []
    for part in parts:
        part = part.double()
        if part.shape[-1 - event_dim] == 1:
            origin = part.new_zeros(part.shape[part.dim() - event_dim :])
            each = observed._replace(value=part, weights=weights)
            found = moments.take(each, origin, is_full=False, with_second=False)
            sums.append(found.first)
        else:
            product = weights.reshape(weights.shape + (1,) * event_dim) * part
            time = weights.dim() - 2
            sums.append(product if observed.varies else ops.sum_over(product, time))
    weight = weights if observed.varies else ops.sum_over(weights, -2)
    weight = weight.reshape(weight.shape + (1,) * event_dim)
    return [weight.expand(sums[0].shape), *sums]


def of_logs(observed: Observed, value: Tensor) -> list[Tensor]:
    """The weight and the weighted sum of the logarithm; -inf where a value of 0 has weight."""
    positive = value > 0
    weight, total = over_time(observed, torch.where(positive, value, 1.0).double().log())
    if not bool(positive.all()):
        zeros = over_time(observed, (~positive).double())[1]
        total = torch.where(zeros > 0, -torch.inf, total)
    return [weight, total]
