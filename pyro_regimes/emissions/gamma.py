r"""The family of ``Gamma(concentration, rate)``, with or without ``to_event``.

With the concentration a, the rate r and the mean :math:`m = a / r`,

.. math::
    \log b(x) = -\log x + (a \log a - a - \log\Gamma(a)) - a \, h(x / m - 1),
    \qquad h(e) = e - \log(1 + e) \ge 0,

in which nothing large cancels, however large the concentration is. The rate has the closed form
:math:`r = n a / \sum_t \gamma_t x_t`. Given the mean, the concentration is the root of

.. math:: \log a - \psi(a) = \frac1n \sum_t \gamma_t \, h(x_t / m - 1)

(the difference of the logarithm of the mean and the mean logarithm), and both together are the
maximiser over both. If the rate is fixed, or shared by cells of different concentrations, the
concentration is the root of :math:`\psi(a) = \frac1n \sum_t \gamma_t \log(r x_t)`.

The sums are of :math:`x / o - 1` and :math:`h(x / o - 1)`, about an origin o near the data, from
which those about another mean follow. So no digits are lost where the spread is small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, constraints

from pyro_regimes.emissions import charts, conjugate, draws, links, predictors, special, sums
from pyro_regimes.emissions.arithmetic import as_real, divide, divide_where_known, over_event
from pyro_regimes.emissions.base import (
    Argument,
    Arguments,
    Family,
    Joint,
    Natural,
    Observed,
    apply,
    over_sequences,
)
from pyro_regimes.emissions.positive import is_positive, stretch
from pyro_regimes.emissions.statistics import Totals
from pyro_regimes.kernels import ops

#: A mean excess below this is the rounding of values that are all equal.
_ROUNDING = 2e-28

#: An excess of a mean so many times larger than that of the observations is far apart.
_FAR = 1e4


class Excess(NamedTuple):
    """Expected sums about an origin, ``(..., 1 or T, K, *event)``; add those of one origin."""

    weight: Tensor
    first: Tensor  #: of x / o - 1
    excess: Tensor  #: of h(x / o - 1)
    origin: Tensor  #: broadcasts to the others


class Logs(NamedTuple):
    """Pooled statistics of a concentration."""

    weight: Tensor
    total: Tensor  #: of log(r x), or of h if the mean is kept


def about(stats: Excess, origin: Tensor) -> Excess:
    """The same sums about another origin."""
    step = stats.origin / origin - 1
    rest = stats.first + stats.weight
    excess = stats.excess + step * stats.first + stats.weight * special.excess(step)
    return Excess(stats.weight, stats.first + step * rest, excess, origin)


def _reduce_rate(stats: Excess, given: Arguments, weighted: bool) -> Totals:
    total = stats.origin * (stats.first + stats.weight)
    weight = stats.weight * given["concentration"]
    return Totals(weight.expand(total.shape), total)


def _mean(given: Arguments) -> Tensor:
    return given["concentration"].double() / given["rate"].double()


def _reduce_concentration(stats: Excess, given: Arguments, weighted: bool) -> Logs:
    found = about(stats, _mean(given))
    total = found.first - found.excess + stats.weight * given["concentration"].double().log()
    return Logs(stats.weight.expand(total.shape), total)


def _reduce_with_mean(stats: Excess, given: Arguments) -> Logs:
    excess = about(stats, _mean(given)).excess
    return Logs(stats.weight.expand(excess.shape), excess)


def _maximise_rate(pooled: Totals, now: Tensor, floor: float) -> Tensor:
    rate = divide(pooled.weight, pooled.total.masked_fill(pooled.total <= 0, torch.nan))
    return rate.masked_fill(rate <= 0, torch.nan)


def _maximise_concentration(pooled: Logs, now: Tensor, floor: float) -> Tensor:
    return special.inverse_digamma(divide(pooled.total, pooled.weight))


def maximise_with_mean(pooled: Logs, now: Tensor, floor: float) -> Tensor:
    """The concentration given the mean."""
    excess = divide(pooled.total, pooled.weight)
    return special.solve_shape(excess.masked_fill(excess < _ROUNDING, torch.nan))


# In e, with a rate of r (1 + e): the score is n a - r s, and the information n a.


def _rate_score(pooled: Totals, rate: Tensor) -> Tensor:
    return pooled.weight - rate * pooled.total


def _rate_gain(score: Tensor, pooled: Totals, rate: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.weight)


# With a concentration of a (1 + e): the score is a (total - n psi(a)).


def _concentration_score(pooled: Logs, concentration: Tensor) -> Tensor:
    return concentration * (pooled.total - pooled.weight * concentration.digamma())


def _concentration_gain(score: Tensor, pooled: Logs, cells: Tensor, floor: float) -> Tensor:
    information = pooled.weight * cells * (special.stretched_slope(cells) + 1)
    return divide_where_known(0.5 * score**2, information)


RATE = Argument(
    name="rate",
    kind="rate of a Gamma",
    event_dim=0,
    elementwise=True,
    what="weighted rate",
    links=links.RATE,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce_rate,
    maximise=_maximise_rate,
    sound=is_positive,
    natural=Natural(stretch, _rate_score, _rate_gain),
    why_unbounded="the values of a state are all 0",
    priors={
        "rate": {dist.Gamma: conjugate.gamma_of_waiting_rate},
        "reciprocal of rate": {dist.InverseGamma: conjugate.inverse_gamma_of_waiting_mean},
    },
    chart=charts.SCALE,
    predictors=(predictors.LOG_OF_WAITING_RATE,),
)

CONCENTRATION = Argument(
    name="concentration",
    kind="concentration of a Gamma",
    event_dim=0,
    elementwise=True,
    what="mean and mean logarithm, by Newton steps",
    links=links.CONCENTRATION,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce_concentration,
    maximise=_maximise_concentration,
    sound=is_positive,
    natural=Natural(stretch, _concentration_score, _concentration_gain),
    why_unbounded="the values of a state are all equal, or some of them are 0",
    chart=charts.SCALE,
    joint=Joint(("rate",), _reduce_with_mean, maximise_with_mean),
)


def log_density(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    """The log density of each number; -inf outside the support, NaN at NaN."""
    positive = (x > 0) & (x < torch.inf)
    safe = torch.where(positive, x, 1.0)
    log_x, log_mean = safe.log(), concentration.log() - rate.log()
    deviation = (rate * safe - concentration) / concentration
    near = special.is_near(deviation)
    close = concentration * special.excess_near(torch.where(near, deviation, 0.0))
    far = rate * safe - concentration - concentration * (log_x - log_mean)
    normaliser = (
        0.5 * (concentration / (2 * math.pi)).log() - special.stirling_rest(concentration)
    )
    inner = normaliser - log_x - torch.where(near, close, far)
    at_zero = torch.where(
        concentration == 1, rate.log(), torch.where(concentration < 1, torch.inf, -torch.inf)
    )
    other = torch.where(x == 0, at_zero, -torch.inf)
    return torch.where(positive, inner, other).masked_fill(x.isnan(), torch.nan)


class GammaFamily(Family):
    """``Gamma(concentration, rate)``."""

    distributions: tuple[type[Distribution], ...] = (Gamma, dist.Gamma)
    max_event_dim = math.inf
    arguments = (RATE, CONCENTRATION)

    def read(self, distribution: Gamma) -> Arguments:
        """The concentration and the rate."""
        return {"concentration": distribution.concentration, "rate": distribution.rate}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density, summed over the series of one observation."""
        value = as_real(value, given["rate"]).unsqueeze(-1 - event_dim)
        return over_event(log_density(value, given["concentration"], given["rate"]), event_dim)

    def own_rounding(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r"""That of :math:`a \log r + (a - 1) \log x - r x - \log\Gamma(a)`, summed likewise."""
        value = as_real(value, given["rate"]).unsqueeze(-1 - event_dim)
        concentration, rate = given["concentration"], given["rate"]
        logs = rate.log().abs() + value.log().abs()
        terms = concentration * logs + rate * value + concentration.lgamma().abs()
        return 8 * torch.finfo(terms.dtype).eps * over_event(terms, event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Excess:
        """Sums about the geometric mean of the observations, or about the mean of each state.

        The former takes one logarithm of each observation, and not one for each state. It would
        lose digits where the means lie many standard deviations apart.
        """
        time = observed.weights.dim() - 2
        value = observed.value.double()
        positive = (value > 0) & (value < torch.inf)
        logs = torch.where(positive, value, 1.0).log()
        count = positive.sum(time, keepdim=True).clamp(min=1)
        origin = (ops.sum_over(logs, time) / count).exp()
        if value.device.type == "cpu":
            mean = _mean(given)
            apart = special.excess(mean / origin - 1) * given["concentration"] > _FAR
            if bool(apart.any()):
                origin = torch.where(is_positive(mean), mean, origin)
        deviation = (torch.where(value < torch.inf, value, origin) - origin) / origin
        excess = special.excess(torch.where(positive, deviation, 0.0))
        weight, first, total = sums.over_time(observed, deviation, excess)
        if bool((value == 0).any()):  # they have no logarithm, but may have no weight
            _, zeros = sums.over_time(observed, (value == 0).to(value.dtype))
            total = torch.where(zeros > 0, torch.inf, total)
        return Excess(weight, first, total, origin)

    def add(self, one: Excess, other: Excess) -> Excess:
        """The sum about the first one's origin."""
        moved = about(other, one.origin)
        return apply(torch.add, one, moved)._replace(origin=one.origin)

    def total(self, stats: Excess, num_batch_dims: int, like: Excess | None) -> Excess:
        """The sum over all sequences, about the mean of the data of each block."""
        if like is None:
            sums_ = stats.origin * (stats.first + stats.weight)
            weight = over_sequences(stats.weight, num_batch_dims)
            mean = over_sequences(sums_, num_batch_dims) / weight
            near = over_sequences(stats.origin.expand(stats.first.shape), num_batch_dims)
            count = max(1, stats.first.shape[:num_batch_dims].numel())
            origin = torch.where(is_positive(mean), mean, near / count)
        else:
            origin = like.origin
        summed = apply(
            lambda part: over_sequences(part, num_batch_dims),
            about(stats, origin.reshape(origin.shape[1:]))._replace(origin=stats.weight),
        )
        return summed._replace(origin=origin)


GAMMA = GammaFamily()
