r"""The family of counts, ``Poisson(rate)`` with or without ``to_event``.

.. math::
    \lambda_k = \frac{\sum_t \gamma_t(k) x_t}{\sum_t \gamma_t(k)}

maximises :math:`\sum_t \gamma_t(k) (x_t \log \lambda_k - \lambda_k)`. The sums run over everything
that shares the rate. If the rate is a factor h times a known exposure, or times other factors,
:math:`\lambda_{tk} = h_k e_{tk}`,

.. math::
    h_k = \frac{\sum_t \gamma_t(k) x_t}{\sum_t \gamma_t(k) e_{tk}}
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Poisson, constraints

from pyro_regimes.emissions import charts, conjugate, counts, draws, links, predictors, totals
from pyro_regimes.emissions.arithmetic import divide, divide_where_known
from pyro_regimes.emissions.base import (
    Argument,
    Arguments,
    Family,
    Linear,
    Natural,
    Observed,
    Scaling,
)
from pyro_regimes.emissions.positive import stretch
from pyro_regimes.emissions.statistics import Totals
from pyro_regimes.kernels.ops import log_in_one_thread


def _reduce(stats: Totals, given: Arguments, weighted: bool) -> Totals:
    return stats


def _maximise(pooled: Totals, now: Tensor, floor: float) -> Tensor:
    """The mean; a mean of 0 is set to the least positive number, which EM can leave again."""
    mean = divide(pooled.total, pooled.weight)
    mean = mean.masked_fill(mean < 0, torch.nan)
    return torch.where(now > 0, mean.clamp(min=torch.finfo(now.dtype).tiny), mean)


def _is_sound(rate: Tensor) -> Tensor:
    return rate.isfinite() & (rate >= 0)


# In e, with a rate of lambda (1 + e): the score is s - n lambda, and the information n lambda.


def _score(pooled: Totals, rate: Tensor) -> Tensor:
    return pooled.total - pooled.weight * rate


def _gain(score: Tensor, pooled: Totals, rate: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.weight * rate)


_ALONE = Argument(
    name="rate",
    kind="rate of a Poisson",
    event_dim=0,
    elementwise=True,
    what="weighted mean",
    links=links.RATE,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce,
    maximise=_maximise,
    sound=_is_sound,
    natural=Natural(stretch, _score, _gain),
    why_unbounded=(
        "the counts of a state are all 0, or nearly, and the prior of its rate is unbounded at 0"
    ),
    priors={"rate": {dist.Gamma: conjugate.gamma_of_count_rate}},
    chart=charts.COUNT_RATE,
    predictors=(predictors.LOG_OF_COUNT_RATE,),
)


# ---- rates that are products ---------------------------------------------------------------------


def _no_reduce(*given: Any) -> Any:
    raise NotImplementedError("factors are pooled by the scaling of a rate")


def _maximise_factor(pooled: Totals, now: Tensor, floor: float) -> Tensor:
    """As of a rate; a factor of 0 stays so far above 0 that products with it keep their digits."""
    least = torch.finfo(now.dtype).tiny ** 0.5
    found = _maximise(pooled, now, floor)
    return torch.where(now > 0, found.clamp(min=least), found)


FACTOR = replace(
    _ALONE,
    name="factor",
    kind="factor of a rate of a Poisson",
    what="counts over exposures",
    reduce=_no_reduce,
    maximise=_maximise_factor,
)


def _sizes(rate: Tensor) -> Tensor:
    return rate.unsqueeze(-1)


def _stretched(rate: Tensor, ratio: Tensor) -> Tensor:
    return rate * ratio.squeeze(-1)


def _pooled(found: Totals, rate: Tensor, same: Tensor) -> Totals:
    """With the present rates as units, so that weights are exposures."""
    return Totals((found.weight * rate).unsqueeze(-1), found.total.unsqueeze(-1))


def _absolute(pooled: Totals, held: Tensor) -> Totals:
    return Totals(pooled.weight / held.to(pooled.weight), pooled.total)


RATE = replace(
    _ALONE,
    scaling=Scaling(FACTOR, _sizes, None, _stretched, _pooled, _absolute, torch.square),
)


def _read(value: Tensor, event_dim: int) -> Tensor | None:
    """The counts of one observation, 1, and the sum of their :math:`-\\log x!`."""
    value = value.double().reshape(value.shape[: value.dim() - event_dim] + (-1,))
    if bool(counts.is_no_count(value).any()):
        return None
    base = -counts.log_factorial(value).sum(-1, keepdim=True)
    return torch.cat([value, torch.ones_like(base), base], -1)


def _natural(rate: Tensor, event_dim: int) -> Tensor:
    """The log rates, minus the sum of the rates, and 1."""
    rate = rate.reshape(rate.shape[: rate.dim() - event_dim] + (-1,))
    total = rate.sum(-1, keepdim=True)
    return torch.cat([log_in_one_thread(rate), -total, torch.ones_like(total)], -1)


class _Family(Family):
    """``Poisson(rate)``."""

    distributions = (Poisson, dist.Poisson)
    max_event_dim = math.inf
    arguments = (RATE,)
    linear = Linear(_read, _natural, totals.of_sums)

    def read(self, distribution: Poisson) -> Arguments:
        """The rate."""
        return {"rate": distribution.rate}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`x_t \log \lambda_k - \lambda_k - \log x_t!`, summed over one observation."""
        return counts.poisson(value.unsqueeze(-1 - event_dim), given["rate"], event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Totals:
        """Weights and weighted sums of the counts."""
        return totals.take(observed)


POISSON = _Family()
