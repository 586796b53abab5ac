r"""The most likely paths of :mod:`pyro_regimes.kernels.lagged_reference`, compiled.

A step takes the maximum over the oldest state first, as its sums do:

.. math::
    m_{t-1}(r) = \max_o \delta_{t-1}(o, r), \qquad
    \delta_t(r, j) = m_{t-1}(r) + A_{ij} + b_t(r, j), \quad i = \text{the last state of } r.

Of equal values the first is taken, and sums are in the order of the reference, so that both find
the same path.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled


@compiled
def _step(
    best: Any,  # (S,): delta, replaced
    matrix: Any,  # (K, K)
    logits: Any,  # (S,)
    kept: Any,  # (K^p,)
    oldest: Any,  # (K^p,), filled
) -> None:
    num_states, num_kept = len(matrix), len(kept)
    kept[:] = best[:num_kept]
    oldest[:] = 0
    for o in range(1, num_states):
        for r in range(num_kept):
            if best[o * num_kept + r] > kept[r]:
                kept[r] = best[o * num_kept + r]
                oldest[r] = o
    for r in range(num_kept):
        for j in range(num_states):
            s = r * num_states + j
            best[s] = kept[r] + matrix[r % num_states, j] + logits[s]


@compiled
def decode(
    initial: Any,  # (N or 1, S)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, S)
    first: int,
    last: int,
    path: Any,  # (N, T): the tuples, filled
) -> None:
    """The paths of the sequences from ``first`` to ``last``."""
    num_steps, num_tuples = observation.shape[1:]
    num_states = transition.shape[2]
    num_kept = num_tuples // num_states
    kept, oldest = np.empty(num_kept), np.empty((num_steps, num_kept), np.int16)
    for n in range(first, last):
        matrices = transition[n % len(transition)]
        best = initial[n % len(initial)] + observation[n, 0]
        for t in range(1, num_steps):
            _step(best, matrices[(t - 1) % len(matrices)], observation[n, t], kept, oldest[t])
        now = np.argmax(best)
        path[n, num_steps - 1] = now
        for t in range(num_steps - 1, 0, -1):
            shared = now // num_states  # the states that both tuples have
            now = oldest[t, shared] * num_kept + shared
            path[n, t - 1] = now
