"""Independent Gaussian series: ``Normal(loc, scale)``, alone or as ``.to_event(n)``.

.. math::
    \\mu_k = \\frac{\\sum_t \\gamma_t(k) x_t}{\\sum_t \\gamma_t(k)}, \\qquad
    \\sigma_k^2 = \\frac{\\sum_t \\gamma_t(k) (x_t - \\mu_k)^2}{\\sum_t \\gamma_t(k)}

(equations 35 and 41, series by series; Bilmes 1998). Both sums run over everything that shares the
parameter. A location that is shared over different scales is the mean weighted with
:math:`\\gamma_t(k) / \\sigma_k^2`, which maximises the likelihood given the scales; the scales then
follow about the new location (ECM: Meng and Rubin 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_regimes.emissions.update import Observed, Update, divide, unchanged

FAMILY = Normal


def arguments(observation_dist: Normal) -> dict[str, Tensor]:
    """Location and standard deviation, each ``(..., 1 or T, K, *event)``."""
    return {"loc": observation_dist.loc, "scale": observation_dist.scale}


def log_prob(value: Tensor, given: dict[str, Tensor], event_dim: int) -> Tensor:
    """:math:`\\log N(x_t; \\mu_k, \\sigma_k^2)`, summed over the series of one observation.

    :param value: ``(..., T, *event)``.
    :return: ``(..., T, K)``.
    """
    normal = Normal(given["loc"], given["scale"], validate_args=False)
    each = normal.log_prob(value.unsqueeze(-1 - event_dim))
    return each.sum(list(range(-event_dim, 0))) if event_dim else each


def _weights(observed: Observed) -> Tensor:
    """``(..., T, K, *ones)``"""
    event = observed.value.dim() - observed.weights.dim()
    return observed.weights.reshape(observed.weights.shape + (1,) * event)


def _over_time(terms: Tensor, observed: Observed) -> Tensor:
    time = observed.weights.dim() - 2
    return terms if observed.varies else terms.sum(time, keepdim=True)


def _location_statistics(
    observed: Observed, given: dict[str, Tensor], shared: bool
) -> tuple[Tensor, Tensor]:
    weights = _weights(observed)
    if shared:
        weights = weights / given["scale"] ** 2
    total = _over_time(weights * observed.value, observed)
    return _over_time(weights, observed).expand(total.shape), total


def _scale_statistics(
    observed: Observed, given: dict[str, Tensor], shared: bool
) -> tuple[Tensor, Tensor]:
    weights = _weights(observed)
    total = _over_time(weights * (observed.value - given["loc"]) ** 2, observed)
    return _over_time(weights, observed).expand(total.shape), total


def _mean(statistics: tuple[Tensor, ...], floor: float) -> Tensor:
    weight, total = statistics
    return divide(total, weight)


def _standard_deviation(statistics: tuple[Tensor, ...], floor: float) -> Tensor:
    weight, total = statistics
    scale = divide(total, weight).clamp(min=floor).sqrt()
    # Without spread and without a floor the likelihood has no maximum.
    return scale.masked_fill(scale < torch.finfo(scale.dtype).tiny, torch.nan)


def _feasible(scale: Tensor, floor: float) -> Tensor:
    return scale.clamp(min=floor**0.5)


UPDATES = (
    Update("loc", 0, True, _location_statistics, _mean, unchanged, "weighted mean (35)"),
    Update("scale", 0, True, _scale_statistics, _standard_deviation, _feasible, "weighted sd (41)"),
)
