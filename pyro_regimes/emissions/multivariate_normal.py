"""Correlated Gaussian series: ``MultivariateNormal``, by covariance, Cholesky factor or precision.

.. math::
    \\mu_k = \\frac{\\sum_t \\gamma_t(k) x_t}{\\sum_t \\gamma_t(k)}, \\qquad
    \\Sigma_k = \\frac{\\sum_t \\gamma_t(k) (x_t - \\mu_k)(x_t - \\mu_k)^\\top}
                      {\\sum_t \\gamma_t(k)}

(equations 35 and 41; Bilmes 1998). The sums run over everything that shares the parameter: one
covariance for all states is the pooled scatter. A location shared over different covariances is

.. math::
    \\mu = \\Big(\\sum_{t,k} \\gamma_t(k) \\Sigma_k^{-1}\\Big)^{-1}
        \\sum_{t,k} \\gamma_t(k) \\Sigma_k^{-1} x_t,

which maximises the likelihood given the covariances; they then follow about the new location (ECM:
Meng and Rubin 1993). With a floor on the eigenvalues, those of :math:`\\Sigma_k` below it are set
to it: the exact maximiser under that constraint.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.distributions.multivariate_normal import _precision_to_scale_tril

from pyro_regimes.emissions.update import (
    Natural,
    Observed,
    Update,
    divide,
    divide_where_known,
    finite,
    is_at_floor,
    shift,
    unchanged,
)
from pyro_regimes.kernels import ops

FAMILY = (MultivariateNormal, dist.MultivariateNormal)
MAX_EVENT_DIM = 1

_SPREADS = ("covariance_matrix", "scale_tril", "precision_matrix")


def arguments(observation_dist: MultivariateNormal) -> dict[str, Tensor]:
    """Location, and the one of the three matrices that the caller gave."""
    # torch keeps that one as an attribute; the others join it, later, when somebody looks at them.
    given = next(name for name in vars(observation_dist) if name in _SPREADS)
    return {"loc": observation_dist.loc, given: getattr(observation_dist, given)}


def log_prob(value: Tensor, given: dict[str, Tensor], event_dim: int) -> Tensor:
    """:math:`\\log N(x_t; \\mu_k, \\Sigma_k)`, summed over what else is of one observation.

    :param value: ``(..., T, *event)``.
    :return: ``(..., T, K)``.
    """
    loc, factor = given["loc"], _factor(given)
    if event_dim == 1 and loc.shape[-3:-2] in ((), (1,)) and factor.shape[-4:-3] in ((), (1,)):
        return ops.gaussian_log_prob(
            value, ops.without_time(loc, 2), ops.without_time(factor, 3)
        )
    normal = MultivariateNormal(loc, scale_tril=factor, validate_args=False)
    each = normal.log_prob(value.unsqueeze(-1 - event_dim))
    return each.sum(list(range(1 - event_dim, 0))) if event_dim > 1 else each


def _factor(given: dict[str, Tensor]) -> Tensor:
    if "scale_tril" in given:
        return given["scale_tril"]
    if "covariance_matrix" in given:
        return torch.linalg.cholesky(given["covariance_matrix"])
    return _precision_to_scale_tril(given["precision_matrix"])


def _precision(given: dict[str, Tensor]) -> Tensor:
    if "precision_matrix" in given:
        return given["precision_matrix"]
    if "scale_tril" in given:
        return torch.cholesky_inverse(given["scale_tril"])
    return torch.cholesky_inverse(torch.linalg.cholesky(given["covariance_matrix"]))


def _location_statistics(
    observed: Observed, given: dict[str, Tensor], shared: bool
) -> tuple[Tensor, ...]:
    value, weights, varies = observed  # (..., T, 1, D), (..., T, K)
    if varies:
        weight, total = weights.unsqueeze(-1), weights.unsqueeze(-1) * value
    else:
        weight, total = ops.weighted_sums(value.squeeze(-2), weights)
        weight, total = weight[..., None, :, None], total.unsqueeze(-3)  # (..., 1, K, 1), (.., D)
    if not shared:
        return weight, total
    precision = _precision(given)
    return (
        weight,
        (precision @ total.unsqueeze(-1)).squeeze(-1),
        weight.unsqueeze(-1) * precision,
    )


def _mean(statistics: tuple[Tensor, ...], floor: float) -> Tensor:
    weight, total = statistics[:2]
    if len(statistics) == 2:
        return divide(total, weight)
    factor, info = torch.linalg.cholesky_ex(statistics[2])
    mean = torch.cholesky_solve(total.unsqueeze(-1), factor).squeeze(-1)
    return mean.masked_fill((info != 0).unsqueeze(-1), torch.nan)


def _scatter_statistics(
    observed: Observed, given: dict[str, Tensor], shared: bool
) -> tuple[Tensor, Tensor]:
    value, weights, varies = observed
    loc = given["loc"]
    if varies:
        deviation = value - loc  # (..., T, K, D)
        weight = weights[..., None, None]
        return weight, weight * deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    loc = ops.without_time(loc, 2)
    scatter = ops.weighted_scatter(value.squeeze(-2), weights, loc)  # (..., K, D, D)
    return weights.sum(-2)[..., None, :, None, None], scatter.unsqueeze(-4)


def _raise_eigenvalues(matrix: Tensor, floor: float) -> Tensor:
    """The nearest symmetric matrix whose eigenvalues are at least ``floor``."""
    values, vectors = torch.linalg.eigh(matrix)
    raised = (vectors * values.clamp(min=floor).unsqueeze(-2)) @ vectors.mT
    low = (values[..., :1] < floor).unsqueeze(-1)
    return torch.where(low, (raised + raised.mT) / 2, matrix)


def _covariance(statistics: tuple[Tensor, ...], floor: float) -> tuple[Tensor, Tensor]:
    """The maximiser and its Cholesky factor; NaN where it is not positive definite."""
    weight, scatter = statistics
    covariance = divide(scatter, weight)
    covariance = (covariance + covariance.mT) / 2
    if floor > 0 and not _exceeds(covariance, floor):
        known = covariance.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        raised = _raise_eigenvalues(torch.where(known, covariance, eye), floor)
        covariance = torch.where(known, raised, torch.nan)
    factor, info = torch.linalg.cholesky_ex(covariance)
    # The square of a pivot is what of a variance the series before it do not explain. Below
    # rounding the matrix counts as singular: written and read again, it would be refused.
    variance, pivot = (part.diagonal(dim1=-2, dim2=-1) for part in (covariance, factor))
    rounding = 16 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps
    singular = (info != 0) | ~(pivot**2 > rounding * variance).all(-1)
    if singular.device.type != "cpu" or bool(singular.any()):
        singular = singular[..., None, None]
        covariance = covariance.masked_fill(singular, torch.nan)
        factor = factor.masked_fill(singular, torch.nan)
    return covariance, factor


def _exceeds(matrix: Tensor, floor: float) -> bool:
    """Whether all eigenvalues of all matrices are above ``floor``, at a fraction of their cost."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    below = torch.diag_embed(torch.full_like(diagonal, floor))
    return bool((torch.linalg.cholesky_ex(matrix - below).info == 0).all())


