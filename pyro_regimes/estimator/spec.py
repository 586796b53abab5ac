"""The interface of an emission of RegimeModel: one object for each emission and covariance type.

To add an emission, write a class with the interface of :class:`Spec`, as in :mod:`.gaussian`, and
add its instances to :data:`SPECS`.
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
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.units import Units


class Spec(Protocol):
    """Interface of an emission of :class:`.RegimeModel`.

    Shapes use K for regimes, D for series and ``...`` for starts.
    """

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the emission's parameters: fitted attributes, without the underscore."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the arguments of the observation distribution, one for each attribute."""

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by name."""

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        """The number of free parameters in each attribute."""

    def check_values(self, emission: Emission) -> None:
        """:raises ValueError: if the parameters, or some of them, are not valid."""

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        """The parameters with the regimes in another order."""

    def moments(self, emission: Emission) -> Moments:
        """Means and covariances of one observation; of independent series only the variances."""

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        """Draw an observation for each of the states: ``(T, D)``."""

    def regularized(self, emission: Emission, amount: float, relative: bool) -> Emission:
        """The parameters with ``amount``, or so many times itself, added to every variance."""

    def units(self, data: Array, equal: bool = False) -> Units:
        """Units in which to fit the data; the same for all series if ``equal``."""

    def units_of(self, emission: Emission) -> Units:
        """Approximate units of the data to which a model was fitted."""

    def scale(self, emission: Emission, units: Units) -> Emission:
        """Convert the parameters of a model of x to those of z."""

    def unscale(self, emission: Emission, units: Units) -> Emission:
        """Convert the parameters of a model of z to those of x."""

    def check_data(
        self, data: Array, feature_names: npt.NDArray[np.object_] | None, dtype: torch.dtype
    ) -> str | None:
        """Whether the likelihood of the data has a maximum without a floor.

        :return: a warning for the user, or None.
        :raises ValueError: if it has none.
        """

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        """The largest variance, in any direction, that this dtype cannot tell from 0."""

    def least_variances(self, emission: Emission) -> Array:
        """The least variance in any direction, ``(..., K)``, or ``(..., 1)`` if it is shared."""

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        """Whether a variance is at most twice ``least``, or lost in the rounding of its regime.

        :return: ``(..., K)``, or ``(..., 1)`` if covariances are shared.
        """

    def is_below(self, emission: Emission, floor: float) -> npt.NDArray[np.bool_]:
        """Whether each has a variance below ``floor`` in some direction; series of any units."""

    def fewest_observations(self, num_series: int) -> int:
        """With fewer of them, a regime can make its variance 0 in some direction."""

    def raised(self, emission: Emission, floor: float) -> Emission:
        """The parameters with the variance in every direction raised to at least ``floor``."""

    def start_from_clusters(
        self, x: Array, responsibilities: Array, centers: Array, floor: float
    ) -> Emission:
        """Initial parameters from an M-step on soft assignments, with nonsingular covariances.

        :param responsibilities: weight of each regime for each observation, ``(T, K)``.
        :param centers: centers of the regimes, ``(K, D)``.
        :param floor: the least variance in any direction.
        """

    def start_around(self, x: Array, centers: Array, multiples: Array, floor: float) -> Emission:
        """Initial parameters with these centers ``(K, D)``.

        :param multiples: the variance of each regime, in multiples of that of all observations,
            ``(K,)``. Their mean is 1.
        :param floor: the least variance in any direction.
        """

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        """Arguments of the observation distribution by name, with the starts in front."""

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        """The inverse of :meth:`to_arguments`, in the shapes of ``like``."""

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        """The constraint of the argument of this name, if variances have this floor."""

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The distribution of one observation in each regime, batch shape ``(..., K)``."""

    def sample_observation_dist(
        self, num_regimes: int, mean: Tensor, scale: Tensor
    ) -> dist.TorchDistribution:
        """The observation distribution with arguments sampled from weak priors, one site each.

        :param mean: mean of each series, ``(D,)``.
        :param scale: standard deviation of each series, ``(D,)``.
        """

    def site_values(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the sites of :meth:`sample_observation_dist` for these arguments."""


#: The objects by emission and covariance type.
SPECS: dict[tuple[str, str], Spec] = {
    ("gaussian", "full"): MatrixGaussian("full", shared=False),
    ("gaussian", "diag"): DiagonalGaussian("diag", equal=False),
    ("gaussian", "spherical"): DiagonalGaussian("spherical", equal=True),
    ("gaussian", "tied"): MatrixGaussian("tied", shared=True),
}

COVARIANCE_TYPES = tuple(covariance_type for _, covariance_type in SPECS)


def find_spec(covariance_type: str, emission: str = "gaussian") -> Spec:
    """The object for a covariance type and an emission. The names must be valid."""
    return SPECS[emission, covariance_type]
