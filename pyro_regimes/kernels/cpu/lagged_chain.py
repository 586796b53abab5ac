"""The chain of tuples of regimes in an EM step on arrays, for P independent models at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled


@compiled
def prepare(
    initial: Any,  # (P, K)
    transition: Any,  # (P, K, K)
    logits: Any,  # (P, K, K), filled with logarithms of the transition probabilities
    start: Any,  # (P, S), filled with log probabilities of the first tuple
) -> None:
    """What the E-step takes of the chain."""
    num_states, num_tuples = transition.shape[1], start.shape[1]
    for p in range(len(transition)):
        for i in range(num_states):
            for j in range(num_states):
                value = transition[p, i, j]
                logits[p, i, j] = math.log(value) if value > 0.0 else -np.inf
        for s in range(num_tuples):
            power = num_tuples // num_states
            state = s // power  # the oldest regime varies slowest
            start[p, s] = math.log(initial[p, state]) if initial[p, state] > 0.0 else -np.inf
            while power > 1:
                power //= num_states
                after = s // power % num_states
                start[p, s] += logits[p, state, after]
                state = after


@compiled
def count(
    start: Any,  # (P, S), gamma of the first tuple
    counts: Any,  # (P, K, K), the steps between rows; those inside the first tuple are added
    starts: Any,  # (P, K), filled with the expected first regimes
) -> None:
    """The expected counts of the chain."""
    num_states, num_tuples = counts.shape[1], start.shape[1]
    starts[:] = 0.0
    for p in range(len(start)):
        for s in range(num_tuples):
            power = num_tuples // num_states
            state = s // power
            starts[p, state] += start[p, s]
            while power > 1:
                power //= num_states
                after = s // power % num_states
                counts[p, state, after] += start[p, s]
                state = after
