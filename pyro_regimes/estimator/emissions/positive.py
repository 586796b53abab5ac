r"""Emissions of positive numbers: gamma, exponential and log-normal, independent in each series.

Their unit is a factor: a fit to x and one to 1000 x differ by that alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.stats import expon, gamma, lognorm
from torch import Tensor

from pyro_regimes.estimator.emissions.base import Spec, in_every_regime
from pyro_regimes.estimator.emissions.checks import (
    Names,
    column_name,
    has_constant,
    positive,
    refuse,
    refuse_constant,
)
from pyro_regimes.estimator.emissions.diagonal_gaussian import DiagonalGaussian
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.units import Units

#: An exponential rate above this over the rounding is that of observations that are all 0.
_LOST = 0.25

#: Deviations of so many roundings of the mean are the least from which parameters of a gamma
#: distribution are found: its mean, the quotient of two of them, has an error of about one.
_LEAST_DEVIATION = 1e3


class _Positive(Spec):
    """What all of them have in common."""

    def units(self, data: Array, equal: bool = False) -> Units:
        return Units(np.zeros(data.shape[1]), np.exp(np.log(data).mean(0)))

    def units_of(self, emission: Emission) -> Units:
        means = self.typical(emission).means
        return Units(np.zeros(means.shape[1]), np.exp(np.log(means).mean(0)))

    def check_support(self, data: Array, feature_names: Names | None) -> None:
        remedy = "leave such rows out, or use another emission, such as 'gaussian'"
        if (data == 0).any():
            remedy += (
                "; zeros beside positive numbers, as of rainfall, need a Pyro model with "
                "distributions.ZeroInflatedContinuous"
            )
        refuse("positive numbers", data, data <= 0, feature_names, remedy)

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        refuse_constant(data, feature_names, "drop it")
        return None

    def features(self, x: Array) -> Array:
        return np.log(x)


class _WithRates(_Positive):
    """What those with ``rates`` have in common: all of their parameters are positive."""

    def check_values(self, emission: Emission) -> None:
        for name in self.attributes:
            positive(name, emission)

    def scale(self, emission: Emission, units: Units) -> Emission:
        return {**emission, "rates": emission["rates"] * units.unit}

    def unscale(self, emission: Emission, units: Units) -> Emission:
        return {**emission, "rates": emission["rates"] / units.unit}

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.positive


@dataclass(frozen=True)
class Exponential(_WithRates):
    """Waiting times of ``rates`` ``(..., K, D)``; their means are the reciprocals."""

    title = "exponential"
    attributes, arguments = ("rates",), ("rate",)

    def check_support(self, data: Array, feature_names: Names | None) -> None:
        remedy = "use another emission, such as 'gaussian'"
        refuse("non-negative numbers", data, data < 0, feature_names, remedy)

    def moments(self, emission: Emission) -> Moments:
        means = 1 / emission["rates"]
        return Moments(means, means**2)

    def marginals(self, emission: Emission) -> list[Marginal]:
        return [expon(scale=1 / rates) for rates in emission["rates"].T]

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        return rng.exponential(1 / emission["rates"][states])

    def units(self, data: Array, equal: bool = False) -> Units:
        mean = data.mean(0)
        return Units(np.zeros(data.shape[1]), np.where(mean > 0, mean, 1.0))

    def features(self, x: Array) -> Array:
        return np.sqrt(x)

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        most = _LOST / torch.finfo(dtype).eps  # of about 1 for all observations together
        return np.any(~(emission["rates"] < most), axis=-1)

    def are_equal(self, x: Array) -> bool:
        return has_constant(x) and bool((np.nan_to_num(x) == 0).all(0)[~np.isnan(x).all(0)].any())

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        return in_every_regime(shares, rates=1 / x.mean(0))

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.Exponential(arguments["rate"]).to_event(1)


@dataclass(frozen=True)
class Gamma(_WithRates):
    """Positive numbers of ``concentrations`` and ``rates``, both ``(..., K, D)``."""

    title = "gamma"
    attributes, arguments = ("concentrations", "rates"), ("concentration", "rate")

    def moments(self, emission: Emission) -> Moments:
        concentrations, rates = (emission[name] for name in self.attributes)
        return Moments(concentrations / rates, concentrations / rates / rates)

    def marginals(self, emission: Emission) -> list[Marginal]:
        each = zip(emission["concentrations"].T, emission["rates"].T, strict=True)
        return [gamma(concentrations, scale=1 / rates) for concentrations, rates in each]

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        concentrations, rates = (emission[name][states] for name in self.attributes)
        return rng.gamma(concentrations) / rates

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        super().check_data(data, feature_names, dtype)
        least = _least_deviation(dtype)
        deviations = np.nanstd(data / np.nanmean(data, 0), 0)
        lost = np.flatnonzero(deviations < least)
        if len(lost):
            column = int(lost[0])
            raise ValueError(
                f"expected every column of X to deviate from its mean by more than {least:.2g} "
                f"times the mean, as the parameters of a gamma distribution have the rounding of "
                f"{str(dtype).removeprefix('torch.')}, got {deviations[column]:.2g} times in "
                f"column {column_name(column, feature_names)}; use emission='gaussian'"
            )
        return None

    def fewest_observations(self, num_series: int) -> int:
        return 2

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        most = _least_deviation(dtype) ** -2
        return np.any(~(emission["concentrations"] < most), axis=-1)

    def are_equal(self, x: Array) -> bool:
        return has_constant(x)

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        mean = x.mean(0)
        concentrations = mean**2 / x.var(0)
        return in_every_regime(shares, concentrations=concentrations, rates=concentrations / mean)

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.Gamma(arguments["concentration"], arguments["rate"]).to_event(1)


def _least_deviation(dtype: torch.dtype) -> float:
    return _LEAST_DEVIATION * torch.finfo(dtype).eps


_LOGARITHMS = DiagonalGaussian("diag", equal=False)


@dataclass(frozen=True)
class LogNormal(_Positive):
    """Numbers whose logarithms are Gaussian: ``log_means`` and ``log_scales``, ``(..., K, D)``.

    The scales are standard deviations.
    """

    title = "log-normal"
    attributes, arguments = ("log_means", "log_scales"), ("loc", "scale")

    def check_values(self, emission: Emission) -> None:
        positive("log_scales", emission)

    def moments(self, emission: Emission) -> Moments:
        log_means, variances = emission["log_means"], emission["log_scales"] ** 2
        means = np.exp(log_means + variances / 2)
        return Moments(means, means**2 * np.expm1(variances))

    def marginals(self, emission: Emission) -> list[Marginal]:
        each = zip(emission["log_scales"].T, emission["log_means"].T, strict=True)
        return [lognorm(log_scales, scale=np.exp(log_means)) for log_scales, log_means in each]

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        log_means, log_scales = (emission[name][states] for name in self.attributes)
        return np.exp(log_means + log_scales * rng.standard_normal(log_means.shape))

    def units_of(self, emission: Emission) -> Units:
        log_means = emission["log_means"]
        return Units(np.zeros(log_means.shape[1]), np.exp(log_means.mean(0)))

    def scale(self, emission: Emission, units: Units) -> Emission:
        return {**emission, "log_means": emission["log_means"] - np.log(units.unit)}

    def unscale(self, emission: Emission, units: Units) -> Emission:
        return {**emission, "log_means": emission["log_means"] + np.log(units.unit)}

    def fewest_observations(self, num_series: int) -> int:
        return 2

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        return _LOGARITHMS.collapsed_variance(np.log(z), dtype)

    def least_variances(self, emission: Emission) -> Array:
        least: Array = (np.nan_to_num(emission["log_scales"]) ** 2).min(-1)
        return least

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        flags: npt.NDArray[np.bool_] = self.least_variances(emission) < 2 * least
        return flags

    def raised(self, emission: Emission, floor: float) -> Emission:
        return {**emission, "log_scales": np.maximum(emission["log_scales"], floor**0.5)}

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        logs = np.log(x)
        return in_every_regime(shares, log_means=logs.mean(0), log_scales=logs.std(0))

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return _LOGARITHMS.constraint(name, floor)

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.LogNormal(arguments["loc"], arguments["scale"]).to_event(1)
