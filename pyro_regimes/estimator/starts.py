"""Initial parameters of a fit: k-means and random starts."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.spec import Spec

STAY = 0.9  # the probability of staying in a state, in a start from k-means


def make_starts(
    x: Array, n_regimes: int, n_init: int, spec: Spec, floor: float, rng: np.random.RandomState
) -> Parameters:
    """Make several starts in one batch.

    Even starts use k-means clusters, the spread of each cluster and sticky transitions. Odd starts
    use random observations as centers, the overall spread and random transitions. The initial
    probabilities are uniform.

    :param x: observations ``(T, D)``, at least ``n_regimes`` of them distinct.
    :param floor: the least variance in any direction.
    :return: parameters with ``n_init`` starts in front.
    """
    distinct = np.unique(x, axis=0)
    made = []
    for start in range(n_init):
        if start % 2 == 0:
            kmeans = KMeans(n_regimes, n_init=1, random_state=rng.randint(2**31 - 1)).fit(x)
            transition_matrix = _sticky(n_regimes)
            responsibilities = np.eye(n_regimes)[kmeans.labels_]
            emission = spec.start_from_clusters(x, responsibilities, kmeans.cluster_centers_, floor)
        else:
            centers = distinct[rng.choice(len(distinct), n_regimes, replace=False)]
            emission = spec.start_around(x, centers, floor)
            # Mixed with uniform rows, because EM hardly moves a probability close to zero.
            drawn = rng.dirichlet(np.ones(n_regimes), size=n_regimes)
            transition_matrix = 0.9 * drawn + 0.1 / n_regimes
        initial_probs = np.full(n_regimes, 1 / n_regimes)
        made.append(Parameters(initial_probs, transition_matrix, emission))
    return Parameters.stack(made)


def _sticky(n_regimes: int) -> Array:
    away = (1 - STAY) / max(n_regimes - 1, 1)
    transition_matrix = np.full((n_regimes, n_regimes), away)
    np.fill_diagonal(transition_matrix, STAY if n_regimes > 1 else 1.0)
    return transition_matrix
