"""Gaussian emissions of independent series: "diag" and "spherical"."""

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

from pyro_regimes.estimator.emissions.gaussian import (
    SINGULAR,
    SMALL,
    Gaussian,
    sample_loc,
    weighted_deviations,
)
from pyro_regimes.estimator.floors import ScalesFrom
from pyro_regimes.estimator.parameters import Array, Emission, Moments


@dataclass(frozen=True)
class DiagonalGaussian(Gaussian):
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
        loc = sample_loc(num_regimes, mean, scale)
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
        weighted, total = weighted_deviations(x, weights)
        found: Array = np.square(weighted).sum(0) / total
        return found

    def spread_of(self, x: Array, floor: float) -> Array:
        return np.maximum(x.var(0), floor)

    def _from_scatters(self, scatters: Array, counts: Array, overall: Array, floor: float) -> Array:
        few = counts < SMALL * self.fewest_observations(len(overall))
        if self.equal:
            scatters, overall = scatters.mean(-1), overall.mean()
        else:
            few = few[:, None]
        singular = few | (scatters < SINGULAR * overall)
        return np.maximum(np.where(singular, overall, scatters), floor)
