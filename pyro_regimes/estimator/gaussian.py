"""Gaussian emissions of :class:`.RegimeModel`, for each covariance type.

:class:`MatrixGaussian` has one covariance matrix for each regime ("full") or one for all ("tied").
:class:`DiagonalGaussian` has a variance for each series ("diag") or one for all ("spherical").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.stats import norm
from torch import Tensor

from pyro_regimes.distributions import Wishart
from pyro_regimes.estimator.emissions.base import Names, Spec
from pyro_regimes.estimator.emissions.levels import Levels, normal_levels
from pyro_regimes.estimator.emissions.whitening import Whitened, by_series
from pyro_regimes.estimator.floors import EigenvaluesFrom, ScalesFrom
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.units import Units

#: A cluster with less than this share of the overall variance in some direction, or with less than
#: this multiple of the fewest observations, gets the overall covariance.
_SINGULAR, _SMALL = 1e-10, 2

#: A combination of series of unit variance with less than this variance is said to be none.
_COLLINEAR = 1e-10


@dataclass(frozen=True)
class _Gaussian(Spec):
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
        :param overall: as :meth:`_overall` has it.
        """
        raise NotImplementedError

    def _scatter(self, x: Array, weights: Array) -> Array:
        """The weighted covariance matrix of observations, or their variances if it is diagonal.

        :return: ``(D, D)`` or ``(D,)``, zero if all weights are zero.
        """
        raise NotImplementedError

    def _overall(self, x: Array, floor: float) -> Array:
        """The covariance matrix of all observations, or their variances, of at least ``floor``."""
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
            column = constant[0] if feature_names is None else repr(feature_names[constant[0]])
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
        covariances = self._from_scatters(scatters, counts, self._overall(x, floor), floor)
        return {"means": centers, "covariances": covariances}

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        means = np.tile(x.mean(0), (shares.shape[1], 1))
        return self.start_around(x, means, np.ones(len(means)), 0.0)

    def start_around(self, x: Array, centers: Array, multiples: Array, floor: float) -> Emission:
        overall = self._overall(x, floor)
        scatters = np.multiply.outer(multiples, overall)
        counts = np.full(len(centers), len(x))
        covariances = self._from_scatters(scatters, counts, overall, floor)
        return {"means": centers, "covariances": covariances}

    # ---- the distribution

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.real if name == "loc" else self._covariance_constraint(floor)

    def _covariance_constraint(self, floor: float) -> constraints.Constraint:
        raise NotImplementedError


