"""Emissions whose columns follow different families, independent given the regime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.estimator.emissions.base import Spec
from pyro_regimes.estimator.emissions.checks import Names
from pyro_regimes.estimator.emissions.levels import Levels
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.units import Units
from pyro_regimes.observed.columns import Columns


class Part(NamedTuple):
    """The columns of one family."""

    family: str
    spec: Spec
    keys: tuple[str | int, ...]  #: names or numbers of the columns
    columns: tuple[int, ...] = ()  #: their places in X, once they are known

    def own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of this part, by the names that its own object has."""
        head = f"{self.family}_"
        return {name[len(head) :]: values[name] for name in self.named if name in values}

    @property
    def named(self) -> list[str]:
        """The attributes, as those of the whole."""
        return [f"{self.family}_{name}" for name in self.spec.attributes]

    def of_whole(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of :meth:`own`."""
        return {f"{self.family}_{name}": value for name, value in values.items()}

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of this part's distribution."""
        return {name: values[f"{self.family}_{name}"] for name in self.spec.arguments}

    def units(self, units: Units) -> Units:
        """Those of its columns."""
        places = list(self.columns)
        return Units(units.center[places], units.unit[places])


@dataclass(frozen=True)
class Mixed(Spec):
    """One object for each family; the attributes have its name in front, as ``poisson_rates``."""

    parts: tuple[Part, ...]

    @property
    def title(self) -> str:  # type: ignore[override]
        return "; ".join(
            f"{each.spec.title} for {', '.join(map(str, each.keys))}" for each in self.parts
        )

    @property
    def attributes(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(name for part in self.parts for name in part.named)

    @property
    def arguments(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(
            f"{part.family}_{name}" for part in self.parts for name in part.spec.arguments
        )

    @property
    def needs_distinct(self) -> bool:  # type: ignore[override]
        return any(part.spec.needs_distinct for part in self.parts)

    @property
    def of_changes(self) -> bool:  # type: ignore[override]
        return all(part.spec.of_changes for part in self.parts)

    def _map(self, function: Callable[[Part], Spec]) -> Mixed:
        return Mixed(tuple(part._replace(spec=function(part)) for part in self.parts))

    def _merged(self, function: Callable[[Part], Mapping[str, Any]]) -> dict[str, Any]:
        """The values of all parts, by the names of the whole."""
        return {
            name: value
            for part in self.parts
            for name, value in part.of_whole(function(part)).items()
        }

    def _joined(self, blocks: Iterator[Array], axis: int) -> Array:
        """Values of the columns of each part, in the order of X."""
        order = np.argsort([column for part in self.parts for column in part.columns])
        found: Array = np.take(np.concatenate(list(blocks), axis), order, axis)
        return found

    # ---- parameters

    def for_columns(self, names: Names | None, num_series: int) -> Spec:
        known: list[str | int] = [*range(num_series)] if names is None else list(names)
        keys = [key for part in self.parts for key in part.keys]
        are_numbers = all(not isinstance(key, str) for key in keys)
        places: list[str | int] = [*range(num_series)] if are_numbers else known
        missing = [key for key in places if key not in keys]
        unknown = [key for key in keys if key not in places]
        if missing or unknown:
            raise ValueError(
                f"expected emission to name the family of each column of X, {places}, and of no "
                f"other, got {keys}"
            )
        parts = (
            part._replace(columns=tuple(places.index(key) for key in part.keys))
            for part in self.parts
        )
        return Mixed(tuple(parts))

    def for_data(self, data: Array, given: Mapping[str, Array]) -> Spec:
        return self._map(
            lambda part: part.spec.for_data(data[:, list(part.columns)], part.own(given))
        )

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Spec, int]:
        parts, total = [], 0
        for part in self.parts:
            spec, size = part.spec.with_shapes(part.own(shapes))
            if size != len(part.keys):
                raise ValueError(f"{part.named[0]}_ is of {size} series, not {len(part.keys)}")
            parts.append(part._replace(spec=spec))
            total += size
        return Mixed(tuple(parts)), total

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        return self._merged(lambda part: part.spec.shapes(num_regimes, len(part.keys)))

    def place_names(self, name: str, regimes: list[str], series: list[str]) -> list[list[str]]:
        (part,) = (each for each in self.parts if name in each.named)
        own = [series[column] for column in part.columns]
        return part.spec.place_names(name[len(part.family) + 1 :], regimes, own)

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        return self._merged(
            lambda part: part.spec.num_free_parameters(num_regimes, len(part.keys))
        )

    def measures(self, num_series: int) -> list[str]:
        of = {column: part.spec.measure for part in self.parts for column in part.columns}
        return [of[column] for column in range(num_series)]

    def complete(self, name: str, value: Array) -> Array:
        for part in self.parts:
            if name in part.named:
                return part.spec.complete(name[len(part.family) + 1 :], value)
        return value

    def check_values(self, emission: Emission) -> None:
        for part in self.parts:
            part.spec.check_values(part.own(emission))

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        return self._merged(lambda part: part.spec.select(part.own(emission), order))

    # ---- what the parameters say of observations

    def moments(self, emission: Emission) -> Moments:
        return self._moments([part.spec.moments(part.own(emission)) for part in self.parts])

    def typical(self, emission: Emission) -> Moments:
        return self._moments([part.spec.typical(part.own(emission)) for part in self.parts])

    def _moments(self, each: list[Moments]) -> Moments:
        each = [  # a series alone has no correlation
            found if len(part.columns) > 1 else Moments(found.means, found.variances)
            for part, found in zip(self.parts, each, strict=True)
        ]
        means = self._joined((found.means for found in each), -1)
        if all(found.are_independent for found in each):
            return Moments(means, self._joined((found.covariances for found in each), -1))
        covariances = np.zeros((*means.shape, means.shape[-1]))
        for part, found in zip(self.parts, each, strict=True):
            covariances[:, np.array(part.columns)[:, None], part.columns] = found.matrices()
        return Moments(means, covariances)

    def deviations(self, emission: Emission) -> Array:
        each = (part.spec.deviations(part.own(emission)) for part in self.parts)
        return self._joined(each, -1)

    def deviations_of(self, variances: Array) -> Array:
        each = (part.spec.deviations_of(variances[:, list(part.columns)]) for part in self.parts)
        return self._joined(each, -1)

    def described(self, emission: Emission) -> dict[str, Array]:
        rows = {}
        for part in self.parts:
            for label, values in part.spec.described(part.own(emission)).items():
                if values.ndim == 1:
                    rows[f"{label}, {', '.join(map(str, part.keys))}"] = values
                    continue
                for key, column in zip(part.keys, values.T, strict=True):
                    rows[f"{label}, {key}"] = column
        return rows

    def are_numbers(self, num_series: int) -> npt.NDArray[np.bool_]:
        each = [part.spec.are_numbers(len(part.columns)) for part in self.parts]
        order = np.argsort([column for part in self.parts for column in part.columns])
        found: npt.NDArray[np.bool_] = np.concatenate(each)[order]
        return found

    def mixture_moments(self, weights: Array, emission: Emission) -> tuple[Array, Array]:
        mean, covariance = super().mixture_moments(weights, emission)
        for part in self.parts:  # an angle has moments of its own
            places = np.array(part.columns)
            own_mean, own = part.spec.mixture_moments(weights, part.own(emission))
            if part.spec.is_circular:
                covariance[:, places], covariance[:, :, places] = 0.0, 0.0
            mean[:, places] = own_mean
            covariance[:, places[:, None], places] = own
        return mean, covariance

    def marginals(self, emission: Emission) -> list[Marginal]:
        found: dict[int, Marginal] = {}
        for part in self.parts:
            each = part.spec.marginals(part.own(emission))
            found.update(zip(part.columns, each, strict=True))
        return [found[column] for column in sorted(found)]

    def portfolio(self, emission: Emission, weights: Array) -> Marginal:
        used = [part for part in self.parts if weights[list(part.columns)].any()]
        if len(used) > 1:
            return super().portfolio(emission, weights)
        (part,) = used
        return part.spec.portfolio(part.own(emission), weights[list(part.columns)])

    def levels(self, emission: Emission, data: Array) -> list[Levels]:
        return self._in_order(
            part.spec.levels(part.own(emission), data[:, list(part.columns)])
            for part in self.parts
        )

    def levels_in_turn(self, emission: Emission, data: Array) -> list[Levels]:
        return self._in_order(
            part.spec.levels_in_turn(part.own(emission), data[:, list(part.columns)])
            for part in self.parts
        )

    def _in_order(self, each: Iterable[list[Levels]]) -> list[Levels]:
        """Those of the columns of each part, in the order of X."""
        of_column: dict[int, Levels] = {}
        for part, found in zip(self.parts, each, strict=True):
            of_column |= dict(zip(part.columns, found, strict=True))
        return [of_column[column] for column in sorted(of_column)]

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        each = (part.spec.draw(part.own(emission), states, rng) for part in self.parts)
        return self._joined(each, -1)

    # ---- units

    def units(self, data: Array, equal: bool = False) -> Units:
        return self._units(
            [part.spec.units(data[:, list(part.columns)], equal) for part in self.parts]
        )

    def units_of(self, emission: Emission) -> Units:
        return self._units([part.spec.units_of(part.own(emission)) for part in self.parts])

    def _units(self, each: list[Units]) -> Units:
        center = self._joined((units.center for units in each), 0)
        return Units(center, self._joined((units.unit for units in each), 0))

    def scale(self, emission: Emission, units: Units) -> Emission:
        return self._merged(lambda part: part.spec.scale(part.own(emission), part.units(units)))

    def unscale(self, emission: Emission, units: Units) -> Emission:
        return self._merged(lambda part: part.spec.unscale(part.own(emission), part.units(units)))

    # ---- data and starts

    def check_support(self, data: Array, feature_names: Names | None) -> None:
        for part, own, names in self._own_data(data, feature_names):
            part.spec.check_support(own, names)

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        each = self._own_data(data, feature_names)
        doubts = [part.spec.check_data(own, names, dtype) for part, own, names in each]
        return " ".join(doubt for doubt in doubts if doubt is not None) or None

    def _own_data(
        self, data: Array, names: Names | None
    ) -> Iterator[tuple[Part, Array, npt.NDArray[np.object_]]]:
        known = np.arange(data.shape[1]).astype(object) if names is None else names
        for part in self.parts:
            yield part, data[:, list(part.columns)], known[list(part.columns)]

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        return self._merged(
            lambda part: part.spec.overall(x[:, list(part.columns)], shares, rng)
        )

    def features(self, x: Array) -> Array:
        each = (part.spec.features(x[:, list(part.columns)]) for part in self.parts)
        return np.concatenate(list(each), axis=1)

    # ---- variances and their floor

    def regularized(self, emission: Emission, amount: float, relative: bool) -> Emission:
        return self._merged(
            lambda part: part.spec.regularized(part.own(emission), amount, relative)
        )

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        return max(
            part.spec.collapsed_variance(z[:, list(part.columns)], dtype) for part in self.parts
        )

    def least_variances(self, emission: Emission) -> Array:
        each = [part.spec.least_variances(part.own(emission)) for part in self.parts]
        found: Array = np.min(np.stack(np.broadcast_arrays(*each)), axis=0)
        return found

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        each = [part.spec.collapsed(part.own(emission), least, dtype) for part in self.parts]
        return np.any(np.stack(np.broadcast_arrays(*each)), axis=0)

    def are_equal(self, x: Array) -> bool:
        return any(part.spec.are_equal(x[:, list(part.columns)]) for part in self.parts)

    def fewest_observations(self, num_series: int) -> int:
        return max(part.spec.fewest_observations(len(part.keys)) for part in self.parts)

    def raised(self, emission: Emission, floor: float) -> Emission:
        return self._merged(lambda part: part.spec.raised(part.own(emission), floor))

    # ---- the distribution

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        return self._merged(lambda part: part.spec.to_arguments(part.own(emission)))

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        return self._merged(
            lambda part: part.spec.from_arguments(part.arguments(arguments), part.own(like))
        )

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        (part,) = (each for each in self.parts if name in each.of_whole(_names(each.spec)))
        return part.spec.constraint(name[len(part.family) + 1 :], floor)

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return Columns(
            [
                (part.spec.observation_dist(part.arguments(arguments)), list(part.columns))
                for part in self.parts
            ]
        )


def _names(spec: Spec) -> dict[str, None]:
    return dict.fromkeys(spec.arguments)


def mixed(families: Mapping[Any, str], find: Callable[[str], Spec]) -> Mixed:
    """The object for a family of each column.

    :param families: by the names of columns, or by their numbers.
    :param find: the object of a family.
    """
    keys: dict[str, list[Any]] = {}
    for key, family in families.items():
        keys.setdefault(family, []).append(key)
    return Mixed(tuple(Part(family, find(family), tuple(each)) for family, each in keys.items()))