def _covariance_matrix(statistics: tuple[Tensor, ...], floor: float) -> Tensor:
    return _covariance(statistics, floor)[0]


def _scale_tril(statistics: tuple[Tensor, ...], floor: float) -> Tensor:
    return _covariance(statistics, floor)[1]


def _precision_matrix(statistics: tuple[Tensor, ...], floor: float) -> Tensor:
    return torch.cholesky_inverse(_covariance(statistics, floor)[1])


def _feasible_scale_tril(factor: Tensor, floor: float) -> Tensor:
    return torch.linalg.cholesky(_raise_eigenvalues(factor @ factor.mT, floor))


def _feasible_precision(precision: Tensor, floor: float) -> Tensor:
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    return torch.cholesky_inverse(torch.linalg.cholesky(_raise_eigenvalues(covariance, floor)))


def _exceeds_rounding(factor: Tensor) -> Tensor:
    """Whether each pivot of a matrix, given its factor, is more than rounding of its diagonal.

    The square of a pivot is what of a variance the series before it do not explain.
    """
    pivot, variance = factor.diagonal(dim1=-2, dim2=-1), factor.square().sum(-1)
    rounding = factor.shape[-1] * torch.finfo(factor.dtype).eps
    return ((pivot > 0) & variance.isfinite() & (pivot**2 > rounding * variance)).all(-1)


