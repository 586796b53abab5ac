r"""Emissions of counts: Poisson and negative binomial, independent in each series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.stats import nbinom, poisson
from torch import Tensor

from pyro_regimes.estimator.emissions.base import Spec, in_every_regime
from pyro_regimes.estimator.emissions.checks import Names, positive, refuse, within
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments

_MOST_COUNT = 2.0**53  # the integers of float64


class _Counts(Spec):
    """What both have in common."""

    measure = "probability"

    def check_support(self, data: Array, feature_names: Names | None) -> None:
        with np.errstate(invalid="ignore"):
            wrong = (data < 0) | (data > _MOST_COUNT) | (np.isfinite(data) & (data % 1 != 0))
        remedy = "use another emission, such as 'gaussian'"
        refuse("counts, non-negative integers", data, wrong, feature_names, remedy)

    def features(self, x: Array) -> Array:
        return np.sqrt(x)  # whose variance hardly depends on the rate


@dataclass(frozen=True)
class Poisson(_Counts):
    """Counts of ``rates`` ``(..., K, D)``."""

    title = "Poisson"
    attributes, arguments = ("rates",), ("rate",)

    def check_values(self, emission: Emission) -> None:
        positive("rates", emission)

    def moments(self, emission: Emission) -> Moments:
        return Moments(emission["rates"], emission["rates"])

    def described(self, emission: Emission) -> dict[str, Array]:
        return {}  # the rates are the means

    def marginals(self, emission: Emission) -> list[Marginal]:
        return [poisson(rates) for rates in emission["rates"].T]

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        return rng.poisson(emission["rates"][states]).astype(np.float64)

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        mean = np.maximum(x.mean(0), 1 / len(x))
        return in_every_regime(shares, rates=mean)

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.positive

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.Poisson(arguments["rate"]).to_event(1)

    def sample_observation_dist(
        self, num_regimes: int, mean: Tensor, scale: Tensor
    ) -> dist.TorchDistribution:
        prior = dist.Gamma(torch.ones_like(mean), 1 / mean).expand([num_regimes, len(mean)])
        return dist.Poisson(pyro.sample("rate", prior.to_event(2))).to_event(1)

    def site_values(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"rate": arguments["rate"]}


@dataclass(frozen=True)
class NegativeBinomial(_Counts):
    r"""Counts with more variance than a Poisson distribution has.

    With ``total_counts`` r and ``probabilities`` p, both ``(..., K, D)``, the mean is
    :math:`r p / (1 - p)` and the variance is that over :math:`1 - p`.
    """

    title = "negative binomial"
    attributes, arguments = ("total_counts", "probabilities"), ("total_count", "probs")

    def check_values(self, emission: Emission) -> None:
        positive("total_counts", emission)
        within("probabilities", emission, 0.0, 1.0)

    def moments(self, emission: Emission) -> Moments:
        probs = emission["probabilities"]
        means = emission["total_counts"] * probs / (1 - probs)
        return Moments(means, means / (1 - probs))

    def marginals(self, emission: Emission) -> list[Marginal]:
        each = zip(emission["total_counts"].T, emission["probabilities"].T, strict=True)
        return [nbinom(total_counts, 1 - probs) for total_counts, probs in each]

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        total_counts, probs = (emission[name][states] for name in self.attributes)
        rates = rng.gamma(total_counts, probs / (1 - probs))
        return rng.poisson(rates).astype(np.float64)

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        mean, variance = np.maximum(x.mean(0), 1 / len(x)), x.var(0)
        excess = np.maximum(variance - mean, mean / 100)
        total_counts = np.maximum(mean**2 / excess, 0.1)
        probabilities = mean / (mean + total_counts)
        return in_every_regime(shares, total_counts=total_counts, probabilities=probabilities)

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.unit_interval if name == "probs" else constraints.positive

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.NegativeBinomial(arguments["total_count"], arguments["probs"]).to_event(1)
