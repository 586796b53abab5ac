r"""How far the densities of the regimes of two models are from each other."""

from __future__ import annotations

import numpy as np

from pyro_regimes.estimator.emissions.diagonal_gaussian import DiagonalGaussian
from pyro_regimes.estimator.emissions.matrix_gaussian import MatrixGaussian
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.parameters import Array

_DRAWN = 2000  # observations of each regime
_MOST = 1e100  # in the place of an infinite one


def symmetric_divergence(one: FittedHMM, two: FittedHMM) -> Array:
    r"""The symmetric Kullback-Leibler divergence of each pair of regimes (Jeffreys 1946).

    .. math:: J_{ij} = E_{b_i}[\log b_i(x) - \log c_j(x)] + E_{c_j}[\log c_j(x) - \log b_i(x)]

    It does not depend on units. For Gaussians it is exact; for others the expectations are means
    over draws, always the same ones.

    :param two: a model of the same emission.
    :return: ``(K of one, K of two)``, at most 1e100.
    """
    if isinstance(one.spec, (MatrixGaussian, DiagonalGaussian)):
        found = _of_gaussians(one, two)
    else:
        found = _excess(one, two) + _excess(two, one).T
    return np.clip(np.nan_to_num(found, nan=_MOST), 0.0, _MOST)


def _of_gaussians(one: FittedHMM, two: FittedHMM) -> Array:
    """With the means and covariances of both; log-determinants cancel."""
    first, second = (each.spec.moments(each.parameters.emission) for each in (one, two))
    covariances, others = first.matrices(), second.matrices()
    inverses, other_inverses = np.linalg.inv(covariances), np.linalg.inv(others)
    apart = first.means[:, None] - second.means  # (K, K, D)
    traces = np.einsum("iab,jba->ij", inverses, others)
    traces += np.einsum("iab,jba->ij", covariances, other_inverses)
    both = inverses[:, None] + other_inverses
    squares = np.einsum("ija,ijab,ijb->ij", apart, both, apart)
    found: Array = (traces + squares) / 2 - first.means.shape[1]
    return found


def _excess(one: FittedHMM, two: FittedHMM) -> Array:
    """The mean of :math:`\\log b_i - \\log c_j` over draws from :math:`b_i`."""
    num_regimes, rng = len(one.parameters.initial_probs), np.random.RandomState(0)
    rows = []
    for regime in range(num_regimes):
        states = np.full(_DRAWN, regime)
        x = one.spec.draw(one.parameters.emission, states, rng)
        own = one.log_densities(x)[:, regime]
        with np.errstate(invalid="ignore"):
            rows.append((own[:, None] - two.log_densities(x)).mean(0))
    return np.stack(rows)
