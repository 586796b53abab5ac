"""The family of correlated Gaussian series, ``MultivariateNormal``.

.. math::
    \\mu_k = \\frac{\\sum_t \\gamma_t(k) x_t}{\\sum_t \\gamma_t(k)}, \\qquad
    \\Sigma_k = \\frac{\\sum_t \\gamma_t(k) (x_t - \\mu_k)(x_t - \\mu_k)^\\top}
                      {\\sum_t \\gamma_t(k)}

(equations 35 and 41; Bilmes 1998). The spread may be given by a covariance, its Cholesky factor or
a precision matrix. The sums run over everything that shares the parameter: one covariance for all
states is the pooled scatter. A location shared over different covariances is

.. math::
    \\mu = \\Big(\\sum_{t,k} \\gamma_t(k) \\Sigma_k^{-1}\\Big)^{-1}
        \\sum_{t,k} \\gamma_t(k) \\Sigma_k^{-1} x_t,

which maximises the likelihood given the covariances; these are then updated about the new location
(ECM: Meng and Rubin 1993). With a floor, eigenvalues of :math:`\\Sigma_k` below it are raised to
it, which gives the exact maximiser under that constraint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints
from torch.distributions.multivariate_normal import _precision_to_scale_tril

from pyro_regimes.emissions import charts, conjugate, draws, links
from pyro_regimes.emissions import missing as missing_entries
from pyro_regimes.emissions import moments, sizes
from pyro_regimes.emissions.base import (
    Argument,
    Arguments,
    Conjugate,
    Family,
    Gaussian,
    Natural,
    Observed,
    divide,
    divide_where_known,
    is_at_floor,
)
from pyro_regimes.emissions.moments import Moments
from pyro_regimes.emissions.statistics import Spread, WeightedSum
from pyro_regimes.kernels import ops

_SPREADS = ("covariance_matrix", "scale_tril", "precision_matrix")


def _factor(given: Arguments) -> Tensor:
    if "scale_tril" in given:
        return given["scale_tril"]
    if "covariance_matrix" in given:
        return torch.linalg.cholesky(given["covariance_matrix"])
    return _precision_to_scale_tril(given["precision_matrix"])


def _loc_and_factor(given: Arguments) -> tuple[Tensor, Tensor]:
    spreads = {name: ops.without_repeats(each, 2) for name, each in given.items() if name != "loc"}
    return ops.without_repeats(given["loc"], 1), _factor(spreads)


def _constant(value: Tensor, loc: Tensor, factor: Tensor) -> Gaussian | None:
    """Arguments of the kernels, for a distribution that is constant in time."""
    if loc.shape[-3:-2] not in ((), (1,)) or factor.shape[-4:-3] not in ((), (1,)):
        return None
    return Gaussian(value, ops.without_time(loc, 2), ops.without_time(factor, 3))


def _covariance_of(given: Arguments) -> Tensor:
    if "covariance_matrix" in given:
        return given["covariance_matrix"]
    factor = _factor(given)
    return factor @ factor.mT


def _precision(given: Arguments) -> Tensor:
    if "precision_matrix" in given:
        return given["precision_matrix"]
    if "scale_tril" in given:
        return torch.cholesky_inverse(given["scale_tril"])
    return torch.cholesky_inverse(torch.linalg.cholesky(given["covariance_matrix"]))


# ---- the location ------------------------------------------------------------------------------


def _reduce_loc(stats: Moments, given: Arguments, weighted: bool) -> WeightedSum:
    total = moments.sums(stats)
    if not weighted:
        return WeightedSum(stats.weight, total, None)
    precision = _precision(given)
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
    return _factor(given).square().sum(-1).sqrt()


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


# ---- the three spreads -------------------------------------------------------------------------


def _reduce_spread(stats: Moments, given: Arguments, weighted: bool) -> Spread:
    loc = given["loc"]
    scatter = moments.scatter(stats, loc, is_full=True).to(loc.dtype)
    return Spread(stats.weight.to(loc.dtype).unsqueeze(-1), scatter)


def _one_by_one(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of matrices whose results do not depend on their place in a batch, to the bit.

    BLAS rounds differently if a matrix does not begin at a multiple of 16 bytes. In a batch of
    matrices with an odd number of entries, this is every other matrix.
    """

    def of_each(matrices: Tensor, *bounds: float) -> Tensor:
        size = matrices.shape[-1]
        if size % 2 == 0 or matrices.device.type != "cpu" or matrices.numel() == 0:
            return function(matrices, *bounds)
        each = [function(one, *bounds) for one in matrices.reshape(-1, size, size)]
        return torch.stack(each).reshape(matrices.shape)

    return of_each


