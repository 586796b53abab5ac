r"""Emissions that are mixtures of Gaussians, in each regime several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.stats import norm
from sklearn.cluster import KMeans
from torch import Tensor

from pyro_regimes.estimator.emissions.base import Spec
from pyro_regimes.estimator.emissions.checks import Names
from pyro_regimes.estimator.emissions.diagonal_gaussian import DiagonalGaussian
from pyro_regimes.estimator.emissions.gaussian import SINGULAR
from pyro_regimes.estimator.emissions.levels import Levels, averaged_in_turn
from pyro_regimes.estimator.emissions.matrix_gaussian import MatrixGaussian
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.predictive import Mixture
from pyro_regimes.estimator.units import Units

_ROUNDING = 1e-6  # of the sum of weights
_MOST_ROWS = 2_000  # in which the components of a start are looked for


@dataclass(frozen=True)
class GaussianMixture(Spec):
    """``weights`` ``(..., K, M)`` of M components with ``means`` ``(..., K, M, D)``.

    Their ``covariances`` are ``(..., K, M, D, D)``, variances ``(..., K, M, D)``, or one variance
    for all series ``(..., K, M)``.
    """

    gaussian: MatrixGaussian | DiagonalGaussian  #: of the components, not shared
    num_components: int = 2

    attributes = ("weights", "means", "covariances")
    spread = "covariances"
    of_changes, needs_distinct = True, True
    shared_in_starts = 0.0  # a component would go to the observations of another regime

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"{self.num_components} Gaussians each, {self.gaussian.covariance_type} covariances"

    @property
    def arguments(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("weights", *self.gaussian.arguments)

    def _inner(self, emission: Emission) -> Emission:
        """The components as regimes, ``(..., K M, D)``."""
        own = {"means": 1, "covariances": len(self.gaussian.shapes(1, 1)["covariances"]) - 1}
        return {
            name: _flat(emission[name], dims) for name, dims in own.items() if name in emission
        }

    def _outer(self, weights: Array, inner: Emission) -> Emission:
        """The inverse of :meth:`_inner`."""
        lead = weights.shape
        tails = {name: value.shape[len(lead) - 1 :] for name, value in inner.items()}
        return {
            "weights": weights,
            **{name: value.reshape(lead + tails[name]) for name, value in inner.items()},
        }

    # ---- parameters

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        own = self.gaussian.shapes(self.num_components, num_series)
        return {
            "weights": (num_regimes, self.num_components),
            "means": (num_regimes, *own["means"]),
            "covariances": (num_regimes, *own["covariances"]),
        }

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        own = self.gaussian.num_free_parameters(num_regimes * self.num_components, num_series)
        return {"weights": num_regimes * (self.num_components - 1), **own}

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Spec, int]:
        shape = shapes["means"]
        if len(shape) != 3 or not shape[1] or not shape[2]:
            raise ValueError(f"means_ has shape {shape}, not (K, M, D)")
        return replace(self, num_components=shape[1]), shape[2]

    def complete(self, name: str, value: Array) -> Array:
        return value[..., None] if name == "means" and value.ndim == 2 else value  # of one series

    def check_values(self, emission: Emission) -> None:
        self.gaussian.check_values(self._inner(emission))
        weights = emission.get("weights", np.ones((1, 1)))
        if (weights < 0).any() or (np.abs(weights.sum(-1) - 1) > _ROUNDING).any():
            raise ValueError(
                "expected weights to be probabilities of the components of each regime, got "
                f"{weights.tolist()}"
            )

    # ---- what the parameters say of observations

    def moments(self, emission: Emission) -> Moments:
        weights = emission["weights"]
        inner = self.gaussian.moments(self._inner(emission))
        means = emission["means"]
        within = inner.covariances.reshape(weights.shape + inner.covariances.shape[1:])
        mean = np.einsum("km,kmd->kd", weights, means)
        deviations = means - mean[:, None]
        between = np.einsum("km,kmi,kmj->kij", weights, deviations, deviations)
        if inner.are_independent:  # given the component; not given the regime alone
            within = within[..., None] * np.eye(means.shape[-1])
        return Moments(mean, between + np.einsum("km,kmij->kij", weights, within))

    def described(self, emission: Emission) -> dict[str, Array]:
        weights = enumerate(emission["weights"].T, 1)
        return {f"weight of component {number}": each for number, each in weights}

    def marginals(self, emission: Emission) -> list[Marginal]:
        num_series = emission["means"].shape[-1]
        return [self.portfolio(emission, weights) for weights in np.eye(num_series)]

    def portfolio(self, emission: Emission, weights: Array) -> Marginal:
        shares = emission["weights"]
        mean, scale = self.gaussian.of_sum(self._inner(emission), weights)
        return Mixture(shares, norm(mean.reshape(shares.shape), scale.reshape(shares.shape)))

    def levels(self, emission: Emission, data: Array) -> list[Levels]:
        each = self.gaussian.levels(self._inner(emission), data)
        components, log_weights = self._components(emission, each)
        return [component.averaged(log_weights) for component in components]

    def levels_in_turn(self, emission: Emission, data: Array) -> list[Levels]:
        each = self.gaussian.levels_in_turn(self._inner(emission), data)
        return averaged_in_turn(*self._components(emission, each))

    def _components(self, emission: Emission, each: list[Levels]) -> tuple[list[Levels], Array]:
        """Levels ``(T, K, M)`` of the components, from ``(T, K M)``, and their log weights."""
        shape = (len(each[0].density), *emission["weights"].shape)
        with np.errstate(divide="ignore"):
            log_weights = np.broadcast_to(np.log(emission["weights"]), shape)
        return [Levels(*(part.reshape(shape) for part in one)) for one in each], log_weights

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        cumulative = emission["weights"].cumsum(-1)[states]  # (T, M)
        uniform = rng.random_sample(len(states)) * cumulative[:, -1]
        components = (uniform[:, None] >= cumulative[:, :-1]).sum(-1)
        numbers = states * self.num_components + components
        return self.gaussian.draw(self._inner(emission), numbers, rng)

    # ---- units

    def units(self, data: Array, equal: bool = False) -> Units:
        return self.gaussian.units(data, equal)

    def units_of(self, emission: Emission) -> Units:
        return self.gaussian.units_of(self._inner(emission))

    def scale(self, emission: Emission, units: Units) -> Emission:
        return self._map(emission, lambda inner: self.gaussian.scale(inner, units))

    def unscale(self, emission: Emission, units: Units) -> Emission:
        return self._map(emission, lambda inner: self.gaussian.unscale(inner, units))

    def _map(self, emission: Emission, function: Any) -> Emission:
        return self._outer(emission["weights"], function(self._inner(emission)))

    # ---- data and starts

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        return self.gaussian.check_data(data, feature_names, dtype)

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        """Components around clusters of the rows of each regime, drawn by its shares."""
        num_components, found = self.num_components, []
        around = self.gaussian.start_around(x, x[:1], np.ones(1), 0.0)
        least = SINGULAR * self.gaussian.least_variances(around)
        for weights in shares.T + np.finfo(np.float64).tiny:
            rows = x[rng.choice(len(x), min(len(x), _MOST_ROWS), p=weights / weights.sum())]
            number = min(num_components, len(np.unique(rows, axis=0)))
            kmeans = KMeans(number, n_init=3, random_state=rng.randint(2**31 - 1)).fit(rows)
            members = np.eye(number)[kmeans.labels_]
            centers = kmeans.cluster_centers_
            own = self.gaussian.start_from_clusters(rows, members, centers, 0.0)
            if (self.gaussian.least_variances(own) <= least).any():  # one row that is drawn again
                own = self.gaussian.start_around(x, centers, np.ones(number), 0.0)
            found.append(self.gaussian.select(own, np.arange(num_components) % number))
        inner = {name: np.concatenate([own[name] for own in found]) for name in found[0]}
        return self._outer(np.full((shares.shape[1], num_components), 1 / num_components), inner)

    # ---- covariances and their floor

    def regularized(self, emission: Emission, amount: float, relative: bool) -> Emission:
        return self._map(
            emission, lambda inner: self.gaussian.regularized(inner, amount, relative)
        )

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        return self.gaussian.collapsed_variance(z, dtype)

    def least_variances(self, emission: Emission) -> Array:
        least = self.gaussian.least_variances(self._inner(emission))
        found: Array = least.reshape(emission["weights"].shape).min(-1)
        return found

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        flags = self.gaussian.collapsed(self._inner(emission), least, dtype)
        return np.any(flags.reshape(emission["weights"].shape), axis=-1)

    def is_below(self, emission: Emission, floor: float) -> npt.NDArray[np.bool_]:
        flags = self.gaussian.is_below(self._inner(emission), floor)
        return np.any(flags.reshape(emission["weights"].shape), axis=-1)

    def fewest_observations(self, num_series: int) -> int:
        return self.num_components * self.gaussian.fewest_observations(num_series)

    def raised(self, emission: Emission, floor: float) -> Emission:
        return self._map(emission, lambda inner: self.gaussian.raised(inner, floor))

    # ---- the distribution

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        found = self.gaussian.to_arguments(self._inner(emission))
        shaped = self._outer(emission["weights"], found)
        return {name: shaped[name] for name in self.arguments}

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        inner = self._inner(like)
        return self._outer(
            arguments["weights"].reshape(like["weights"].shape),
            self.gaussian.from_arguments(arguments, inner),
        )

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.simplex if name == "weights" else self.gaussian.constraint(name, floor)

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        components = self.gaussian.observation_dist(arguments)
        return dist.MixtureSameFamily(dist.Categorical(arguments["weights"]), components)


def _flat(value: Array, num_block_dims: int) -> Array:
    """Regimes and components in one dim, the block dims last."""
    at = value.ndim - num_block_dims
    return value.reshape(value.shape[: at - 2] + (-1,) + value.shape[at:])
