r"""The family of ``Weibull(scale, concentration)``, with or without ``to_event``.

With :math:`y = x / \lambda`,

.. math::
    \log b(x) = \log k - \log x + k \log y - y^k, \qquad
    \lambda^k = \frac1n \sum_t \gamma_t x_t^k, \qquad
    \frac{n}{k} + \sum_t \gamma_t (1 - y_t^k) \log y_t = 0.

The scale is a closed form of the concentration k. (If it is shared by several concentrations, it
is solved for.) The last equation is solved for k by Newton steps in the logarithm of k, each with
the sums at the present k, which take one pass over the data. Given the scale, Q is concave in k,
and the two are nearly uncorrelated, so that they are maximised in turn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Weibull, constraints

from pyro_regimes.emissions import charts, draws, links, sums
from pyro_regimes.emissions.arithmetic import as_real, divide, divide_where_known, over_event
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

#: A larger exponent counts as this, so that nothing overflows.
_MOST = 600.0

#: Newton's error after a step in log k that is this small is its square.
_SMALL = 1e-7

#: A mean squared deviation of the logarithms below this is the rounding of values all equal.
_ROUNDING = 4e-28


class Powers(NamedTuple):
    """Expected sums with y = x / scale, ``(..., 1 or T, K, *event)``."""

    weight: Tensor
    logs: Tensor  #: of log y
    squares: Tensor  #: of (log y)^2
    power: Tensor  #: of y^k
    power_logs: Tensor  #: of y^k log y
    power_squares: Tensor  #: of y^k (log y)^2
    scale: Tensor  #: times the weight, at which the sums were taken
    concentration: Tensor  #: likewise


class Power(NamedTuple):
    """Pooled statistics of a scale, at its present value."""

    weight: Tensor  #: n k
    power: Tensor  #: k times the sum of y^k
    squared: Tensor  #: k^2 times the sum of y^k


def _taken_at(stats: Powers, part: Tensor, now: Tensor) -> Tensor:
    """The argument at which sums were taken, where there is weight."""
    return torch.where(stats.weight > 0, part / stats.weight, now)


def about(stats: Powers, given: Arguments) -> Powers:
    """The sums at another scale, for the concentration at which they were taken."""
    new = given["scale"].double()
    concentration = _taken_at(stats, stats.concentration, given["concentration"].double())
    step = _taken_at(stats, stats.scale, new).log() - new.log()
    factor = (concentration * step).clamp(max=_MOST).exp()
    n, logs, squares, power, power_logs, power_squares, _, _ = stats
    return stats._replace(
        logs=logs + n * step,
        squares=squares + step * (2 * logs + n * step),
        power=factor * power,
        power_logs=factor * (power_logs + step * power),
        power_squares=factor * (power_squares + step * (2 * power_logs + step * power)),
        scale=n * new,
    )


def _reduce_scale(stats: Powers, given: Arguments, weighted: bool) -> Power:
    k = given["concentration"].double()
    power = about(stats, given).power
    return Power((stats.weight * k).expand(power.shape), k * power, k * k * power)


def _reduce_concentration(stats: Powers, given: Arguments, weighted: bool) -> Powers:
    return about(stats, given)


def _scale_step(pooled: Power, now: Tensor, low: End, high: End) -> tuple[Tensor, Tensor]:
    """A step of Newton for the logarithms of both sides; exact for a single concentration."""
    ratio = divide(pooled.power, pooled.weight).log()
    by = ratio * divide(pooled.power, pooled.squared)
    return now * by.exp(), ratio.abs() <= _SMALL


def _maximise_scale(pooled: Power, now: Tensor, floor: float) -> Tensor:
    return _scale_step(pooled, now, End(now, pooled), End(now, pooled))[0]


# In e, with a scale of lambda (1 + e).


def _scale_score(pooled: Power, scale: Tensor) -> Tensor:
    return pooled.power - pooled.weight


def _scale_gain(score: Tensor, pooled: Power, scale: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.squared)


# With a concentration of k (1 + e).


def _score(pooled: Powers, k: Tensor) -> Tensor:
    return pooled.weight + k * (pooled.logs - pooled.power_logs)


def _information(pooled: Powers, k: Tensor) -> Tensor:
    return pooled.weight + k * k * pooled.power_squares


def _gain(score: Tensor, pooled: Powers, k: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, _information(pooled, k))


def _has_spread(pooled: Powers) -> Tensor:
    mean = divide(pooled.logs, pooled.weight)
    spread = divide(pooled.squares, pooled.weight) - mean.square()
    return spread > _ROUNDING + 8 * torch.finfo(spread.dtype).eps * mean.square()


def _step(pooled: Powers, now: Tensor, low: End, high: End) -> tuple[Tensor, Tensor]:
    """One step of Newton in log k, of at most a factor of e^2."""
    # -d/d(log k) of the score.
    at = divide(pooled.concentration, pooled.weight)  # the present value, or an average of some
    curvature = _information(pooled, at) - _score(pooled, at)
    information = torch.maximum(curvature, 0.1 * pooled.weight)
    by = divide(_score(pooled, at), information).clamp(-2.0, 2.0)
    new = torch.where(_has_spread(pooled), at * by.exp(), torch.nan)
    return new, by.abs() <= _SMALL


def _maximise(pooled: Powers, now: Tensor, floor: float) -> Tensor:
    return _step(pooled, now, End(now, pooled), End(now, pooled))[0]


SCALE = Argument(
    name="scale",
    kind="scale of a Weibull",
    event_dim=0,
    elementwise=True,
    what="weighted power mean",
    links=links.SCALE,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce_scale,
    maximise=_maximise_scale,
    sound=is_positive,
    natural=Natural(stretch, _scale_score, _scale_gain),
    chart=charts.SCALE,
    search=Search(_scale_step),
)

CONCENTRATION = Argument(
    name="concentration",
    kind="concentration of a Weibull",
    event_dim=0,
    elementwise=True,
    what="Newton steps, each a pass over the data",
    links=links.CONCENTRATION,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce_concentration,
    maximise=_maximise,
    sound=is_positive,
    natural=Natural(stretch, _score, _gain),
    why_unbounded="the values of a state are all equal",
    chart=charts.SCALE,
    search=Search(_step),
)


def log_density(x: Tensor, scale: Tensor, concentration: Tensor) -> Tensor:
    """The log density of each number; -inf outside the support, NaN at NaN."""
    positive = (x > 0) & (x < torch.inf)
    log_x = torch.where(positive, x, 1.0).log()
    exponent = concentration * (log_x - scale.log())
    most = math.log(torch.finfo(exponent.dtype).max) - 1
    inner = concentration.log() - log_x + exponent - exponent.clamp(max=most).exp()
    return torch.where(positive, inner, -torch.inf).masked_fill(x.isnan(), torch.nan)


class WeibullFamily(Family):
    """``Weibull(scale, concentration)``."""

    distributions = (Weibull, dist.Weibull)
    max_event_dim = math.inf
    arguments = (SCALE, CONCENTRATION)

    def read(self, distribution: Weibull) -> Arguments:
        """The scale and the concentration."""
        return {"scale": distribution.scale, "concentration": distribution.concentration}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density, summed over the series of one observation."""
        value = as_real(value, given["scale"]).unsqueeze(-1 - event_dim)
        return over_event(log_density(value, given["scale"], given["concentration"]), event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Powers:
        """The sums at the present scale and concentration."""
        value, scale = observed.value.double(), given["scale"].double()
        k = given["concentration"].double()
        positive = (value > 0) & (value < torch.inf)
        logs = torch.where(positive, value, 1.0).log() - scale.log()
        power = (k * logs).clamp(max=_MOST).exp()
        parts = (logs, logs.square(), power, power * logs, power * logs.square())
        shape = observed.weights.shape + value.shape[value.dim() - observed.event_dim :]
        found = sums.over_time(observed, *(part.expand(shape) for part in parts))
        return Powers._make([*found, found[0] * scale, found[0] * k])

    def is_accurate(self, stats: Powers, given: Arguments, name: str) -> Tensor | bool:
        """Which sums are of the present power; those at another scale follow."""
        k = given["concentration"].double()
        apart = (stats.concentration - stats.weight * k).abs()
        return apart <= 1e-12 * stats.weight * k

    def merge(self, accurate: Tensor, stats: Powers, again: Powers) -> Powers:
        """The sums of the present power that are known, and the others as taken again."""
        return apply(lambda one, other: torch.where(accurate, one, other), stats, again)

    def total(self, stats: Powers, num_batch_dims: int, like: Powers | None) -> Powers:
        """The sum over all sequences, at the scale of each block."""
        if like is not None:
            scale = divide(like.scale, like.weight).reshape(like.scale.shape[1:])
            own = _taken_at(stats, stats.scale, torch.ones_like(stats.scale))
            scale = torch.where(scale.isnan(), own, scale)
            stats = about(stats, {"scale": scale, "concentration": torch.ones_like(own)})
        return super().total(stats, num_batch_dims, None)


WEIBULL = WeibullFamily()
