"""What the Gaussian emissions of :class:`.RegimeModel` have in common.

:class:`.MatrixGaussian` has one covariance matrix for each regime ("full") or one for all ("tied").
:class:`.DiagonalGaussian` has a variance for each series ("diag") or one for all ("spherical").
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.stats import norm
from torch import Tensor

from pyro_regimes.estimator.emissions.base import Spec
from pyro_regimes.estimator.emissions.checks import Names, column_name
from pyro_regimes.estimator.emissions.levels import Levels, normal_levels
from pyro_regimes.estimator.emissions.whitening import by_series
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission
from pyro_regimes.estimator.units import Units

#: A cluster with less than this share of the overall variance in some direction, or with less than
#: this multiple of the fewest observations, gets the overall covariance.
SINGULAR, SMALL = 1e-10, 2


@dataclass(frozen=True)
class Gaussian(Spec):
    """Common code of the covariance types: ``means`` ``(..., K, D)`` and ``covariances``."""

    covariance_type: str
    attributes: tuple[str, ...] = field(default=("means", "covariances"), init=False)

    spread = "covariances"
    starts_from_means, of_changes, needs_distinct = True, True, True

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"{self.covariance_type} covariances"

    def described(self, emission: Emission) -> dict[str, Array]:
        return {}  # means and volatilities have rows of their own

    # ---- implemented by subclasses

    _equal_units = False  # whether the covariances need the same unit for all series

    def _squares(self, unit: Array) -> Array:
        """The factors of the covariances under a change of unit."""
        raise NotImplementedError

    def _from_scatters(self, scatters: Array, counts: Array, overall: Array, floor: float) -> Array:
        """Covariances of clusters; the overall one replaces those of few or nearly equal rows.

        :param scatters: those of each cluster as :meth:`_scatter` has them, with K in front.
        :param counts: the number of observations of each cluster, ``(K,)``.
        :param overall: as :meth:`spread_of` has it.
        """
        raise NotImplementedError

    def _scatter(self, x: Array, weights: Array) -> Array:
        """The weighted covariance matrix of observations, or their variances if it is diagonal.

        :return: ``(D, D)`` or ``(D,)``, zero if all weights are zero.
        """
        raise NotImplementedError

    def _noise(
        self, emission: Emission, states: npt.NDArray[np.int64], standard: Array
    ) -> Array:
        """Deviations from the means, ``(T, D)``, from standard normal draws of this shape."""
        raise NotImplementedError

    # ---- fitted regimes

    def marginals(self, emission: Emission) -> list[Marginal]:
        means, variances = self.moments(emission).means, self.moments(emission).variances
        return [norm(mean, scale) for mean, scale in zip(means.T, np.sqrt(variances).T)]

    def portfolio(self, emission: Emission, weights: Array) -> Marginal:
        return norm(*self.of_sum(emission, weights))

    def of_sum(self, emission: Emission, weights: Array) -> tuple[Array, Array]:
        """The mean and the standard deviation of ``weights @ x`` in each regime, ``(K,)``."""
        moments = self.moments(emission)
        if moments.are_independent:
            return moments.means @ weights, np.sqrt(moments.covariances @ weights**2)
        variances = np.einsum("i,kij,j->k", weights, moments.covariances, weights)
        return moments.means @ weights, np.sqrt(variances)

    def levels(self, emission: Emission, data: Array) -> list[Levels]:
        moments = self.moments(emission)
        scales = np.sqrt(moments.variances)
        standard = (data[:, None] - moments.means) / scales
        return by_series(normal_levels(standard, np.broadcast_to(np.log(scales), standard.shape)))

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        means = emission["means"]
        standard = rng.standard_normal((len(states), means.shape[1]))
        return means[states] + self._noise(emission, states, standard)

    # ---- units

    def units(self, data: Array, equal: bool = False) -> Units:
        return Units.of(data.mean(0), data.var(0), equal=equal or self._equal_units)

    def units_of(self, emission: Emission) -> Units:
        moments = self.moments(emission)
        variances = moments.variances.mean(0) + moments.means.var(0)
        return Units.of(moments.means.mean(0), variances, equal=self._equal_units)

    def scale(self, emission: Emission, units: Units) -> Emission:
        covariances = emission["covariances"] / self._squares(units.unit)
        return {"means": units.scale(emission["means"]), "covariances": covariances}

    def unscale(self, emission: Emission, units: Units) -> Emission:
        covariances = emission["covariances"] * self._squares(units.unit)
        return {"means": units.unscale(emission["means"]), "covariances": covariances}

    # ---- data and starts

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        constant = np.flatnonzero(np.ptp(data, axis=0) == 0)
        if len(constant) and (not self._equal_units or len(constant) == data.shape[1]):
            column = column_name(int(constant[0]), feature_names)
            raise ValueError(
                f"expected every column of X to vary, got the constant {data[0, constant[0]]} in "
                f"column {column}; drop it, or set min_eigenvalue"
            )
        return None

    def start_from_clusters(
        self, x: Array, responsibilities: Array, centers: Array, floor: float
    ) -> Emission:
        counts = responsibilities.sum(0)
        scatters = np.stack([self._scatter(x, weights) for weights in responsibilities.T])
        covariances = self._from_scatters(scatters, counts, self.spread_of(x, floor), floor)
        return {"means": centers, "covariances": covariances}

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        means = np.tile(x.mean(0), (shares.shape[1], 1))
        return self.start_around(x, means, np.ones(len(means)), 0.0)

    def start_around(
        self,
        x: Array,
        centers: Array,
        multiples: Array,
        floor: float,
        overall: Array | None = None,
    ) -> Emission:
        overall = self.spread_of(x, floor) if overall is None else overall
        scatters = np.multiply.outer(multiples, overall)
        counts = np.full(len(centers), len(x))
        covariances = self._from_scatters(scatters, counts, overall, floor)
        return {"means": centers, "covariances": covariances}

    # ---- the distribution

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.real if name == "loc" else self._covariance_constraint(floor)

    def _covariance_constraint(self, floor: float) -> constraints.Constraint:
        raise NotImplementedError


def sample_loc(num_regimes: int, mean: Tensor, scale: Tensor) -> Tensor:
    """Sample site of the means, ``(K, D)``, of a Pyro model for the comparison of methods."""
    about = dist.Normal(mean, 3 * scale).expand([num_regimes, len(mean)])
    loc: Tensor = pyro.sample("loc", about.to_event(2))
    return loc


def weighted_deviations(x: Array, weights: Array) -> tuple[Array, float]:
    """Deviations from the weighted mean times the roots of the weights, and the sum of these."""
    members = weights > 0
    if not members.any():
        return np.zeros((1, x.shape[1])), 1.0
    x, weights = x[members], weights[members]
    deviations = x - np.average(x, axis=0, weights=weights)
    return deviations * np.sqrt(weights)[:, None], float(weights.sum())
