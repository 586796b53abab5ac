"""Emissions of categories and of yes or no, independent in each series."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
from pyro.distributions import constraints
from scipy.stats import bernoulli
from torch import Tensor

from pyro_regimes.estimator.emissions.base import Spec, in_every_regime
from pyro_regimes.estimator.emissions.checks import Names, refuse
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments

_ROUNDING = 1e-6  # of the sum of probabilities
_MOST_CATEGORIES = 100_000


@dataclass(frozen=True)
class Bernoulli(Spec):
    """0 or 1, which has ``probabilities`` ``(..., K, D)``."""

    title = "Bernoulli"
    measure = "probability"
    attributes, arguments = ("probabilities",), ("probs",)
    starts_from_runs = True

    def check_values(self, emission: Emission) -> None:
        _check_probabilities(emission)

    def check_support(self, data: Array, feature_names: Names | None) -> None:
        wrong = np.isfinite(data) & (data != 0) & (data != 1)
        refuse("0 and 1", data, wrong, feature_names, "code the two outcomes so")

    def moments(self, emission: Emission) -> Moments:
        probs = emission["probabilities"]
        return Moments(probs, probs * (1 - probs))

    def described(self, emission: Emission) -> dict[str, Array]:
        return {}  # the probabilities are the means

    def marginals(self, emission: Emission) -> list[Marginal]:
        return [bernoulli(probs) for probs in emission["probabilities"].T]

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        probs = emission["probabilities"][states]
        return (rng.random_sample(probs.shape) < probs).astype(np.float64)

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        share = (x.sum(0) + 0.5) / (len(x) + 1)
        return in_every_regime(shares, probabilities=share)

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.unit_interval

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.Bernoulli(arguments["probs"]).to_event(1)


@dataclass(frozen=True)
class Categorical(Spec):
    """Categories 0 to C - 1, of ``probabilities`` ``(..., K, D, C)``.

    C is one more than the largest category in the data, or what ``init_params`` has.
    """

    num_categories: int = 0  #: 0 is not known yet

    title = "categorical"
    measure = "probability"
    attributes, arguments = ("probabilities",), ("probs",)
    starts_from_runs = True

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        return {"probabilities": (num_regimes, num_series, self.num_categories)}

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        return {"probabilities": num_regimes * num_series * (self.num_categories - 1)}

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Spec, int]:
        shape = shapes["probabilities"]
        if len(shape) != 3 or not shape[1] or not shape[2]:
            raise ValueError(f"probabilities_ has shape {shape}, not (K, D, C)")
        return replace(self, num_categories=shape[2]), shape[1]

    def for_data(self, data: Array, given: Mapping[str, Array]) -> Spec:
        if "probabilities" in given:
            return replace(self, num_categories=given["probabilities"].shape[-1])
        largest = np.nanmax(data, initial=0)
        known = largest if 0 <= largest < _MOST_CATEGORIES else 0  # else the data are refused
        return replace(self, num_categories=max(int(known) + 1, 2))

    def complete(self, name: str, value: Array) -> Array:
        return value[:, None] if value.ndim == 2 else value  # of one series

    def check_values(self, emission: Emission) -> None:
        _check_probabilities(emission)
        probs = emission.get("probabilities", np.ones((1, 1, 1)))
        wrong = np.abs(probs.sum(-1) - 1) > _ROUNDING
        if wrong.any():
            regime, series = np.argwhere(wrong)[0]
            raise ValueError(
                "expected probabilities to sum to 1 over the categories, got "
                f"{probs[regime, series].sum():.6g} in regime {regime}, series {series}"
            )

    def check_support(self, data: Array, feature_names: Names | None) -> None:
        most = self.num_categories - 1
        with np.errstate(invalid="ignore"):
            whole = ~np.isfinite(data) | (data % 1 == 0)
        refuse(
            "categories, integers from 0",
            data,
            (data < 0) | (data >= _MOST_CATEGORIES) | ~whole,
            feature_names,
            "number the categories from 0",
        )
        refuse(
            f"the categories of the model, 0 to {most}",
            data,
            data > most,
            feature_names,
            "probabilities in init_params may have more categories than the data of a fit",
        )

    def moments(self, emission: Emission) -> Moments:
        """Those of the number of the category."""
        probs = emission["probabilities"]
        numbers = np.arange(probs.shape[-1])
        means = probs @ numbers
        return Moments(means, np.maximum(probs @ numbers**2 - means**2, 0.0))

    def described(self, emission: Emission) -> dict[str, Array]:
        probs = np.moveaxis(emission["probabilities"], -1, 0)
        return {f"probability of {number}": each for number, each in enumerate(probs)}

    def marginals(self, emission: Emission) -> list[Marginal]:
        return [Categories(probs) for probs in np.moveaxis(emission["probabilities"], 1, 0)]

    def are_numbers(self, num_series: int) -> npt.NDArray[np.bool_]:
        return np.zeros(num_series, np.bool_)

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        cumulative = emission["probabilities"].cumsum(-1)[states]  # (T, D, C)
        uniform = rng.random_sample(cumulative.shape[:2]) * cumulative[..., -1]
        return (uniform[..., None] >= cumulative[..., :-1]).sum(-1).astype(np.float64)

    def features(self, x: Array) -> Array:
        one_hot: Array = (x[..., None] == np.arange(self.num_categories)).astype(np.float64)
        return one_hot.reshape(len(x), -1)

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        counts = self.features(x).sum(0).reshape(x.shape[1], -1) + 1 / self.num_categories
        probs = counts / counts.sum(-1, keepdims=True)
        return in_every_regime(shares, probabilities=probs)

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.simplex

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.Categorical(arguments["probs"]).to_event(1)


class Categories:
    """A distribution of the numbers 0 to C - 1 in each of K regimes, a :class:`.Marginal`.

    :param probs: ``(K, C)``.
    """

    is_discrete = True

    def __init__(self, probs: Array) -> None:
        self.probs = probs / probs.sum(-1, keepdims=True)
        none = np.zeros((len(probs), 1))
        self._below = np.append(none, self.probs.cumsum(-1), -1)  # P(X < c), (K, C + 1)
        self._from = np.append(self.probs[:, ::-1].cumsum(-1)[:, ::-1], none, -1)  # P(X >= c)
        self._below[:, -1] = self._from[:, 0] = 1.0

    def cdf(self, x: npt.ArrayLike) -> Array:
        """P(X <= x)."""
        return self._at(self._below, np.floor(x) + 1)

    def sf(self, x: npt.ArrayLike) -> Array:
        """P(X > x)."""
        return self._at(self._from, np.floor(x) + 1)

    def logpmf(self, x: npt.ArrayLike) -> Array:
        """The log-probability; -inf for anything that is not a category."""
        numbers = np.asarray(x, dtype=np.float64)
        inside = (numbers >= 0) & (numbers < self.probs.shape[-1]) & (np.floor(numbers) == numbers)
        with np.errstate(divide="ignore"):
            logs = np.log(self._at(self.probs, np.minimum(numbers, self.probs.shape[-1] - 1)))
        return np.where(inside | np.isnan(numbers), logs, -np.inf)

    def ppf(self, p: npt.ArrayLike) -> Array:
        """The least category c with P(X <= c) >= p."""
        level = np.asarray(p, dtype=np.float64)
        found: Array = (self._below[:, 1:-1] < level[..., None]).sum(-1).astype(np.float64)
        return np.where((level >= 0) & (level <= 1), found, np.nan)

    def mean(self) -> Array:
        """The means, ``(K,)``."""
        found: Array = self.probs @ np.arange(self.probs.shape[-1])
        return found

    def var(self) -> Array:
        """The variances, ``(K,)``."""
        deviations = np.arange(self.probs.shape[-1]) - self.mean()[:, None]
        found: Array = (self.probs * deviations**2).sum(-1)
        return found

    def support(self) -> tuple[int, int]:
        """The first and the last category."""
        return 0, self.probs.shape[-1] - 1

    def _at(self, table: Array, places: npt.ArrayLike) -> Array:
        """Entries of each row; NaN for NaN."""
        known = np.nan_to_num(places, posinf=np.inf, neginf=-np.inf)
        numbers = np.clip(known, 0, table.shape[-1] - 1).astype(np.int64)
        return np.where(np.isnan(places), np.nan, table[np.arange(len(table)), numbers])


def _check_probabilities(emission: Emission) -> None:
    probs = emission.get("probabilities", np.ones(1))
    wrong = np.argwhere(~((probs >= 0) & (probs <= 1)))
    if len(wrong):
        raise ValueError(
            f"expected probabilities from 0 to 1, got {probs[tuple(wrong[0])]:g} in regime "
            f"{wrong[0][0]}"
        )
