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

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_regimes.emissions.update import (
    Natural,
    Observed,
    Update,
    divide,
    divide_where_known,
    finite,
    is_at_floor,
    shift,
    unchanged,
)
from pyro_regimes.kernels import ops

FAMILY = (Normal, dist.Normal)
MAX_EVENT_DIM = math.inf


def arguments(observation_dist: Normal) -> dict[str, Tensor]:
    """Location and standard deviation, each ``(..., 1 or T, K, *event)``."""
    return {"loc": observation_dist.loc, "scale": observation_dist.scale}


def log_prob(value: Tensor, given: dict[str, Tensor], event_dim: int) -> Tensor:
    """:math:`\\log N(x_t; \\mu_k, \\sigma_k^2)`, summed over the series of one observation.

    :param value: ``(..., T, *event)``.
    :return: ``(..., T, K)``.
    """
    arguments = given["loc"], given["scale"]
    if _are_constant_series(arguments, event_dim):
        loc, scale = (_by_series(each, event_dim) for each in arguments)
        value = value if event_dim else value.unsqueeze(-1)
        return ops.gaussian_log_prob_diagonal(value, loc, scale)
    each = Normal(*arguments, validate_args=False).log_prob(value.unsqueeze(-1 - event_dim))
    return each.sum(list(range(-event_dim, 0))) if event_dim else each


def _are_constant_series(arguments: tuple[Tensor, ...], event_dim: int) -> bool:
    """Whether an observation is a number or a row of them, whose arguments do not vary in time."""
    return event_dim < 2 and all(
        each.dim() < 2 + event_dim or each.shape[-2 - event_dim] == 1 for each in arguments
    )


def _by_series(argument: Tensor, event_dim: int) -> Tensor:
    """``(..., K, D)`` of an argument that does not vary in time."""
    return ops.without_time(argument if event_dim else argument.unsqueeze(-1), 2)


def _pooled_over_time(observed: Observed, loc: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and total of the values, or of their squared distances from ``loc``.

    :return: both ``(..., 1, K, *event)``.
    """
    event_dim = observed.value.dim() - observed.weights.dim()
    value = observed.value.squeeze(-1 - event_dim)
    value = value if event_dim else value.unsqueeze(-1)  # (..., T, D)
    if loc is None:
        weight, total = ops.weighted_sums(value, observed.weights)
    else:
        weight = observed.weights.sum(-2)
        total = ops.weighted_scatter_diagonal(value, observed.weights, _by_series(loc, event_dim))
    weight, total = weight.unsqueeze(-1).expand(total.shape).unsqueeze(-3), total.unsqueeze(-3)
    return (weight, total) if event_dim else (weight.squeeze(-1), total.squeeze(-1))


def _weights(observed: Observed) -> Tensor:
    """``(..., T, K, *ones)``"""
    event = observed.value.dim() - observed.weights.dim()
    return observed.weights.reshape(observed.weights.shape + (1,) * event)


def _over_time(terms: Tensor, observed: Observed) -> Tensor:
    time = observed.weights.dim() - 2
    return terms if observed.varies else terms.sum(time, keepdim=True)


def _is_pooled(observed: Observed, given: dict[str, Tensor]) -> bool:
    event_dim = observed.value.dim() - observed.weights.dim()
    arguments = tuple(given.values())
    return not observed.varies and _are_constant_series(arguments, event_dim)


def _location_statistics(
    observed: Observed, given: dict[str, Tensor], shared: bool
) -> tuple[Tensor, Tensor]:
    if _is_pooled(observed, given):
        weight, total = _pooled_over_time(observed, None)
        precision = given["scale"] ** -2 if shared else None
        return (weight, total) if precision is None else (weight * precision, total * precision)
    weights = _weights(observed)
    if shared:
        weights = weights / given["scale"] ** 2
    total = _over_time(weights * observed.value, observed)
    return _over_time(weights, observed).expand(total.shape), total


def _scale_statistics(
    observed: Observed, given: dict[str, Tensor], shared: bool
) -> tuple[Tensor, Tensor]:
    if _is_pooled(observed, given):
        return _pooled_over_time(observed, given["loc"])
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


def _is_positive(scale: Tensor) -> Tensor:
    return scale.isfinite() & (scale >= torch.finfo(scale.dtype).tiny)


def _location_score(statistics: tuple[Tensor, ...], loc: Tensor) -> Tensor:
    weight, total = statistics
    return total - weight * loc


def _location_gain(
    score: Tensor, statistics: tuple[Tensor, ...], loc: Tensor, floor: float
) -> Tensor:
    return divide_where_known(0.5 * score**2, statistics[0])


def _scale_score(statistics: tuple[Tensor, ...], scale: Tensor) -> Tensor:
    weight, total = statistics
    return total / scale**2 - weight


def _scale_gain(
    score: Tensor, statistics: tuple[Tensor, ...], scale: Tensor, floor: float
) -> Tensor:
    at_floor = is_at_floor((scale**2).unsqueeze(-1), floor).squeeze(-1)
    blocked = at_floor & (score < 0)
    return divide_where_known(0.25 * score**2, statistics[0]).masked_fill(blocked, 0.0)


def _stretch(scale: Tensor, by: Tensor) -> Tensor:
    return scale * (1 + by)


UPDATES = (
    Update(
        "loc",
        0,
        True,
        _location_statistics,
        _mean,
        unchanged,
        finite,
        "weighted mean (35)",
        Natural(shift, _location_score, _location_gain),
    ),
    Update(
        "scale",
        0,
        True,
        _scale_statistics,
        _standard_deviation,
        _feasible,
        _is_positive,
        "weighted sd (41)",
        Natural(_stretch, _scale_score, _scale_gain),
    ),
)