@dataclass(frozen=True)
class MatrixGaussian(_Gaussian):
    """Covariance matrices ``(..., K, D, D)``, or one for all regimes ``(..., D, D)``."""

    shared: bool  #: whether all regimes have the same matrix
    arguments: tuple[str, ...] = field(default=("loc", "covariance_matrix"), init=False)

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        matrix = (num_series, num_series)
        covariances = matrix if self.shared else (num_regimes, *matrix)
        return {"means": (num_regimes, num_series), "covariances": covariances}

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        matrix = num_series * (num_series + 1) // 2
        matrices = 1 if self.shared else num_regimes
        return {"means": num_regimes * num_series, "covariances": matrices * matrix}

    def moments(self, emission: Emission) -> Moments:
        means, covariances = emission["means"], emission["covariances"]
        return Moments(means, np.broadcast_to(covariances, (len(means), *covariances.shape[-2:])))

    def check_values(self, emission: Emission) -> None:
        if "covariances" not in emission:
            return
        covariances = emission["covariances"]
        expected = "expected covariances to be symmetric and positive definite, got"
        for regime, one in enumerate(covariances.reshape(-1, *covariances.shape[-2:])):
            where = "" if self.shared else f" in regime {regime}"
            deviations = np.sqrt(np.maximum(np.diagonal(one), 0))
            if (np.abs(one - one.T) > 1e-6 * np.outer(deviations, deviations)).any():
                raise ValueError(
                    f"{expected} a matrix C{where} that is not symmetric; use (C + C.T) / 2"
                )
            if not _is_positive_definite(one):
                least = np.linalg.eigvalsh(one)[0]
                raise ValueError(
                    f"{expected} a least eigenvalue of {least:.3g}{where}; add a small positive "
                    "number to the diagonal"
                )

    def levels_in_turn(self, emission: Emission, data: Array) -> list[Levels]:
        moments = self.moments(emission)
        return by_series(normal_levels(*Whitened.of(data, moments.means, moments.covariances)))

    def _noise(
        self, emission: Emission, states: npt.NDArray[np.int64], standard: Array
    ) -> Array:
        noise = np.empty_like(standard)
        roots = np.linalg.cholesky(self.moments(emission).covariances)
        for regime, root in enumerate(roots):
            steps = states == regime
            noise[steps] = np.einsum("ij,tj->ti", root, standard[steps])
        return noise

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        covariances = emission["covariances"]
        kept = covariances if self.shared else covariances[order]
        return {"means": emission["means"][order], "covariances": kept}

    def regularized(self, emission: Emission, amount: float, relative: bool) -> Emission:
        covariances = emission["covariances"]
        eye = np.eye(covariances.shape[-1])
        each = covariances * eye if relative else eye
        return {**emission, "covariances": covariances + amount * each}

    def raised(self, emission: Emission, floor: float) -> Emission:
        covariances = emission["covariances"]
        each = covariances.reshape(-1, *covariances.shape[-2:])
        raised = np.stack([_raise_eigenvalues(one, floor) for one in each])
        return {**emission, "covariances": raised.reshape(covariances.shape)}

    def least_variances(self, emission: Emission) -> Array:
        eigenvalues = np.linalg.eigvalsh(np.nan_to_num(emission["covariances"]))[..., 0]
        return eigenvalues[..., None] if self.shared else eigenvalues

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        values = np.linalg.eigvalsh(np.nan_to_num(emission["covariances"]))
        # EM holds what is lost in rounding at 64 times that.
        rounding = 64 * values.shape[-1] * torch.finfo(dtype).eps * values[..., -1]
        flags: npt.NDArray[np.bool_] = values[..., 0] < 2 * np.maximum(least, rounding)
        return flags[..., None] if self.shared else flags

    def is_below(self, emission: Emission, floor: float) -> npt.NDArray[np.bool_]:
        covariances = np.atleast_3d(emission["covariances"].T).T  # (K or 1, D, D)
        variances = np.diagonal(covariances, axis1=-2, axis2=-1)
        roots = np.sqrt(variances)
        # A Cholesky decomposition is as accurate as that of the correlations, whatever the units.
        scaled = covariances / (roots[:, :, None] * roots[:, None])
        scaled -= np.eye(variances.shape[-1]) * (floor / variances)[:, None]
        return np.array([not _is_positive_definite(each) for each in scaled])

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        # The square of the rounding of the data, with room for that of their mean, or what a
        # Cholesky decomposition in float64 takes for 0. What float32 loses of a matrix is relative
        # to its own largest eigenvalue: see :meth:`collapsed`.
        values = np.linalg.eigvalsh(self._overall(z, 0.0))
        rounding = 4 * len(values) * torch.finfo(torch.float64).eps
        return max((1e2 * torch.finfo(dtype).eps) ** 2, rounding) * float(values[-1])

    def fewest_observations(self, num_series: int) -> int:
        return 0 if self.shared else num_series + 1

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        super().check_data(data, feature_names, dtype)
        num_rows, num_series = data.shape
        remedy = "'diag' or 'spherical', or set min_eigenvalue"
        if num_rows <= num_series:
            raise ValueError(
                f"expected more observations than the {num_series} columns of X for "
                f"covariance_type={self.covariance_type!r}, got {num_rows}; use {remedy}"
            )
        values, vectors = np.linalg.eigh(self._overall((data - data.mean(0)) / data.std(0), 0.0))
        share = float(values[0] / values[-1])
        if share > _COLLINEAR and share > 100 * torch.finfo(dtype).eps:
            return None
        weights = np.abs(vectors[:, 0])
        columns = ", ".join(
            str(column) if feature_names is None else repr(feature_names[column])
            for column in np.flatnonzero(weights > 0.05 * weights.max())
        )
        if share <= 100 * torch.finfo(dtype).eps:
            where = "" if dtype is torch.float64 else f" in {str(dtype).removeprefix('torch.')}"
            raise ValueError(
                "expected the columns of X to be linearly independent for "
                f"covariance_type={self.covariance_type!r}, got a combination of the columns "
                f"{columns} that does not vary{where}; drop one of them, use {remedy}"
            )
        return (
            f"The columns {columns} of X nearly depend on each other: a combination of them has "
            f"{np.sqrt(share):.0e} of their standard deviation. Their covariances are nearly "
            f"singular; drop one of them, use {remedy}."
        )

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        covariances = emission["covariances"]
        if self.shared and covariances.ndim > 2:  # several starts: insert a dim for the regimes
            covariances = np.expand_dims(covariances, -3)
        return {"loc": emission["means"], "covariance_matrix": covariances}

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        return {
            "means": arguments["loc"].reshape(like["means"].shape),
            "covariances": arguments["covariance_matrix"].reshape(like["covariances"].shape),
        }

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        covariance_matrix = arguments["covariance_matrix"]
        return dist.MultivariateNormal(arguments["loc"], covariance_matrix=covariance_matrix)

    def sample_observation_dist(
        self, num_regimes: int, mean: Tensor, scale: Tensor
    ) -> dist.TorchDistribution:
        loc = _sample_loc(num_regimes, mean, scale)
        regimes = () if self.shared else (num_regimes,)
        freedom = torch.full_like(mean[0], len(mean) + 2)
        inverse = torch.diag(1 / scale.square()) / (len(mean) + 2)
        wishart = Wishart(freedom, covariance_matrix=inverse).expand(regimes)
        precision = pyro.sample("precision_matrix", wishart.to_event(len(regimes)))
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def site_values(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        factor = torch.linalg.cholesky(arguments["covariance_matrix"])
        return {"loc": arguments["loc"], "precision_matrix": torch.cholesky_inverse(factor)}

    def _squares(self, unit: Array) -> Array:
        return np.outer(unit, unit)

    def _covariance_constraint(self, floor: float) -> constraints.Constraint:
        return EigenvaluesFrom(floor) if floor else constraints.positive_definite

    def _scatter(self, x: Array, weights: Array) -> Array:
        weighted, total = _weighted_deviations(x, weights)
        found: Array = weighted.T @ weighted / total
        return found

    def _overall(self, x: Array, floor: float) -> Array:
        covariance = np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], -1)
        return _raise_eigenvalues(covariance, floor)

    def _from_scatters(self, scatters: Array, counts: Array, overall: Array, floor: float) -> Array:
        if self.shared:
            scatters, counts = np.average(scatters, axis=0, weights=counts)[None], counts.sum()
        least = np.linalg.eigvalsh(scatters)[:, 0]
        few = counts < _SMALL * self.fewest_observations(overall.shape[-1])
        singular = few | (least < _SINGULAR * np.linalg.eigvalsh(overall)[0])
        chosen = np.where(singular[:, None, None], overall, scatters)
        raised = np.stack([_raise_eigenvalues(each, floor) for each in chosen])
        return raised[0] if self.shared else raised


