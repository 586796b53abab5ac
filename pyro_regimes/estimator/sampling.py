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
