r"""The family of shares, ``Beta(concentration1, concentration0)``, with or without ``to_event``.

It is the Dirichlet of x and 1 - x (:mod:`.dirichlet`). Where both concentrations belong to the same
observations, they are maximised together. Otherwise each is the root of

.. math:: \sum_k n_k (\psi(a) - \psi(a + b_k)) = \sum_t \gamma_t \log x_t

given the others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Beta, constraints

from pyro_regimes.emissions import charts, dirichlet, draws, links, special, sums
from pyro_regimes.emissions.arithmetic import as_real, divide, divide_where_known, over_event
from pyro_regimes.emissions.base import (
    Argument,
    Arguments,
    End,
    Family,
    Joint,
    Natural,
    Observed,
    Search,
)
from pyro_regimes.emissions.positive import is_positive, stretch

#: Newton's error after a step in the logarithm that is this small is its square.
_SMALL = 1e-8


class Logs(NamedTuple):
    """Expected sums, ``(..., 1 or T, K, *event)``."""

    weight: Tensor
    ones: Tensor  #: of log x
    zeros: Tensor  #: of log(1 - x)


class Slope(NamedTuple):
    """Pooled derivatives in the logarithm of one concentration, at its present value."""

    weight: Tensor
    slope: Tensor
    information: Tensor


def _slope(logs: Tensor, weight: Tensor, own: Tensor, other: Tensor) -> Slope:
    own, total = own.double(), own.double() + other.double()
    slope = logs + weight * (special.digamma(total) - special.digamma(own))
    bend = weight * (special.trigamma(own) - special.trigamma(total))
    return Slope(weight.expand(slope.shape), own * slope, own * own * bend)


def _reduce1(stats: Logs, given: Arguments, weighted: bool) -> Slope:
    return _slope(stats.ones, stats.weight, given["concentration1"], given["concentration0"])


def _reduce0(stats: Logs, given: Arguments, weighted: bool) -> Slope:
    return _slope(stats.zeros, stats.weight, given["concentration0"], given["concentration1"])


def _reduce_both(stats: Logs, given: Arguments) -> Logs:
    return stats


def _maximise_both(pooled: Logs, now: Tensor, floor: float) -> Tensor:
    """The first of the two concentrations that are the maximum together."""
    logs = torch.stack([pooled.ones, pooled.zeros], -1)
    return dirichlet.solve(divide(logs, pooled.weight.unsqueeze(-1)))[..., 0]


def _step(pooled: Slope, now: Tensor, low: End, high: End) -> tuple[Tensor, Tensor]:
    """One step of Newton in the logarithm, of at most a factor of e^2."""
    curvature = torch.maximum(pooled.information - pooled.slope, 0.1 * pooled.information)
    by = divide(pooled.slope, curvature).clamp(-2.0, 2.0)
    return now * by.exp(), by.abs() <= _SMALL


def _maximise(pooled: Slope, now: Tensor, floor: float) -> Tensor:
    return _step(pooled, now, End(now, pooled), End(now, pooled))[0]


def _score(pooled: Slope, concentration: Tensor) -> Tensor:
    return pooled.slope


def _gain(score: Tensor, pooled: Slope, concentration: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.information)


def _argument(name: str, joint: Joint | None) -> Argument:
    return Argument(
        name=name,
        kind=f"{name} of a Beta",
        event_dim=0,
        elementwise=True,
        what="mean logarithms, by Newton steps",
        links=links.CONCENTRATION,
        inside=(constraints.positive, constraints.nonnegative),
        draw=draws.positive,
        reduce=_reduce1 if name == "concentration1" else _reduce0,
        maximise=_maximise,
        sound=is_positive,
        natural=Natural(stretch, _score, _gain),
        why_unbounded="the values of a state are all equal, or some of them are 0 or 1",
        chart=charts.SCALE,
        joint=joint,
        search=Search(_step),
    )


_BOTH = Joint(("concentration0",), _reduce_both, _maximise_both, one_to_one=True)
CONCENTRATION1 = _argument("concentration1", _BOTH)
CONCENTRATION0 = _argument("concentration0", None)


class BetaFamily(Family):
    """``Beta(concentration1, concentration0)``."""

    distributions = (Beta, dist.Beta)
    max_event_dim = math.inf
    arguments = (CONCENTRATION1, CONCENTRATION0)

    def read(self, distribution: Beta) -> Arguments:
        """Both concentrations."""
        return {
            "concentration1": distribution.concentration1,
            "concentration0": distribution.concentration0,
        }

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density, summed over the series of one observation."""
        value = as_real(value, given["concentration1"]).unsqueeze(-1 - event_dim)
        outside = (value < 0) | (value > 1)
        inside = torch.where(outside, 0.5, value)
        both = torch.broadcast_tensors(given["concentration1"], given["concentration0"])
        shares = torch.stack([inside, 1 - inside], -1)
        each = dirichlet.log_density(shares, torch.stack(both, -1))
        return over_event(each.masked_fill(outside, -torch.inf), event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Logs:
        """Weights, and weighted logarithms of the shares."""
        weight, ones = sums.of_logs(observed, observed.value)
        _, zeros = sums.of_logs(observed, 1 - observed.value.double())
        return Logs(weight, ones, zeros)


BETA = BetaFamily()
