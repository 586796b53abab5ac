r"""The transitions M of the scaled sweeps: all of them, or two diagonals.

In a chain from left to right a state is left for the next one only. Then M has a diagonal and one
above it, and a step takes two multiplications a state instead of K. The results are the same but
for the last digits, as what is left out is multiplied by 0.

``rows`` selects the form when a kernel is compiled: a vector of as many lanes as M has rows, or
None for two diagonals. These are the first two rows of ``room.matrix``, with :math:`M_{j-1,j}` in
lane j of the second, and of ``room.transposed``, with :math:`M_{i,i+1}` in lane i of the second.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.jit import compiled

#: An entry of M below counts as 0; see scaled.py.
NOTHING = 1e-290


@compiled
def find_two_diagonals(logits: Any, found: Any) -> None:
    """Fill which matrices ``(N, 1, K, K)`` are those of a chain from left to right, ``(N,)``."""
    num_states = logits.shape[-1]
    for n in range(len(found)):
        found[n] = True
        for i in range(num_states):
            for j in range(num_states):
                if j - i != 0 and j - i != 1 and logits[n, 0, i, j] > -np.inf:
                    found[n] = False


@compiled
def fill(logits: Any, room: Any, width: int, rows: Any) -> tuple[float, float, bool]:
    """M and its transpose, 0 beyond the K states.

    :return: what was subtracted from the logits; the least entry of M; and whether every possible
        transition has an entry.
    """
    num_states = logits.shape[0]
    peak = -np.inf
    for i in range(num_states):
        for j in range(num_states):
            value = logits[i, j]
            if value > peak or value != value:
                peak = value
    if peak == -np.inf:  # every transition is impossible: M = 0, whatever is subtracted
        peak = 0.0
    least, is_whole = 1.0, True
    for i in range(num_states):
        for j in range(num_states):
            if rows is None:
                if j - i != 0 and j - i != 1:
                    continue
            entry = math.exp(logits[i, j] - peak)
            least = min(least, entry)
            if entry < NOTHING:
                is_whole &= logits[i, j] == -np.inf
                entry = 0.0
            if rows is None:
                room.matrix[(j - i) * width + j] = entry
                room.transposed[(j - i) * width + i] = entry
            else:
                room.matrix[i * width + j] = entry
                room.transposed[j * width + i] = entry
    if rows is None:
        least = 0.0
    return float(peak), least, is_whole


@compiled
def origins(j: int, num_states: int, rows: Any) -> tuple[int, int]:
    """The range of states from which a transition may lead to state j."""
    if rows is None:
        return max(0, j - 1), j + 1
    else:
        return 0, num_states


@compiled
def forwards(state: Any, room: Any, rows: Any) -> Any:
    r""":math:`\sum_i x_i M_{ij}`."""
    if rows is None:
        width = simd.width_of(state)
        came = simd.multiply(simd.raised(state), simd.load(room.matrix, width, state))
        return simd.multiply_add(state, simd.load(room.matrix, 0, state), came)
    else:
        return simd.matvec(state, room.matrix, 0, rows)


@compiled
def backwards(state: Any, room: Any, rows: Any) -> Any:
    r""":math:`\sum_j M_{ij} x_j`."""
    if rows is None:
        width = simd.width_of(state)
        left = simd.multiply(simd.lowered(state), simd.load(room.transposed, width, state))
        return simd.multiply_add(state, simd.load(room.transposed, 0, state), left)
    else:
        return simd.matvec(state, room.transposed, 0, rows)


@compiled
def count(before: Any, after: Any, room: Any, rows: Any) -> None:
    """Add products of a state before and one after a move to ``room.outer``."""
    if rows is None:
        width = simd.width_of(before)
        stayed = simd.load(room.outer, 0, before)
        simd.store(room.outer, 0, simd.multiply_add(before, after, stayed))
        came = simd.load(room.outer, width, before)
        simd.store(room.outer, width, simd.multiply_add(simd.raised(before), after, came))
    else:
        simd.add_outer(room.outer, before, after, rows)


@compiled
def write_counts(out: Any, room: Any, width: int, rows: Any) -> None:
    """The entries of M times ``room.outer``."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            if rows is None:
                place = (j - i) * width + j
                if j - i != 0 and j - i != 1:
                    out[i, j] = 0.0
                    continue
            else:
                place = i * width + j
            out[i, j] = room.matrix[place] * room.outer[place]
