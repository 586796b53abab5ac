r"""Student-t emissions of :class:`.RegimeModel`: Gaussians of heavy tails.

With the scale matrix :math:`\Sigma_k` and the degrees of freedom :math:`\nu_k` the covariance is
:math:`\nu_k / (\nu_k - 2) \, \Sigma_k`, and infinite if :math:`\nu_k \le 2`.

With a scale matrix for each regime ("full") or one for all ("tied"), the series of an observation
share one latent scale: they are extreme together. With a scale for each series ("diag") or one for
all ("spherical"), series are independent, each with degrees of freedom of its own or with those of
the regime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.stats import t
from torch import Tensor

from pyro_regimes.estimator.emissions.base import Spec
from pyro_regimes.estimator.emissions.checks import Names, positive
from pyro_regimes.estimator.emissions.diagonal_gaussian import DiagonalGaussian
from pyro_regimes.estimator.emissions.levels import Levels, student_t_levels
from pyro_regimes.estimator.emissions.matrix_gaussian import MatrixGaussian
from pyro_regimes.estimator.emissions.whitening import Whitened, by_series
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.units import Units

#: The degrees of freedom of starts.
_START = 6.0

#: For an order of regimes, the variance is that of at least so many degrees of freedom.
_FEWEST = 2.05


@dataclass(frozen=True)
class StudentT(Spec):
    """``means`` ``(..., K, D)``, ``scale_matrices`` and ``degrees_of_freedom``."""

    gaussian: MatrixGaussian | DiagonalGaussian  #: whose covariances the scale matrices are

    attributes = ("means", "scale_matrices", "degrees_of_freedom")
    spread = "scale_matrices"
    starts_from_means, of_changes, needs_distinct = True, True, True

    @property
    def _is_joint(self) -> bool:
        """Whether the series of an observation have one latent scale."""
        return isinstance(self.gaussian, MatrixGaussian)

    @property
    def arguments(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("loc", "scale_matrix" if self._is_joint else "scale", "df")

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"Student-t with {self.gaussian.covariance_type} scale matrices"

    def _as_gaussian(self, emission: Emission) -> Emission:
        renamed = {"means": "means", "scale_matrices": "covariances"}
        return {renamed[name]: emission[name] for name in renamed if name in emission}

    def _from_gaussian(self, found: Emission, freedom: Array) -> Emission:
        return {
            "means": found["means"],
            "scale_matrices": found["covariances"],
            "degrees_of_freedom": freedom,
        }

    # ---- parameters

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        shapes = self.gaussian.shapes(num_regimes, num_series)
        is_own = isinstance(self.gaussian, DiagonalGaussian) and not self.gaussian.equal
        return {
            "means": shapes["means"],
            "scale_matrices": shapes["covariances"],
            "degrees_of_freedom": (num_regimes, num_series) if is_own else (num_regimes,),
        }

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        counts = self.gaussian.num_free_parameters(num_regimes, num_series)
        freedom = self.shapes(num_regimes, num_series)["degrees_of_freedom"]
        return {
            "means": counts["means"],
            "scale_matrices": counts["covariances"],
            "degrees_of_freedom": int(np.prod(freedom)),
        }

    def check_values(self, emission: Emission) -> None:
        try:
            self.gaussian.check_values(self._as_gaussian(emission))
        except ValueError as error:
            raise ValueError(str(error).replace("covariances", "scale_matrices")) from None
        positive("degrees_of_freedom", emission)

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        found = self.gaussian.select(self._as_gaussian(emission), order)
        return self._from_gaussian(found, emission["degrees_of_freedom"][order])

    # ---- what the parameters say of observations

    def moments(self, emission: Emission) -> Moments:
        freedom = emission["degrees_of_freedom"]
        with np.errstate(divide="ignore"):
            factor = np.where(freedom > 2, freedom / np.maximum(freedom - 2, 0), np.inf)
        means, covariances = self._with_variances(emission, factor)
        known = np.broadcast_to(_beside(freedom, means), means.shape) > 1
        return Moments(np.where(known, means, np.nan), covariances)

    def typical(self, emission: Emission) -> Moments:
        """Locations and covariances as :meth:`moments`, finite for few degrees of freedom, too."""
        freedom = np.maximum(emission["degrees_of_freedom"], _FEWEST)
        return self._with_variances(emission, freedom / (freedom - 2))

    def _with_variances(self, emission: Emission, factor: Array) -> Moments:
        means, scales = self.gaussian.moments(self._as_gaussian(emission))
        with np.errstate(invalid="ignore"):
            scaled = np.where(scales == 0, 0.0, scales * _beside(factor, scales))
        return Moments(means, scaled)

    def described(self, emission: Emission) -> dict[str, Array]:
        return {"degrees of freedom": emission["degrees_of_freedom"]}

    def marginals(self, emission: Emission) -> list[Marginal]:
        means, squares = self._with_variances(emission, np.ones(1))
        if not squares.ndim == means.ndim:
            squares = np.diagonal(squares, axis1=-2, axis2=-1)
        freedom = self._freedom(emission)
        return [t(*each) for each in zip(freedom.T, means.T, np.sqrt(squares).T, strict=True)]

    def portfolio(self, emission: Emission, weights: Array) -> Marginal:
        used = np.flatnonzero(weights)
        if not self._is_joint and len(used) > 1:
            raise ValueError(
                "expected weights of one series, as sums of independent Student-t series have no "
                f"known distribution, got {len(used)} series of {self.title}; use "
                "covariance_type='full' or 'tied', or draw paths and add up their series"
            )
        mean, scale = self.gaussian.of_sum(self._as_gaussian(emission), weights)
        return t(self._freedom(emission)[:, used[0]], mean, scale)

    def _freedom(self, emission: Emission) -> Array:
        """The degrees of freedom of each series in each regime, ``(K, D)``."""
        freedom = emission["degrees_of_freedom"]
        return np.broadcast_to(_beside(freedom, emission["means"]), emission["means"].shape)

    def levels(self, emission: Emission, data: Array) -> list[Levels]:
        means, scales = self.gaussian.moments(self._as_gaussian(emission))
        variances = Moments(means, scales).variances
        shape = (len(data), *means.shape)
        standard = (data[:, None] - means) / np.sqrt(variances)
        freedom = _beside(emission["degrees_of_freedom"], means)
        beside = (np.broadcast_to(each, shape) for each in (0.5 * np.log(variances), freedom))
        return by_series(student_t_levels(standard, *beside))

    def levels_in_turn(self, emission: Emission, data: Array) -> list[Levels]:
        if not self._is_joint:
            return self.levels(emission, data)
        means, scales = self.gaussian.moments(self._as_gaussian(emission))
        return Whitened.of(data, means, scales).student_t(emission["degrees_of_freedom"])

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        centered = self._as_gaussian(emission)
        means = centered["means"][states]
        deviations = self.gaussian.draw(centered, states, rng) - means
        freedom = emission["degrees_of_freedom"][states]  # (T,) or (T, D)
        if freedom.ndim == 1 and not self._is_joint:
            freedom = np.broadcast_to(freedom[:, None], means.shape)
        latent = rng.chisquare(freedom) / freedom
        found: Array = means + deviations / np.sqrt(_beside(latent, means))
        return found

    # ---- units

    def units(self, data: Array, equal: bool = False) -> Units:
        return self.gaussian.units(data, equal)

    def units_of(self, emission: Emission) -> Units:
        return self.gaussian.units_of(self._as_gaussian(emission))

    def scale(self, emission: Emission, units: Units) -> Emission:
        found = self.gaussian.scale(self._as_gaussian(emission), units)
        return self._from_gaussian(found, emission["degrees_of_freedom"])

    def unscale(self, emission: Emission, units: Units) -> Emission:
        found = self.gaussian.unscale(self._as_gaussian(emission), units)
        return self._from_gaussian(found, emission["degrees_of_freedom"])

    # ---- data and starts

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        return self.gaussian.check_data(data, feature_names, dtype)

    def start_from_clusters(
        self, x: Array, responsibilities: Array, centers: Array, floor: float
    ) -> Emission:
        found = self.gaussian.start_from_clusters(x, responsibilities, centers, floor)
        return self._start(found, floor)

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        return self._start(self.gaussian.overall(x, shares, rng), 0.0)

    def spread_of(self, x: Array, floor: float) -> Array:
        return self.gaussian.spread_of(x, floor)

    def start_around(
        self,
        x: Array,
        centers: Array,
        multiples: Array,
        floor: float,
        overall: Array | None = None,
    ) -> Emission:
        found = self.gaussian.start_around(x, centers, multiples, floor, overall)
        return self._start(found, floor)

    def _start(self, found: Emission, floor: float) -> Emission:
        """Scale matrices with these covariances."""
        found = {**found, "covariances": found["covariances"] * ((_START - 2) / _START)}
        shape = self.shapes(*found["means"].shape)["degrees_of_freedom"]
        return self._from_gaussian(self.gaussian.raised(found, floor), np.full(shape, _START))

    # ---- scale matrices and their floor

    def regularized(self, emission: Emission, amount: float, relative: bool) -> Emission:
        found = self.gaussian.regularized(self._as_gaussian(emission), amount, relative)
        return self._from_gaussian(found, emission["degrees_of_freedom"])

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        return self.gaussian.collapsed_variance(z, dtype)

    def least_variances(self, emission: Emission) -> Array:
        return self.gaussian.least_variances(self._as_gaussian(emission))

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        return self.gaussian.collapsed(self._as_gaussian(emission), least, dtype)

    def is_below(self, emission: Emission, floor: float) -> npt.NDArray[np.bool_]:
        return self.gaussian.is_below(self._as_gaussian(emission), floor)

    def fewest_observations(self, num_series: int) -> int:
        return self.gaussian.fewest_observations(num_series)

    def raised(self, emission: Emission, floor: float) -> Emission:
        found = self.gaussian.raised(self._as_gaussian(emission), floor)
        return self._from_gaussian(found, emission["degrees_of_freedom"])

    # ---- the distribution

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        found = self.gaussian.to_arguments(self._as_gaussian(emission))
        freedom = emission["degrees_of_freedom"]
        if isinstance(self.gaussian, DiagonalGaussian) and self.gaussian.equal:
            freedom = freedom[..., None]
        return dict(zip(self.arguments, (*found.values(), freedom), strict=True))

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        of_gaussian = dict(zip(self.gaussian.arguments, map(arguments.get, self.arguments)))
        found = self.gaussian.from_arguments(of_gaussian, self._as_gaussian(like))  # type: ignore
        freedom = arguments["df"].reshape(like["degrees_of_freedom"].shape)
        return self._from_gaussian(found, freedom)

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        if name == "df":
            return constraints.positive
        held = dict(zip(self.arguments, self.gaussian.arguments))
        return self.gaussian.constraint(held[name], floor)

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        df, loc = arguments["df"], arguments["loc"]
        if self._is_joint:
            scale_tril = torch.linalg.cholesky(arguments["scale_matrix"])
            return dist.MultivariateStudentT(df, loc, scale_tril)
        return dist.StudentT(df, loc, arguments["scale"]).to_event(1)


def _beside(values: Array, others: Array) -> Array:
    """Values of the regimes, ``(K,)`` or more, with dims for those that only others have."""
    return values.reshape(values.shape + (1,) * (others.ndim - values.ndim))
