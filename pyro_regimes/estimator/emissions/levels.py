r"""Log-probabilities of being below and above an observation, accurate in both tails.

A distribution function F alone cannot tell observations far in the upper tail from each other, as
it is 1 to the last digit. So :class:`Levels` keep :math:`\log F` and :math:`\log (1 - F)`, and
normal quantiles are taken of the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaln, log_ndtr, logsumexp, ndtri_exp, stdtr

from pyro_regimes.estimator.marginals import is_discrete
from pyro_regimes.estimator.parameters import Array

_TINY = 1e-290  # a probability below which a distribution function may have lost digits
_STEP = 1e-5  # relative step of the numerical derivative of a log-density
_HALF_LOG_2_PI = 0.5 * np.log(2 * np.pi)


class Levels(NamedTuple):
    """Log-probabilities of one series at its observations x, ``(T, K)``; NaN where missing.

    Of a continuous series the first two are equal, and so are the next two.
    """

    below: Array  #: log P(X < x)
    up_to: Array  #: log P(X <= x)
    above: Array  #: log P(X > x)
    from_on: Array  #: log P(X >= x)
    density: Array  #: the logarithm of the density, or of the probability, of x

    @classmethod
    def continuous(cls, log_cdf: Array, log_sf: Array, log_density: Array) -> Levels:
        """Those of a series with a density: P(X = x) is 0."""
        return cls(log_cdf, log_cdf, log_sf, log_sf, log_density)

    def averaged(self, log_weights: Array) -> Levels:
        """Those of the mixture over the last dim.

        :param log_weights: up to a constant, of the same shape.
        """
        log_weights = log_weights - logsumexp(log_weights, axis=-1, keepdims=True)
        return Levels(*(logsumexp(each + log_weights, axis=-1) for each in self))

    def quantiles(self) -> tuple[Array, Array, Array]:
        r"""Normal quantiles of F(x-) and of F(x), and of the mean of both."""
        half = -np.log(2)
        middle = normal_quantile(
            np.logaddexp(self.below, self.up_to) + half,
            np.logaddexp(self.above, self.from_on) + half,
        )
        lower = normal_quantile(self.below, self.from_on)
        return lower, normal_quantile(self.up_to, self.above), middle


def averaged_in_turn(levels: Iterable[Levels], log_weights: Array) -> list[Levels]:
    r"""Mixtures over the last dim of each series given those before it (Rosenblatt 1952).

    .. math::
        F(x_d \mid x_{<d}) = \sum_k w_k^{(d)} F_k(x_d \mid x_{<d}), \qquad
        w_k^{(d)} \propto w_k\, p_k(x_{<d})

    :param levels: of each series given those before it and k.
    :param log_weights: up to a constant.
    """
    found = []
    for each in levels:
        found.append(each.averaged(log_weights))
        log_weights = log_weights + np.where(np.isnan(each.density), 0.0, each.density)
        log_weights = log_weights - log_weights.max(-1, keepdims=True)
    return found


def normal_quantile(log_lower: Array, log_upper: Array) -> Array:
    """The normal quantile of a probability p from log p and log(1 - p)."""
    smaller: Array = ndtri_exp(np.minimum(np.minimum(log_lower, log_upper), 0.0))
    return np.where(log_lower < log_upper, smaller, -smaller)


def marginal_levels(distribution: Any, x: Array) -> Levels:
    """Those of a :class:`.Marginal` of K regimes.

    A probability near 0 is that of a tail whose density falls as it does at x: of a continuous one
    :math:`f / |(\\log f)'|`, of a discrete one a geometric series.

    :param x: ``(T,)``, NaN where missing.
    """
    values = x[:, None]
    if is_discrete(distribution):
        return _discrete_levels(distribution, values)
    low, _ = distribution.support()
    values = np.where(values == low, low + np.finfo(np.float64).tiny, values)  # F(low) = 0
    density = distribution.logpdf(values)
    step = _STEP * np.abs(values)
    around = [distribution.logpdf(values + sign * step) for sign in (1, -1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (around[0] - around[1]) / (2 * step)
        log_cdf, log_sf = (
            _or_tail(probability, density - np.log(sign * slope))
            for probability, sign in ((distribution.cdf(values), 1), (distribution.sf(values), -1))
        )
    return Levels.continuous(log_cdf, log_sf, density)


def _discrete_levels(distribution: Any, values: Array) -> Levels:
    def tail(ends: Array, sign: int) -> Array:
        """The probability of the integers from there on, upwards or downwards."""
        first = distribution.logpmf(ends)
        with np.errstate(invalid="ignore"):
            ratio = np.minimum(distribution.logpmf(ends + sign) - first, -_STEP)
        falling: Array = np.where(first > -np.inf, first - np.log1p(-np.exp(ratio)), first)
        return falling

    return Levels(
        _or_tail(distribution.cdf(values - 1), tail(values - 1, -1)),
        _or_tail(distribution.cdf(values), tail(values, -1)),
        _or_tail(distribution.sf(values), tail(values + 1, 1)),
        _or_tail(distribution.sf(values - 1), tail(values, 1)),
        distribution.logpmf(values),
    )


def _or_tail(probability: Array, tail: Array) -> Array:
    """The logarithm of a probability; of a small one that of its tail where there is one."""
    with np.errstate(divide="ignore"):
        log_probability: Array = np.log(probability)
    small = (probability < _TINY) & np.isfinite(tail)
    return np.where(small, np.minimum(tail, np.log(_TINY)), log_probability)


def normal_levels(standard: Array, log_scale: Array) -> Levels:
    """Those of Gaussian observations.

    :param standard: observations less their means, divided by their standard deviations.
    :param log_scale: the logarithms of these.
    """
    log_density = -0.5 * standard**2 - _HALF_LOG_2_PI - log_scale
    return Levels.continuous(log_ndtr(standard), log_ndtr(-standard), log_density)


def student_t_levels(standard: Array, log_scale: Array, freedom: Array) -> Levels:
    """Those of Student-t observations.

    :param standard: observations less their locations, divided by their scales.
    :param log_scale: the logarithms of these.
    :param freedom: degrees of freedom.
    """
    root = standard / np.sqrt(freedom)
    log_density = (
        gammaln((freedom + 1) / 2)
        - gammaln(freedom / 2)
        - 0.5 * np.log(np.pi * freedom)
        - (freedom + 1) * np.log(np.hypot(1, root))
    )
    log_cdf, log_sf = (
        _log_student_t_cdf(each, freedom, log_density) for each in (standard, -standard)
    )
    return Levels.continuous(log_cdf, log_sf, log_density - log_scale)


def _log_student_t_cdf(standard: Array, freedom: Array, log_density: Array) -> Array:
    probability = stdtr(freedom, standard)
    size = np.maximum(np.abs(standard), 1.0)
    # Near 0 by the tail of the density: a power for few degrees of freedom, Gaussian for many.
    tail = log_density + np.log(1 / size + size / freedom)
    log_cdf: Array = np.where(probability < _TINY, tail, np.log(np.maximum(probability, _TINY)))
    return log_cdf
