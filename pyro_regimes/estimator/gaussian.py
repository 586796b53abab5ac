"""Gaussian observations: what :class:`.RegimeModel` asks of an emission."""

from __future__ import annotations

from typing import Mapping, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.estimator.covariances import Matrices, Variances, raise_eigenvalues
from pyro_regimes.estimator.parameters import Array, Emission
from pyro_regimes.estimator.units import Units


class Gaussian(NamedTuple):
    """``means`` ``(..., K, D)`` and ``covariances`` of one type; a :class:`.Spec`."""

    covariance_type: str
    covariance: Matrices | Variances
    attributes: tuple[str, ...] = ("means", "covariances")

    # ---- shapes and numbers

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        covariances = self.covariance.shape(num_regimes, num_series)
        return {"means": (num_regimes, num_series), "covariances": covariances}

    def num_free_parameters(self, num_regimes: int, num_series: int) -> int:
        return num_regimes * num_series + self.covariance.num_free(num_regimes, num_series)

    def check_values(self, emission: Emission) -> None:
        _, full = self.moments(emission)
        deviations = np.sqrt(np.maximum(np.diagonal(full, axis1=-2, axis2=-1), 0))
        scale = deviations[:, :, None] * deviations[:, None]
        try:
            np.linalg.cholesky(full)  # which reads one triangle only
            regular = (np.abs(full - full.swapaxes(-1, -2)) <= 1e-6 * scale).all()
        except np.linalg.LinAlgError:
            regular = False
        if not regular:
            raise ValueError("covariances_ that are not symmetric and positive definite")

    # ---- fitted regimes

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        covariances = self.covariance.select(emission["covariances"], order)
        return {"means": emission["means"][order], "covariances": covariances}

    def moments(self, emission: Emission) -> tuple[Array, Array]:
        means = emission["means"]
        num_regimes, num_series = means.shape
        return means, self.covariance.full(emission["covariances"], (num_regimes, num_series))

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        means, covariances = self.moments(emission)
        noise = rng.standard_normal((len(states), means.shape[1]))
        roots = np.linalg.cholesky(covariances)
        return means[states] + np.einsum("tij,tj->ti", roots[states], noise)

    def regularized(self, emission: Emission, amount: float) -> Emission:
        covariances = self.covariance.add_to_variances(emission["covariances"], amount)
        return {**emission, "covariances": covariances}

    # ---- units

    def units(self, data: Array, min_eigenvalue: float) -> Units:
        # A floor of eigenvalues is one in other units only if these are equal.
        equal = self.covariance.equal_units or min_eigenvalue > 0
        return Units.of(data.mean(0), data.var(0), equal=equal)

    def units_of(self, emission: Emission) -> Units:
        means, full = self.moments(emission)
        variances = np.diagonal(full, axis1=-2, axis2=-1).mean(0) + means.var(0)
        return Units.of(means.mean(0), variances, equal=self.covariance.equal_units)

    def scale(self, emission: Emission, units: Units) -> Emission:
        covariances = emission["covariances"] / self.covariance.squares(units.unit)
        return {"means": units.scale(emission["means"]), "covariances": covariances}

    def unscale(self, emission: Emission, units: Units) -> Emission:
        covariances = emission["covariances"] * self.covariance.squares(units.unit)
        return {"means": units.unscale(emission["means"]), "covariances": covariances}

    # ---- data and starts

    def check_data(self, data: Array, feature_names: npt.NDArray[np.object_] | None) -> None:
        constant = np.flatnonzero(np.ptp(data, axis=0) == 0)
        if len(constant) and (not self.covariance.equal_units or len(constant) == data.shape[1]):
            column = constant[0] if feature_names is None else repr(feature_names[constant[0]])
            raise ValueError(
                f"expected every column of X to vary, got the constant {data[0, constant[0]]} in "
                f"column {column}; drop it, or set min_eigenvalue"
            )
        if not self.covariance.needs_regular_data:
            return
        rank = np.linalg.matrix_rank((data - data.mean(0)) / data.std(0), tol=None)
        if rank < data.shape[1]:
            raise ValueError(
                f"expected the {data.shape[1]} columns of X to be linearly independent for "
                f"covariance_type={self.covariance_type!r}, got rank {rank} from {len(data)} "
                "observations; use 'diag' or 'spherical', fewer series, or set min_eigenvalue"
            )

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        return self.covariance.collapsed(z, dtype)

    def least_variance(self, emission: Emission, num_starts: int) -> Array:
        return self.covariance.least(np.nan_to_num(emission["covariances"]), num_starts)

    def raised(self, emission: Emission, floor: float) -> Emission:
        return {**emission, "covariances": self.covariance.raised(emission["covariances"], floor)}

    def start_from_clusters(
        self, x: Array, responsibilities: Array, centers: Array, floor: float
    ) -> Emission:
        counts = responsibilities.sum(0)
        scatters = np.stack([_scatter(x, weights) for weights in responsibilities.T])
        overall = _overall(x, floor)
        covariances = self.covariance.from_scatters(scatters, counts, overall, floor)
        return {"means": centers, "covariances": covariances}

    def start_around(self, x: Array, centers: Array, floor: float) -> Emission:
        overall = _overall(x, floor)
        scatters = np.broadcast_to(overall, (len(centers),) + overall.shape)
        counts = np.ones(len(centers))
        covariances = self.covariance.from_scatters(scatters, counts, overall, floor)
        return {"means": centers, "covariances": covariances}

    # ---- the distribution

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        covariances = self.covariance.to_argument(emission["covariances"])
        return {"loc": emission["means"], self.covariance.argument: covariances}

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        covariances = self.covariance.from_argument(arguments[self.covariance.argument])
        return {
            "means": arguments["loc"].reshape(like["means"].shape),
            "covariances": covariances.reshape(like["covariances"].shape),
        }

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.real if name == "loc" else self.covariance.constraint(floor)

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        argument = arguments[self.covariance.argument]
        return self.covariance.distribution(arguments["loc"], argument)

    # ---- priors

    def sample_observation_dist(
        self, num_regimes: int, mean: Tensor, scale: Tensor
    ) -> dist.TorchDistribution:
        about = dist.Normal(mean, 3 * scale).expand([num_regimes, len(mean)])
        loc = pyro.sample("loc", about.to_event(2))
        return self.covariance.sample_distribution(loc, scale.square())

    def site_values(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        name, value = self.covariance.site_value(arguments[self.covariance.argument])
        return {"loc": arguments["loc"], name: value}


def _overall(x: Array, floor: float) -> Array:
    """The covariance matrix of all observations, with eigenvalues of at least ``floor``."""
    return raise_eigenvalues(np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], -1), floor)


def _scatter(x: Array, weights: Array) -> Array:
    """The weighted covariance matrix of observations; zero where all weights are."""
    members = weights > 0
    if not members.any():
        return np.zeros((x.shape[1], x.shape[1]))
    x, weights = x[members], weights[members]
    deviations = x - np.average(x, axis=0, weights=weights)
    weighted = deviations * np.sqrt(weights)[:, None]
    found: Array = weighted.T @ weighted / weights.sum()
    return found
