"""Where the fit begins: k-means and random starts, with covariances that are safe to invert."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from pyro_regimes.estimator.spec import Array, Parameters

STAY = 0.9  # the probability of staying in a state, in a start from k-means


def make_starts(
    x: Array,
    n_regimes: int,
    n_init: int,
    covariance_type: str,
    floor: float,
    rng: np.random.RandomState,
) -> Parameters:
    """Several starts in one batch.

    Even ones are k-means clusters with their covariances and sticky transitions, odd ones are
    random observations as means with the overall covariance and random transitions. The initial
    probabilities are uniform.

    :param x: observations ``(T, D)``, at least ``n_regimes`` of them distinct.
    :param floor: the least variance in any direction.
    :return: parameters with ``n_init`` starts in front.
    """
    overall = np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], x.shape[1])
    overall = raise_eigenvalues(overall, floor)
    distinct = np.unique(x, axis=0)
    made = []
    for start in range(n_init):
        if start % 2 == 0:
            kmeans = KMeans(n_regimes, n_init=1, random_state=rng.randint(2**31 - 1)).fit(x)
            means = kmeans.cluster_centers_
            scatters = _cluster_scatters(x, kmeans.labels_, n_regimes)
            counts = np.bincount(kmeans.labels_, minlength=n_regimes).astype(float)
            covariances = _covariances(scatters, counts, overall, covariance_type, floor)
            away = (1 - STAY) / max(n_regimes - 1, 1)
            transition_matrix = np.full((n_regimes, n_regimes), away)
            np.fill_diagonal(transition_matrix, STAY if n_regimes > 1 else 1.0)
        else:
            means = distinct[rng.choice(len(distinct), n_regimes, replace=False)]
            scatters = np.broadcast_to(overall, (n_regimes,) + overall.shape)
            counts = np.ones(n_regimes)
            covariances = _covariances(scatters, counts, overall, covariance_type, floor)
            # Mixed with the uniform: EM can hardly leave a probability that is all but zero.
            drawn = rng.dirichlet(np.ones(n_regimes), size=n_regimes)
            transition_matrix = 0.9 * drawn + 0.1 / n_regimes
        initial_probs = np.full(n_regimes, 1 / n_regimes)
        made.append(Parameters(initial_probs, transition_matrix, means, covariances))
    return Parameters(*map(np.stack, zip(*made, strict=True)))


def _cluster_scatters(x: Array, labels: Array, n_regimes: int) -> Array:
    """The covariance of each cluster, ``(K, D, D)``; zero of an empty one."""
    scatters = np.zeros((n_regimes, x.shape[1], x.shape[1]))
    for regime in range(n_regimes):
        members = x[labels == regime]
        if len(members):
            deviations = members - members.mean(0)
            scatters[regime] = deviations.T @ deviations / len(members)
    return scatters


def _covariances(
    scatters: Array, counts: Array, overall: Array, covariance_type: str, floor: float
) -> Array:
    """Covariances of the given type, the overall one in place of any that is nearly singular."""
    if covariance_type == "tied":
        scatters = np.average(scatters, axis=0, weights=counts)[None]
    if covariance_type in {"full", "tied"}:
        least = np.linalg.eigvalsh(scatters)[:, 0]
        singular = least < _SINGULAR * np.linalg.eigvalsh(overall)[0]
        chosen = np.where(singular[:, None, None], overall, scatters)
        raised = np.stack([raise_eigenvalues(each, floor) for each in chosen])
        return raised[0] if covariance_type == "tied" else raised
    variances = np.diagonal(scatters, axis1=-2, axis2=-1)  # (K, D)
    reference = np.diagonal(overall)
    if covariance_type == "spherical":
        variances, reference = variances.mean(-1), reference.mean()
    return np.maximum(np.where(variances < _SINGULAR * reference, reference, variances), floor)


_SINGULAR = 1e-3  # of the overall covariance: what a cluster may have and still be kept


def raise_starts(starts: Parameters, covariance_type: str, floor: float) -> Parameters:
    """The starts with every variance in every direction at least ``floor``."""
    covariances = starts.covariances
    if covariance_type in {"full", "tied"}:
        series = covariances.shape[-1]
        each = covariances.reshape(-1, series, series)
        raised = np.stack([raise_eigenvalues(one, floor) for one in each])
        return starts._replace(covariances=raised.reshape(covariances.shape))
    return starts._replace(covariances=np.maximum(covariances, floor))


def raise_eigenvalues(covariance: Array, floor: float) -> Array:
    """The covariance with every eigenvalue at least ``floor``."""
    values, vectors = np.linalg.eigh(covariance)
    if values[0] >= floor:
        return covariance
    raised = (vectors * np.maximum(values, floor)) @ vectors.T
    return (raised + raised.T) / 2