def _is_definite(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    return (info == 0) & _exceeds_rounding(factor)


def _is_definite_precision(precision: Tensor) -> Tensor:
    # Flipped, as torch computes the factor of its inverse.
    return _is_definite(precision.flip(-2, -1)) & _is_definite(precision)


def _location_score(statistics: tuple[Tensor, ...], loc: Tensor) -> Tensor:
    _, total, precision = statistics
    return total - (precision @ loc.unsqueeze(-1)).squeeze(-1)


def _location_gain(
    score: Tensor, statistics: tuple[Tensor, ...], loc: Tensor, floor: float
) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(statistics[2])
    whitened = torch.linalg.solve_triangular(factor, score.unsqueeze(-1), upper=False)
    gain = 0.5 * whitened.square().sum((-2, -1))
    unknown = torch.where((score == 0).all(-1), 0.0, torch.inf)
    return torch.where(info == 0, gain, unknown)


class _Root(NamedTuple):
    r"""A root R of a covariance, :math:`\Sigma = R R^\top`.

    A spread is perturbed as :math:`\Sigma = R (I + (e + e^\top) / 2) R^\top`. The score in e is
    :math:`\tfrac12 (R^{-1} S R^{-\top} - n I)` for the scatter S, and the gain its squared
    Frobenius norm over n.
    """

    of: Callable[[Tensor], Tensor]  #: the root of a spread as the argument holds it
    spread: Callable[[Tensor, Tensor], Tensor]  #: from R and the symmetric matrix (e + e') / 2

    def perturb(self, spread: Tensor, by: Tensor) -> Tensor:
        return self.spread(self.of(spread), (by + by.mT) / 2)

    def score(self, statistics: tuple[Tensor, ...], spread: Tensor) -> Tensor:
        weight, scatter = statistics
        root = self.of(spread)
        half = torch.linalg.solve(root, scatter)
        whitened = torch.linalg.solve(root, half.mT)
        eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        return 0.25 * (whitened + whitened.mT) - 0.5 * weight * eye

    def gain(
        self, score: Tensor, statistics: tuple[Tensor, ...], spread: Tensor, floor: float
    ) -> Tensor:
        score = (score + score.mT) / 2
        if floor > 0:
            root = self.of(spread)
            values, vectors = torch.linalg.eigh(root @ root.mT)
            at_floor = is_at_floor(values, floor).unsqueeze(-2)
            held = (root.mT @ vectors) * (at_floor / values.clamp(min=floor).sqrt().unsqueeze(-2))
            inside, along = torch.linalg.eigh(held.mT @ score @ held)
            blocked = held @ ((along * inside.clamp(max=0.0).unsqueeze(-2)) @ along.mT) @ held.mT
            score = score - blocked
        return divide_where_known(score.square().sum((-2, -1)), statistics[0][..., 0, 0])


def _unit_plus(symmetric: Tensor) -> Tensor:
    return symmetric + torch.eye(
        symmetric.shape[-1], dtype=symmetric.dtype, device=symmetric.device
    )


_COVARIANCE = _Root(torch.linalg.cholesky, lambda root, by: root @ _unit_plus(by) @ root.mT)
_FACTOR = _Root(torch.tril, lambda root, by: root @ torch.linalg.cholesky(_unit_plus(by)))


def _root_of_inverse(precision: Tensor) -> Tensor:
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    factor = torch.linalg.cholesky(precision)
    return torch.linalg.solve_triangular(factor.mT, eye.expand(factor.shape), upper=True)


def _precision_of_root(root: Tensor, by: Tensor) -> Tensor:
    inverse = torch.linalg.inv(root)
    return inverse.mT @ _unit_plus(-by) @ inverse


_PRECISION = _Root(_root_of_inverse, _precision_of_root)


_SCATTER = "weighted scatter (41)"

UPDATES = (
    Update(
        "loc",
        1,
        False,
        _location_statistics,
        _mean,
        unchanged,
        finite,
        "weighted mean (35)",
        Natural(shift, _location_score, _location_gain),
    ),
    Update(
        "covariance_matrix",
        2,
        False,
        _scatter_statistics,
        _covariance_matrix,
        _raise_eigenvalues,
        _is_definite,
        _SCATTER,
        Natural(_COVARIANCE.perturb, _COVARIANCE.score, _COVARIANCE.gain),
    ),
    Update(
        "scale_tril",
        2,
        False,
        _scatter_statistics,
        _scale_tril,
        _feasible_scale_tril,
        _exceeds_rounding,
        _SCATTER,
        Natural(_FACTOR.perturb, _FACTOR.score, _FACTOR.gain),
    ),
    Update(
        "precision_matrix",
        2,
        False,
        _scatter_statistics,
        _precision_matrix,
        _feasible_precision,
        _is_definite_precision,
        _SCATTER,
        Natural(_PRECISION.perturb, _PRECISION.score, _PRECISION.gain),
    ),
)
