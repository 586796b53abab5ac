r"""The exponential family of waiting times, as a user would add it.

.. math::
    \lambda_k = \frac{\sum_t \gamma_t(k)}{\sum_t \gamma_t(k) x_t}

maximises :math:`\sum_t \gamma_t(k) (\log \lambda_k - \lambda_k x_t)`. The sums run over everything
that shares the rate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Exponential, constraints

from pyro_regimes.emissions import Argument, Family, Natural, Observed, draws, links
from pyro_regimes.emissions.base import Arguments, blocks, divide, divide_where_known
from pyro_regimes.emissions.links import Link


class Waiting(NamedTuple):
    """Expected statistics, ``(..., 1 or T, K, *event)``. They add up."""

    weight: Tensor  #: n
    total: Tensor  #: s, the weighted sum of the observations


def _reduce(stats: Waiting, given: Arguments, weighted: bool) -> Waiting:
    return stats


def _maximise(pooled: Waiting, now: Tensor, floor: float) -> Tensor:
    return divide(pooled.weight, pooled.total.masked_fill(pooled.total <= 0, torch.nan))


def _is_positive(rate: Tensor) -> Tensor:
    return rate.isfinite() & (rate > 0)


# In e, with a rate of lambda (1 + e): the score is n - lambda s, and the information n.


def _stretch(rate: Tensor, by: Tensor) -> Tensor:
    return rate * (1 + by)


def _score(pooled: Waiting, rate: Tensor) -> Tensor:
    return pooled.weight - rate * pooled.total


def _gain(score: Tensor, pooled: Waiting, rate: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.weight)


def _gamma(prior: dist.Gamma, given: torch.Size, shape: torch.Size, event_dim: int) -> Waiting:
    concentration, rate = (
        blocks(each.expand(given).reshape(shape), event_dim)
        for each in (prior.concentration, prior.rate)
    )
    return Waiting(concentration - 1, rate)


RATE = Argument(
    name="rate",
    kind="rate of an Exponential",
    event_dim=0,
    elementwise=True,
    what="weighted rate",
    links=(
        links.identity("rate"),
        Link("mean", torch.reciprocal, torch.reciprocal),
        Link("log of rate", torch.exp, torch.log),
    ),
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce,
    maximise=_maximise,
    sound=_is_positive,
    natural=Natural(_stretch, _score, _gain),
    priors={"rate": {dist.Gamma: _gamma}},
)


class ExponentialFamily(Family):
    """``Exponential(rate)``."""

    distributions = (Exponential, dist.Exponential)
    max_event_dim = math.inf
    arguments = (RATE,)

    def read(self, distribution: Exponential) -> Arguments:
        """The rate."""
        return {"rate": distribution.rate}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log \lambda_k - \lambda_k x_t`, summed over the series of one observation."""
        rate, value = given["rate"], value.unsqueeze(-1 - event_dim)
        each = rate.log() - rate * value
        return each.sum(list(range(-event_dim, 0))) if event_dim else each

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Waiting:
        """Weights and weighted sums."""
        weights = observed.weights.reshape(observed.weights.shape + (1,) * observed.event_dim)
        total = weights * observed.value
        weight = weights.expand(total.shape)
        if observed.varies:
            return Waiting(weight, total)
        time = observed.weights.dim() - 2
        return Waiting(weight.sum(time, keepdim=True), total.sum(time, keepdim=True))


EXPONENTIAL = ExponentialFamily()
