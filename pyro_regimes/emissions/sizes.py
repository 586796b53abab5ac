r"""Spreads that are products: a constant or another parameter, times a parameter.

A *size* of a block is the standard deviation of one series. Let the sizes of a covariance
:math:`\Sigma` be multiplied by ratios, :math:`\Sigma \to D \Sigma D`, with D the diagonal matrix of
ratios :math:`1 / w`. With the weight n, the scatter S, and :math:`M = \Sigma^{-1} \circ S` entry by
entry,

.. math:: Q(w) = n \sum_d \log w_d - \tfrac12 \sum_{de} M_{de} w_d w_e + \text{const}.

In one w that serves several sizes, with N the weights of these, A the sum of M over the pairs of
them, and C the sum over the pairs of one of them and another, the maximum given all other w = 1 is

.. math:: w = \frac{2 N}{C + \sqrt{C^2 + 4 A N}},

so that a size that is alone has the square A / N times the old one. Parameters, and sizes of
correlated series, are maximised in turn (ECM: Meng and Rubin 1993).
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes.emissions import charts, conjugate, draws, links, moments
from pyro_regimes.emissions.arithmetic import divide, divide_where_known
from pyro_regimes.emissions.base import Argument, Conjugate, Natural, Scaling
from pyro_regimes.emissions.positive import is_positive, stretch
from pyro_regimes.emissions.statistics import Spread


class Deviations(NamedTuple):
    """Pooled statistics of sizes."""

    weight: Tensor  #: N, ``(cells,)``
    own: Tensor  #: A, times the square of the size
    cross: Tensor  #: C, times the square of the size; 0 without correlations
    #: the size at which the least eigenvalue of some block that it serves would be 1
    unit: Tensor


def _maximise(pooled: Deviations, now: Tensor, floor: float) -> Tensor:
    size = _without_floor(pooled, now)
    size = size.maximum(floor**0.5 * pooled.unit.to(size)) if floor > 0 else size
    return size.masked_fill(size < torch.finfo(size.dtype).tiny, torch.nan)


def _without_floor(pooled: Deviations, now: Tensor) -> Tensor:
    size = divide(pooled.own, pooled.weight).clamp(min=0).sqrt()
    if bool((pooled.cross == 0).all()):
        return size
    own, cross = pooled.own / now**2, pooled.cross / now**2
    root = (cross**2 + 4 * own * pooled.weight).sqrt()
    ratio = torch.where(
        cross > 0, (cross + root) / (2 * pooled.weight), 2 * own / (root - cross)
    )
    return torch.where(pooled.cross == 0, size, now * ratio)


def _score(pooled: Deviations, size: Tensor) -> Tensor:
    return (pooled.own + pooled.cross) / size**2 - pooled.weight


def _gain(score: Tensor, pooled: Deviations, size: Tensor, floor: float) -> Tensor:
    at_floor = size <= floor**0.5 * pooled.unit * (1 + 1e-6)
    blocked = at_floor & (score < 0) & (floor > 0)
    return divide_where_known(0.25 * score**2, pooled.weight).masked_fill(blocked, 0.0)


def _no_reduce(*given: Any) -> Any:
    raise NotImplementedError("sizes are pooled by the scaling of an argument")


def _alone(prior: Conjugate) -> Conjugate:
    """A conjugate prior of a spread, as one of a size."""

    def pooled(*given: Any) -> Deviations:
        weight, scatter = prior(*given)
        nothing = torch.zeros_like(scatter)
        return Deviations(weight, scatter, nothing, nothing)

    return pooled


SIZE = Argument(
    name="size",
    kind="factor of a spread",
    event_dim=0,
    elementwise=True,
    what="weighted sd given other factors",
    links=links.STANDARD_DEVIATION,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_no_reduce,
    maximise=_maximise,
    sound=is_positive,
    natural=Natural(stretch, _score, _gain),
    why_unbounded=moments.WHY_UNBOUNDED,
    priors={
        "variance": {dist.InverseGamma: _alone(conjugate.inverse_gamma)},
        "precision": {dist.Gamma: _alone(conjugate.gamma)},
    },
    chart=charts.SCALE,
)


def _absolute(pooled: Deviations, held: Tensor) -> Deviations:
    square = held.to(pooled.own) ** 2
    return Deviations(pooled.weight, square * pooled.own, square * pooled.cross, pooled.unit)


# ---- scales of one series ----------------------------------------------------------------------


def _of_scale(scale: Tensor) -> Tensor:
    return scale.unsqueeze(-1)


def _stretched_scale(scale: Tensor, ratio: Tensor) -> Tensor:
    return scale * ratio.squeeze(-1)


def _pooled_scale(pooled: Spread, scale: Tensor, same: Tensor) -> Deviations:
    own = (pooled.scatter / scale**2).unsqueeze(-1)
    nothing = torch.zeros_like(own)
    return Deviations(pooled.weight.unsqueeze(-1), own, nothing, nothing)


OF_SCALE = Scaling(
    SIZE, _of_scale, None, _stretched_scale, _pooled_scale, _absolute, torch.square
)


# ---- matrices ----------------------------------------------------------------------------------


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _outer(ratio: Tensor) -> Tensor:
    return ratio.unsqueeze(-1) * ratio.unsqueeze(-2)


def _pooled_by(precision_of: Callable[[Tensor], Tensor]) -> Callable[..., Deviations]:
    """The statistics of the sizes of matrices with these precisions."""

    def pooled(found: Spread, matrix: Tensor, same: Tensor) -> Deviations:
        each = precision_of(matrix) * found.scatter  # M
        own = torch.where(same, each, 0.0).sum(-1)
        cross = torch.where(same, 0.0, each).sum(-1)
        weight = found.weight.reshape(-1, 1).expand(own.shape)
        return Deviations(weight, own, cross, torch.zeros_like(own))

    return pooled


def _sizes_of_covariance(matrix: Tensor) -> Tensor:
    return _diagonal(matrix).sqrt()


def _correlation(matrix: Tensor) -> Tensor:
    return matrix / _outer(_sizes_of_covariance(matrix))


def _stretched_covariance(matrix: Tensor, ratio: Tensor) -> Tensor:
    return matrix * _outer(ratio)


def _precision_of_covariance(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def _least_variance(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix)[..., 0]


OF_COVARIANCE = Scaling(
    SIZE,
    _sizes_of_covariance,
    _correlation,
    _stretched_covariance,
    _pooled_by(_precision_of_covariance),
    _absolute,
    _least_variance,
)


def _sizes_of_factor(factor: Tensor) -> Tensor:
    return factor.tril().square().sum(-1).sqrt()


def _correlation_factor(factor: Tensor) -> Tensor:
    return factor.tril() / _sizes_of_factor(factor).unsqueeze(-1)


def _stretched_factor(factor: Tensor, ratio: Tensor) -> Tensor:
    return factor * ratio.unsqueeze(-1)


def _precision_of_factor(factor: Tensor) -> Tensor:
    return torch.cholesky_inverse(factor.tril())


def _least_variance_of_factor(factor: Tensor) -> Tensor:
    return torch.linalg.svdvals(factor.tril())[..., -1].square()


OF_FACTOR = Scaling(
    SIZE,
    _sizes_of_factor,
    _correlation_factor,
    _stretched_factor,
    _pooled_by(_precision_of_factor),
    _absolute,
    _least_variance_of_factor,
)


def _sizes_of_precision(matrix: Tensor) -> Tensor:
    """The standard deviations given the other series."""
    return _diagonal(matrix).rsqrt()


def _partial_correlation(matrix: Tensor) -> Tensor:
    return matrix * _outer(_sizes_of_precision(matrix))


def _stretched_precision(matrix: Tensor, ratio: Tensor) -> Tensor:
    return matrix / _outer(ratio)


def _itself(matrix: Tensor) -> Tensor:
    return matrix


def _least_variance_of_precision(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix)[..., -1].reciprocal()


OF_PRECISION = Scaling(
    SIZE,
    _sizes_of_precision,
    _partial_correlation,
    _stretched_precision,
    _pooled_by(_itself),
    _absolute,
    _least_variance_of_precision,
)


def of_latent(scaling: Scaling) -> Scaling:
    """The scaling of a spread whose statistics have one for EM, beside others."""

    def pooled(found: Any, value: Tensor, same: Tensor) -> Deviations:
        deviations: Deviations = scaling.pooled(found.em, value, same)
        return deviations

    return scaling._replace(pooled=pooled)
