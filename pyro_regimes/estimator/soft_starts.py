"""Starts from responsibilities: each regime has its share of every observation.

The parameters of a start are those of the family's own M-step, given responsibilities in the place
of the smoothed probabilities.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans

from pyro_regimes.estimator.emissions.base import Spec
from pyro_regimes.estimator.isolated_em import IsolatedEM
from pyro_regimes.estimator.parameters import Array, Emission, Parameters
from pyro_regimes.estimator.pyro_model import (
    CHAIN_ARGUMENTS,
    from_arguments,
    pyro_model,
    to_arguments,
)

#: The steps of an M-step that has latent variables of its own.
_STEPS = 3

#: The most rows that k-means takes, and the most in a run; the runs in a start from runs.
_MOST_ROWS, _LONGEST, _RUNS = 2_000, 10, 12


def from_kmeans(x: Array, num_regimes: int, spec: Spec, rng: np.random.RandomState) -> Array:
    """Responsibilities from clusters of the observations' features, ``(T, K)``."""
    return clusters(_standardised(spec.features(x)), num_regimes, spec.starts_from_runs, rng)


def clusters(
    features: Array, num_regimes: int, averages: bool, rng: np.random.RandomState
) -> Array:
    """Responsibilities from clusters of features, ``(T, K)``.

    :param averages: whether to cluster averages over the rows around each.
    """
    if averages:
        length = int(np.clip(len(features) // (_RUNS * num_regimes), 1, _LONGEST))
        features = _averaged(features, length)
    rows = features
    if len(rows) > _MOST_ROWS:
        rows = features[rng.choice(len(features), _MOST_ROWS, replace=False)]
    number = min(num_regimes, len(np.unique(rows, axis=0)))
    kmeans = KMeans(number, n_init=1, random_state=rng.randint(2**31 - 1)).fit(rows)
    members = np.zeros((len(features), num_regimes))
    members[np.arange(len(features)), kmeans.predict(features)] = 1.0
    return members


def from_observations(x: Array, num_regimes: int, spec: Spec, rng: np.random.RandomState) -> Array:
    """Responsibilities by the distances from random observations."""
    features = _standardised(spec.features(x))
    centers = features[rng.choice(len(x), num_regimes, replace=len(x) < num_regimes)]
    centers = centers + 0.1 * rng.standard_normal(centers.shape)  # two may be equal
    squares = np.square(features[:, None] - centers).sum(-1) / features.shape[1]
    weights = np.exp(squares.min(-1, keepdims=True) - squares)
    found: Array = weights / weights.sum(-1, keepdims=True)
    return found


def from_runs(x: Array, num_regimes: int, spec: Spec, rng: np.random.RandomState) -> Array:
    """Responsibilities by random runs of rows, each of one regime."""
    return random_runs(len(x), num_regimes, rng)


def random_runs(num_rows: int, num_regimes: int, rng: np.random.RandomState) -> Array:
    """Responsibilities by random runs of so many rows, each of one regime, ``(T, K)``."""
    number = min(_RUNS * num_regimes, num_rows)
    firsts = np.sort(rng.choice(np.arange(1, num_rows), number - 1, replace=False))
    runs = np.searchsorted(firsts, np.arange(num_rows), side="right")
    regimes = rng.permutation(np.arange(number) % num_regimes)
    return np.eye(num_regimes)[regimes[runs]]


def _standardised(features: Array) -> Array:
    """Features of mean 0 and unit variance."""
    deviations = features.std(0)
    return (features - features.mean(0)) / np.where(deviations > 0, deviations, 1.0)


def _averaged(features: Array, length: int) -> Array:
    """Averages over ``length`` rows around each; over those that there are at the ends."""
    window = np.ones(length)
    counts = np.convolve(np.ones(len(features)), window, "same")
    sums = [np.convolve(column, window, "same") for column in features.T]
    return np.stack(sums, 1) / counts[:, None]


class SoftStarts:
    """Makes the parameters of an emission from responsibilities.

    :param x: observations ``(T, D)``.
    """

    def __init__(self, x: Array, num_regimes: int, spec: Spec, rng: np.random.RandomState) -> None:
        self._x, self._num_regimes, self._spec, self._rng = x, num_regimes, spec, rng
        self._tensor = torch.tensor(x)

    def emission(self, responsibilities: Array) -> Emission:
        """The emission's parameters, with ``responsibilities`` ``(T, K)``."""
        number, spec = self._num_regimes, self._spec
        uniform = np.full(number, 1 / number)
        first = spec.overall(self._x, responsibilities, self._rng)
        parameters = Parameters(uniform, np.tile(uniform, (number, 1)), first)
        arguments = to_arguments(parameters, spec)
        em = IsolatedEM(pyro_model(arguments, spec, fixed=CHAIN_ARGUMENTS))
        shared = spec.shared_in_starts
        weights = (1 - shared) * responsibilities + shared / number
        values = em.maximise(torch.tensor(weights), _STEPS, self._tensor)
        return from_arguments({**arguments, **values}, parameters, spec).emission
