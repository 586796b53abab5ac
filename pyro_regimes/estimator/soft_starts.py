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
    features = _features(x, spec)
    if spec.starts_from_runs:
        features = _averaged(features, int(np.clip(len(x) // (_RUNS * num_regimes), 1, _LONGEST)))
    rows = features
    if len(rows) > _MOST_ROWS:
        rows = features[rng.choice(len(features), _MOST_ROWS, replace=False)]
    number = min(num_regimes, len(np.unique(rows, axis=0)))
    kmeans = KMeans(number, n_init=1, random_state=rng.randint(2**31 - 1)).fit(rows)
    members = np.zeros((len(x), num_regimes))
    members[np.arange(len(x)), kmeans.predict(features)] = 1.0
    return members


def from_observations(x: Array, num_regimes: int, spec: Spec, rng: np.random.RandomState) -> Array:
    """Responsibilities by the distances from random observations."""
    features = _features(x, spec)
    centers = features[rng.choice(len(x), num_regimes, replace=len(x) < num_regimes)]
    centers = centers + 0.1 * rng.standard_normal(centers.shape)  # two may be equal
    squares = np.square(features[:, None] - centers).sum(-1) / features.shape[1]
    weights = np.exp(squares.min(-1, keepdims=True) - squares)
    found: Array = weights / weights.sum(-1, keepdims=True)
    return found


def from_runs(x: Array, num_regimes: int, spec: Spec, rng: np.random.RandomState) -> Array:
    """Responsibilities by random runs of rows, each of one regime."""
    number = min(_RUNS * num_regimes, len(x))
    firsts = np.sort(rng.choice(np.arange(1, len(x)), number - 1, replace=False))
    runs = np.searchsorted(firsts, np.arange(len(x)), side="right")
    regimes = rng.permutation(np.arange(number) % num_regimes)
    return np.eye(num_regimes)[regimes[runs]]


def _features(x: Array, spec: Spec) -> Array:
    """Features of unit variance."""
    features = spec.features(x)
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
