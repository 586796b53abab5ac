"""The distribution of one series in every regime: what :meth:`.Spec.marginals` returns.

Such an object has the methods of a frozen distribution of :mod:`scipy.stats`, and often is one.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import rv_discrete

from pyro_regimes.estimator.parameters import Array


class Marginal(Protocol):
    """A distribution of numbers in each of K regimes.

    Arguments of shape ``(..., 1)`` give results of shape ``(..., K)``. Discrete distributions are
    of integers, and have ``logpmf``; the others have ``logpdf``.
    """

    def cdf(self, x: npt.ArrayLike) -> Array:
        """P(X <= x)."""

    def sf(self, x: npt.ArrayLike) -> Array:
        """P(X > x), exact where it is small."""

    def ppf(self, p: npt.ArrayLike) -> Array:
        """The quantile: the least x with P(X <= x) >= p."""

    def mean(self) -> Array:
        """The mean in each regime, ``(K,)``."""

    def var(self) -> Array:
        """The variance in each regime, ``(K,)``."""

    def support(self) -> tuple[Any, Any]:
        """The least and the largest value."""


def is_discrete(distribution: Any) -> bool:
    """Whether a distribution is one of integers.

    :param distribution: a frozen distribution of scipy, or an object with ``is_discrete``.
    """
    found = getattr(distribution, "is_discrete", None)
    return isinstance(distribution.dist, rv_discrete) if found is None else bool(found)


def is_circular(distribution: Any) -> bool:
    """Whether a distribution is one of angles, which has no quantiles."""
    return bool(getattr(distribution, "is_circular", False))


def cdf_below(distribution: Marginal, x: npt.ArrayLike) -> Array:
    """P(X < x), the limit of the cdf from the left: less than the cdf by P(X = x)."""
    values = np.asarray(x, dtype=np.float64)
    return distribution.cdf(np.ceil(values) - 1 if is_discrete(distribution) else values)


def log_density(distribution: Any, x: npt.ArrayLike) -> Array:
    """The log-density, or the log-probability of an integer."""
    found: Array = distribution.logpmf(x) if is_discrete(distribution) else distribution.logpdf(x)
    return found
