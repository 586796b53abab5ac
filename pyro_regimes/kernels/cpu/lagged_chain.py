r"""The chain of an EM step of Hamilton's autoregression, on arrays of P models.

Where the chain starts from its stationary distribution, the M-step is that of
:mod:`pyro_regimes.chain.stationary`: the counts n of its ``counts_at`` at A are normalised until A
stays, which is where the derivative of Q is 0.

Tuples of regimes are numbered with the latest varying fastest, so that tuple s has regime
:math:`\lfloor s / K^j \rfloor \bmod K` at lag j.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled

_MOST_ROUNDS = 60
_STILL = 1e-14  # a change of probabilities


@compiled
def stationary(transition: Any, room: Any, probs: Any) -> bool:
    """The stationary distribution, by elimination without subtractions (Grassmann et al. 1985)."""
    size = len(probs)
    room[:] = transition
    for last in range(size - 1, 0, -1):
        total = 0.0
        for j in range(last):
            total += room[last, j]
        if not total > 0.0:
            return False
        for i in range(last):
            room[i, last] /= total
            for j in range(last):
                room[i, j] += room[i, last] * room[last, j]
    probs[0] = total = 1.0
    for j in range(1, size):
        probs[j] = 0.0
        for i in range(j):
            probs[j] += probs[i] * room[i, j]
        total += probs[j]
    for j in range(size):
        probs[j] /= total
    return bool(math.isfinite(total))


@compiled
def prepare(
    initial: Any,  # (P, K), or (P, 0): the stationary distributions
    transition: Any,  # (P, K, K)
    logits: Any,  # (P, K, K), filled with logarithms of the transition probabilities
    start: Any,  # (P, S), filled with log probabilities of the first tuple
    sound: Any,  # (P,), filled: whether these are known
) -> None:
    """What the E-step takes of the chain."""
    num_states, num_tuples = transition.shape[1], start.shape[1]
    room, probs = np.empty((num_states, num_states)), np.empty(num_states)
    for p in range(len(transition)):
        sound[p] = True
        if initial.shape[1] > 0:
            probs[:] = initial[p]
        else:
            sound[p] = stationary(transition[p], room, probs)
        for i in range(num_states):
            for j in range(num_states):
                value = transition[p, i, j]
                logits[p, i, j] = math.log(value) if value > 0.0 else -np.inf
        for s in range(num_tuples):
            power = num_tuples // num_states
            state = s // power  # the oldest regime varies slowest
            start[p, s] = math.log(probs[state]) if probs[state] > 0.0 else -np.inf
            while power > 1:
                power //= num_states
                after = s // power % num_states
                start[p, s] += logits[p, state, after]
                state = after


@compiled
def _eliminate(matrix: Any, right: Any) -> bool:
    """Solve linear equations in place, with pivots of rows."""
    size = len(right)
    for k in range(size):
        best = k
        for i in range(k + 1, size):
            if abs(matrix[i, k]) > abs(matrix[best, k]):
                best = i
        if not abs(matrix[best, k]) > 0.0:
            return False
        for j in range(size):
            matrix[k, j], matrix[best, j] = matrix[best, j], matrix[k, j]
        right[k], right[best] = right[best], right[k]
        for i in range(k + 1, size):
            ratio = matrix[i, k] / matrix[k, k]
            right[i] -= ratio * right[k]
            for j in range(k, size):
                matrix[i, j] -= ratio * matrix[k, j]
    for k in range(size - 1, -1, -1):
        for j in range(k + 1, size):
            right[k] -= matrix[k, j] * right[j]
        right[k] /= matrix[k, k]
    return True


@compiled
def shares(counts: Any, old: Any, tiny: float, out: Any) -> bool:
    """Probabilities from counts ``(K, K)``; an entry that was 0 stays 0."""
    for i in range(len(counts)):
        total = 0.0
        for j in range(len(counts)):
            total += counts[i, j] if old[i, j] > 0.0 else 0.0
        if not total > tiny:
            return False
        for j in range(len(counts)):
            out[i, j] = max(counts[i, j] / total, tiny) if old[i, j] > 0.0 else 0.0
    return True


@compiled
def stationary_transitions(
    counts: Any,  # (K, K)
    starts: Any,  # (K,)
    old: Any,  # (K, K)
    tiny: float,
    out: Any,  # (K, K), filled
) -> bool:
    """The maximiser of Q with a stationary start; whether it was found."""
    size = len(starts)
    room, matrix, wanted = np.empty((size, size)), np.empty((size, size)), np.empty((size, size))
    probs, along = np.empty(size), np.empty(size)
    if not shares(counts, old, tiny, out):
        return False
    for _ in range(_MOST_ROUNDS):
        if not stationary(out, room, probs):
            return False
        number = 0.0
        for i in range(size):
            number += starts[i]
            along[i] = starts[i] / probs[i] if starts[i] > 0.0 else 0.0
            for j in range(size):
                matrix[i, j] = probs[j] - out[i, j] + (1.0 if i == j else 0.0)
        if not _eliminate(matrix, along):
            return False
        least = np.min(along) - number
        for i in range(size):
            for j in range(size):
                wanted[i, j] = counts[i, j] + probs[i] * out[i, j] * (along[j] - least)
        room[:] = out
        if not shares(wanted, old, tiny, out):
            return False
        change = np.max(np.abs(out - room))
        if not change > _STILL:
            return change == change
    return False


@compiled
def count(
    start: Any,  # (S,), gamma of the first tuple
    moved: Any,  # (K, K), the steps between rows
    counts: Any,  # (K, K), filled
    starts: Any,  # (K,), filled
) -> None:
    """The expected transitions, those inside the first tuple included, and first regimes."""
    num_states, num_tuples = len(moved), len(start)
    counts[:], starts[:] = moved, 0.0
    for s in range(num_tuples):
        power = num_tuples // num_states
        state = s // power
        starts[state] += start[s]
        while power > 1:
            power //= num_states
            after = s // power % num_states
            counts[state, after] += start[s]
            state = after
