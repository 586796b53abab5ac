r"""The filter row by row, and forecasts from it, by one set of parameters.

.. math::
    \log p(q_t = j, x_t \mid x_{<t}) = \log b_j(x_t)
        + \log \sum_i p(q_{t-1} = i \mid x_{<t})\, A_{ij}

A row is computed from those before it alone, to the bit. (The compiled sweeps compute a sequence
anew in log space where a row of it requires that.)
"""

from __future__ import annotations

import numpy as np

from pyro_regimes.estimator.parameters import Array


def follow(last_probs: Array, transition_matrix: Array, log_densities: Array) -> Array:
    """The filtered probabilities of rows, ``(T, K)``.

    A row that has density 0 in every regime that is possible then is taken as missing.

    :param last_probs: those of the row before the first one, ``(K,)``.
    :param log_densities: ``(T, K)``.
    """
    filtered, probs = np.empty_like(log_densities), last_probs
    for row, densities in enumerate(log_densities):
        predicted = probs @ transition_matrix
        probs = predicted / predicted.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            joint = np.log(probs) + densities
            peak = joint.max()
            if np.isfinite(peak):
                weights = np.exp(joint - peak)
                probs = weights / weights.sum()
        filtered[row] = probs
    return filtered


def log_scores(probs: Array, log_densities: Array) -> Array:
    """The log-density of rows with these probabilities of the regimes, ``(T, K)``, each alone."""
    with np.errstate(divide="ignore", invalid="ignore"):
        joint = np.log(probs) + log_densities
        peak = joint.max(-1, keepdims=True)
        peak = np.where(np.isfinite(peak), peak, 0.0)
        found: Array = np.log(np.exp(joint - peak).sum(-1)) + peak[:, 0]
    return found
