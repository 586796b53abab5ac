r"""The family of Hamilton's autoregression: means, coefficients and scales of tuples of regimes.

The states are tuples u of regimes at p + 1 rows (:mod:`pyro_regimes.observed.lagged_normal`). The
second moments of :math:`(1, x_t, x_{t-1}, \dots, x_{t-p})` in each tuple are the statistics. With
:math:`\gamma_t(u)` and the deviations :math:`d_j = x_{t-j} - \mu_{q_{t-j}}`, each of

.. math::
    \mu = \Big(\sum_{t,u} \frac{\gamma_t(u)}{\sigma_u^2} c_u c_u^\top\Big)^{-1}
        \sum_{t,u} \frac{\gamma_t(u)}{\sigma_u^2} c_u
        \Big(x_t - \sum_j \phi_j x_{t-j}\Big), \qquad
    \phi = \Big(\sum_{t,u} \frac{\gamma_t(u)}{\sigma_u^2} d d^\top\Big)^{-1}
        \sum_{t,u} \frac{\gamma_t(u)}{\sigma_u^2} d\, d_0, \qquad
    \sigma^2 = \frac{\sum_{t,u} \gamma_t(u) (d_0 - \phi^\top d)^2}{\sum_{t,u} \gamma_t(u)}

maximises Q given the others, and they are updated in turn (ECM: Meng and Rubin 1993). The means of
all regimes are one block, because a row depends on several of them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions import charts, draws, links, normal
from pyro_regimes.emissions.base import Argument, Arguments, Family, Natural, Observed
from pyro_regimes.emissions.statistics import Spread, WeightedSum
from pyro_regimes.observed.lagged_normal import (
    LaggedNormal,
    design,
    log_density,
    per_tuple,
    regimes_of_tuples,
)

#: A change of origin must keep at least this share of a second moment; else digits are lost.
_LEAST_SHARE = 1e-6


class LaggedMoments(NamedTuple):
    """Second moments of each tuple, float64. Add only moments about one origin."""

    origin: Tensor  #: of :math:`x_{t-j}` in each tuple, ``(..., S or 1, p + 1)``
    second: Tensor  #: of 1 and the deviations from it, ``(..., S, p + 2, p + 2)``

    def about(self, origin: Tensor) -> LaggedMoments:
        """The moments about another origin."""
        shift = torch.zeros_like(self.second[..., 0])
        shift[..., 1:] = origin - self.origin  # (..., S, p + 2)
        first = self.second[..., 0]  # of which the first is the weight
        cross = (first - 0.5 * first[..., :1] * shift).unsqueeze(-1) * shift.unsqueeze(-2)
        return LaggedMoments(origin, self.second - cross - cross.mT)

    def keeps_digits(self, loc: Tensor) -> bool:
        """Whether the moments of each regime about the means are accurate."""
        moved = self.about(_of_tuples(loc, self.second.shape[-1] - 2))
        before, after = (each.squares(loc.shape[-1]) for each in (self, moved))
        return bool((after >= _LEAST_SHARE * before).all())

    def squares(self, num_states: int) -> Tensor:
        """The sums of squares for each latest regime and lag, ``(..., K, p + 1)``."""
        diagonal = self.second.diagonal(dim1=-2, dim2=-1)[..., 1:]
        return diagonal.unflatten(-2, (-1, num_states)).sum(-3)


def _of_tuples(loc: Tensor, order: int) -> Tensor:
    """The mean at each lag in each tuple, ``(..., K) -> (..., S, p + 1)``."""
    return loc[..., regimes_of_tuples(loc.shape[-1], order).to(loc.device)]


def _read(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Means ``(..., K)``, coefficients ``(..., 1 or K, p)`` and scales ``(..., 1 or K)``."""
    loc, coefficients, scale = (given[name] for name in ("loc", "coefficients", "scale"))
    return loc.squeeze(-2).squeeze(-2), coefficients.squeeze(-3), scale.squeeze(-2)


