r"""The family of overdispersed counts, ``NegativeBinomial(total_count, probs)``.

For a known number of failures r

.. math::
    p_k = \frac{\sum_t \gamma_t(k) x_t}{\sum_t \gamma_t(k) (x_t + r)}.

As a function of r, for a known p, the expected log-likelihood is

.. math::
    Q(r) = \sum_t \gamma_t(k) \sum_{j < x_t} \log (r + j) + n r \log (1 - p).

It is concave. With the derivatives of its first sum at the present :math:`r_0`,

.. math::
    A = \sum_t \gamma_t(k) \sum_{j < x_t} \frac{1}{r_0 + j}, \qquad
    B = \sum_t \gamma_t(k) \sum_{j < x_t} \frac{1}{(r_0 + j)^2},

and with :math:`L = -n \log (1 - p)`, a step of EM moves r to

.. math::
    r_0 + \frac{A (A - L)}{B L} \quad \text{if } A \ge L, \qquad
    \frac{B r_0^2}{L - A + B r_0} \quad \text{otherwise.}

The first solves :math:`a / (r + c) = L`. Here :math:`a / (r + c)` has the value and the slope of A
at :math:`r_0`, and lies below A elsewhere, as 1 / A is concave in r. The second solves
:math:`\alpha / r + \beta = L`, which lies above A, as A is concave in 1 / r. So a step never passes
the maximum, Q never falls, and the steps converge quadratically, as Newton's do.

Where r and p have the same cells, p is taken at its maximum for each r, :math:`m / (r + m)` with
the mean m of the counts. Then :math:`L(r) = n \log (1 + m / r)` in place of L. It is bounded by the
same two properties: 1 / L is concave in r, and L is concave in 1 / r. Updated in turn, r and p
would need hundreds of steps. Both A and L are far larger than their difference where r is large,
so that these bounds allow small steps only. There ``failures.py`` has closer ones.

The sums add up as all statistics do. The last one is n :math:`r_0`. So averages of minibatches,
each at its own :math:`r_0`, have a mean :math:`r_0` from which the same two bounds lead to the
present r.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import NegativeBinomial, constraints

from pyro_regimes.emissions import charts, counts, draws, failures, links, totals
from pyro_regimes.emissions.arithmetic import divide, divide_where_known, over_event
from pyro_regimes.emissions.base import Argument, Arguments, Joint, Natural, Observed, blocks
from pyro_regimes.emissions.logs import Outcomes
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.emissions.positive import is_positive, stretch
from pyro_regimes.emissions.statistics import Trials
from pyro_regimes.emissions.trials import LOGITS, PROBS, TrialsFamily, of_successes, outcomes


class Overdispersed(NamedTuple):
    """Expected statistics, ``(..., 1 or T, K, *event)``."""

    weight: Tensor
    total: Tensor
    first: Tensor | None  #: A; None if ``total_count`` is not updated
    second: Tensor | None  #: B
    origin: Tensor | None  #: n r_0
    reciprocal: Tensor | None  #: of :class:`.failures.Rest`, and the next two
    slope: Tensor | None
    square: Tensor | None


class Failures(NamedTuple):
    """Pooled statistics of ``total_count``."""

    weight: Tensor
    total: Tensor
    first: Tensor
    second: Tensor
    origin: Tensor
    reciprocal: Tensor
    slope: Tensor
    square: Tensor
    demand: Tensor  #: L
    shape: Tensor  #: of a prior, whose logarithm is this times log r, less the demand times r


def _reduce_count(stats: Overdispersed, given: Arguments, weighted: bool) -> Failures:
    weight, total, *known = stats
    first, second, origin, reciprocal, slope, square = (each for each in known if each is not None)
    weight = weight.expand(total.shape)
    demand = (-weight * outcomes(given).failure).expand(first.shape)
    none = torch.zeros_like(first)
    return Failures(
        weight, total, first, second, origin, reciprocal, slope, square, demand, none
    )


def _reduce_with_probs(stats: Overdispersed, given: Arguments) -> Failures:
    return _reduce_count(stats, given, False)


def _derivatives(pooled: Failures, count: Tensor) -> tuple[Tensor, Tensor]:
    """A and B at r; away from r_0 by the bound with which no step passes the maximum."""
    known = pooled.second > 0
    origin = torch.where(known, pooled.origin / pooled.weight, count)
    second = pooled.second.masked_fill(~known, 1.0)
    first = pooled.first / second  # A / B
    above = first * pooled.first / (first + count - origin)
    ratio = origin / count
    below = pooled.first + second * origin * (ratio - 1)
    is_up = count >= origin
    value = torch.where(is_up, above, below)
    slope = torch.where(is_up, above / (first + count - origin), second * ratio**2)
    value, slope = value.masked_fill(~known, 0.0), slope.masked_fill(~known, 0.0)
    return value + pooled.shape / count, slope + pooled.shape / count**2


def _maximise_count(pooled: Failures, now: Tensor, floor: float) -> Tensor:
    """One step towards the maximum; NaN if all counts are 0, where it is at 0."""
    first, second = _derivatives(pooled, now)
    demand = pooled.demand
    known = (first > 0) & (second > 0) & (demand > 0)
    first, second = first.masked_fill(~known, torch.nan), second.masked_fill(~known, torch.nan)
    up = now + first / second * (first - demand) / demand
    down = second * now**2 / (demand - first + second * now)
    return torch.where(first >= demand, up.minimum(_MOST * now), down)


def _profile_count(pooled: Failures, now: Tensor, floor: float) -> Tensor:
    """The same with ``probs`` at its maximum for each r, which is m / (r + m) for the mean m."""
    first, second = _derivatives(pooled, now)
    share = divide(pooled.total, pooled.weight) / now  # m / r
    demand = pooled.weight * share.log1p()
    slope = pooled.weight * share / (now * (1 + share))  # minus that of the demand
    known = (first > 0) & (second > 0)
    first, second = first.masked_fill(~known, torch.nan), second.masked_fill(~known, torch.nan)
    # Up: a / (r + c) = k + lin / r. The demand is below the right side, being concave in 1 / r.
    a, c = first**2 / second, (first / second - now).clamp(min=0.0)
    k, lin = pooled.weight * _log1p_less_share(share), slope * now**2
    half = 0.5 * (a - lin - k * c)
    up = (half + (half**2 - k * lin * c).clamp(min=0.0).sqrt()) / k
    # Down: alpha / r + beta = a / (r + c). The demand is above the right side.
    alpha, beta = second * now**2, (first - second * now).clamp(min=0.0)
    a, c = demand**2 / slope, (demand / slope - now).clamp(min=0.0)
    half = 0.5 * (a - alpha - beta * c)
    down = alpha * c / (half + (half**2 - alpha * beta * c).clamp(min=0.0).sqrt())
    near = _closer(pooled, now)
    up = up.maximum(now).fmax(near).minimum(_MOST * now)
    new = torch.where(first >= demand, up, down.minimum(now).fmin(near))
    # Counts without overdispersion are those of a Poisson, which r may approach for ever.
    return torch.where(share < _POISSON, now, new)


def _closer(pooled: Failures, now: Tensor) -> Tensor:
    """The step of ``failures.py``; NaN for averages of sums that were taken at several r."""
    weight = pooled.weight.masked_fill(pooled.weight <= 0, torch.nan)
    origin = pooled.origin / weight
    origin = origin.masked_fill((origin / now - 1).abs() > _SAME, torch.nan)
    rest = failures.Rest(*(each / weight for each in pooled[5:8]))
    mean = pooled.total / weight
    gap = pooled.first / weight - (mean / origin).log1p()
    return failures.step(gap, rest, mean, origin, _MOST).to(now.dtype)


def _log1p_less_share(share: Tensor) -> Tensor:
    """log(1 + x) - x / (1 + x), which is about x^2 / 2 for a small x."""
    series = share**2 * (1 / 2 - share * (2 / 3 - share * (3 / 4 - share * 4 / 5)))
    return torch.where(share < 1e-3, series, share.log1p() - share / (1 + share))


#: The largest factor of a step, as a minibatch may have no overdispersion by chance.
_MOST = 4.0

#: The relative rounding of r.
_SAME = 1e-6

#: The mean of the counts over r, below which they differ from those of a Poisson by rounding.
_POISSON = 1e-7


# In e, with an argument of r (1 + e): the score is r (A - L), and the information r^2 B.


def _count_score(pooled: Failures, count: Tensor) -> Tensor:
    return count * (_derivatives(pooled, count)[0] - pooled.demand)


def _count_gain(score: Tensor, pooled: Failures, count: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, count**2 * _derivatives(pooled, count)[1])


def _gamma(prior: dist.Gamma, given: torch.Size, shape: torch.Size, event_dim: int) -> Failures:
    """The terms of a Gamma prior; with a concentration below 1 they are not concave."""
    concentration, rate = (
        blocks(each.expand(given).reshape(shape), event_dim)
        for each in (prior.concentration, prior.rate)
    )
    none = torch.zeros_like(rate)
    power = (concentration - 1).masked_fill(concentration < 1, torch.nan)
    return Failures(none, none, none, none, none, none, none, none, rate, power)


TOTAL_COUNT = Argument(
    name="total_count",
    kind="total_count of a NegativeBinomial",
    event_dim=0,
    elementwise=True,
    what="a Newton step",
    links=links.TOTAL_COUNT,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce_count,
    maximise=_maximise_count,
    sound=is_positive,
    natural=Natural(stretch, _count_score, _count_gain),
    why_unbounded=(
        "the counts of a state are all 0, or its prior is a Gamma with a concentration below 1"
    ),
    priors={"total_count": {dist.Gamma: _gamma}},
    chart=charts.SCALE,
    joint=Joint(("probs", "logits"), _reduce_with_probs, _profile_count, one_to_one=True),
)


def _reduce_probs(stats: Overdispersed, given: Arguments, weighted: bool) -> Trials:
    failures = (stats.weight * given["total_count"]).expand(stats.total.shape)
    return of_successes(stats.total, failures)


class _Family(TrialsFamily):
    """``NegativeBinomial(total_count, probs)``."""

    distributions = (NegativeBinomial, dist.NegativeBinomial)
    arguments = (
        TOTAL_COUNT,
        replace(PROBS, reduce=_reduce_probs),
        replace(LOGITS, reduce=_reduce_probs),
    )

    def read(self, distribution: Any) -> Arguments:
        """The number of failures, and the probability of success or its logits."""
        return {"total_count": distribution.total_count, **read_given(distribution)}

    def density(self, value: Tensor, given: Arguments, trial: Outcomes) -> Tensor:
        r""":math:`\log \Gamma(x_t + r) / (\Gamma(r) x_t!) + r \log (1 - p) + x_t \log p`."""
        return counts.negative_binomial(value, given["total_count"], trial)

    def own_rounding(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r"""That of the differences of :math:`\log\Gamma`, summed likewise."""
        value = value.double().unsqueeze(-1 - event_dim)
        terms = (value + given["total_count"].double() + 1).lgamma().abs()
        return 16 * torch.finfo(given["total_count"].dtype).eps * over_event(terms, event_dim)

    def statistics(
        self, observed: Observed, given: Arguments, names: frozenset[str]
    ) -> Overdispersed:
        """Expected counts, and the derivatives in ``total_count``."""
        weight, total = totals.take(observed)
        if "total_count" not in names:
            return Overdispersed(weight, total, *[None] * 6)
        count, value = given["total_count"].double(), observed.value.double()
        dtype = total.dtype
        first, second, *rest = (
            totals.over_time(observed, each.to(dtype))
            for each in (*counts.harmonic(count, value), *failures.rest(count + value))
        )
        origin = (weight * count.to(dtype)).expand(first.shape)
        return Overdispersed(weight, total, first, second, origin, *rest)


NEGATIVE_BINOMIAL = _Family()
