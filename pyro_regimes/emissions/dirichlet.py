r"""The family of compositions, ``Dirichlet(concentration)``.

With :math:`s = \sum_i a_i`, the mean :math:`m_i = a_i / s` and :math:`h(e) = e - \log(1 + e)`,

.. math::
    \log b(x) = \log \Gamma(s) - \sum_i \log \Gamma(a_i) + \sum_i a_i \log m_i
        - \sum_i \log x_i - \sum_i a_i \, h(x_i / m_i - 1),

in which the first three terms are taken together by Stirling's series, so that nothing large
cancels. With :math:`t_i` the weighted mean of :math:`\log x_i`, the concentrations maximise

.. math:: \log \Gamma(s) - \sum_i \log \Gamma(a_i) + \sum_i a_i t_i.

It is concave, and Newton's steps are of linear cost (Minka 2000), each halved until it does not
fall.
"""

from __future__ import annotations

import math
from operator import index
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Dirichlet, constraints

from pyro_regimes.emissions import charts, draws, links, special, sums
from pyro_regimes.emissions.arithmetic import as_real, divide, divide_where_known
from pyro_regimes.emissions.base import Argument, Arguments, Family, Natural, Observed
from pyro_regimes.emissions.positive import is_positive, stretch

#: A deficit of the geometric means below this is the rounding of values that are all equal.
_ROUNDING = 64 * torch.finfo(torch.float64).eps

_MOST_STEPS = 200
_MOST_HALVINGS = 40


class LogSums(NamedTuple):
    """Expected sums of the logarithms of the parts, ``(..., D)``."""

    weight: Tensor  #: ``(..., 1)``
    logs: Tensor


def log_density(x: Tensor, concentration: Tensor) -> Tensor:
    """The log density of compositions ``(..., D)``; NaN at NaN.

    A part of 0 has the limit of the density: -inf for a concentration above 1, and inf below.
    """
    positive = x > 0
    safe = torch.where(positive, x, 1.0)
    total = concentration.sum(-1, keepdim=True)
    log_mean = concentration.log() - total.log()
    deviation = (total * safe - concentration) / concentration
    near = special.is_near(deviation)
    close = concentration * special.excess_near(torch.where(near, deviation, 0.0))
    log_x = safe.log()
    far = total * safe - concentration - concentration * (log_x - log_mean)
    inner = torch.where(near, close, far) + log_x
    at_zero = torch.where(
        concentration == 1,
        log_mean - 1,  # where the terms in log x cancel
        torch.where(concentration < 1, -torch.inf, torch.inf),
    )
    inner = torch.where(positive | x.isnan(), inner + 0 * x, at_zero)
    normaliser = (
        special.stirling_rest(total).squeeze(-1)
        - special.stirling_rest(concentration).sum(-1)
        + 0.5 * (concentration.log().sum(-1) - total.log().squeeze(-1))
        - 0.5 * (index(x.shape[-1]) - 1) * math.log(2 * math.pi)  # a tensor under jit
    )
    return normaliser - inner.sum(-1)


