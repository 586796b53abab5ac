"""Scores of the forecasts of each series: probability integral transforms and the CRPS."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from pyro_regimes.estimator.crps import crps, crps_of_mixture
from pyro_regimes.estimator.emissions.diagonal_gaussian import DiagonalGaussian
from pyro_regimes.estimator.emissions.matrix_gaussian import MatrixGaussian
from pyro_regimes.estimator.marginals import cdf_below
from pyro_regimes.estimator.parameters import Array, Emission
from pyro_regimes.estimator.predictive import Mixture
from pyro_regimes.estimator.spec import Spec


def pit_and_crps(
    x: Array, weights: Array, spec: Spec, emission: Emission
) -> tuple[Array, Array]:
    """The probability integral transform and the CRPS of each series, ``(n, D)`` each.

    The first is P(X <= x) at the observed x, uniform if the forecasts are right; for integers the
    average of P(X < x) and P(X <= x). The second is NaN for angles, for categories, and for
    distributions without a mean.

    :param x: ``(n, D)``; NaN gives NaN.
    :param weights: of the regimes, ``(n, K)``.
    """
    if is_gaussian(spec):
        means, deviations = (each.T for each in gaussian_marginals(spec, emission))
        below = ndtr((x[..., None] - means) / deviations)  # (n, D, K)
        by_series = weights[:, None]
        return (by_series * below).sum(-1), crps_of_mixture(x, by_series, means, deviations)
    pit, scores = np.full((2, *x.shape), np.nan)
    for series, marginal in enumerate(spec.marginals(emission)):
        mixture = Mixture(weights, marginal)
        pit[:, series] = mixture.cdf(x[:, series])
        if mixture.is_discrete:
            pit[:, series] = (pit[:, series] + cdf_below(mixture, x[:, series])) / 2
        scores[:, series] = crps(x[:, series], weights, marginal)
    return pit, scores


def is_gaussian(spec: Spec) -> bool:
    """Whether every series is Gaussian in each regime."""
    return isinstance(spec, (MatrixGaussian, DiagonalGaussian))


def gaussian_marginals(spec: Spec, emission: Emission) -> tuple[Array, Array]:
    """The means and the standard deviations of Gaussian series, ``(K, D)`` each."""
    moments = spec.moments(emission)
    return moments.means, np.sqrt(moments.variances)
