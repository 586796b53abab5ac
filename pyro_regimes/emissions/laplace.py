r"""The family of ``Laplace(loc, scale)``, with or without ``to_event``.

.. math:: \log b(x) = -\log 2 s - |x - \mu| / s

The location is the median of the observations, weighted with :math:`\gamma_t(k) / s_k`, and the
scale is the weighted mean of :math:`|x_t - \mu|`. The median is found from the weights on both
sides of a value and the sums of the distances there, which are taken anew for each value: where the
tangents of Q at both ends of a bracket intersect is the next one. These sums add up, so that a
location may be shared by states, series and sequences, and it takes no sorting. Observations closer
to the location than a billionth of the scale count as equal to it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Laplace, constraints

from pyro_regimes.emissions import charts, conjugate, draws, links, sums
from pyro_regimes.emissions.arithmetic import divide, divide_where_known, over_event
from pyro_regimes.emissions.base import (
    Argument,
    Arguments,
    End,
    Family,
    Natural,
    Observed,
    Search,
    apply,
)
from pyro_regimes.emissions.positive import is_positive, stretch
from pyro_regimes.emissions.statistics import Totals

#: The share of a scale by which observations may differ from a location that they are equal to.
_TIE = 1e-9

#: The rounding of sums of weights.
_ROUNDING = 1e-12

#: While only one end of a bracket is known, a step is longer than Newton's, to find the other.
_STRIDE = 1.3


class Distances(NamedTuple):
    """Expected sums at a location, ``(..., 1 or T, K, *event)``."""

    weight: Tensor
    above: Tensor  #: the weight of larger observations
    below: Tensor  #: and of smaller ones
    tied_sum: Tensor  #: of x - loc, of those that are equal to it
    distance: Tensor  #: of |x - loc|
    loc: Tensor  #: times the weight, at which the sums were taken


class Sides(NamedTuple):
    """Pooled statistics of a location, weighted with the reciprocals of the scales."""

    weight: Tensor
    above: Tensor
    below: Tensor
    tied_sum: Tensor
    distance: Tensor
    loc: Tensor
    squared: Tensor  #: n / s^2


def _reduce_loc(stats: Distances, given: Arguments, weighted: bool) -> Sides:
    rate = 1 / given["scale"].double()
    return Sides._make([*(rate * part for part in stats), rate * rate * stats.weight])


def _reduce_scale(stats: Distances, given: Arguments, weighted: bool) -> Totals:
    return Totals(stats.weight, stats.distance)


def _score(pooled: Sides, loc: Tensor) -> Tensor:
    return pooled.above - pooled.below


def _tied(pooled: Sides) -> Tensor:
    return (pooled.weight - pooled.above - pooled.below).clamp(min=0)


def _gain(score: Tensor, pooled: Sides, loc: Tensor, floor: float) -> Tensor:
    # At an observation Q has two derivatives, and the model's own gradient may be either.
    beyond = (score.abs() - 2 * _tied(pooled) - _ROUNDING * pooled.weight).clamp(min=0)
    return divide_where_known(0.5 * beyond**2, pooled.squared)


def _step(pooled: Sides, now: Tensor, low: End, high: End) -> tuple[Tensor, Tensor]:
    """The intersection of two tangents; near a median the median itself."""
    at = divide(pooled.loc, pooled.weight)  # an average of some values, or the present one
    at = torch.where((at - now).abs() <= 8 * torch.finfo(now.dtype).eps * now.abs(), now, at)
    score, tied = _score(pooled, now), _tied(pooled)
    is_median = score.abs() <= tied + _ROUNDING * pooled.weight
    median = at + torch.where(tied > 0, pooled.tied_sum / tied.clamp(min=1e-300), 0.0)
    scale = pooled.weight / pooled.squared
    newton = at + scale * (_STRIDE * score + score.sign() * 2 * scale.reciprocal()) / pooled.weight
    width = high.at - low.at
    slopes = _score(low.pooled, now), _score(high.pooled, now)
    rise = low.pooled.distance - high.pooled.distance
    between = low.at + (rise - slopes[1] * width) / (slopes[0] - slopes[1])
    new = torch.where(width.isfinite(), between, newton)
    return torch.where(is_median, median, new), is_median


def _maximise(pooled: Sides, now: Tensor, floor: float) -> Tensor:
    none = torch.full_like(now, torch.inf)
    return _step(pooled, now, End(-none, pooled), End(none, pooled))[0]


def _mean_distance(pooled: Totals, now: Tensor, floor: float) -> Tensor:
    scale = divide(pooled.total, pooled.weight)
    return scale.masked_fill(scale < torch.finfo(now.dtype).tiny, torch.nan)


def _shift(loc: Tensor, by: Tensor) -> Tensor:
    return loc + by


# In e, with a scale of s (1 + e).


def _scale_score(pooled: Totals, scale: Tensor) -> Tensor:
    return pooled.total / scale - pooled.weight


def _scale_gain(score: Tensor, pooled: Totals, scale: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.weight)


LOC = Argument(
    name="loc",
    kind="location of a Laplace",
    event_dim=0,
    elementwise=True,
    what="weighted median, in passes over the data",
    links=links.LOCATION,
    inside=(),
    draw=draws.location,
    reduce=_reduce_loc,
    maximise=_maximise,
    sound=torch.isfinite,
    natural=Natural(_shift, _score, _gain),
    chart=charts.location(lambda given: given["scale"]),
    search=Search(_step),
)

SCALE = Argument(
    name="scale",
    kind="scale of a Laplace",
    event_dim=0,
    elementwise=True,
    what="weighted mean distance",
    links=links.SCALE,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce_scale,
    maximise=_mean_distance,
    sound=is_positive,
    natural=Natural(stretch, _scale_score, _scale_gain),
    why_unbounded="the values of a state are all equal",
    priors={
        "scale": {dist.InverseGamma: conjugate.inverse_gamma_of_waiting_mean},
        "reciprocal of scale": {dist.Gamma: conjugate.gamma_of_waiting_rate},
    },
    chart=charts.SCALE,
)


class LaplaceFamily(Family):
    """``Laplace(loc, scale)``."""

    distributions = (Laplace, dist.Laplace)
    max_event_dim = math.inf
    arguments = (LOC, SCALE)

    def read(self, distribution: Laplace) -> Arguments:
        """The location and the scale."""
        return {"loc": distribution.loc, "scale": distribution.scale}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density, summed over the series of one observation."""
        scale = given["scale"]
        distance = (value.unsqueeze(-1 - event_dim) - given["loc"]).abs()
        return over_event(-(2 * scale).log() - distance / scale, event_dim)

    def statistics(
        self, observed: Observed, given: Arguments, names: frozenset[str]
    ) -> Distances:
        """The sums at the present locations."""
        value, loc = observed.value.double(), given["loc"].double()
        deviation = value - loc
        eps = torch.finfo(torch.float64).eps
        near = torch.maximum(_TIE * given["scale"].double(), eps * loc.abs())
        above, below = deviation > near, deviation < -near
        tied = torch.where(above | below, 0.0, deviation)
        shape = observed.weights.shape + value.shape[value.dim() - observed.event_dim :]
        parts = (above.double(), below.double(), tied, deviation.abs())
        found = sums.over_time(observed, *(part.expand(shape) for part in parts))
        return Distances._make([*found, found[0] * loc])

    def is_accurate(self, stats: Distances, given: Arguments, name: str) -> Tensor | bool:
        """Which sums are those at the present location."""
        loc = given["loc"].double()
        apart = (stats.loc - stats.weight * loc).abs()
        return apart <= 1e-15 * stats.weight * loc.abs()

    def merge(self, accurate: Tensor, stats: Distances, again: Distances) -> Distances:
        """The sums at the present location that are known, and the others as taken again."""
        return apply(lambda one, other: torch.where(accurate, one, other), stats, again)


LAPLACE = LaplaceFamily()
