r"""The spread of a ``MultivariateNormal``: a covariance, its Cholesky factor or a precision matrix.

All three are set from the weighted scatter (equation 41). With a floor, eigenvalues of
:math:`\Sigma_k` below it are raised to it, which gives the exact maximiser under that constraint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.multivariate_normal import _precision_to_scale_tril

from pyro_regimes.emissions import charts, conjugate, draws, links, moments, roots, sizes
from pyro_regimes.emissions.arithmetic import divide
from pyro_regimes.emissions.base import Argument, Arguments, Conjugate, Natural
from pyro_regimes.emissions.moments import Moments
from pyro_regimes.emissions.statistics import Spread

#: The arguments of the distribution, of which the caller gives one.
NAMES = ("covariance_matrix", "scale_tril", "precision_matrix")


def factor_of(given: Arguments) -> Tensor:
    """The lower Cholesky factor of the covariance, from whichever argument is given."""
    if "scale_tril" in given:
        return given["scale_tril"]
    if "covariance_matrix" in given:
        return torch.linalg.cholesky(given["covariance_matrix"])
    return _precision_to_scale_tril(given["precision_matrix"])


def covariance_of(given: Arguments) -> Tensor:
    """The covariance matrix, from whichever argument is given."""
    if "covariance_matrix" in given:
        return given["covariance_matrix"]
    factor = factor_of(given)
    return factor @ factor.mT


def precision_of(given: Arguments) -> Tensor:
    """The inverse of the covariance, from whichever argument is given."""
    if "precision_matrix" in given:
        return given["precision_matrix"]
    if "scale_tril" in given:
        return torch.cholesky_inverse(given["scale_tril"])
    return torch.cholesky_inverse(torch.linalg.cholesky(given["covariance_matrix"]))


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
    natural=Natural(roots.COVARIANCE.perturb, roots.COVARIANCE.score, roots.COVARIANCE.gain),
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
    natural=Natural(roots.FACTOR.perturb, roots.FACTOR.score, roots.FACTOR.gain),
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
    natural=Natural(roots.PRECISION.perturb, roots.PRECISION.score, roots.PRECISION.gain),
    feasible=_feasible_precision,
    scaling=sizes.OF_PRECISION,
)
