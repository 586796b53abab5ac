"""Draws from a fitted model with a private random generator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.spec import Spec

Integers = npt.NDArray[np.int64]


class Paths(NamedTuple):
    """Sequences that a model may take."""

    observations: Array  #: ``(n_paths, n, D)``
    regimes: Integers  #: ``(n_paths, n)``


def draw(
    parameters: Parameters, spec: Spec, num_steps: int, rng: np.random.RandomState
) -> tuple[Array, Integers]:
    """Draw one sequence and its states.

    :return: observations ``(T, D)`` and states ``(T,)``.
    """
    uniforms = rng.random_sample(num_steps)
    following = _following(parameters.transition_matrix, uniforms).tolist()
    states = np.empty(num_steps, dtype=np.int64)
    states[0] = state = int(_following(parameters.initial_probs[None], uniforms[:1])[0, 0])
    for step in range(1, num_steps):
        states[step] = state = following[step][state]
    return spec.draw(parameters.emission, states, rng), states


def draw_paths(
    first_probs: Array,
    parameters: Parameters,
    spec: Spec,
    shape: tuple[int, int],
    rng: np.random.RandomState,
) -> Paths:
    """Draw many sequences and their states.

    :param first_probs: probabilities of the first state, ``(K,)``.
    :param shape: the number of sequences and of their steps.
    """
    paths, regimes = np.arange(shape[0]), np.empty(shape, dtype=np.int64)
    uniforms = rng.random_sample(shape[::-1])
    regimes[:, 0] = _following(first_probs[None], uniforms[0])[:, 0]
    for step in range(1, shape[1]):
        following = _following(parameters.transition_matrix, uniforms[step])
        regimes[:, step] = following[paths, regimes[:, step - 1]]
    found = spec.draw(parameters.emission, regimes.reshape(-1), rng)
    return Paths(found.reshape(*shape, -1), regimes)


def _following(transition_probs: Array, uniforms: Array) -> Integers:
    """The next state after each of K states, by uniform numbers ``(n,)``: ``(n, K)``."""
    # The last cumulative sum may be slightly below 1, and the uniform number above it.
    most = transition_probs.shape[-1] - 1
    each = [
        np.minimum(np.searchsorted(sums, uniforms * sums[-1], side="right"), most)
        for sums in transition_probs.cumsum(-1)
    ]
    return np.stack(each, -1)
