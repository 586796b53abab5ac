r"""Emissions of angles in radians: von Mises, independent in each series.

The mean of an angle is its mean direction, the direction of
:math:`(E[\cos x], E[\sin x])`. The variance is the circular one, 1 less the length of this vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.special import exprel, ive
from scipy.stats import vonmises
from torch import Tensor

from pyro_regimes.estimator.emissions.base import Spec, in_every_regime
from pyro_regimes.estimator.emissions.checks import Names, has_constant, positive, refuse_constant
from pyro_regimes.estimator.emissions.levels import Levels
from pyro_regimes.estimator.marginals import Marginal
from pyro_regimes.estimator.parameters import Array, Emission, Moments

_LARGEST = 4 * np.pi  # of angles in radians, with some room
_LARGE = 1e8  # concentration, from which on the length of the mean vector is 1 less half of 1 / it
_LOST = 1e-12  # a probability that a difference of two distribution functions gives roughly
_COLLAPSED = 1e12  # concentration of a regime of equal angles


@dataclass(frozen=True)
class VonMises(Spec):
    """Angles about ``means``, of ``concentrations``, both ``(..., K, D)``."""

    title = "von Mises"
    attributes, arguments = ("means", "concentrations"), ("loc", "concentration")
    is_circular = True
    measure = "density of an angle"

    def check_values(self, emission: Emission) -> None:
        positive("concentrations", emission)

    def moments(self, emission: Emission) -> Moments:
        return Moments(_wrapped(emission["means"]), 1 - _lengths(emission["concentrations"]))

    def deviations(self, emission: Emission) -> Array:
        """Circular standard deviations, in radians."""
        return np.sqrt(-2 * np.log(_lengths(emission["concentrations"])))

    def deviations_of(self, variances: Array) -> Array:
        """Circular ones, infinite if no direction is more frequent than others."""
        with np.errstate(divide="ignore"):
            return np.sqrt(-2 * np.log1p(-np.clip(variances, 0.0, 1.0)))

    def described(self, emission: Emission) -> dict[str, Array]:
        return {"concentrations": emission["concentrations"]}

    def mixture_moments(self, weights: Array, emission: Emission) -> tuple[Array, Array]:
        lengths, angles = _lengths(emission["concentrations"]), emission["means"]
        across, along = weights @ (lengths * np.cos(angles)), weights @ (lengths * np.sin(angles))
        variances = 1 - np.hypot(across, along)
        return np.arctan2(along, across), variances[..., None] * np.eye(variances.shape[-1])

    def marginals(self, emission: Emission) -> list[Marginal]:
        each = zip(emission["means"].T, emission["concentrations"].T, strict=True)
        return [Angles(means, concentrations) for means, concentrations in each]

    def levels(self, emission: Emission, data: Array) -> list[Levels]:
        """The levels of angles, counted from -pi on."""
        each = zip(_wrapped(data).T, emission["means"].T, emission["concentrations"].T, strict=True)
        return [angle_levels(*one) for one in each]

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        return rng.vonmises(*(emission[name][states] for name in self.attributes))

    def check_data(
        self, data: Array, feature_names: Names | None, dtype: torch.dtype
    ) -> str | None:
        refuse_constant(data, feature_names, "drop it")
        if np.abs(data).max() <= _LARGEST:
            return None
        return (
            f"X holds angles to {np.abs(data).max():.4g}, which look like degrees; "
            "emission='von_mises' takes them in radians, np.deg2rad(X)."
        )

    def fewest_observations(self, num_series: int) -> int:
        return 2

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        return np.any(~(emission["concentrations"] < _COLLAPSED), axis=-1)

    def are_equal(self, x: Array) -> bool:
        return has_constant(x)

    def features(self, x: Array) -> Array:
        return np.concatenate([np.cos(x), np.sin(x)], 1)

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        angles = np.arctan2(np.sin(x).mean(0), np.cos(x).mean(0))
        return in_every_regime(shares, means=angles, concentrations=np.ones_like(angles))

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.real if name == "loc" else constraints.positive

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.VonMises(arguments["loc"], arguments["concentration"]).to_event(1)


class Angles:
    """A von Mises distribution of angles from -pi to pi in each of K regimes, a :class:`.Marginal`.

    Any angle is taken as its equal from -pi to pi, and probabilities are counted from -pi on. (In
    scipy they are counted from ``loc - pi`` on, which differs from regime to regime.)

    :param means: ``(K,)``.
    :param concentrations: ``(K,)``.
    """

    is_discrete, is_circular = False, True

    def __init__(self, means: Array, concentrations: Array) -> None:
        self._means, self._concentrations = _wrapped(means), concentrations
        self._unrolled = vonmises(concentrations, self._means)

    def cdf(self, x: npt.ArrayLike) -> Array:
        """P(X <= x), counted from -pi on."""
        found: Array = self._unrolled.cdf(_wrapped(np.asarray(x))) - self._unrolled.cdf(-np.pi)
        return np.clip(found, 0.0, 1.0)

    def sf(self, x: npt.ArrayLike) -> Array:
        """P(X > x), up to pi."""
        found: Array = self._unrolled.cdf(np.pi) - self._unrolled.cdf(_wrapped(np.asarray(x)))
        return np.clip(found, 0.0, 1.0)

    def logpdf(self, x: npt.ArrayLike) -> Array:
        """The log-density."""
        found: Array = self._unrolled.logpdf(x)
        return found

    def ppf(self, p: npt.ArrayLike) -> Array:
        """:raises ValueError: always."""
        raise ValueError(
            "expected numbers with an order, got angles, which have no quantiles; use the mean "
            "direction and the circular standard deviation"
        )

    def mean(self) -> Array:
        """Mean directions."""
        return self._means

    def var(self) -> Array:
        """Circular variances."""
        return 1 - _lengths(self._concentrations)

    def support(self) -> tuple[float, float]:
        """-pi and pi."""
        return -np.pi, np.pi


def _lengths(concentrations: Array) -> Array:
    """The length of the mean vector of each direction."""
    known = np.minimum(concentrations, _LARGE)
    return np.where(
        concentrations < _LARGE, ive(1, known) / ive(0, known), 1 - 0.5 / concentrations
    )


def angle_levels(x: Array, means: Array, concentrations: Array) -> Levels:
    """The levels of one series of angles from -pi to pi, ``(T,)``, in each of K regimes."""
    angles = Angles(means, concentrations)
    values = x[:, np.newaxis]
    parts = []
    for probability, first, last in (
        (angles.cdf(values), -np.pi, values),
        (angles.sf(values), values, np.pi),
    ):
        with np.errstate(divide="ignore"):
            log_probability = np.log(probability)
        # A small difference of two probabilities has lost its digits.
        tail = _log_tail(angles, means, concentrations, first, last)
        parts.append(np.where(probability < _LOST, tail, log_probability))
    log_cdf, log_sf = parts
    return Levels.continuous(log_cdf, log_sf, angles.logpdf(values))


def _log_tail(
    angles: Angles, means: Array, concentrations: Array, first: Any, last: Any
) -> Array:
    """The logarithm of the probability of an interval without the mean of its regime.

    From its ends inwards the density falls exponentially, or rises; it is lowest opposite the mean.
    """
    opposite = _wrapped(means + np.pi)
    total = np.full(np.broadcast_shapes(np.shape(last), np.shape(first), means.shape), -np.inf)
    for end, sign in ((first, 1), (last, -1)):
        is_inside = (first < opposite) & (opposite < last)
        other = np.where(is_inside, opposite, last if sign == 1 else first)
        length = np.abs(other - end)
        slope = sign * concentrations * np.sin(end - means)  # of the fall inwards
        with np.errstate(divide="ignore"):
            area = angles.logpdf(end) + np.log(length * exprel(-np.maximum(slope * length, 0.0)))
        total = np.where(slope >= 0, np.logaddexp(total, area), total)
    return total


def _wrapped(angles: Array) -> Array:
    """The same angles from -pi to pi."""
    return np.arctan2(np.sin(angles), np.cos(angles))