def _reduce_loc(stats: LaggedMoments, given: Arguments, weighted: bool) -> WeightedSum:
    _, coefficients, scale = (each.double() for each in _read(given))
    num_states, order = given["loc"].shape[-1], coefficients.shape[-1]
    rows = design(coefficients, num_states)  # (..., S, K)
    own = per_tuple(coefficients.mT, num_states, order).mT
    filter_ = torch.cat([torch.ones_like(own[..., :1]), -own], -1)  # (..., S, p + 1)
    weight = stats.second[..., 0, 0]  # (..., S)
    total = (filter_ * stats.second[..., 0, 1:]).sum(-1) + weight * (filter_ * stats.origin).sum(-1)
    precision = per_tuple(scale**-2, num_states, order)
    weighted_rows = precision.unsqueeze(-1) * rows
    matrix = (weighted_rows * weight.unsqueeze(-1)).mT @ rows
    right = (weighted_rows.mT @ total.unsqueeze(-1)).squeeze(-1)
    count = weight.sum(-1, keepdim=True).expand(right.shape)
    return WeightedSum(
        count[..., None, None, :1], right[..., None, None, :], matrix[..., None, None, :, :]
    )


def _reduce_coefficients(stats: LaggedMoments, given: Arguments, weighted: bool) -> WeightedSum:
    loc, coefficients, scale = (each.double() for each in _read(given))
    about = stats.about(_of_tuples(loc, coefficients.shape[-1])).second
    by_regime = about.unflatten(-3, (-1, loc.shape[-1])).sum(-4)  # (..., K, p + 2, p + 2)
    by_regime = by_regime * scale.unsqueeze(-1).unsqueeze(-1) ** -2
    return WeightedSum(
        by_regime[..., None, :, 0, :1],
        by_regime[..., None, :, 2:, 1],
        by_regime[..., None, :, 2:, 2:],
    )


def _reduce_scale(stats: LaggedMoments, given: Arguments, weighted: bool) -> Spread:
    loc, coefficients, _ = (each.double() for each in _read(given))
    about = stats.about(_of_tuples(loc, coefficients.shape[-1])).second
    by_regime = about.unflatten(-3, (-1, loc.shape[-1])).sum(-4)  # (..., K, p + 2, p + 2)
    filter_ = torch.cat([torch.ones_like(coefficients[..., :1]), -coefficients], -1)
    filtered = by_regime[..., 1:, 1:] @ filter_.unsqueeze(-1)
    scatter = (filter_.unsqueeze(-2) @ filtered).squeeze(-1).squeeze(-1).clamp(min=0)
    return Spread(by_regime[..., None, :, 0, 0], scatter.unsqueeze(-2))


