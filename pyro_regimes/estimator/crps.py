r"""The continuous ranked probability score (CRPS) of mixtures of distributions of numbers.

.. math::
    \int (F(z) - 1\{z \ge x\})^2 dz = \sum_k w_k E|X_k - x|
        - \tfrac12 \sum_{j,k} w_j w_k E|X_j - X_k'|, \qquad F = \sum_k w_k F_k

with independent :math:`X_j \sim F_j` and :math:`X_k' \sim F_k` (Gneiting and Raftery 2007). The
last term does not depend on x, so all rows of one model share its ``(K, K)`` expectations
(:mod:`.mean_distances`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr

from pyro_regimes.estimator.mean_distances import DISTANCES
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.predictive import Mixture


def crps(x: Array, weights: Array, marginal: Any) -> Array:
    """The score of one series, ``(n,)``; lower is better, in the unit of x.

    It is NaN for angles and categories, whose values have no order, and where a regime with a
    positive weight has no mean: a Student-t of one degree of freedom or fewer.

    :param x: ``(n,)``, what came; NaN gives NaN.
    :param weights: of the regimes, ``(n, K)``.
    :param marginal: the distributions of the K regimes, as one :class:`.Marginal`.
    """
    if isinstance(marginal, Mixture):
        shares, marginal = marginal.weights, marginal.components
        weights = (weights[..., None] * shares).reshape(len(weights), -1)
    name = marginal.dist.name if hasattr(marginal, "dist") else ""
    if name == "norm":
        means, deviations = (each.reshape(1, -1) for each in (marginal.mean(), marginal.std()))
        return crps_of_mixture(x, weights, means, deviations)
    if name not in DISTANCES:
        return np.full(len(x), np.nan)
    distances = DISTANCES[name](marginal)
    return _score(weights, distances.from_value(x[:, None]), distances.between())


def crps_of_mixture(x: Array, weights: Array, means: Array, deviations: Array) -> Array:
    r"""The score of mixtures of K Gaussians, with the mean of :math:`|m + s Z|`,
    :math:`2 s\, \phi(m / s) + m (2 \Phi(m / s) - 1)` (Grimit, Gneiting, Berrocal and Johnson 2006).

    :param x: ``(...)``, what came; NaN gives NaN.
    :param weights: ``(..., K)``, of dims that broadcast.
    :param means: ``(..., K)``, and ``deviations`` likewise.
    """
    apart = _mean_of_absolute(x[..., None] - means, deviations)
    pairs = _mean_of_absolute(
        means[..., :, None] - means[..., None, :],
        np.hypot(deviations[..., :, None], deviations[..., None, :]),
    )
    return _score(weights, apart, pairs)


def _score(weights: Array, apart: Array, pairs: Array) -> Array:
    """The sum of both terms. A regime of weight 0 does not count, even one without a mean.

    :param apart: E|X_k - x|, ``(..., K)``.
    :param pairs: E|X_j - X_k'|, ``(..., K, K)``.
    """
    if not np.isfinite(pairs).all():
        counts = weights > 0
        known = np.isfinite(np.diagonal(pairs, axis1=-2, axis2=-1))
        apart = np.where(counts | known, apart, 0.0)
        pairs = np.where(counts[..., :, None] & counts[..., None, :], pairs, 0.0)
    within = np.einsum("...j,...k,...jk->...", weights, weights, pairs)
    found: Array = (weights * apart).sum(-1) - within / 2
    return found


def _mean_of_absolute(m: Array, s: Array) -> Array:
    """E|m + s Z| with Z standard normal."""
    z = m / s
    with np.errstate(over="ignore"):
        density = np.exp(-np.square(z) / 2) / np.sqrt(2 * np.pi)
    return 2 * s * density + m * (2 * ndtr(z) - 1)
