r"""The family of absolute values of centred Gaussians, ``HalfNormal(scale)``.

.. math:: \sigma_k^2 = \frac{\sum_t \gamma_t(k) x_t^2}{\sum_t \gamma_t(k)}

The scale is that of the Normal, with the same links and priors, so that a parameter may be the
scale of both.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import HalfNormal

from pyro_regimes.emissions import normal, sums
from pyro_regimes.emissions.arithmetic import over_event
from pyro_regimes.emissions.base import Arguments, Family, Observed
from pyro_regimes.emissions.statistics import Spread, Totals


def _reduce(stats: Totals, given: Arguments, weighted: bool) -> Spread:
    return Spread(stats.weight, stats.total)


SCALE = replace(
    normal.SCALE,
    what="weighted root mean square",
    reduce=_reduce,
    why_unbounded="the values of a state are all 0",
)


class HalfNormalFamily(Family):
    """``HalfNormal(scale)``."""

    distributions = (HalfNormal, dist.HalfNormal)
    max_event_dim = math.inf
    arguments = (SCALE,)

    def read(self, distribution: HalfNormal) -> Arguments:
        """The standard deviation of the Gaussian."""
        return {"scale": distribution.scale}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density, summed over the series of one observation."""
        value, scale = value.unsqueeze(-1 - event_dim), given["scale"]
        each = 0.5 * math.log(2 / math.pi) - scale.log() - 0.5 * (value / scale).square()
        return over_event(each.masked_fill(value < 0, -torch.inf), event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Totals:
        """Weights and weighted squares."""
        return Totals(*sums.over_time(observed, observed.value.double().square()))


HALF_NORMAL = HalfNormalFamily()