def _scaled(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Units in which a matrix has a diagonal of ones, its eigenvectors, and inverse eigenvalues.

    Those of what is not determined are 0.
    """
    size = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    unit = torch.where(size > 0, 1 / size, 0.0)
    values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * matrix * unit.unsqueeze(-2))
    least = matrix.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    return unit, vectors, torch.where(values > least, 1 / values, 0.0)


def _solution(pooled: WeightedSum, now: Tensor, floor: float) -> Tensor:
    """The solution of the normal equations that is nearest to the current value."""
    assert pooled.precision is not None
    unit, vectors, inverse = _scaled(pooled.precision)
    along = vectors.mT @ (unit * _score(pooled, now)).unsqueeze(-1)
    return now + unit * (vectors @ (inverse.unsqueeze(-1) * along)).squeeze(-1)


def _score(pooled: WeightedSum, now: Tensor) -> Tensor:
    assert pooled.precision is not None
    now = now.to(pooled.precision.dtype)
    return pooled.total - (pooled.precision @ now.unsqueeze(-1)).squeeze(-1)


def _gain(score: Tensor, pooled: WeightedSum, now: Tensor, floor: float) -> Tensor:
    assert pooled.precision is not None
    unit, vectors, inverse = _scaled(pooled.precision)
    along = (vectors.mT @ (unit * score).unsqueeze(-1)).squeeze(-1)
    return 0.5 * (inverse * along.square()).sum(-1)


def _shift(value: Tensor, by: Tensor) -> Tensor:
    return value + by


def _scale_of_regimes(given: Arguments) -> Tensor:
    return given["scale"].unsqueeze(-2)


def _one(given: Arguments) -> Tensor:
    return torch.ones_like(given["coefficients"])


def argument_of(name: str) -> Argument:
    """An argument of this family by its name, for pickle."""
    return next(each for each in LAGGED_NORMAL.arguments if each.name == name)


LOC = Argument(
    name="loc",
    kind="means of an autoregression",
    event_dim=1,
    elementwise=False,
    what="weighted least squares given the coefficients",
    links=links.LOCATION,
    inside=(),
    draw=draws.location,
    reduce=_reduce_loc,
    maximise=_solution,
    sound=torch.isfinite,
    natural=Natural(_shift, _score, _gain),
    is_quadratic=True,
    chart=charts.location(_scale_of_regimes),
    rebuild=(argument_of, ("loc",)),
)

COEFFICIENTS = replace(
    LOC,
    name="coefficients",
    kind="coefficients of an autoregression",
    what="weighted least squares given the means",
    reduce=_reduce_coefficients,
    is_quadratic=False,
    chart=charts.location(_one),
    rebuild=(argument_of, ("coefficients",)),
)

SCALE = replace(
    normal.SCALE,
    kind="scale of an autoregression",
    elementwise=False,
    what="weighted sd of the residuals",
    reduce=_reduce_scale,
    priors={},
    rebuild=(argument_of, ("scale",)),
)


class _Family(Family):
    """``LaggedNormal(loc, coefficients, scale)``."""

    distributions = (LaggedNormal,)
    max_event_dim = math.inf
    arguments = (LOC, COEFFICIENTS, SCALE)

    def read(self, distribution: LaggedNormal) -> Arguments:
        """With dims for time, and of the means for the regimes that share all of them."""
        return {
            "loc": distribution.loc.unsqueeze(-2).unsqueeze(-2),
            "coefficients": distribution.coefficients.unsqueeze(-3),
            "scale": distribution.scale.unsqueeze(-2),
        }

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density in each tuple, ``(..., T, S)``, of rows ``(..., T, p + 1)``."""
        return log_density(value, *_read(given))

    def statistics(
        self, observed: Observed, given: Arguments, names: frozenset[str]
    ) -> LaggedMoments:
        """Moments about the mean of the data, or of each tuple if they would lose digits."""
        value = observed.value.squeeze(-2).double()  # (..., T, p + 1)
        weights = observed.weights.double().mT  # (..., S, T)
        origin = value[..., :1].mean(-2, keepdim=True).expand(value[..., :1, :].shape)
        found = _moments(value, weights, origin)
        loc = given["loc"].double().squeeze(-2).squeeze(-2)
        if found.keeps_digits(loc):
            return found
        own = _of_tuples(loc, value.shape[-1] - 1)
        parts = [
            _moments(value, weights[..., u : u + 1, :], own[..., u : u + 1, :])
            for u in range(weights.shape[-2])
        ]
        second = torch.cat([each.second for each in parts], -3)
        return LaggedMoments(own, second)

    def is_accurate(self, stats: LaggedMoments, given: Arguments, name: str) -> bool:
        """Whether the moments about the present means keep their digits."""
        return stats.keeps_digits(given["loc"].double().squeeze(-2).squeeze(-2))

    def add(self, one: LaggedMoments, other: LaggedMoments) -> LaggedMoments:
        """The sum, about the first origin."""
        return LaggedMoments(one.origin, one.second + other.about(one.origin).second)


def _moments(value: Tensor, weights: Tensor, origin: Tensor) -> LaggedMoments:
    """Moments about one origin.

    :param weights: ``(..., S, T)``.
    :param origin: ``(..., 1, p + 1)``.
    """
    deviation = value - origin
    size = deviation.shape[-1] + 1
    full = torch.cat([torch.ones_like(deviation[..., :1]), deviation], -1)
    row, column = torch.tril_indices(size, size, device=value.device)
    products = full[..., row] * full[..., column]
    sums = weights @ products  # (..., S, (p + 2)(p + 3) / 2)
    second = sums.new_empty(sums.shape[:-1] + (size, size))
    second[..., row, column] = sums
    second[..., column, row] = sums
    return LaggedMoments(origin, second)


LAGGED_NORMAL = _Family()
