r"""The family of factor analysis, ``LowRankMultivariateNormal(loc, cov_factor, cov_diag)``.

An observation is :math:`x = \mu_k + \Lambda_k f + \epsilon` with Q latent factors
:math:`f \sim N(0, I)` and independent noise of the variances :math:`\psi_k`, so that its covariance
is :math:`\Sigma_k = \Lambda_k \Lambda_k^\top + \mathrm{diag}(\psi_k)`. The location is set as that
of a MultivariateNormal. With the scatter S of the data about it, with
:math:`\beta = \Lambda^\top \Sigma^{-1}`, and with the expected products of data and factors, and of
factors,

.. math::
    C = S \beta^\top, \qquad E = n (I - \beta \Lambda) + \beta S \beta^\top, \qquad
    \Lambda = C E^{-1}, \qquad
    \psi_d = (S - 2 \Lambda C^\top + \Lambda E \Lambda^\top)_{dd} / n

(Rubin and Thayer 1982). C and E are functions of S, so that no further pass over the data is made,
and each update has those at the values before it. A variance for each state (isotropic noise) gives
probabilistic PCA. The sign and the rotation of the factors are those of the start.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, constraints

from pyro_regimes.emissions import (
    charts,
    conjugate,
    draws,
    links,
    missing,
    moments,
    multivariate_normal,
)
from pyro_regimes.emissions.arithmetic import divide, divide_where_known, is_at_floor
from pyro_regimes.emissions.base import Argument, Arguments, Family, Gaussian, Natural, Observed
from pyro_regimes.emissions.links import Link
from pyro_regimes.emissions.moments import Moments
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.positive import is_positive, stretch
from pyro_regimes.emissions.statistics import Spread, WeightedSum


def _covariance(given: Arguments) -> Tensor:
    factor = given["cov_factor"]
    return factor @ factor.mT + torch.diag_embed(given["cov_diag"])


def _root(given: Arguments) -> Tensor:
    """The Cholesky factor of the covariance; NaN if that is singular to working precision."""
    factor, info = torch.linalg.cholesky_ex(_covariance(given))
    return factor.masked_fill((info != 0)[..., None, None], torch.nan)


def _as_full(given: Arguments) -> Arguments:
    """The arguments of the same MultivariateNormal."""
    return {"loc": given["loc"], "scale_tril": _root(given)}


def _reduce_loc(stats: Moments, given: Arguments, weighted: bool) -> WeightedSum:
    whole = _as_full(given) if weighted else given
    found: WeightedSum = multivariate_normal.LOC.reduce(stats, whole, weighted)
    return found


def _standard_deviations(given: Arguments) -> Tensor:
    return (given["cov_factor"].square().sum(-1) + given["cov_diag"]).sqrt()


class _Factors(NamedTuple):
    """Expected products at the present arguments, with n and the scatter S."""

    weight: Tensor  #: ``(..., 1, 1)``
    scatter: Tensor  #: ``(..., D, D)``
    cross: Tensor  #: C, ``(..., D, Q)``
    second: Tensor  #: E, ``(..., Q, Q)``


def _expect_factors(stats: Moments, given: Arguments) -> _Factors:
    factor, loc = given["cov_factor"], given["loc"]
    scatter = moments.scatter(stats, loc, is_full=True).to(loc.dtype)
    weight = stats.weight.to(loc.dtype).unsqueeze(-1)
    whitened = torch.cholesky_solve(factor, _root(given))  # beta^T
    cross = scatter @ whitened
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    left = eye - whitened.mT @ factor
    second = weight * (left + left.mT) / 2 + whitened.mT @ cross
    return _Factors(weight, scatter, cross, (second + second.mT) / 2)


# ---- the loadings ------------------------------------------------------------------------------


class Loadings(NamedTuple):
    """Pooled statistics of loadings, each row weighted with the precision of its noise."""

    weight: Tensor  #: n, ``(..., 1, 1)``
    cross: Tensor  #: ``(..., D, Q)``
    second: Tensor  #: ``(..., D, Q, Q)``


def _reduce_factor(stats: Moments, given: Arguments, weighted: bool) -> Loadings:
    weight, _, cross, second = _expect_factors(stats, given)
    precision = given["cov_diag"].reciprocal().unsqueeze(-1)
    weight = weight.expand(cross.shape[:-2] + (1, 1))
    return Loadings(weight, cross * precision, second.unsqueeze(-3) * precision.unsqueeze(-1))


def _loadings(pooled: Loadings, now: Tensor, floor: float) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(pooled.second)
    found = torch.cholesky_solve(pooled.cross.unsqueeze(-1), factor).squeeze(-1)
    known = (info == 0) & (pooled.weight.squeeze(-1) > 0)
    return found.masked_fill(~known.unsqueeze(-1), torch.nan)


def _shift(factor: Tensor, by: Tensor) -> Tensor:
    return factor + by


def _factor_score(pooled: Loadings, factor: Tensor) -> Tensor:
    return pooled.cross - (pooled.second @ factor.unsqueeze(-1)).squeeze(-1)


def _factor_gain(score: Tensor, pooled: Loadings, factor: Tensor, floor: float) -> Tensor:
    root, info = torch.linalg.cholesky_ex(pooled.second)
    white = torch.linalg.solve_triangular(root, score.unsqueeze(-1), upper=False).squeeze(-1)
    unknown = torch.where((score == 0).all(-1), 0.0, torch.inf)
    return torch.where(info == 0, 0.5 * white.square().sum(-1), unknown)


def _noise_of_rows(given: Arguments) -> Tensor:
    return given["cov_diag"].sqrt().unsqueeze(-1)


COV_FACTOR = Argument(
    name="cov_factor",
    kind="loadings of a LowRankMultivariateNormal",
    event_dim=2,
    elementwise=False,
    what="regression on the expected factors",
    links=(links.identity("loadings"),),
    inside=(),
    draw=None,
    reduce=_reduce_factor,
    maximise=_loadings,
    sound=torch.isfinite,
    natural=Natural(_shift, _factor_score, _factor_gain),
    chart=charts.location(_noise_of_rows),
)


# ---- the noise ---------------------------------------------------------------------------------


def _reduce_diag(stats: Moments, given: Arguments, weighted: bool) -> Spread:
    weight, scatter, cross, second = _expect_factors(stats, given)
    factor = given["cov_factor"]
    explained = (factor * (2 * cross - factor @ second)).sum(-1)
    left = scatter.diagonal(dim1=-2, dim2=-1) - explained
    return Spread(weight.squeeze(-1).expand(left.shape), left)


def _variances(pooled: Spread, now: Tensor, floor: float) -> Tensor:
    variance = divide(pooled.scatter, pooled.weight).clamp(min=floor)
    return variance.masked_fill(variance < torch.finfo(variance.dtype).tiny, torch.nan)


def _diag_score(pooled: Spread, variance: Tensor) -> Tensor:
    return 0.5 * (pooled.scatter / variance - pooled.weight)


def _diag_gain(score: Tensor, pooled: Spread, variance: Tensor, floor: float) -> Tensor:
    at_floor = is_at_floor(variance.unsqueeze(-1), floor).squeeze(-1)
    return divide_where_known(score**2, pooled.weight).masked_fill(at_floor & (score < 0), 0.0)


def _feasible(variance: Tensor, floor: float) -> Tensor:
    return variance.clamp(min=floor)


_POSITIVE = (constraints.positive, constraints.nonnegative)

COV_DIAG = Argument(
    name="cov_diag",
    kind="noise of a LowRankMultivariateNormal",
    event_dim=0,
    elementwise=True,
    what="scatter that the factors leave",
    links=(
        links.identity("variance"),
        Link("standard deviation", torch.square, torch.sqrt, inside=_POSITIVE),
        Link("precision", torch.reciprocal, torch.reciprocal, inside=_POSITIVE),
        Link("log of variance", torch.exp, torch.log),
    ),
    inside=_POSITIVE,
    draw=draws.positive,
    reduce=_reduce_diag,
    maximise=_variances,
    sound=is_positive,
    natural=Natural(stretch, _diag_score, _diag_gain),
    feasible=_feasible,
    why_unbounded=moments.WHY_UNBOUNDED,
    priors={
        "variance": {dist.InverseGamma: conjugate.inverse_gamma},
        "precision": {dist.Gamma: conjugate.gamma},
    },
    chart=charts.SCALE,
)

LOC = replace(
    multivariate_normal.LOC,
    kind="location of a LowRankMultivariateNormal",
    reduce=_reduce_loc,
    chart=charts.location(_standard_deviations),
)


class _Family(Family):
    """``LowRankMultivariateNormal(loc, cov_factor, cov_diag)``."""

    distributions = (LowRankMultivariateNormal, dist.LowRankMultivariateNormal)
    max_event_dim = 1
    arguments = (LOC, COV_FACTOR, COV_DIAG)
    marginalises = True

    def read(self, distribution: LowRankMultivariateNormal) -> Arguments:
        """The location, the loadings and the variances of the noise."""
        return {
            "loc": distribution.loc,
            "cov_factor": distribution._unbroadcasted_cov_factor,
            "cov_diag": distribution._unbroadcasted_cov_diag,
        }

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log N(x_t; \mu_k, \Sigma_k)`."""
        return MULTIVARIATE_NORMAL.log_prob(value, _as_full(given), event_dim)

    def log_prob_of_seen(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> Tensor:
        """The marginal density of the series that are not missing."""
        return MULTIVARIATE_NORMAL.log_prob_of_seen(value, missing, _as_full(given), event_dim)

    def moments_of_missing(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Those of the regression on the observed series of the row."""
        return MULTIVARIATE_NORMAL.moments_of_missing(value, missing, _as_full(given), event_dim)

    def as_gaussian(self, value: Tensor, given: Arguments, event_dim: int) -> Gaussian | None:
        """The location and the Cholesky factor of the covariance."""
        return MULTIVARIATE_NORMAL.as_gaussian(value, _as_full(given), event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Moments:
        """Moments about the current locations."""
        with_second = not names.isdisjoint(("cov_factor", "cov_diag"))
        if observed.missing is not None:  # the factors are then expected given all entries
            root = _root(given)
            return missing.moments(observed, given["loc"], root @ root.mT, with_second)
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


LOW_RANK_NORMAL = _Family()
