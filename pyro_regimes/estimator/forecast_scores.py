"""Scores of forecasts of one series: probability integral transforms and the CRPS."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr
from scipy.stats import norm

from pyro_regimes.estimator.emissions.diagonal_gaussian import DiagonalGaussian
from pyro_regimes.estimator.emissions.matrix_gaussian import MatrixGaussian
from pyro_regimes.estimator.marginals import Marginal, cdf_below
from pyro_regimes.estimator.parameters import Array, Emission
from pyro_regimes.estimator.predictive import Mixture
from pyro_regimes.estimator.spec import Spec


def pit_and_crps(
    x: Array, weights: Array, spec: Spec, emission: Emission
) -> tuple[Array, Array]:
    """The probability integral transform and the CRPS of each series, ``(n, D)`` each.

    The first is P(X <= x) at the observed x, uniform if the forecasts are right; for integers the
    average of P(X < x) and P(X <= x). The second is NaN for series that are no mixtures of
    Gaussians.

    :param x: ``(n, D)``; NaN gives NaN.
    :param weights: of the regimes, ``(n, K)``.
    """
    if is_gaussian(spec):
        means, deviations = (each.T for each in gaussian_marginals(spec, emission))
        below = ndtr((x[..., None] - means) / deviations)  # (n, D, K)
        by_series = weights[:, None]
        return (by_series * below).sum(-1), crps_of_mixture(x, by_series, means, deviations)
    pit, crps = np.full((2, *x.shape), np.nan)
    for series, marginal in enumerate(spec.marginals(emission)):
        mixture = Mixture(weights, marginal)
        pit[:, series] = mixture.cdf(x[:, series])
        if mixture.is_discrete:
            pit[:, series] = (pit[:, series] + cdf_below(mixture, x[:, series])) / 2
        crps[:, series] = _crps(x[:, series], weights, marginal)
    return pit, crps


def is_gaussian(spec: Spec) -> bool:
    """Whether every series is Gaussian in each regime."""
    return isinstance(spec, (MatrixGaussian, DiagonalGaussian))


def gaussian_marginals(spec: Spec, emission: Emission) -> tuple[Array, Array]:
    """The means and the standard deviations of Gaussian series, ``(K, D)`` each."""
    moments = spec.moments(emission)
    return moments.means, np.sqrt(moments.variances)


def _crps(x: Array, weights: Array, marginal: Marginal) -> Array:
    """Of one series; NaN unless it is Gaussian in each regime, or a mixture of Gaussians."""
    components: Any = marginal
    if isinstance(marginal, Mixture):
        shares, components = marginal.weights, marginal.components
        weights = (weights[..., None] * shares).reshape(len(weights), -1)
    if not isinstance(getattr(components, "dist", None), type(norm)):
        return np.full(len(x), np.nan)
    means, deviations = (each.reshape(1, -1) for each in (components.mean(), components.std()))
    return crps_of_mixture(x, weights, means, deviations)


def crps_of_mixture(x: Array, weights: Array, means: Array, deviations: Array) -> Array:
    r"""The CRPS of mixtures of K Gaussians; lower is better, in the unit of x.

    .. math::
        \int (F(z) - 1\{z \ge x\})^2 dz = \sum_k w_k A(x - \mu_k, \sigma_k^2)
            - \tfrac12 \sum_{j,k} w_j w_k A(\mu_j - \mu_k, \sigma_j^2 + \sigma_k^2)

    with :math:`A(m, s^2) = 2 s\, \phi(m / s) + m (2 \Phi(m / s) - 1)`, the mean of
    :math:`|m + s Z|` (Grimit, Gneiting, Berrocal and Johnson 2006).

    :param x: ``(...)``, the observed values; NaN gives NaN.
    :param weights: ``(..., K)``, of dims that broadcast.
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
