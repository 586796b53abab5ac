"""What differs between emissions and covariance types: one object for each pair of them.

An emission is added by writing one class that keeps the contract of :class:`Spec`, as
:mod:`.gaussian` does, and by entering its instances in :data:`SPECS`.
"""

from __future__ import annotations

from typing import Mapping, Protocol

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.estimator.gaussian import DiagonalGaussian, MatrixGaussian
from pyro_regimes.estimator.parameters import Array, Emission
from pyro_regimes.estimator.units import Units


class Spec(Protocol):
    """What :class:`.RegimeModel` asks of an emission. K regimes, D series, ``...`` for starts."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the emission's parameters: fitted attributes, without the underscore."""

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        """Of each parameter, by name."""

    def num_free_parameters(self, num_regimes: int, num_series: int) -> int:
        """The number of free parameters of the emission."""

    def check_values(self, emission: Emission) -> None:
        """:raises ValueError: if no fit has such parameters."""

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        """With the regimes in another order."""

    def moments(self, emission: Emission) -> tuple[Array, Array]:
        """Means ``(K, D)`` and covariance matrices ``(K, D, D)`` of one observation."""

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        """An observation for each of the states: ``(T, D)``."""

    def regularized(self, emission: Emission, amount: float) -> Emission:
        """With ``amount`` added to every variance."""

    def units(self, data: Array, min_eigenvalue: float) -> Units:
        """Units in which to fit the data."""

    def units_of(self, emission: Emission) -> Units:
        """About the units of the data to which a model was fitted."""

    def scale(self, emission: Emission, units: Units) -> Emission:
        """From the model of x to that of z."""

    def unscale(self, emission: Emission, units: Units) -> Emission:
        """From the model of z to that of x."""

    def check_data(self, data: Array, feature_names: npt.NDArray[np.object_] | None) -> None:
        """:raises ValueError: if the likelihood of the data has no maximum without a floor."""

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        """The variance, in any direction, at which a regime has collapsed onto a few points.

        A millionth of what the data have in their own least direction, which real regimes keep far
        away from, and what a Cholesky decomposition in this precision needs.
        """

    def least_variance(self, emission: Emission, num_starts: int) -> Array:
        """The least variance in any direction, of any regime, of each start: ``(starts,)``."""

    def raised(self, emission: Emission, floor: float) -> Emission:
        """With every variance in every direction at least ``floor``."""

    def start_from_clusters(
        self, x: Array, responsibilities: Array, centers: Array, floor: float
    ) -> Emission:
        """The M-step from soft assignments, with parameters that are safe to begin with.

        :param responsibilities: of each regime for each observation, ``(T, K)``.
        :param centers: of the regimes, ``(K, D)``.
        :param floor: the least variance in any direction.
        """

    def start_around(self, x: Array, centers: Array, floor: float) -> Emission:
        """Regimes with these centers ``(K, D)`` and the spread of all observations."""

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        """Arguments of the observation distribution by name, with the starts in front."""

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        """The inverse, in the shapes of ``like``."""

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        """Of the argument of this name, where variances have a floor."""

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The distribution of one observation in each regime, batch shape ``(..., K)``."""

    def sample_observation_dist(
        self, num_regimes: int, mean: Tensor, scale: Tensor
    ) -> dist.TorchDistribution:
        """The same with its arguments sampled from weak priors, at sites of their own.

        :param mean: of each series, ``(D,)``.
        :param scale: standard deviation of each series, ``(D,)``.
        """

    def site_values(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the sites of :meth:`sample_observation_dist` at arguments."""


#: By emission and covariance type.
SPECS: dict[tuple[str, str], Spec] = {
    ("gaussian", "full"): MatrixGaussian("full", shared=False),
    ("gaussian", "diag"): DiagonalGaussian("diag", equal=False),
    ("gaussian", "spherical"): DiagonalGaussian("spherical", equal=True),
    ("gaussian", "tied"): MatrixGaussian("tied", shared=True),
}

COVARIANCE_TYPES = tuple(covariance_type for _, covariance_type in SPECS)


def find_spec(covariance_type: str, emission: str = "gaussian") -> Spec:
    """The one object for a pair of names that have been checked."""
    return SPECS[emission, covariance_type]