@_one_by_one
def _raise_eigenvalues(matrix: Tensor, floor: float, share: float = 0.0) -> Tensor:
    """The nearest symmetric matrix whose eigenvalues are at least ``floor``.

    :param share: and at least this share of the largest one.
    """
    values, vectors = torch.linalg.eigh(matrix)
    least = (share * values[..., -1:]).clamp(min=floor)
    raised = (vectors * values.maximum(least).unsqueeze(-2)) @ vectors.mT
    low = (values[..., :1] < least).unsqueeze(-1)
    return torch.where(low, (raised + raised.mT) / 2, matrix)


def _covariance(pooled: Spread, floor: float) -> tuple[Tensor, Tensor]:
    """The maximiser and its Cholesky factor; NaN if it is not positive definite.

    A floor that is lost in the rounding of a matrix is raised to what the matrix can hold.
    """
    covariance = divide(pooled.scatter, pooled.weight)
    covariance = (covariance + covariance.mT) / 2
    if floor > 0:
        covariance = _raised_where(~_exceeds(covariance, floor), covariance, floor)
    factor, singular = _checked_factor(covariance)
    if floor > 0 and bool(singular.any()):
        covariance = _raised_where(singular, covariance, floor, 4 * _rounding(covariance))
        factor, singular = _checked_factor(covariance)
    if singular.device.type != "cpu" or bool(singular.any()):
        singular = singular[..., None, None]
        covariance = covariance.masked_fill(singular, torch.nan)
        factor = factor.masked_fill(singular, torch.nan)
    return covariance, factor


def _raised_where(low: Tensor, matrix: Tensor, floor: float, share: float = 0.0) -> Tensor:
    """Raise the eigenvalues of some matrices; one with an entry that is not finite is NaN."""
    if not bool(low.any()):
        return matrix
    low = low[..., None, None]
    known = matrix.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    raised = _raise_eigenvalues(torch.where(known & low, matrix, eye), floor, share)
    return torch.where(known, torch.where(low, raised, matrix), torch.nan)


def _checked_factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor, and whether the matrix is singular to working precision."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    # The square of a pivot is the conditional variance given the series before it. Below rounding
    # the matrix counts as singular: after writing and reading it back, it would be invalid.
    variance, pivot = (part.diagonal(dim1=-2, dim2=-1) for part in (matrix, factor))
    return factor, (info != 0) | ~(pivot**2 > _rounding(matrix) * variance).all(-1)


def _rounding(matrix: Tensor) -> float:
    """The share of its largest eigenvalue that a matrix cannot tell from 0."""
    return 16 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps


