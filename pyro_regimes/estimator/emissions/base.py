"""The interface of an emission of RegimeModel, with defaults for families without variances.

To add an emission, write a subclass of :class:`Spec`, as in :mod:`.counts`, and add its instances
to :data:`.SPECS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.estimator.emissions.checks import Names
from pyro_regimes.estimator.emissions.levels import Levels, marginal_levels
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.units import Units


class Spec(ABC):
    """Interface of an emission of :class:`.RegimeModel`.

    Shapes use K for regimes, D for series and ``...`` for starts.
    """

    #: Names of the emission's parameters: fitted attributes, without the underscore. The first dim
    #: of the first one is K, and its second one D.
    attributes: tuple[str, ...]

    #: Names of the arguments of the observation distribution, one for each attribute.
    arguments: tuple[str, ...]

    #: The emission in a title, such as "full covariances".
    title: str

    #: The attribute of variances, to which ``min_eigenvalue`` and ``regularization`` apply, or
    #: None. Families that have one also override what refers to a floor.
    spread: str | None = None

    #: Whether starts are made from ``means`` and variances, by :meth:`start_from_clusters` and
    #: :meth:`start_around`; else from responsibilities, :meth:`overall` and :meth:`features`.
    starts_from_means: bool = False

    #: Whether observations are changes, as returns are: their means and volatilities are
    #: annualised, their sum is plotted, and their regimes have names of the market.
    of_changes: bool = False

    #: Whether observations are angles, whose means and variances are those of directions.
    is_circular: bool = False

    #: What the likelihood of a value is. Likelihoods of different kinds do not compare.
    measure: str = "density"

    #: Whether each regime needs an observation of its own value.
    needs_distinct: bool = False

    #: The weight of each observation that all regimes share in a start from responsibilities, so
    #: that none begins with a probability of zero, or with too few observations.
    shared_in_starts: float = 0.1

    #: Whether regimes are looked for in runs of rows, as single ones tell too little.
    starts_from_runs: bool = False

    # ---- parameters

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by name; by default ``(K, D)``."""
        return {name: (num_regimes, num_series) for name in self.attributes}

    def place_names(self, name: str, regimes: list[str], series: list[str]) -> list[list[str]]:
        """The names of the places along each dim of a parameter.

        Of dims of neither regimes nor series, such as components and categories, they are numbers.

        :param regimes: the names of the regimes, also returned as this object.
        """
        num_regimes, num_series = len(regimes), len(series)
        shape = self.shapes(num_regimes, num_series)[name]
        more = (self.shapes(num_regimes + 1, num_series), self.shapes(num_regimes, num_series + 1))
        found = []
        for size, of_regimes, of_series in zip(shape, *(each[name] for each in more), strict=True):
            numbers = [str(number) for number in range(size)]
            found.append(regimes if of_regimes > size else series if of_series > size else numbers)
        return found

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        """The number of free parameters in each attribute; by default that of its elements."""
        shapes = self.shapes(num_regimes, num_series)
        return {name: int(np.prod(shape)) for name, shape in shapes.items()}

    @abstractmethod
    def check_values(self, emission: Emission) -> None:
        """:raises ValueError: if the parameters, or some of them, are not valid."""

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Spec, int]:
        """The object for parameters of these shapes, and their number of series.

        :raises ValueError: if no data have such parameters.
        """
        name = self.attributes[0]
        shape = shapes[name]
        if len(shape) != 2 or not shape[-1]:
            raise ValueError(f"{name}_ has shape {shape}, not (K, D)")
        return self, shape[-1]

    def for_columns(self, names: Names | None, num_series: int) -> Spec:
        """The object for data of so many columns, with these names if they have any.

        :raises ValueError: if it is for other columns.
        """
        return self

    def for_data(self, data: Array, given: Mapping[str, Array]) -> Spec:
        """The object for a fit to these data.

        :param given: the values of ``init_params``.
        """
        return self

    def measures(self, num_series: int) -> list[str]:
        """The ``measure`` of each column."""
        return [self.measure] * num_series

    def complete(self, name: str, value: Array) -> Array:
        """A value that a user gives, with the dims that may be left out for one series."""
        return value[:, None] if name == self.attributes[0] and value.ndim == 1 else value

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        """The parameters with the regimes in another order."""
        return {name: value[order] for name, value in emission.items()}

    # ---- what the parameters say of observations

    @abstractmethod
    def moments(self, emission: Emission) -> Moments:
        """Means and covariances of one observation; of independent series only the variances."""

    def typical(self, emission: Emission) -> Moments:
        """As :meth:`moments`, but finite: for orders, correlations and distances of regimes."""
        return self.moments(emission)

    def deviations(self, emission: Emission) -> Array:
        """The standard deviation of each series in each regime, ``(K, D)``."""
        return np.sqrt(self.moments(emission).variances)

    def deviations_of(self, variances: Array) -> Array:
        """Standard deviations from variances ``(n, D)``."""
        return np.sqrt(variances)

    def described(self, emission: Emission) -> dict[str, Array]:
        """Rows of a summary: labels and values, ``(K,)`` or ``(K, D)``.

        By default the parameters.
        """
        return {name.replace("_", " "): emission[name] for name in self.attributes}

    def are_numbers(self, num_series: int) -> npt.NDArray[np.bool_]:
        """Which series have a mean and a variance of numbers, not of angles or categories."""
        return np.full(num_series, not self.is_circular)

    def mixture_moments(self, weights: Array, emission: Emission) -> tuple[Array, Array]:
        """Means ``(n, D)`` and covariance matrices ``(n, D, D)`` of mixtures of the regimes.

        :param weights: of the regimes, ``(n, K)``.
        """
        means, covariances = self.moments(emission)
        mean = _weighted(weights, means)
        with np.errstate(invalid="ignore"):
            deviations = np.where(weights[..., None] > 0, means - mean[:, None], 0.0)  # (n, K, D)
        covariance = np.einsum("nk,nki,nkj->nij", weights, deviations, deviations)
        within = _weighted(weights, covariances)  # (n, D, D), or (n, D) of variances
        if covariances.ndim == 2:
            diagonal = np.arange(mean.shape[-1])
            covariance[:, diagonal, diagonal] += within
        else:
            covariance += within
        return mean, covariance

    def marginals(self, emission: Emission) -> list[Marginal]:
        """The distribution of each series in every regime, vectorised over the regimes.

        :return: D objects with the methods of a frozen distribution of scipy. Arguments
            ``(..., 1)`` give results ``(..., K)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no distribution functions")

    def portfolio(self, emission: Emission, weights: Array) -> Marginal:
        """The distribution of ``weights @ x`` in every regime.

        :param weights: ``(D,)``, not all 0.
        :raises ValueError: if it has no closed form.
        """
        raise ValueError(
            "expected weights for an emission whose weighted sums have a known distribution, such "
            f"as 'gaussian', 'student_t' or 'gaussian_mixture', got {self.title}; draw paths and "
            "add up their series"
        )

    def levels(self, emission: Emission, data: Array) -> list[Levels]:
        """The levels of each series at data, given the regime.

        :param data: ``(T, D)``.
        :return: D of them, each ``(T, K)``.
        """
        pairs = zip(self.marginals(emission), data.T, strict=True)
        return [marginal_levels(distribution, column) for distribution, column in pairs]

    def levels_in_turn(self, emission: Emission, data: Array) -> list[Levels]:
        """The levels of each series at data, given the regime and the series before it.

        By default series are independent given the regime.

        :param data: ``(T, D)``.
        :return: D of them, each ``(T, K)``.
        """
        return self.levels(emission, data)

    @abstractmethod
    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        """Draw an observation for each of the states: ``(T, D)``."""

    # ---- units

    def units(self, data: Array, equal: bool = False) -> Units:
        """Units in which to fit the data; the same for all series if ``equal``.

        By default the data have none.
        """
        return Units(np.zeros(data.shape[1]), np.ones(data.shape[1]))

    def units_of(self, emission: Emission) -> Units:
        """Approximate units of the data to which a model was fitted."""
        means = self.moments(emission).means
        return Units(np.zeros(means.shape[1]), np.ones(means.shape[1]))

    def scale(self, emission: Emission, units: Units) -> Emission:
        """Convert the parameters of a model of x to those of z."""
        return emission

    def unscale(self, emission: Emission, units: Units) -> Emission:
        """Convert the parameters of a model of z to those of x."""
        return emission

    # ---- data

    def check_support(  # noqa: B027
        self, data: Array, feature_names: Names | None
    ) -> None:
        """Check data of a fit, or of a fitted model.

        :raises ValueError: if some are no observations of the family.
        """

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        """Whether the likelihood of the data has a maximum without a floor.

        :return: a warning for the user, or None.
        :raises ValueError: if it has none.
        """
        return None

    # ---- variances and their floor, where there are some

    def regularized(self, emission: Emission, amount: float, relative: bool) -> Emission:
        """The parameters with ``amount``, or so many times itself, added to every variance."""
        return emission

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        """The largest variance, in any direction, that this dtype cannot tell from 0."""
        return 0.0

    def least_variances(self, emission: Emission) -> Array:
        """The least variance in any direction, ``(..., K)``, or ``(..., 1)`` if it is shared."""
        return np.full(self._lead(emission), np.inf)

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        """Whether a regime holds equal observations only, so that the likelihood has no bound.

        For variances: whether one is at most twice ``least``, or lost in the rounding of its
        regime.

        :return: ``(..., K)``, or ``(..., 1)`` if covariances are shared.
        """
        return np.zeros(self._lead(emission), np.bool_)

    def are_equal(self, x: Array) -> bool:
        """Whether a regime of these rows alone has a likelihood without a bound.

        Asked where EM finds a parameter without a maximum.
        """
        return False

    def is_below(self, emission: Emission, floor: float) -> npt.NDArray[np.bool_]:
        """Whether each has a variance below ``floor`` in some direction; series of any units."""
        return np.zeros(self._lead(emission), np.bool_)

    def fewest_observations(self, num_series: int) -> int:
        """With fewer of them, a regime can make its variance 0 in some direction."""
        return 0

    def raised(self, emission: Emission, floor: float) -> Emission:
        """The parameters with the variance in every direction raised to at least ``floor``."""
        return emission

    def _lead(self, emission: Emission) -> tuple[int, ...]:
        """The dims of starts and regimes, ``(..., K)``."""
        name = self.attributes[0]
        own = len(self.shapes(1, 1)[name]) - 1
        return emission[name].shape[: emission[name].ndim - own]

    # ---- starts

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        """Parameters of all observations, the same in every regime.

        The parameters of a start are those of an M-step from them. Where the M-step keeps what
        is equal, as the components of a mixture, they depend on the regime.

        :param shares: the responsibilities of the start, ``(T, K)``.
        """
        raise NotImplementedError(f"{type(self).__name__} starts from means")

    def features(self, x: Array) -> Array:
        """What tells regimes apart in one observation, for k-means: ``(T, F)``."""
        return x

    def start_from_clusters(
        self, x: Array, responsibilities: Array, centers: Array, floor: float
    ) -> Emission:
        """Initial parameters from an M-step on soft assignments, with nonsingular covariances.

        :param responsibilities: weight of each regime for each observation, ``(T, K)``.
        :param centers: centers of the regimes, ``(K, D)``.
        :param floor: the least variance in any direction.
        """
        raise NotImplementedError(f"{type(self).__name__} starts from responsibilities")

    def spread_of(self, x: Array, floor: float) -> Array:
        """The covariance matrix of all observations, or their variances, of at least ``floor``."""
        raise NotImplementedError(f"{type(self).__name__} starts from responsibilities")

    def start_around(
        self,
        x: Array,
        centers: Array,
        multiples: Array,
        floor: float,
        overall: Array | None = None,
    ) -> Emission:
        """Initial parameters with these centers ``(K, D)``.

        :param multiples: the variance of each regime, in multiples of that of all observations,
            ``(K,)``. Their mean is 1.
        :param floor: the least variance in any direction.
        :param overall: that of :meth:`spread_of`, if it is known.
        """
        raise NotImplementedError(f"{type(self).__name__} starts from responsibilities")

    # ---- the distribution

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        """Arguments of the observation distribution by name, with the starts in front.

        By default the attributes themselves.
        """
        names = zip(self.arguments, self.attributes, strict=True)
        return {argument: emission[name] for argument, name in names}

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        """The inverse of :meth:`to_arguments`, in the shapes of ``like``."""
        names = zip(self.arguments, self.attributes, strict=True)
        return {name: arguments[argument].reshape(like[name].shape) for argument, name in names}

    @abstractmethod
    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        """The constraint of the argument of this name, if variances have this floor."""

    @abstractmethod
    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The distribution of one observation in each regime, batch shape ``(..., K)``."""

    # ---- the comparison with other inference

    def sample_observation_dist(
        self, num_regimes: int, mean: Tensor, scale: Tensor
    ) -> dist.TorchDistribution:
        """The observation distribution with arguments sampled from weak priors, one site each.

        :param mean: mean of each series, ``(D,)``.
        :param scale: standard deviation of each series, ``(D,)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no priors")

    def site_values(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the sites of :meth:`sample_observation_dist` for these arguments."""
        raise NotImplementedError(f"{type(self).__name__} has no priors")


def in_every_regime(shares: Array, **found: Array) -> Emission:
    """The same parameters in every regime, for :meth:`Spec.overall`.

    :param shares: the responsibilities of a start, ``(T, K)``.
    """
    num_regimes = shares.shape[1]
    return {name: np.repeat(value[None], num_regimes, 0) for name, value in found.items()}


def _weighted(weights: Array, values: Array) -> Array:
    """Sums over the regimes; a regime of weight 0 does not count, even if a value is infinite."""
    if np.isfinite(values).all():
        sums: Array = np.tensordot(weights, values, 1)
        return sums
    parts = weights.reshape(weights.shape + (1,) * (values.ndim - 1))
    with np.errstate(invalid="ignore"):
        total: Array = np.where(parts > 0, parts * values, 0.0).sum(1)
    return total