def solve(means: Tensor) -> Tensor:
    """The concentrations for mean logarithms ``(cells, D)``; NaN if there is no maximum."""
    deficit = -_log_total(means).expm1()
    bounded = (deficit > _ROUNDING) & means.isfinite().all(-1, keepdim=True)
    means = torch.where(bounded, means, torch.nan)
    # The means are about log m_i - 1 / (2 a_i) + 1 / (2 s).
    total = 0.5 * (means.shape[-1] - 1) / deficit
    a = total * means.softmax(-1) + 0.1
    value = _objective(a, means)
    found = a.isnan().any(-1, keepdim=True)  # what is found stays, whatever the others need
    size = torch.full_like(deficit, torch.inf)
    for _ in range(_MOST_STEPS):
        total = a.sum(-1, keepdim=True)
        # The difference of two digamma functions, without their common large part.
        rest = special.log_minus_digamma(a) - special.log_minus_digamma(total)
        slope = means - (a / total).log() + rest
        step = _newton(slope, a)
        parts = (a * means).abs() + a.lgamma().abs()  # the terms of the objective
        sizes = 1 + total.lgamma().abs() + parts.sum(-1, keepdim=True)
        rounding = 8 * torch.finfo(a.dtype).eps * sizes
        # No concentration falls below a quarter.
        share = (0.75 * a / (-step).clamp(min=1e-300)).amin(-1, keepdim=True).clamp(max=1.0)
        for _ in range(_MOST_HALVINGS):
            new = a + share * step
            better = _objective(new, means)
            down = better < value - rounding
            down = down & ~found
            if not bool(down.any()):
                break
            share = torch.where(down, share / 2, share)
        a, value, old = torch.where(found, a, new), torch.where(found, value, better), a
        before, size = size, ((a - old).abs() / old).amax(-1, keepdim=True)
        is_last = (share == 1) & special.is_last(size, before)
        found = found | is_last | (size <= 8 * torch.finfo(a.dtype).eps)
        if bool(found.all()):
            break
    return a


def _log_total(means: Tensor) -> Tensor:
    return means.logsumexp(-1, keepdim=True)


def _objective(a: Tensor, means: Tensor) -> Tensor:
    total = a.sum(-1, keepdim=True)
    return total.lgamma() + (a * means - a.lgamma()).sum(-1, keepdim=True)


def _newton(slope: Tensor, a: Tensor) -> Tensor:
    """The slope over the information :math:`\\mathrm{diag}(\\psi'(a_i)) - \\psi'(s)`."""
    weight = 1 / special.trigamma(a)
    joint = 1 / special.trigamma(a.sum(-1, keepdim=True))
    shift = (slope * weight).sum(-1, keepdim=True) / (joint - weight.sum(-1, keepdim=True))
    return (slope + shift) * weight


def _reduce(stats: LogSums, given: Arguments, weighted: bool) -> LogSums:
    return stats


def _maximise(pooled: LogSums, now: Tensor, floor: float) -> Tensor:
    return solve(divide(pooled.logs, pooled.weight))


# In e, with concentrations of a_i (1 + e_i).


def _score(pooled: LogSums, a: Tensor) -> Tensor:
    total = a.sum(-1, keepdim=True)
    slope = special.digamma(total) - special.digamma(a)
    return a * (pooled.logs + pooled.weight * slope)


def _gain(score: Tensor, pooled: LogSums, a: Tensor, floor: float) -> Tensor:
    slope = score / a
    twice = (slope * _newton(slope, a)).sum(-1)
    return divide_where_known(0.5 * twice, pooled.weight.squeeze(-1))


CONCENTRATION = Argument(
    name="concentration",
    kind="concentrations of a Dirichlet",
    event_dim=1,
    elementwise=False,
    what="mean logarithms, by Newton steps",
    links=links.CONCENTRATION,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce,
    maximise=_maximise,
    sound=is_positive,
    natural=Natural(stretch, _score, _gain),
    why_unbounded="the values of a state are all equal, or some parts of them are 0",
    chart=charts.SCALE,
)


class DirichletFamily(Family):
    """``Dirichlet(concentration)``."""

    distributions = (Dirichlet, dist.Dirichlet)
    max_event_dim = 1
    arguments = (CONCENTRATION,)

    def read(self, distribution: Dirichlet) -> Arguments:
        """The concentrations."""
        return {"concentration": distribution.concentration}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density; -inf outside the simplex."""
        value = as_real(value, given["concentration"])
        outside = (value < 0).any(-1) | ((value.sum(-1) - 1).abs() > 1e-6)
        density = log_density(value.clamp(min=0).unsqueeze(-2), given["concentration"])
        return density.masked_fill(outside.unsqueeze(-1), -torch.inf)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> LogSums:
        """Weights and weighted logarithms."""
        weight, logs = sums.of_logs(observed, observed.value)
        return LogSums(weight[..., :1], logs)


DIRICHLET = DirichletFamily()