def _exceeds(matrix: Tensor, floor: float) -> Tensor:
    """Whether all eigenvalues of each matrix are above ``floor``, at a fraction of their cost."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    below = torch.diag_embed(torch.full_like(diagonal, floor))
    exceeds: Tensor = torch.linalg.cholesky_ex(matrix - below).info == 0
    return exceeds


def _covariance_matrix(pooled: Spread, now: Tensor, floor: float) -> Tensor:
    return _covariance(pooled, floor)[0]


def _scale_tril(pooled: Spread, now: Tensor, floor: float) -> Tensor:
    return _covariance(pooled, floor)[1]


def _precision_matrix(pooled: Spread, now: Tensor, floor: float) -> Tensor:
    return torch.cholesky_inverse(_covariance(pooled, floor)[1])


@_one_by_one
def _feasible_scale_tril(factor: Tensor, floor: float) -> Tensor:
    factor = factor.tril()
    return torch.linalg.cholesky(_raise_eigenvalues(factor @ factor.mT, floor))


@_one_by_one
def _feasible_precision(precision: Tensor, floor: float) -> Tensor:
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    return torch.cholesky_inverse(torch.linalg.cholesky(_raise_eigenvalues(covariance, floor)))


def _exceeds_rounding(factor: Tensor) -> Tensor:
    """Whether each pivot of a factorised matrix exceeds the rounding error of its diagonal.

    The square of a pivot is the conditional variance given the series before it.
    """
    pivot, variance = factor.diagonal(dim1=-2, dim2=-1), factor.tril().square().sum(-1)
    rounding = factor.shape[-1] * torch.finfo(factor.dtype).eps
    return ((pivot > 0) & variance.isfinite() & (pivot**2 > rounding * variance)).all(-1)


def _is_definite(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    return (info == 0) & _exceeds_rounding(factor)


def _is_definite_precision(precision: Tensor) -> Tensor:
    # Flipped, as torch computes the factor of its inverse.
    return _is_definite(precision.flip(-2, -1)) & _is_definite(precision)


class _Root(NamedTuple):
    r"""A root R of a covariance, :math:`\Sigma = R R^\top`.

    A spread is perturbed as :math:`\Sigma = R (I + (e + e^\top) / 2) R^\top`. The score in e is
    :math:`\tfrac12 (R^{-1} S R^{-\top} - n I)` for the scatter S, and the gain its squared
    Frobenius norm over n.
    """

    of: Callable[[Tensor], Tensor]  #: the root of a spread in the argument's parametrisation
    spread: Callable[[Tensor, Tensor], Tensor]  #: from R and the symmetric matrix (e + e') / 2

    def perturb(self, spread: Tensor, by: Tensor) -> Tensor:
        return self.spread(self.of(spread), (by + by.mT) / 2)

    def score(self, pooled: Spread, spread: Tensor) -> Tensor:
        weight, scatter = pooled
        root = self.of(spread)
        half = torch.linalg.solve(root, scatter)
        whitened = torch.linalg.solve(root, half.mT)
        eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        return 0.25 * (whitened + whitened.mT) - 0.5 * weight * eye

    def gain(self, score: Tensor, pooled: Spread, spread: Tensor, floor: float) -> Tensor:
        score = (score + score.mT) / 2
        if floor > 0:
            root = self.of(spread)
            values, vectors = torch.linalg.eigh(root @ root.mT)
            at_floor = is_at_floor(values, floor).unsqueeze(-2)
            held = (root.mT @ vectors) * (at_floor / values.clamp(min=floor).sqrt().unsqueeze(-2))
            inside, along = torch.linalg.eigh(held.mT @ score @ held)
            blocked = held @ ((along * inside.clamp(max=0.0).unsqueeze(-2)) @ along.mT) @ held.mT
            score = score - blocked
        return divide_where_known(score.square().sum((-2, -1)), pooled.weight[..., 0, 0])


def _unit_plus(symmetric: Tensor) -> Tensor:
    return symmetric + torch.eye(
        symmetric.shape[-1], dtype=symmetric.dtype, device=symmetric.device
    )


def _covariance_of_root(root: Tensor, by: Tensor) -> Tensor:
    return root @ _unit_plus(by) @ root.mT


def _factor_of_root(root: Tensor, by: Tensor) -> Tensor:
    return root @ torch.linalg.cholesky(_unit_plus(by))


_COVARIANCE = _Root(torch.linalg.cholesky, _covariance_of_root)
_FACTOR = _Root(torch.tril, _factor_of_root)


def _root_of_inverse(precision: Tensor) -> Tensor:
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    factor = torch.linalg.cholesky(precision)
    return torch.linalg.solve_triangular(factor.mT, eye.expand(factor.shape), upper=True)


def _precision_of_root(root: Tensor, by: Tensor) -> Tensor:
    inverse = torch.linalg.inv(root)
    return inverse.mT @ _unit_plus(-by) @ inverse


_PRECISION = _Root(_root_of_inverse, _precision_of_root)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


_WISHART: dict[str, dict[type, Conjugate]] = {
    "precision matrix": {dist.Wishart: conjugate.wishart}
}

COVARIANCE_MATRIX = Argument(
    name="covariance_matrix",
    kind="covariance of a MultivariateNormal",
    event_dim=2,
    elementwise=False,
    what="weighted scatter (41)",
    links=links.COVARIANCE,
    inside=(constraints.positive_definite, constraints.lower_cholesky),
    draw=draws.matrices,
    reduce=_reduce_spread,
    maximise=_covariance_matrix,
    sound=_is_definite,
    natural=Natural(_COVARIANCE.perturb, _COVARIANCE.score, _COVARIANCE.gain),
    feasible=_raise_eigenvalues,
    why_unbounded=moments.WHY_UNBOUNDED,
    canonical=_symmetric,
    priors=_WISHART,
    chart=charts.MATRIX,
    scaling=sizes.OF_COVARIANCE,
)

SCALE_TRIL = replace(
    COVARIANCE_MATRIX,
    name="scale_tril",
    kind="Cholesky factor of a MultivariateNormal",
    links=links.CHOLESKY_FACTOR,
    draw=draws.factors,
    maximise=_scale_tril,
    sound=_exceeds_rounding,
    natural=Natural(_FACTOR.perturb, _FACTOR.score, _FACTOR.gain),
    feasible=_feasible_scale_tril,
    canonical=torch.tril,
    chart=charts.FACTOR,
    scaling=sizes.OF_FACTOR,
)

PRECISION_MATRIX = replace(
    COVARIANCE_MATRIX,
    name="precision_matrix",
    kind="precision matrix of a MultivariateNormal",
    links=links.PRECISION_MATRIX,
    maximise=_precision_matrix,
    sound=_is_definite_precision,
    natural=Natural(_PRECISION.perturb, _PRECISION.score, _PRECISION.gain),
    feasible=_feasible_precision,
    scaling=sizes.OF_PRECISION,
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
        given = next(name for name in vars(distribution) if name in _SPREADS)
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

        covariance = _covariance_of(given)
        return missing_entries.log_prob(value, missing, given["loc"], covariance, complete)

    def moments_of_missing(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Those of the regression on the observed series of the row."""
        return missing_entries.conditional(value, missing, given["loc"], _covariance_of(given))

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Moments:
        """Moments about the current locations."""
        with_second = not names.isdisjoint(_SPREADS)
        if observed.missing is not None:
            covariance = _covariance_of(given)
            return missing_entries.moments(observed, given["loc"], covariance, with_second)
        return moments.take(observed, given["loc"], True, with_second)

    def is_accurate(self, stats: Moments, given: Arguments, name: str) -> Tensor | bool:
        """Whether the scatter about another location keeps enough of its digits."""
        return name == "loc" or moments.is_accurate(stats, given["loc"], is_full=True)

    def merge(self, accurate: Tensor, stats: Moments, again: Moments) -> Moments:
        """Combine moments about two origins, block by block."""
        return moments.merge(accurate, stats, again)

    def total(self, stats: Moments, num_batch_dims: int, like: Moments | None) -> Moments:
        """The sum over all sequences, each block about its own origin."""
        return moments.total(stats, num_batch_dims, like, is_full=True)


MULTIVARIATE_NORMAL = _Family()
