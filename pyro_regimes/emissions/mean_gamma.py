r"""The family of ``MeanGamma(mean, concentration)``, with or without ``to_event``.

The mean m has the closed form :math:`m = \sum_t \gamma_t x_t / n`; with the linear predictor
:math:`\eta = \log m` of a generalised linear model, :math:`Q = -n a \eta - a s e^{-\eta}` is
concave, and its maximum does not depend on the concentration of a state. The concentration given
the mean is the root of

.. math:: \log a - \psi(a) = \frac1n \sum_t \gamma_t \, h(x_t / m_t - 1),
    \qquad h(e) = e - \log(1 + e),

as in :mod:`.gamma`. Mean and concentration are orthogonal (Cox and Reid 1987), so that updates in
turn (ECM) lose nothing, whereas those of a rate and a concentration are slow if these are large.
"""

from __future__ import annotations

from dataclasses import replace

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma

from pyro_regimes.emissions import conjugate, links, predictors, special
from pyro_regimes.emissions.arithmetic import divide, divide_where_known
from pyro_regimes.emissions.base import Arguments, Natural, Observed
from pyro_regimes.emissions.gamma import (
    CONCENTRATION,
    RATE,
    Excess,
    GammaFamily,
    Logs,
    about,
    maximise_with_mean,
)
from pyro_regimes.emissions.positive import stretch
from pyro_regimes.emissions.statistics import Totals
from pyro_regimes.observed.mean_gamma import MeanGamma


def _reduce_mean(stats: Excess, given: Arguments, weighted: bool) -> Totals:
    concentration = given["concentration"]
    total = concentration * stats.origin * (stats.first + stats.weight)
    return Totals((stats.weight * concentration).expand(total.shape), total)


def _maximise_mean(pooled: Totals, now: Tensor, floor: float) -> Tensor:
    mean = divide(pooled.total, pooled.weight)
    return mean.masked_fill(mean <= 0, torch.nan)


def _reduce_concentration(stats: Excess, given: Arguments, weighted: bool) -> Logs:
    excess = about(stats, given["mean"].double()).excess
    return Logs(stats.weight.expand(excess.shape), excess)


# The predictor is minus that of a rate.


def _value(pooled: Totals, eta: Tensor) -> Tensor:
    return _RATE.value(pooled, -eta)


def _score(pooled: Totals, eta: Tensor) -> Tensor:
    return -_RATE.score(pooled, -eta)


def _times(pooled: Totals, eta: Tensor, matrix: Tensor) -> Tensor:
    return _RATE.times(pooled, -eta, matrix)


_RATE = predictors.LOG_OF_WAITING_RATE

#: The logarithm of the mean, with ``Totals``.
LOG_OF_MEAN = _RATE._replace(name="log of the mean", value=_value, score=_score, times=_times)


# In e, with a mean of m (1 + e): the score is s / m - n, and the information n.


def _mean_score(pooled: Totals, mean: Tensor) -> Tensor:
    return pooled.total / mean - pooled.weight


def _mean_gain(score: Tensor, pooled: Totals, mean: Tensor, floor: float) -> Tensor:
    return divide_where_known(0.5 * score**2, pooled.weight)


# With a concentration of a (1 + e): the score is a (n (log a - psi(a)) - h).


def _concentration_score(pooled: Logs, concentration: Tensor) -> Tensor:
    level = special.log_minus_digamma(concentration)
    return concentration * (pooled.weight * level - pooled.total)


def _concentration_gain(score: Tensor, pooled: Logs, cells: Tensor, floor: float) -> Tensor:
    information = pooled.weight * cells * special.stretched_slope(cells)
    return divide_where_known(0.5 * score**2, information)


MEAN = replace(
    RATE,
    name="mean",
    kind="mean of a MeanGamma",
    what="weighted mean",
    links=links.MEAN,
    reduce=_reduce_mean,
    maximise=_maximise_mean,
    natural=Natural(stretch, _mean_score, _mean_gain),
    priors={"mean": {dist.InverseGamma: conjugate.inverse_gamma_of_waiting_mean}},
    predictors=(LOG_OF_MEAN,),
)

MEAN_CONCENTRATION = replace(
    CONCENTRATION,
    kind="concentration of a MeanGamma",
    what="mean excess about the means, by Newton steps",
    reduce=_reduce_concentration,
    maximise=maximise_with_mean,
    natural=Natural(stretch, _concentration_score, _concentration_gain),
    joint=None,
)


def _by_rate(given: Arguments) -> Arguments:
    concentration = given["concentration"]
    return {"concentration": concentration, "rate": concentration / given["mean"]}


class MeanGammaFamily(GammaFamily):
    """``MeanGamma(mean, concentration)``."""

    distributions: tuple[type[Distribution], ...] = (MeanGamma,)
    arguments = (MEAN, MEAN_CONCENTRATION)

    def read(self, distribution: Gamma) -> Arguments:
        """The mean and the concentration."""
        assert isinstance(distribution, MeanGamma)
        return {"mean": distribution.mean_value, "concentration": distribution.concentration}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """That of a Gamma."""
        return super().log_prob(value, _by_rate(given), event_dim)

    def own_rounding(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """That of a Gamma."""
        return super().own_rounding(value, _by_rate(given), event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Excess:
        """Those of a Gamma."""
        return super().statistics(observed, _by_rate(given), names)


MEAN_GAMMA = MeanGammaFamily()
