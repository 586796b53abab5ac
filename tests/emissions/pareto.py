r"""The family of Pareto distributions with a known scale m, as a user would add it.

.. math::
    \alpha_k = \frac{\sum_t \gamma_t(k)}{\sum_t \gamma_t(k) \log (x_t / m)}

maximises :math:`\sum_t \gamma_t(k) (\log \alpha_k - \alpha_k \log (x_t / m))`. The sums run over
everything that shares :math:`\alpha_k`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Pareto, constraints

from pyro_regimes.emissions import (
    Argument,
    Family,
    Natural,
    Observed,
    draws,
    links,
    without_update,
)
from pyro_regimes.emissions.arithmetic import divide, divide_where_known, over_event
from pyro_regimes.emissions.base import Arguments, blocks
from pyro_regimes.emissions.links import Link


class Excess(NamedTuple):
    """Expected statistics, ``(..., 1 or T, K, *event)``. They add up."""

    weight: Tensor  #: n
    total: Tensor  #: s, the weighted sum of log(x / m)


def _reduce(stats: Excess, given: Arguments, weighted: bool) -> Excess:
    return stats


def _maximise(pooled: Excess, now: Tensor, floor: float) -> Tensor:
    return divide(pooled.weight, pooled.total.masked_fill(pooled.total <= 0, torch.nan))


def _is_positive(alpha: Tensor) -> Tensor:
    return alpha.isfinite() & (alpha > 0)


# In e, with an argument of alpha (1 + e): the score is n - alpha s, and the information n.


def _stretch(alpha: Tensor, by: Tensor) -> Tensor:
    return alpha * (1 + by)


def _score(pooled: Excess, alpha: Tensor) -> Tensor:
    return pooled.weight - alpha * pooled.total


def _gain(score: Tensor, pooled: Excess, alpha: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.weight)


def _gamma(prior: dist.Gamma, given: torch.Size, shape: torch.Size, event_dim: int) -> Excess:
    concentration, rate = (
        blocks(each.expand(given).reshape(shape), event_dim)
        for each in (prior.concentration, prior.rate)
    )
    return Excess(concentration - 1, rate)


ALPHA = Argument(
    name="alpha",
    kind="alpha of a Pareto",
    event_dim=0,
    elementwise=True,
    what="weighted tail index",
    links=(
        links.identity("alpha"),
        Link("mean excess", torch.reciprocal, torch.reciprocal),
        Link("log of alpha", torch.exp, torch.log),
    ),
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce,
    maximise=_maximise,
    sound=_is_positive,
    natural=Natural(_stretch, _score, _gain),
    priors={"alpha": {dist.Gamma: _gamma}},
)


class ParetoFamily(Family):
    """``Pareto(scale, alpha)`` with a known scale."""

    distributions = (Pareto, dist.Pareto)
    max_event_dim = math.inf
    arguments = (without_update("scale"), ALPHA)

    def read(self, distribution: Pareto) -> Arguments:
        """The scale and alpha."""
        return {"scale": distribution.scale, "alpha": distribution.alpha}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log \alpha_k - \alpha_k \log (x_t / m) - \log x_t`."""
        alpha, value = given["alpha"], value.unsqueeze(-1 - event_dim)
        each = alpha.log() - alpha * (value / given["scale"]).log() - value.log()
        return over_event(each, event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Excess:
        """Weights and weighted sums of the logarithms."""
        weights = observed.weights.reshape(observed.weights.shape + (1,) * observed.event_dim)
        total = weights * (observed.value / given["scale"]).log()
        weight = weights.expand(total.shape)
        if observed.varies:
            return Excess(weight, total)
        time = observed.weights.dim() - 2
        return Excess(weight.sum(time, keepdim=True), total.sum(time, keepdim=True))


PARETO = ParetoFamily()
