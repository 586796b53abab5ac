r"""Mixtures of distributions of numbers, such as those of a series in K regimes.

.. math:: F(x) = \sum_k w_k F_k(x)
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp

from pyro_regimes.estimator.marginals import is_discrete, log_density
from pyro_regimes.estimator.parameters import Array

Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_PLACES = np.linspace(-6.0, 3.0, 145)  # of the tanh-sinh rule
_MOST = np.finfo(np.float64).max
_LEAST_INT = np.iinfo(np.int64).min
_MOST_INTEGER = 2**53  # of those that float64 has without gaps


class Mixture:
    """A mixture of K distributions, or many with the same components.

    It is a :class:`.Marginal`: arguments have the dims ``...`` of the weights, or such that
    broadcast with them. So a mixture with weights ``(n, K)`` has n quantiles.

    :param weights: ``(..., K)``, probabilities.
    :param components: the K distributions, as one :class:`.Marginal`.
    """

    def __init__(self, weights: Array, components: Any) -> None:
        self.weights = weights
        self.components = components
        self.is_discrete = is_discrete(components)

    def cdf(self, x: npt.ArrayLike) -> Array:
        """P(X <= x)."""
        return self._average(self.components.cdf(_beside(x)))

    def sf(self, x: npt.ArrayLike) -> Array:
        """P(X > x), exact where it is small."""
        return self._average(self.components.sf(_beside(x)))

    def logpdf(self, x: npt.ArrayLike) -> Array:
        """The log-density."""
        found: Array = logsumexp(log_density(self.components, _beside(x)), -1, b=self.weights)
        return found

    def logpmf(self, x: npt.ArrayLike) -> Array:
        """The log-probability of integers."""
        return self.logpdf(x)

    def mean(self) -> Array:
        """The means, ``(...)``."""
        return self._average(self.components.mean())

    def var(self) -> Array:
        """The variances, ``(...)``."""
        means = self.components.mean()
        between = means - self.mean()[..., None]
        return self._average(self.components.var() + np.square(between))

    def support(self) -> tuple[Any, Any]:
        """The least and the largest value of any component."""
        low, high = self.components.support()
        return np.min(low, -1), np.max(high, -1)

    def ppf(self, p: npt.ArrayLike) -> Array:
        """The least x with P(X <= x) >= p, to the last digit of x.

        It is found by bisection between the least and the largest quantile of the components, on
        the floating-point numbers in their order. This depends neither on the unit of x nor on how
        much the components differ.

        :param p: probabilities from 0 to 1. Where they are above 0.5, P(X > x) <= 1 - p is solved,
            so that an upper tail has the digits of 1 - p.
        """
        level = np.asarray(p, dtype=np.float64)
        shape = np.broadcast_shapes(level.shape, self.weights.shape[:-1])
        inside = (level > 0) & (level < 1)
        safe = np.broadcast_to(np.where(inside, level, 0.5), shape)
        each = np.nan_to_num(
            self.components.ppf(safe[..., None]), nan=0.0, posinf=np.inf, neginf=-np.inf
        )  # (..., K)
        low = np.where(self.weights > 0, each, np.inf).min(-1)
        high = np.where(self.weights > 0, each, -np.inf).max(-1)
        order, number, most = _INTEGERS if self.is_discrete else _FLOATS
        # A component's own quantile may be wrong far out. The bracket is then wide, or widened.
        with np.errstate(over="ignore"):
            found = _first(lambda n: self._reaches(number(n), safe), order(low), order(high), most)
        ends = self.support()
        return np.select([inside, level == 0, level == 1], [number(found), *ends], np.nan)

    def tail_mean(self, p: npt.ArrayLike) -> Array:
        r"""The mean of the lower tail of probability p, which is minus the expected shortfall.

        .. math:: \frac{1}{p} \int_0^p F^{-1}(u) \, du = q - \frac{1}{p} E[\max(q - X, 0)],
            \qquad q = F^{-1}(p)

        The expectation is a closed form for Gaussian and Student-t components, and for mixtures of
        them. For others it is integrated over the levels of each component, by the tanh-sinh rule.

        :param p: probabilities above 0 and below 1.
        :raises ValueError: for distributions of integers.
        """
        if self.is_discrete:
            raise ValueError("expected a distribution with a density, got one of integers")
        quantile = self.ppf(p)
        return quantile - self.mean_gap(quantile) / np.asarray(p, dtype=np.float64)

    def mean_gap(self, x: npt.ArrayLike) -> Array:
        """E[max(x - X, 0)]."""
        return self._average(_mean_gap(self.components, _beside(x)))

    def _reaches(self, x: Array, p: Array) -> Bools:
        """Whether P(X <= x) >= p, with as many digits as p has."""
        upper = p > 0.5
        if self.is_discrete or not upper.any():
            return self.cdf(x) >= p
        return np.where(upper, self.sf(x) <= 1 - p, self.cdf(x) >= p)

    def _average(self, values: Array) -> Array:
        """The weighted mean over components; one of weight 0 does not count if it is infinite."""
        with np.errstate(invalid="ignore"):
            parts = np.where(self.weights > 0, self.weights * values, 0.0)
        found: Array = parts.sum(-1)
        return found


def _beside(x: npt.ArrayLike) -> Array:
    """With a last dim for the components."""
    return np.asarray(x, dtype=np.float64)[..., None]


def _mean_gap(components: Any, x: Array) -> Array:
    """E[max(x - X, 0)] of each component."""
    if isinstance(components, Mixture):
        return components.mean_gap(x)
    name = components.dist.name if hasattr(components, "dist") else ""
    if name == "norm":
        loc, scale = components.args
        spread = np.square(scale)
    elif name == "t":
        freedom, loc, scale = components.args
        with np.errstate(divide="ignore"):
            factor = np.where(freedom > 1, 1 / np.maximum(freedom - 1, 0), np.inf)
        spread = (freedom * np.square(scale) + np.square(x - loc)) * factor
    else:
        return _integrated_gap(components, x)
    found: Array = (x - loc) * components.cdf(x) + spread * components.pdf(x)
    return found


def _integrated_gap(components: Any, x: Array) -> Array:
    """The same as the mean of x - X over the levels below P(X <= x), by the tanh-sinh rule."""
    level, total = components.cdf(x), 0.0
    for place in _PLACES:
        share = expit(np.pi * np.sinh(place))  # from 0 to 1, with any growth of X at 0
        weight = np.pi * np.cosh(place) * share * expit(-np.pi * np.sinh(place))
        total = total + weight * (x - components.ppf(level * share))
    found: Array = (_PLACES[1] - _PLACES[0]) * level * total
    return found


def _first(
    holds: Callable[[Integers], Bools], low: Integers, high: Integers, most: int
) -> Integers:
    """The least integer from which on a condition holds, by bisection.

    :param holds: whether it does, for each element.
    :param low: a guess of such integers from below, and ``high`` from above; they are widened.
    :param most: the largest absolute value.
    """
    step = 1
    while ((inside := holds(low)) & (low > -most)).any():
        low = np.where(inside, np.maximum(low, step - most) - step, low)
        step = min(2 * step, most)
    step = 1
    while ((outside := ~holds(high)) & (high < most)).any():
        high = np.where(outside, np.minimum(high, most - step) + step, high)
        step = min(2 * step, most)
    while (low + 1 < high).any():
        middle = (low & high) + ((low ^ high) >> 1)  # half of the sum, which may be too large
        inside = holds(middle)
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    return high


def _order(x: Array) -> Integers:
    """The place of numbers in the order of all floating-point numbers; that of 0 is 0."""
    bits = np.clip(x, -_MOST, _MOST).view(np.int64)
    return np.where(bits < 0, _LEAST_INT - np.minimum(bits, 0), bits)


def _value(order: Integers) -> Array:
    """The inverse of :func:`_order`."""
    bits = np.where(order < 0, _LEAST_INT - np.minimum(order, 0), order)
    found: Array = bits.view(np.float64)
    return found


def _integer(x: Array) -> Integers:
    return np.clip(x, -_MOST_INTEGER, _MOST_INTEGER).astype(np.int64)


def _float(x: Integers) -> Array:
    return x.astype(np.float64)


#: Numbers as the integers that are bisected, the inverse, and the largest of these.
_Line = tuple[Callable[[Array], Integers], Callable[[Integers], Array], int]
_INTEGERS: _Line = (_integer, _float, _MOST_INTEGER)
_FLOATS: _Line = (_order, _value, int(_order(np.array(_MOST))))
