r"""The family of waiting times, ``Exponential(rate)`` with or without ``to_event``.

.. math::
    \lambda_k = \frac{\sum_t \gamma_t(k)}{\sum_t \gamma_t(k) x_t}

maximises :math:`\sum_t \gamma_t(k) (\log \lambda_k - \lambda_k x_t)`. The sums run over everything
that shares the rate.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Exponential, constraints

from pyro_regimes.emissions import charts, conjugate, draws, links, predictors, totals
from pyro_regimes.emissions.arithmetic import divide, divide_where_known, over_event
from pyro_regimes.emissions.base import Argument, Arguments, Family, Linear, Natural, Observed
from pyro_regimes.emissions.positive import is_positive, stretch
from pyro_regimes.emissions.statistics import Totals
from pyro_regimes.kernels.ops import log_in_one_thread


def _reduce(stats: Totals, given: Arguments, weighted: bool) -> Totals:
    return stats


def _maximise(pooled: Totals, now: Tensor, floor: float) -> Tensor:
    return divide(pooled.weight, pooled.total.masked_fill(pooled.total <= 0, torch.nan))


# In e, with a rate of lambda (1 + e): the score is n - lambda s, and the information n.


def _score(pooled: Totals, rate: Tensor) -> Tensor:
    return pooled.weight - rate * pooled.total


def _gain(score: Tensor, pooled: Totals, rate: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.weight)


RATE = Argument(
    name="rate",
    kind="rate of an Exponential",
    event_dim=0,
    elementwise=True,
    what="weighted rate",
    links=links.RATE,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce,
    maximise=_maximise,
    sound=is_positive,
    natural=Natural(stretch, _score, _gain),
    why_unbounded="the waiting times of a state are all 0; it keeps its rate",
    priors={
        "rate": {dist.Gamma: conjugate.gamma_of_waiting_rate},
        "reciprocal of rate": {dist.InverseGamma: conjugate.inverse_gamma_of_waiting_mean},
    },
    chart=charts.SCALE,
    predictors=(predictors.LOG_OF_WAITING_RATE,),
)


def _read(value: Tensor, event_dim: int) -> Tensor | None:
    """The waiting times of one observation, and 1."""
    value = value.double().reshape(value.shape[: value.dim() - event_dim] + (-1,))
    if bool((value < 0).any()):
        return None
    return torch.cat([value, torch.ones_like(value[..., :1])], -1)


def _natural(rate: Tensor, event_dim: int) -> Tensor:
    """Minus the rates, and the sum of their logarithms."""
    rate = rate.reshape(rate.shape[: rate.dim() - event_dim] + (-1,))
    return torch.cat([-rate, log_in_one_thread(rate).sum(-1, keepdim=True)], -1)


class _Family(Family):
    """``Exponential(rate)``."""

    distributions = (Exponential, dist.Exponential)
    max_event_dim = math.inf
    arguments = (RATE,)
    linear = Linear(_read, _natural, totals.of_sums)

    def read(self, distribution: Exponential) -> Arguments:
        """The rate."""
        return {"rate": distribution.rate}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log \lambda_k - \lambda_k x_t`, summed over the series of one observation."""
        rate, value = given["rate"], value.unsqueeze(-1 - event_dim)
        outside = value < 0
        each = rate.log() - rate * value.masked_fill(outside, 0.0)
        return over_event(each.masked_fill(outside, -torch.inf), event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Totals:
        """Weights and weighted sums of the waiting times."""
        return totals.take(observed)


EXPONENTIAL = _Family()
