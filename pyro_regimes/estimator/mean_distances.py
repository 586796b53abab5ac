r"""Expected distances between independent numbers: the two terms of a CRPS.

A distribution of positive numbers or counts with mean m has a size-biased one, of
:math:`E[g(X^*)] = E[X g(X)] / m`, which is of the same family (of one plus a count). With it,

.. math::
    E|X - x| &= x (2 P(X \le x) - 1) + m (1 - 2 P(X^* \le x)) \\
    E|X_j - X_k'| &= m_j (2 P(X_j^* > X_k') - 1) + m_k (2 P(X_k^* > X_j') - 1)

where the second holds for densities. It is a closed form for gamma and lognormal distributions. For
counts, :math:`E|X_j - X_k'| = \sum_z F_j(z) (1 - F_k(z)) + F_k(z) (1 - F_j(z))`. For
Student-t distributions it is one integral for each pair.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Protocol

import numpy as np
from scipy.special import beta, betainc, betaincc, erf, gammainc, gammaincc, ndtr, stdtr

from pyro_regimes.estimator.parameters import Array

#: Counts below it are added up one by one, and all of them if there are at most ``_MOST_COUNTS``.
_FIRST_COUNTS, _MOST_COUNTS = 256, 2048

#: Gauss-Legendre rule for the distribution functions of counts between two edges.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)

#: The sinh-sinh rule, for integrands on the line that decay as a power: points and their weights.
_STEP = 1 / 64
_PLACES = np.arange(-4, 4 + _STEP / 2, _STEP)
_POINTS = np.sinh(np.pi / 2 * np.sinh(_PLACES))
_LOG_SLOPES = np.log(np.pi / 2 * np.cosh(_PLACES) * np.cosh(np.pi / 2 * np.sinh(_PLACES)) * _STEP)


class Distances(Protocol):
    """Expected distances of K distributions."""

    def from_value(self, x: Array) -> Array:
        """E|X_k - x|, ``(..., K)`` of x ``(..., 1)``; NaN without a mean."""

    def between(self) -> Array:
        """E|X_j - X_k'|, ``(K, K)``; NaN without a mean."""


class _Positive:
    """Positive numbers, by their size-biased distributions."""

    def __init__(self, marginal: Any) -> None:
        self.marginal, self.mean = marginal, marginal.mean()

    def from_value(self, x: Array) -> Array:
        found: Array = x * (2 * self.marginal.cdf(x) - 1) + self.mean * (1 - 2 * self.biased(x))
        return found

    def between(self) -> Array:
        one = self.mean[:, None] * self.larger()
        return one + one.T

    def biased(self, x: Array) -> Array:
        """P(X* <= x)."""
        raise NotImplementedError

    def larger(self) -> Array:
        """2 P(X_j* > X_k') - 1, ``(j, k)``."""
        raise NotImplementedError


class _Gamma(_Positive):
    """Gamma distributions; X* has one more as its shape."""

    def __init__(self, marginal: Any) -> None:
        super().__init__(marginal)
        self.scale = np.asarray(marginal.kwds["scale"], np.float64)
        self.shape = np.asarray(marginal.args[0] if marginal.args else np.ones_like(self.scale))

    def biased(self, x: Array) -> Array:
        found: Array = gammainc(self.shape + 1, np.maximum(x, 0.0) / self.scale)
        return found

    def larger(self) -> Array:
        shape, share = self.shape, 1 / (1 + self.scale / self.scale[:, None])
        found: Array = 2 * betainc(shape, shape[:, None] + 1, share) - 1
        return found


class _LogNormal(_Positive):
    """Lognormal distributions; the logarithm of X* has the mean mu + sigma^2."""

    def __init__(self, marginal: Any) -> None:
        super().__init__(marginal)
        self.sigma = np.asarray(marginal.args[0], np.float64)
        self.mu = np.log(marginal.kwds["scale"])

    def biased(self, x: Array) -> Array:
        with np.errstate(divide="ignore"):
            logs = np.log(np.maximum(x, 0.0))
        found: Array = ndtr((logs - self.mu) / self.sigma - self.sigma)
        return found

    def larger(self) -> Array:
        apart = (self.mu + self.sigma**2)[:, None] - self.mu
        found: Array = erf(apart / np.hypot(self.sigma[:, None], self.sigma) / np.sqrt(2))
        return found


class _Bernoulli(_Positive):
    """Zeros and ones; X* is 1."""

    def biased(self, x: Array) -> Array:
        return (x >= 1).astype(np.float64)

    def between(self) -> Array:
        one = self.mean[:, None] * (1 - self.mean)
        return one + one.T


