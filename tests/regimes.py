"""A simulation with three known regimes, from the explicit model one step at a time."""

from __future__ import annotations

import numpy as np

from pyro_regimes.estimator.spec import find_spec
from tests import seeds

TRANSITIONS = np.array([[0.95, 0.04, 0.01], [0.05, 0.9, 0.05], [0.02, 0.08, 0.9]])
MEANS = np.array([[2.0, 1.0], [0.0, 0.0], [-2.0, -3.0]])
# The volatility of the middle regime is the largest: by volatility the order is another one.
COVARIANCES = {
    "full": np.array(
        [[[0.3, 0.1], [0.1, 0.2]], [[1.0, -0.4], [-0.4, 1.2]], [[0.5, 0.3], [0.3, 0.8]]]
    ),
    "diag": np.array([[0.3, 0.2], [1.0, 1.2], [0.5, 0.8]]),
    "spherical": np.array([0.2, 1.2, 0.7]),
    "tied": np.array([[0.6, 0.2], [0.2, 0.9]]),
}


def _path(rng: np.random.RandomState, num_steps: int) -> list[int]:
    states = [rng.randint(3)]
    for _ in range(num_steps - 1):
        states.append(rng.choice(3, p=TRANSITIONS[states[-1]]))
    return states


def simulate(covariance_type: str, num_steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations and states, from the explicit model one step at a time."""
    rng = seeds.rng(seed)
    emission = {"means": MEANS, "covariances": COVARIANCES[covariance_type]}
    full = find_spec(covariance_type).moments(emission).matrices()
    states = _path(rng, num_steps)
    while num_steps >= 50 and np.bincount(states, minlength=3).min() < 4:
        states = _path(rng, num_steps)  # else the covariance of a regime would be singular
    x = np.stack([rng.multivariate_normal(MEANS[state], full[state]) for state in states])
    return x, np.array(states)
