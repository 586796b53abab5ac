"""What the scaled sweeps share: their limits, their work space, and sums without rounding."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled

#: A vector is scaled if its sum lies outside.
LOW, HIGH = 2.0**-64, 2.0**64
#: The share below which a state fades.
FADED = 1e-250
LEAST_OVERLAP = 1e-200
#: The largest sum of logits whose rounding error is known well enough.
LARGE = 2.0**50


class Room(NamedTuple):
    """Arrays that the sequences of one call use in turn, for vectors of W states."""

    alpha: Any  # (T or 2) * W
    emission: Any  # T * W, or empty: E is computed again on the way back
    matrix: Any  # W * W: M
    transposed: Any  # W * W
    outer: Any  # W * W: sums over time of alpha_t(i) w_{t+1}(j) / S_t
    row: Any  # W
    other: Any  # W
    totals: Any  # 3: see both_ends.py


@compiled
def add(total: float, rest: float, term: float) -> tuple[float, float]:
    """``total + term``, and the sum of what rounding has taken from it."""
    raised = total + term
    back = raised - total
    return raised, rest + ((total - (raised - back)) + (term - back))


@compiled
def times(number: float, count: int) -> tuple[float, float]:
    """``number * count`` as the sum of two numbers (Dekker 1971), for counts below 2^27."""
    split = 134217729.0 * number
    high = split - (split - number)
    return high * count, (number - high) * count


@compiled
def open_logits(initial: Any, observation: Any, logits: Any) -> tuple[float, float]:
    r"""The logits :math:`\pi_k + b_1(k)` of the first step relative to their largest.

    The sums are taken without rounding, as either may be so large that the other is lost in it.

    :param logits: those of the K states, filled; others are left as they are.
    :return: the largest as a sum of two numbers; -inf where all are, NaN where one is.
    """
    num_states = len(observation)
    best, best_rest = -np.inf, 0.0
    for k in range(num_states):
        value, rest = add(float(initial[k]), 0.0, float(observation[k]))
        if value == -np.inf:
            continue
        if value != value:
            logits[:num_states] = value
            return value, 0.0
        if best == -np.inf or (value - best) + (rest - best_rest) > 0.0:
            best, best_rest = value, rest
    for k in range(num_states):
        value, rest = add(float(initial[k]), 0.0, float(observation[k]))
        logits[k] = (value - best) + (rest - best_rest) if value > -np.inf else -np.inf
    return best, best_rest
