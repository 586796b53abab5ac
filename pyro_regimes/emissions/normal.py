"""The family of independent Gaussian series, ``Normal(loc, scale)`` with or without ``to_event``.

.. math::
    \\mu_k = \\frac{\\sum_t \\gamma_t(k) x_t}{\\sum_t \\gamma_t(k)}, \\qquad
    \\sigma_k^2 = \\frac{\\sum_t \\gamma_t(k) (x_t - \\mu_k)^2}{\\sum_t \\gamma_t(k)}

(equations 35 and 41, series by series; Bilmes 1998). Both sums run over everything that shares the
parameter. A location that is shared over different scales is the mean weighted with
:math:`\\gamma_t(k) / \\sigma_k^2`, which maximises the likelihood given the scales; the scales are
then updated about the new location (ECM: Meng and Rubin 1993).
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Normal, constraints

from pyro_regimes.emissions import charts, conjugate, draws, links, moments, predictors, sizes
from pyro_regimes.emissions.arithmetic import divide, divide_where_known, is_at_floor, over_event
from pyro_regimes.emissions.base import Argument, Arguments, Family, Gaussian, Natural, Observed
from pyro_regimes.emissions.moments import Moments
from pyro_regimes.emissions.positive import is_positive, stretch
from pyro_regimes.emissions.statistics import Spread, WeightedSum
from pyro_regimes.kernels import ops


def _reduce_loc(stats: Moments, given: Arguments, weighted: bool) -> WeightedSum:
    total = moments.sums(stats)
    weight = stats.weight.expand(total.shape)
    if weighted:
        precision = given["scale"] ** -2
        weight, total = weight * precision, total * precision
    return WeightedSum(weight, total, None)


def _reduce_scale(stats: Moments, given: Arguments, weighted: bool) -> Spread:
    dtype = given["scale"].dtype
    scatter = moments.scatter(stats, given["loc"], is_full=False).to(dtype)
    return Spread(stats.weight.to(dtype).expand(scatter.shape), scatter)


def _mean(pooled: WeightedSum, now: Tensor, floor: float) -> Tensor:
    return divide(pooled.total, pooled.weight)


def _standard_deviation(pooled: Spread, now: Tensor, floor: float) -> Tensor:
    scale = divide(pooled.scatter, pooled.weight).clamp(min=floor).sqrt()
    # Without spread and without a floor the likelihood has no maximum.
    return scale.masked_fill(scale < torch.finfo(scale.dtype).tiny, torch.nan)


def _shift(loc: Tensor, by: Tensor) -> Tensor:
    return loc + by


def _loc_score(pooled: WeightedSum, loc: Tensor) -> Tensor:
    return pooled.total - pooled.weight * loc


def _loc_gain(score: Tensor, pooled: WeightedSum, loc: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.weight)


LOC = Argument(
    name="loc",
    kind="location of a Normal",
    event_dim=0,
    elementwise=True,
    what="weighted mean (35)",
    links=links.LOCATION,
    inside=(),
    draw=draws.location,
    reduce=_reduce_loc,
    maximise=_mean,
    sound=torch.isfinite,
    natural=Natural(_shift, _loc_score, _loc_gain),
    priors={"location": conjugate.LOCATION},
    is_quadratic=True,
    chart=charts.location(lambda given: given["scale"]),
)


def _feasible(scale: Tensor, floor: float) -> Tensor:
    return scale.clamp(min=floor**0.5)


def _scale_score(pooled: Spread, scale: Tensor) -> Tensor:
    return pooled.scatter / scale**2 - pooled.weight


def _scale_gain(score: Tensor, pooled: Spread, scale: Tensor, floor: float) -> Tensor:
    at_floor = is_at_floor((scale**2).unsqueeze(-1), floor).squeeze(-1)
    blocked = at_floor & (score < 0)
    return divide_where_known(0.25 * score**2, pooled.weight).masked_fill(blocked, 0.0)


SCALE = Argument(
    name="scale",
    kind="scale of a Normal",
    event_dim=0,
    elementwise=True,
    what="weighted sd (41)",
    links=links.STANDARD_DEVIATION,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce_scale,
    maximise=_standard_deviation,
    sound=is_positive,
    natural=Natural(stretch, _scale_score, _scale_gain),
    feasible=_feasible,
    why_unbounded=moments.WHY_UNBOUNDED,
    priors={
        "variance": {dist.InverseGamma: conjugate.inverse_gamma},
        "precision": {dist.Gamma: conjugate.gamma},
    },
    chart=charts.SCALE,
    scaling=sizes.OF_SCALE,
    predictors=(predictors.LOG_OF_SCALE,),
)


_KERNEL_DTYPES = (torch.float32, torch.float64)


class _Family(Family):
    """``Normal(loc, scale)``."""

    distributions = (Normal, dist.Normal)
    max_event_dim = math.inf
    arguments = (LOC, SCALE)
    marginalises = True

    def read(self, distribution: Normal) -> Arguments:
        """The location and the standard deviation."""
        return {"loc": distribution.loc, "scale": distribution.scale}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log N(x_t; \mu_k, \sigma_k^2)`, summed over the series of one observation."""
        gaussian = self.as_gaussian(value, given, event_dim)
        if gaussian is not None:
            return ops.gaussian_log_prob(*gaussian)
        loc, scale = (ops.without_repeats(given[name], event_dim) for name in ("loc", "scale"))
        each = Normal(loc, scale, validate_args=False).log_prob(value.unsqueeze(-1 - event_dim))
        return over_event(each, event_dim)

    def log_prob_of_seen(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> Tensor:
        """The sum over the series that are not missing."""
        normal = Normal(given["loc"], given["scale"], validate_args=False)
        each = normal.log_prob(value.unsqueeze(-1 - event_dim))
        each = torch.where(missing.unsqueeze(-1 - event_dim), 0.0, each)
        return each.sum(list(range(-event_dim, 0))) if event_dim else each

    def as_gaussian(self, value: Tensor, given: Arguments, event_dim: int) -> Gaussian | None:
        """The kernels' arguments, with standard deviations as the factor; one series has D = 1."""
        if event_dim > 1 or value.dtype not in _KERNEL_DTYPES:
            return None
        both = []
        for name in ("loc", "scale"):
            argument = ops.without_repeats(given[name], event_dim)
            if argument.dtype not in _KERNEL_DTYPES or not _is_constant(argument, event_dim):
                return None
            if not event_dim:
                argument = argument.unsqueeze(-1)
            elif argument.shape[-1:] != value.shape[-1:]:
                argument = argument.expand(argument.shape[:-1] + value.shape[-1:])
            both.append(ops.without_time(argument, 2))
        loc, scale = both
        return Gaussian(value if event_dim else value.unsqueeze(-1), loc, scale.unsqueeze(-1))

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Moments:
        """Moments about the current locations."""
        return moments.take(observed, given["loc"], False, with_second="scale" in names)

    def is_accurate(self, stats: Moments, given: Arguments, name: str) -> Tensor | bool:
        """Whether the scatter about another location keeps enough of its digits."""
        return name == "loc" or moments.is_accurate(stats, given["loc"], is_full=False)

    def merge(self, accurate: Tensor, stats: Moments, again: Moments) -> Moments:
        """Combine moments about two origins, block by block."""
        return moments.merge(accurate, stats, again)

    def add(self, one: Moments, other: Moments) -> Moments:
        """The sum of moments about one origin."""
        return moments.add(one, other)

    def total(self, stats: Moments, num_batch_dims: int, like: Moments | None) -> Moments:
        """The sum over all sequences, each block about its own origin."""
        return moments.total(stats, num_batch_dims, like, is_full=False)


def _is_constant(argument: Tensor, event_dim: int) -> bool:
    """Whether an argument does not vary in time."""
    return argument.dim() < 2 + event_dim or argument.shape[-2 - event_dim] == 1


NORMAL = _Family()
