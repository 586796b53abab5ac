"""Initial parameters of a fit: from k-means, and two kinds of random ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin

from pyro_regimes.estimator.parameters import Array, Emission, Parameters
from pyro_regimes.estimator.soft_starts import (
    SoftStarts,
    from_kmeans,
    from_observations,
    from_runs,
)
from pyro_regimes.estimator.spec import Spec

STAY = 0.9  # the probability of staying in a state, in a start from k-means or random spreads

#: The number of observations that starts look for centers in.
_MOST_ROWS = 2_000

#: The distance of the centers from the mean, in a start with random spreads, as a share of that of
#: the observations that they are made from.
_NEAR = 0.5


def kind_of(start: int) -> str:
    """The kind of a start by its number, from 0: "k-means", "random" or "spreads"."""
    if start == 0:
        return "k-means"
    return "random" if start % 2 else "spreads"


def make_starts(
    x: Array,
    n_regimes: int,
    n_init: int,
    spec: Spec,
    floor: float,
    rng: np.random.RandomState,
    centers: Array | None = None,
) -> Parameters:
    """Make several starts in one batch.

    The first one is from k-means, which finds regimes with different means. One will do, because
    most of its runs find the same clusters. The others are in turn random observations with random
    transitions, and regimes that last and differ mostly in their spread. The initial probabilities
    are uniform. All centers come from one random sample of at most 2,000 observations.

    Emissions that do not start from means start from responsibilities (:mod:`.soft_starts`).

    :param x: observations ``(T, D)``, at least ``n_regimes`` of them distinct.
    :param floor: the least variance in any direction.
    :param centers: those of all starts, ``(K, D)``; None finds them as above.
    :return: parameters with ``n_init`` starts in front.
    """
    if not spec.starts_from_means:
        return Parameters.stack(list(_soft(x, n_regimes, n_init, spec, rng)))
    data = _Data.of(x, spec, floor)
    if centers is not None:
        made = [_from_centers(data, centers, start, rng) for start in range(n_init)]
        return Parameters.stack(made)
    sample, distinct = _sample(x, n_regimes, rng)
    made = []
    for start in range(n_init):
        if kind_of(start) == "k-means":
            made.append(_from_kmeans(data, sample, n_regimes, rng))
        else:
            centers = distinct[rng.choice(len(distinct), n_regimes, replace=False)]
            make = _from_observations if kind_of(start) == "random" else _from_spreads
            made.append(make(data, centers, rng))
    return Parameters.stack(made)


class _Data(NamedTuple):
    """Observations, and what all starts need of them."""

    x: Array  #: ``(T, D)``
    mean: Array  #: ``(D,)``
    overall: Array  #: of :meth:`.Spec.spread_of`
    spec: Spec
    floor: float  #: the least variance in any direction

    @classmethod
    def of(cls, x: Array, spec: Spec, floor: float) -> _Data:
        return cls(x, x.mean(0), spec.spread_of(x, floor), spec, floor)

    def around(self, centers: Array, multiples: Array) -> Emission:
        """Centers with these multiples of the overall spread."""
        return self.spec.start_around(self.x, centers, multiples, self.floor, self.overall)


def _soft(
    x: Array, n_regimes: int, n_init: int, spec: Spec, rng: np.random.RandomState
) -> Iterator[Parameters]:
    """Starts from responsibilities: of k-means, of random observations, of random runs of rows."""
    starts = SoftStarts(x, n_regimes, spec, rng)
    for start in range(n_init):
        transition_matrix = _sticky(n_regimes)
        if kind_of(start) == "k-means":
            responsibilities = from_kmeans(x, n_regimes, spec, rng)
        elif kind_of(start) == "random":
            responsibilities = from_observations(x, n_regimes, spec, rng)
            transition_matrix = _random(n_regimes, rng)
        else:
            responsibilities = from_runs(x, n_regimes, spec, rng)
        yield _start(transition_matrix, starts.emission(responsibilities))


def _from_centers(
    data: _Data, centers: Array, start: int, rng: np.random.RandomState
) -> Parameters:
    """Given centers with the spreads of the rows nearest to each, or with random ones."""
    if kind_of(start) == "k-means":
        members = np.eye(len(centers))[pairwise_distances_argmin(data.x, centers)]
        emission = data.spec.start_from_clusters(data.x, members, centers, data.floor)
        return _start(_sticky(len(centers)), emission)
    if kind_of(start) == "random":
        return _from_observations(data, centers, rng)
    return _start(_sticky(len(centers)), _around(data, centers, rng))


def _from_kmeans(
    data: _Data, sample: Array, n_regimes: int, rng: np.random.RandomState
) -> Parameters:
    """The centers of clusters of the sample, the spreads of all rows, and sticky transitions."""
    kmeans = KMeans(n_regimes, n_init=1, random_state=rng.randint(2**31 - 1)).fit(sample)
    labels = kmeans.labels_ if sample is data.x else kmeans.predict(data.x)
    members = np.eye(n_regimes)[labels]
    emission = data.spec.start_from_clusters(
        data.x, members, kmeans.cluster_centers_, data.floor
    )
    return _start(_sticky(n_regimes), emission)


def _from_observations(data: _Data, centers: Array, rng: np.random.RandomState) -> Parameters:
    """These centers, the overall spread and random transitions."""
    transition_matrix = _random(len(centers), rng)
    return _start(transition_matrix, data.around(centers, np.ones(len(centers))))


def _from_spreads(data: _Data, centers: Array, rng: np.random.RandomState) -> Parameters:
    """Centers closer to the mean, random multiples of the overall spread, sticky transitions."""
    emission = _around(data, data.mean + _NEAR * (centers - data.mean), rng)
    return _start(_sticky(len(centers)), emission)


def _around(data: _Data, centers: Array, rng: np.random.RandomState) -> Emission:
    multiples = rng.lognormal(size=len(centers))
    return data.around(centers, multiples / multiples.mean())


def _start(transition_matrix: Array, emission: dict[str, Array]) -> Parameters:
    n_regimes = len(transition_matrix)
    return Parameters(np.full(n_regimes, 1 / n_regimes), transition_matrix, emission)


def _sample(x: Array, n_regimes: int, rng: np.random.RandomState) -> tuple[Array, Array]:
    """At most 2,000 observations, and the distinct ones among them, at least ``n_regimes``."""
    if len(x) > _MOST_ROWS:
        sample = x[rng.choice(len(x), _MOST_ROWS, replace=False)]
        distinct = np.unique(sample, axis=0)
        if len(distinct) >= n_regimes:
            return sample, distinct
    return x, np.unique(x, axis=0)


def _random(n_regimes: int, rng: np.random.RandomState) -> Array:
    # Mixed with uniform rows, because EM hardly moves a probability close to zero.
    drawn = rng.dirichlet(np.ones(n_regimes), size=n_regimes)
    mixed: Array = 0.9 * drawn + 0.1 / n_regimes
    return mixed


def _sticky(n_regimes: int) -> Array:
    away = (1 - STAY) / max(n_regimes - 1, 1)
    transition_matrix = np.full((n_regimes, n_regimes), away)
    np.fill_diagonal(transition_matrix, STAY if n_regimes > 1 else 1.0)
    return transition_matrix