class _Counts(_Positive):
    """Counts, of distribution functions that are defined between integers too."""

    def cdf(self, x: Array) -> Array:
        """P(X <= x), a smooth function, of x above -1."""
        raise NotImplementedError

    def sf(self, x: Array) -> Array:
        """P(X > x)."""
        raise NotImplementedError

    def between(self) -> Array:
        """The sum over the range of all distributions.

        Where it is long, the sum over all but the first counts is an integral between edges, by the
        first two terms of the formula of Euler and Maclaurin: the functions are smooth there.
        """
        low, high = self._range()
        if high - low <= _MOST_COUNTS:
            return self._terms(np.arange(low, high + 1)).sum(0)
        first = max(low, _FIRST_COUNTS)
        found = self._terms(np.arange(low, first)).sum(0)
        edges = self._edges(first - 0.5, high)
        middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
        places = (middle[:, None] + half[:, None] * _NODES).ravel()
        found += np.tensordot((half[:, None] * _WEIGHTS).ravel(), self._terms(places), 1)
        before, after = self._terms(np.array([first - 1.0, first]))
        return found + (after - before) / 24

    def _terms(self, x: Array) -> Array:
        """F_j (1 - F_k) + F_k (1 - F_j), ``(n, K, K)`` of x ``(n,)``."""
        part = self.cdf(x[:, None])[:, :, None] * self.sf(x[:, None])[:, None, :]
        return part + part.transpose(0, 2, 1)

    def _range(self) -> tuple[float, float]:
        """Outside of it are probabilities of less than 1e-17, by the bounds of Chernoff."""
        low, high = self.mean - 9 * self._deviation, self.mean + 9 * self._deviation
        return np.floor(max(low.min(), 0.0)), np.ceil((high + 40 * self._dispersion).max())

    def _edges(self, low: float, high: float) -> Array:
        """Between neighbours, no distribution function changes much in shape."""
        steps = np.arange(-9, 9.1, 1.5)[:, None] * self._deviation + self.mean
        doubled = 2.0 ** np.arange(np.ceil(np.log2(high)))
        inside = np.unique(np.concatenate([steps.ravel(), doubled]))
        return np.concatenate([[low], inside[(inside > low) & (inside < high)], [high]])

    @property
    def _deviation(self) -> Array:
        found: Array = self.marginal.std()
        return found

    @property
    def _dispersion(self) -> Array:
        """The variance over the mean."""
        return self._deviation**2 / np.maximum(self.mean, np.finfo(np.float64).tiny)


class _Poisson(_Counts):
    """Poisson distributions; X* is one plus a count of the same."""

    def biased(self, x: Array) -> Array:
        found: Array = self.marginal.cdf(x - 1)
        return found

    def cdf(self, x: Array) -> Array:
        found: Array = gammaincc(x + 1, self.mean)
        return found

    def sf(self, x: Array) -> Array:
        found: Array = gammainc(x + 1, self.mean)
        return found


class _NegativeBinomial(_Counts):
    """Negative binomial distributions; X* is one plus a count of one more failure."""

    def __init__(self, marginal: Any) -> None:
        super().__init__(marginal)
        self.total, self.chance = (np.asarray(each, np.float64) for each in marginal.args)

    def biased(self, x: Array) -> Array:
        number = np.floor(x)
        inside = betainc(self.total + 1, np.maximum(number, 1.0), self.chance)
        found: Array = np.where(number >= 1, inside, np.where(np.isnan(x), x, 0.0))
        return found

    def cdf(self, x: Array) -> Array:
        found: Array = betainc(self.total, x + 1, self.chance)
        return found

    def sf(self, x: Array) -> Array:
        found: Array = betaincc(self.total, x + 1, self.chance)
        return found


class _StudentT:
    """Student-t distributions."""

    def __init__(self, marginal: Any) -> None:
        freedom, loc, scale = (np.asarray(each, np.float64) for each in marginal.args)
        freedom, self.loc, self.scale = np.broadcast_arrays(freedom, loc, scale)
        self.freedom = np.where(freedom > 1, freedom, np.nan)
        self.peak = 1 / (np.sqrt(self.freedom) * beta(0.5, self.freedom / 2))  # of the density

    def from_value(self, x: Array) -> Array:
        z, freedom = (x - self.loc) / self.scale, self.freedom
        decay = np.exp((1 - freedom) * np.log(np.hypot(1, z / np.sqrt(freedom))))
        around = 2 * freedom / (freedom - 1) * self.peak * decay
        found: Array = self.scale * (z * (2 * stdtr(freedom, z) - 1) + around)
        return found

    def between(self) -> Array:
        r"""With :math:`A_k(x) = E|X_k - x|`, X_k the narrower one, and a closed form of two alike,
        :math:`E|X_j - X_k'| = E|X_k - X_k'| + E[A_j(X_k) - A_k(X_k)]`.

        The difference remains finite far out, so that the integral converges quickly.
        """
        freedom, scale = self.freedom, self.scale
        ratio = beta(0.5, freedom - 0.5) / np.square(beta(0.5, freedom / 2))
        alike = scale * 4 * np.sqrt(freedom) / (freedom - 1) * ratio
        found = np.diag(alike)
        for k in range(len(scale)):
            decay = -(freedom[k] + 1) * np.log(np.hypot(1, _POINTS / np.sqrt(freedom[k])))
            chances = self.peak[k] * np.exp(decay + _LOG_SLOPES)
            apart = self.from_value((self.loc[k] + scale[k] * _POINTS)[:, None])
            more = alike[k] + chances @ (apart - apart[:, [k]])
            wider = (scale > scale[k]) | ((scale == scale[k]) & (np.arange(len(scale)) > k))
            found[k, wider] = found[wider, k] = more[wider]
        return found


#: By the name of the distribution in scipy. Angles and categories have none.
DISTANCES: Mapping[str, Callable[[Any], Distances]] = {
    "t": _StudentT,
    "gamma": _Gamma,
    "expon": _Gamma,
    "lognorm": _LogNormal,
    "poisson": _Poisson,
    "nbinom": _NegativeBinomial,
    "bernoulli": _Bernoulli,
}
