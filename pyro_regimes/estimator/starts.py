"""Initial parameters of a fit, of three kinds: k-means, random ones, and windows of time."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.spec import Spec

STAY = 0.9  # the probability of staying in a state, in a start from k-means or windows

#: The number of observations that a start looks for centers in.
_MOST_ROWS = 2_000

#: The least number of time steps in a window, of series of few columns.
_WINDOW = 20


def make_starts(
    x: Array, n_regimes: int, n_init: int, spec: Spec, floor: float, rng: np.random.RandomState
) -> Parameters:
    """Make several starts in one batch, of three kinds in turn.

    k-means finds regimes with different means, windows of time find regimes that last and differ in
    their spreads, and random starts find what neither does. The order is k-means, random, windows,
    random, and so on. The initial probabilities are uniform.

    :param x: observations ``(T, D)``, at least ``n_regimes`` of them distinct.
    :param floor: the least variance in any direction.
    :return: parameters with ``n_init`` starts in front.
    """
    kinds = (_from_kmeans, _from_observations, _from_windows, _from_observations)
    made = [kinds[i % len(kinds)](x, n_regimes, spec, floor, rng) for i in range(n_init)]
    return Parameters.stack(made)


def _from_kmeans(
    x: Array, n_regimes: int, spec: Spec, floor: float, rng: np.random.RandomState
) -> Parameters:
    """The centers and spreads of k-means clusters, and sticky transitions.

    Of more than 2,000 observations, a random sample of 2,000 decides on the centers.
    """
    sample, _ = _sample(x, n_regimes, rng)
    kmeans = KMeans(n_regimes, n_init=1, random_state=rng.randint(2**31 - 1)).fit(sample)
    labels = kmeans.labels_ if sample is x else kmeans.predict(x)
    members = np.eye(n_regimes)[labels]
    emission = spec.start_from_clusters(x, members, kmeans.cluster_centers_, floor)
    return _start(n_regimes, _sticky(n_regimes), emission)


def _from_windows(
    x: Array, n_regimes: int, spec: Spec, floor: float, rng: np.random.RandomState
) -> Parameters:
    """The means and spreads of random, disjoint windows of time, and sticky transitions.

    A persistent regime fills whole windows. If two windows have the same mean, the start is one
    from random observations instead.
    """
    size = min(max(_WINDOW, 2 * x.shape[1]), len(x) // n_regimes)
    begin = size * rng.choice(len(x) // size, n_regimes, replace=False)
    begin = begin + rng.randint(len(x) % size + 1)
    members = np.zeros((len(x), n_regimes))
    for k, first in enumerate(begin):
        members[first : first + size, k] = 1.0
    centers = np.stack([x[first : first + size].mean(0) for first in begin])
    if len(np.unique(centers, axis=0)) < n_regimes:
        return _from_observations(x, n_regimes, spec, floor, rng)
    emission = spec.start_from_clusters(x, members, centers, floor)
    return _start(n_regimes, _sticky(n_regimes), emission)


def _from_observations(
    x: Array, n_regimes: int, spec: Spec, floor: float, rng: np.random.RandomState
) -> Parameters:
    """Random observations as centers, the overall spread and random transitions."""
    _, distinct = _sample(x, n_regimes, rng)
    centers = distinct[rng.choice(len(distinct), n_regimes, replace=False)]
    # Mixed with uniform rows, because EM hardly moves a probability close to zero.
    drawn = rng.dirichlet(np.ones(n_regimes), size=n_regimes)
    transition_matrix = 0.9 * drawn + 0.1 / n_regimes
    return _start(n_regimes, transition_matrix, spec.start_around(x, centers, floor))


def _start(n_regimes: int, transition_matrix: Array, emission: dict[str, Array]) -> Parameters:
    return Parameters(np.full(n_regimes, 1 / n_regimes), transition_matrix, emission)


def _sample(x: Array, n_regimes: int, rng: np.random.RandomState) -> tuple[Array, Array]:
    """At most 2,000 observations, and the distinct ones among them, at least ``n_regimes``."""
    if len(x) > _MOST_ROWS:
        sample = x[rng.choice(len(x), _MOST_ROWS, replace=False)]
        distinct = np.unique(sample, axis=0)
        if len(distinct) >= n_regimes:
            return sample, distinct
    return x, np.unique(x, axis=0)


def _sticky(n_regimes: int) -> Array:
    away = (1 - STAY) / max(n_regimes - 1, 1)
    transition_matrix = np.full((n_regimes, n_regimes), away)
    np.fill_diagonal(transition_matrix, STAY if n_regimes > 1 else 1.0)
    return transition_matrix
