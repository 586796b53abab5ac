"""Draws from a fitted model, from a generator of their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.spec import Spec


def draw(
    parameters: Parameters, spec: Spec, num_steps: int, rng: np.random.RandomState
) -> tuple[Array, npt.NDArray[np.int64]]:
    """One sequence and its states.

    :return: observations ``(T, D)`` and states ``(T,)``.
    """
    num_states = len(parameters.initial_probs)
    cumulative = parameters.transition_matrix.cumsum(-1)
    uniforms = rng.random_sample(num_steps)
    states = np.empty(num_steps, dtype=np.int64)
    row = parameters.initial_probs.cumsum()
    for step, uniform in enumerate(uniforms):
        # The last sum may be a little under 1, and the uniform above it.
        states[step] = min(np.searchsorted(row, uniform * row[-1], side="right"), num_states - 1)
        row = cumulative[states[step]]
    return spec.draw(parameters.emission, states, rng), states
