"""The family of correlated Gaussian series, ``MultivariateNormal``.

.. math::
    \\mu_k = \\frac{\\sum_t \\gamma_t(k) x_t}{\\sum_t \\gamma_t(k)}, \\qquad
    \\Sigma_k = \\frac{\\sum_t \\gamma_t(k) (x_t - \\mu_k)(x_t - \\mu_k)^\\top}
                      {\\sum_t \\gamma_t(k)}

(equations 35 and 41; Bilmes 1998). The spread may be given by a covariance, its Cholesky factor or
a precision matrix (``spreads.py``). The sums run over everything that shares the parameter: one
covariance for all states is the pooled scatter. A location shared over different covariances is

.. math::
    \\mu = \\Big(\\sum_{t,k} \\gamma_t(k) \\Sigma_k^{-1}\\Big)^{-1}
        \\sum_{t,k} \\gamma_t(k) \\Sigma_k^{-1} x_t,

which maximises the likelihood given the covariances; these are then updated about the new location
(ECM: Meng and Rubin 1993).
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_regimes.emissions import charts, conjugate, draws, links
from pyro_regimes.emissions import missing as missing_entries
from pyro_regimes.emissions import moments
from pyro_regimes.emissions.arithmetic import divide
from pyro_regimes.emissions.base import Argument, Arguments, Family, Gaussian, Natural, Observed
from pyro_regimes.emissions.moments import Moments
from pyro_regimes.emissions.spreads import (
    COVARIANCE_MATRIX,
    NAMES,
    PRECISION_MATRIX,
    SCALE_TRIL,
    covariance_of,
    factor_of,
    precision_of,
)
from pyro_regimes.emissions.statistics import WeightedSum
from pyro_regimes.kernels import ops

__all__ = ["COVARIANCE_MATRIX", "LOC", "MULTIVARIATE_NORMAL", "PRECISION_MATRIX", "SCALE_TRIL"]


def _loc_and_factor(given: Arguments) -> tuple[Tensor, Tensor]:
    spreads = {name: ops.without_repeats(each, 2) for name, each in given.items() if name != "loc"}
    return ops.without_repeats(given["loc"], 1), factor_of(spreads)


def _constant(value: Tensor, loc: Tensor, factor: Tensor) -> Gaussian | None:
    """Arguments of the kernels, for a distribution that is constant in time."""
    if loc.shape[-3:-2] not in ((), (1,)) or factor.shape[-4:-3] not in ((), (1,)):
        return None
    return Gaussian(value, ops.without_time(loc, 2), ops.without_time(factor, 3))


def _reduce_loc(stats: Moments, given: Arguments, weighted: bool) -> WeightedSum:
    total = moments.sums(stats)
    if not weighted:
        return WeightedSum(stats.weight, total, None)
    precision = precision_of(given)
    return WeightedSum(
        stats.weight,
        (precision @ total.to(precision.dtype).unsqueeze(-1)).squeeze(-1),
        stats.weight.unsqueeze(-1) * precision,
    )


def _mean(pooled: WeightedSum, now: Tensor, floor: float) -> Tensor:
    if pooled.precision is None:
        return divide(pooled.total, pooled.weight)
    factor, info = torch.linalg.cholesky_ex(pooled.precision)
    mean = torch.cholesky_solve(pooled.total.to(factor.dtype).unsqueeze(-1), factor).squeeze(-1)
    return mean.masked_fill((info != 0).unsqueeze(-1), torch.nan)


def _standard_deviations(given: Arguments) -> Tensor:
    return factor_of(given).square().sum(-1).sqrt()


def _shift(loc: Tensor, by: Tensor) -> Tensor:
    return loc + by


def _loc_score(pooled: WeightedSum, loc: Tensor) -> Tensor:
    assert pooled.precision is not None
    loc = loc.to(pooled.precision.dtype)
    return pooled.total - (pooled.precision @ loc.unsqueeze(-1)).squeeze(-1)


def _loc_gain(score: Tensor, pooled: WeightedSum, loc: Tensor, floor: float) -> Tensor:
    assert pooled.precision is not None
    factor, info = torch.linalg.cholesky_ex(pooled.precision)
    right = score.to(factor.dtype).unsqueeze(-1)
    whitened = torch.linalg.solve_triangular(factor, right, upper=False)
    gain = 0.5 * whitened.square().sum((-2, -1))
    unknown = torch.where((score == 0).all(-1), 0.0, torch.inf)
    return torch.where(info == 0, gain, unknown)


LOC = Argument(
    name="loc",
    kind="location of a MultivariateNormal",
    event_dim=1,
    elementwise=False,
    what="weighted mean (35)",
    links=links.LOCATION,
    inside=(),
    draw=draws.location,
    reduce=_reduce_loc,
    maximise=_mean,
    sound=torch.isfinite,
    natural=Natural(_shift, _loc_score, _loc_gain),
    priors={"location": conjugate.LOCATION},
    is_quadratic=True,
    chart=charts.location(_standard_deviations),
)


class _Family(Family):
    """``MultivariateNormal(loc, ...)``, with any one of the three matrices."""

    distributions = (MultivariateNormal, dist.MultivariateNormal)
    max_event_dim = 1
    arguments = (LOC, COVARIANCE_MATRIX, SCALE_TRIL, PRECISION_MATRIX)
    marginalises = True

    def read(self, distribution: MultivariateNormal) -> Arguments:
        """The location, and the one of the three matrices that the caller passed."""
        # torch keeps that one as an attribute, and computes the others when they are read.
        given = next(name for name in vars(distribution) if name in NAMES)
        return {"loc": distribution.loc, given: getattr(distribution, given)}

    def read_for_density(self, distribution: MultivariateNormal) -> Arguments:
        """The location and the Cholesky factor, which torch computes differentiably."""
        return {"loc": distribution.loc, "scale_tril": distribution._unbroadcasted_scale_tril}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log N(x_t; \mu_k, \Sigma_k)`."""
        loc, factor = _loc_and_factor(given)
        gaussian = _constant(value, loc, factor)
        if gaussian is not None:
            return ops.gaussian_log_prob(*gaussian)
        normal = MultivariateNormal(loc, scale_tril=factor, validate_args=False)
        density: Tensor = normal.log_prob(value.unsqueeze(-2))
        return density

    def as_gaussian(self, value: Tensor, given: Arguments, event_dim: int) -> Gaussian | None:
        """The location and the Cholesky factor."""
        return _constant(value, *_loc_and_factor(given))

    def log_prob_of_seen(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> Tensor:
        """The marginal density of the series that are not missing."""

        def complete(value: Tensor) -> Tensor:
            return self.log_prob(value, given, event_dim)

        covariance = covariance_of(given)
        return missing_entries.log_prob(value, missing, given["loc"], covariance, complete)

    def moments_of_missing(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Those of the regression on the observed series of the row."""
        return missing_entries.conditional(value, missing, given["loc"], covariance_of(given))

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Moments:
        """Moments about the current locations."""
        with_second = not names.isdisjoint(NAMES)
        if observed.missing is not None:
            covariance = covariance_of(given)
            return missing_entries.moments(observed, given["loc"], covariance, with_second)
        return moments.take(observed, given["loc"], True, with_second)

    def is_accurate(self, stats: Moments, given: Arguments, name: str) -> Tensor | bool:
        """Whether the scatter about another location keeps enough of its digits."""
        return name == "loc" or moments.is_accurate(stats, given["loc"], is_full=True)

    def merge(self, accurate: Tensor, stats: Moments, again: Moments) -> Moments:
        """Combine moments about two origins, block by block."""
        return moments.merge(accurate, stats, again)

    def add(self, one: Moments, other: Moments) -> Moments:
        """The sum of moments about one origin."""
        return moments.add(one, other)

    def total(self, stats: Moments, num_batch_dims: int, like: Moments | None) -> Moments:
        """The sum over all sequences, each block about its own origin."""
        return moments.total(stats, num_batch_dims, like, is_full=True)


MULTIVARIATE_NORMAL = _Family()
