"""Scores of forecasts of one series: probability integral transforms and the CRPS."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr
from scipy.stats import norm

from pyro_regimes.estimator.marginals import Marginal, cdf_below
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.predictive import Mixture


def pit(x: Array, weights: Array, marginal: Marginal) -> Array:
    """P(X <= x) of what came, uniform if the forecasts are right; of integers the mid-point.

    That is the average of P(X < x) and P(X <= x).

    :param x: ``(n,)``; NaN gives NaN.
    :param weights: of the regimes, ``(n, K)``.
    :param marginal: the series in each regime.
    """
    mixture = Mixture(weights, marginal)
    found = mixture.cdf(x)
    return (found + cdf_below(mixture, x)) / 2 if mixture.is_discrete else found


def crps(x: Array, weights: Array, marginal: Marginal) -> Array:
    """The CRPS of forecasts that are mixtures of Gaussians; NaN of others.

    Arguments as those of :func:`pit`.
    """
    components: Any = marginal
    if isinstance(marginal, Mixture):
        shares, components = marginal.weights, marginal.components
        weights = (weights[..., None] * shares).reshape(len(weights), -1)
    if not is_normal(components):
        return np.full(len(x), np.nan)
    means, deviations = (each.reshape(1, -1) for each in (components.mean(), components.std()))
    return crps_of_mixture(x, weights, means, deviations)


def is_normal(marginal: Any) -> bool:
    """Whether it is a frozen normal distribution of scipy."""
    return isinstance(getattr(marginal, "dist", None), type(norm))


def crps_of_mixture(x: Array, weights: Array, means: Array, deviations: Array) -> Array:
    r"""The CRPS of mixtures of K Gaussians; lower is better, in the unit of x.

    .. math::
        \int (F(z) - 1\{z \ge x\})^2 dz = \sum_k w_k A(x - \mu_k, \sigma_k^2)
            - \tfrac12 \sum_{j,k} w_j w_k A(\mu_j - \mu_k, \sigma_j^2 + \sigma_k^2)

    with :math:`A(m, s^2) = 2 s\, \phi(m / s) + m (2 \Phi(m / s) - 1)`, the mean of
    :math:`|m + s Z|` (Grimit, Gneiting, Berrocal and Johnson 2006).

    :param x: ``(...)``, what came; NaN gives NaN.
    :param weights: ``(..., K)``.
    :param means: ``(..., K)``, and ``deviations`` likewise.
    """
    apart = _mean_of_absolute(x[..., None] - means, deviations)
    pairs = _mean_of_absolute(
        means[..., :, None] - means[..., None, :],
        np.hypot(deviations[..., :, None], deviations[..., None, :]),
    )
    within = np.einsum("...j,...k,...jk->...", weights, weights, pairs)
    found: Array = (weights * apart).sum(-1) - within / 2
    return found


def _mean_of_absolute(m: Array, s: Array) -> Array:
    """E|m + s Z| with Z standard normal."""
    z = m / s
    with np.errstate(over="ignore"):
        density = np.exp(-np.square(z) / 2) / np.sqrt(2 * np.pi)
    return 2 * s * density + m * (2 * ndtr(z) - 1)
