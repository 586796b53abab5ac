"""Gaussian emissions with covariance matrices: "full" and "tied"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.distributions import Wishart
from pyro_regimes.estimator.emissions.checks import Names, column_name
from pyro_regimes.estimator.emissions.gaussian import (
    SINGULAR,
    SMALL,
    Gaussian,
    sample_loc,
    weighted_deviations,
)
from pyro_regimes.estimator.emissions.levels import Levels, normal_levels
from pyro_regimes.estimator.emissions.whitening import Whitened, by_series
from pyro_regimes.estimator.floors import EigenvaluesFrom
from pyro_regimes.estimator.parameters import Array, Emission, Moments

#: A combination of series of unit variance with less than this variance is said to be none.
_COLLINEAR = 1e-10


@dataclass(frozen=True)
class MatrixGaussian(Gaussian):
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
        values = np.linalg.eigvalsh(self.spread_of(z, 0.0))
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
        values, vectors = np.linalg.eigh(self.spread_of((data - data.mean(0)) / data.std(0), 0.0))
        share = float(values[0] / values[-1])
        if share > _COLLINEAR and share > 100 * torch.finfo(dtype).eps:
            return None
        weights = np.abs(vectors[:, 0])
        columns = ", ".join(
            column_name(int(column), feature_names)
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
        loc = sample_loc(num_regimes, mean, scale)
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
        weighted, total = weighted_deviations(x, weights)
        found: Array = weighted.T @ weighted / total
        return found

    def spread_of(self, x: Array, floor: float) -> Array:
        covariance = np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], -1)
        return _raise_eigenvalues(covariance, floor)

    def _from_scatters(self, scatters: Array, counts: Array, overall: Array, floor: float) -> Array:
        if self.shared:
            scatters, counts = np.average(scatters, axis=0, weights=counts)[None], counts.sum()
        least = np.linalg.eigvalsh(scatters)[:, 0]
        few = counts < SMALL * self.fewest_observations(overall.shape[-1])
        singular = few | (least < SINGULAR * np.linalg.eigvalsh(overall)[0])
        chosen = np.where(singular[:, None, None], overall, scatters)
        raised = np.stack([_raise_eigenvalues(each, floor) for each in chosen])
        return raised[0] if self.shared else raised


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
