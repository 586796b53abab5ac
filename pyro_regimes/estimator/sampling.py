"""Draws from a fitted model with a private random generator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.spec import Spec


def draw(
    parameters: Parameters, spec: Spec, num_steps: int, rng: np.random.RandomState
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Draw one sequence and its states.

    :return: observations ``(T, D)`` and states ``(T,)``.
    """
    num_states = len(parameters.initial_probs)
    cumulative = parameters.transition_matrix.cumsum(-1)
    uniforms = rng.random_sample(num_steps)
    states = np.empty(num_steps, dtype=np.int64)
    row = parameters.initial_probs.cumsum()
    for step, uniform in enumerate(uniforms):
        # The last cumulative sum may be slightly below 1, and the uniform number above it.
        states[step] = min(np.searchsorted(row, uniform * row[-1], side="right"), num_states - 1)
        row = cumulative[states[step]]
    return spec.draw(parameters.emission, states, rng), states


def draw_paths(
    parameters: Parameters, sizes: list[int], number: int, rng: np.random.RandomState
) -> npt.NDArray[np.int64]:
    """Draw paths of states of several sequences, many at a time.

    :param parameters: their initial probabilities are ``(K,)``, or ``(N, K)`` of each sequence.
    :param sizes: the number of rows of each of the N sequences.
    :return: states ``(number, T)``.
    """
    steps = parameters.transition_matrix.cumsum(-1)
    first = parameters.initial_probs.cumsum(-1)
    first = np.broadcast_to(first, (len(sizes), first.shape[-1]))
    begins = dict(zip(np.cumsum([0, *sizes[:-1]]).tolist(), first, strict=True))
    uniforms = rng.random_sample((sum(sizes), number))
    states = np.empty((sum(sizes), number), dtype=np.int64)
    for step, uniform in enumerate(uniforms):
        rows = begins[step][np.newaxis] if step in begins else steps[states[step - 1]]
        # As in :func:`draw`, the last cumulative sum may be slightly below 1.
        passed = rows[:, :-1] <= (uniform * rows[:, -1])[:, np.newaxis]
        states[step] = passed.sum(-1)
    return states.T