@dataclass(frozen=True)
class DiagonalGaussian(_Gaussian):
    """Variances of independent series ``(..., K, D)``, or one for all series ``(..., K)``."""

    equal: bool  #: whether all series of a regime have the same variance
    arguments: tuple[str, ...] = field(default=("loc", "scale"), init=False)

    @property
    def _equal_units(self) -> bool:  # type: ignore[override]
        return self.equal

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        variances = (num_regimes,) if self.equal else (num_regimes, num_series)
        return {"means": (num_regimes, num_series), "covariances": variances}

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        variances = num_regimes * (1 if self.equal else num_series)
        return {"means": num_regimes * num_series, "covariances": variances}

    def moments(self, emission: Emission) -> Moments:
        means, covariances = emission["means"], emission["covariances"]
        variances = covariances[:, None] if self.equal else covariances
        return Moments(means, np.broadcast_to(variances, means.shape))

    def check_values(self, emission: Emission) -> None:
        if "covariances" not in emission:
            return
        covariances = emission["covariances"]
        wrong = np.argwhere(~(covariances > 0))
        if len(wrong):
            raise ValueError(
                f"expected covariances to be positive variances, got "
                f"{covariances[tuple(wrong[0])]:.3g} in regime {wrong[0, 0]}; use variances above 0"
            )

    def _noise(
        self, emission: Emission, states: npt.NDArray[np.int64], standard: Array
    ) -> Array:
        return np.sqrt(self.moments(emission).variances)[states] * standard

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        return {name: value[order] for name, value in emission.items()}

    def regularized(self, emission: Emission, amount: float, relative: bool) -> Emission:
        covariances = emission["covariances"]
        return {**emission, "covariances": covariances + amount * (covariances if relative else 1)}

    def raised(self, emission: Emission, floor: float) -> Emission:
        return {**emission, "covariances": np.maximum(emission["covariances"], floor)}

    def least_variances(self, emission: Emission) -> Array:
        variances = np.nan_to_num(emission["covariances"])
        return variances if self.equal else variances.min(-1)

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        flags: npt.NDArray[np.bool_] = self.least_variances(emission) < 2 * least
        return flags

    def is_below(self, emission: Emission, floor: float) -> npt.NDArray[np.bool_]:
        below: npt.NDArray[np.bool_] = self.least_variances(emission) < floor
        return below

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        # The square of the rounding of z, and of the data in float64, with room for their level.
        variances = z.var(0)
        least = float(variances.mean() if self.equal else variances[variances > 0].min(initial=1))
        return max(1e2 * torch.finfo(dtype).eps, 1e4 * torch.finfo(torch.float64).eps) ** 2 * least

    def fewest_observations(self, num_series: int) -> int:
        return 2

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        scale = np.sqrt(emission["covariances"])
        return {"loc": emission["means"], "scale": scale[..., None] if self.equal else scale}

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        return {
            "means": arguments["loc"].reshape(like["means"].shape),
            "covariances": arguments["scale"].reshape(like["covariances"].shape) ** 2,
        }

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.Normal(arguments["loc"], arguments["scale"]).to_event(1)

    def sample_observation_dist(
        self, num_regimes: int, mean: Tensor, scale: Tensor
    ) -> dist.TorchDistribution:
        loc = _sample_loc(num_regimes, mean, scale)
        rate = scale.square().mean() if self.equal else scale.square()
        gamma = dist.Gamma(torch.full_like(rate, 2.0), rate)
        gamma = gamma.expand([num_regimes, 1 if self.equal else len(mean)])
        precision = pyro.sample("precision", gamma.to_event(2))
        return dist.Normal(loc, precision.rsqrt()).to_event(1)

    def site_values(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loc": arguments["loc"], "precision": arguments["scale"] ** -2}

    def _squares(self, unit: Array) -> Array:
        return np.square(unit[0] if self.equal else unit)

    def _covariance_constraint(self, floor: float) -> constraints.Constraint:
        return ScalesFrom(floor**0.5) if floor else constraints.positive

    def _scatter(self, x: Array, weights: Array) -> Array:
        weighted, total = _weighted_deviations(x, weights)
        found: Array = np.square(weighted).sum(0) / total
        return found

    def _overall(self, x: Array, floor: float) -> Array:
        return np.maximum(x.var(0), floor)

    def _from_scatters(self, scatters: Array, counts: Array, overall: Array, floor: float) -> Array:
        few = counts < _SMALL * self.fewest_observations(len(overall))
        if self.equal:
            scatters, overall = scatters.mean(-1), overall.mean()
        else:
            few = few[:, None]
        singular = few | (scatters < _SINGULAR * overall)
        return np.maximum(np.where(singular, overall, scatters), floor)


def _sample_loc(num_regimes: int, mean: Tensor, scale: Tensor) -> Tensor:
    about = dist.Normal(mean, 3 * scale).expand([num_regimes, len(mean)])
    loc: Tensor = pyro.sample("loc", about.to_event(2))
    return loc


def _raise_eigenvalues(covariance: Array, floor: float) -> Array:
    """A covariance matrix with every eigenvalue at least ``floor``."""
    values, vectors = np.linalg.eigh(covariance)
    if values[0] >= floor:
        return covariance
    raised = (vectors * np.maximum(values, floor)) @ vectors.T
    return (raised + raised.T) / 2


def _is_positive_definite(matrix: Array) -> bool:
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _weighted_deviations(x: Array, weights: Array) -> tuple[Array, float]:
    """Deviations from the weighted mean times the roots of the weights, and the sum of these."""
    members = weights > 0
    if not members.any():
        return np.zeros((1, x.shape[1])), 1.0
    x, weights = x[members], weights[members]
    deviations = x - np.average(x, axis=0, weights=weights)
    return deviations * np.sqrt(weights)[:, None], float(weights.sum())
