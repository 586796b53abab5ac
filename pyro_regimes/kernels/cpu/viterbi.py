"""The Viterbi path, compiled for any number of states.

For few states the vectors stay in registers. Arrays are as in :mod:`.scaled`. Sequences whose
result may depend on rounding are recomputed with exact sums.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.chain import array_of, move_into
from pyro_regimes.kernels.cpu.exact_sums import PAIR, clear, plus, put, shares_of, width_of
from pyro_regimes.kernels.cpu.filtering import comes_back
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.log_space import arrive, larger_reach

_LARGE = 2.0**17  # beyond it a sum is rounded by more than 1e-11
_MAX_LANES = 16  # the candidates for a maximum of more states do not fit into registers


def lanes_of(num_states: int) -> int:
    """The width of the vectors that hold so many states."""
    return max(4, 1 << (num_states - 1).bit_length())


def back_pointers(num_steps: int, num_states: int) -> npt.NDArray[np.unsignedinteger]:
    """Room for the back pointers of one sequence, in the smallest integers that hold a state."""
    width = lanes_of(num_states) if num_states <= _MAX_LANES else num_states
    return np.empty((num_steps, width), np.min_scalar_type(num_states - 1))


@cache
def viterbi(num_states: int) -> Callable[..., None]:
    r"""The kernel of the most likely path for so many states.

    Among equally likely paths it takes the one through the lowest states. Padding, and the path of
    a sequence of probability zero, are -1.

    .. math::
        \delta_t(j) = \max_i (\delta_{t-1}(i) + A_{ij}) + (b_t(j) - \max_k \delta_{t-1}(k)).

    Only differences decide, and kept near 0 they keep their precision over any T. The sums are
    taken in the order of :func:`.decoding.viterbi`, so that a tie here is one there. A sequence
    in which sums beyond ``_LARGE`` count, which rounding may decide, is reported for
    :func:`exact_viterbi`; see :func:`.cpu.filtering.comes_back`.
    """
    return _make_viterbi(lanes_of(num_states)) if num_states <= _MAX_LANES else _viterbi


@compiled
def _largest_move(slice_: Any) -> float:
    """The largest logit of a transition, 0 if every one is impossible."""
    largest = -np.inf
    for i in range(len(slice_)):
        for j in range(len(slice_)):
            largest = max(largest, slice_[i, j])
    return largest if largest > -np.inf else 0.0


@compiled
def _is_far(lanes: Any, nothing: Any, low: Any, high: Any) -> bool:
    """Whether a finite lane is not within ``low`` and ``high``."""
    finite = simd.multiply_add(lanes, nothing, lanes)  # NaN for an infinite one
    return simd.any_less(finite, low) or simd.any_less(high, finite)


@compiled
def _comes_back(
    best: Any, score: Any, peak: float, shift: float, low: Any, high: Any, before: Any, row: Any
) -> bool:
    """:func:`.filtering.comes_back`, for lanes; ``before`` and ``row`` are overwritten.

    :param low: what need not be looked at lies above it, and below ``high``.
    """
    nothing = simd.splat(0.0, best)
    if not (_is_far(best, nothing, low, high) or _is_far(score, nothing, low, high)):
        return False
    simd.store(before, 0, best)
    simd.store(row, 0, score)
    return comes_back(before, row, peak, shift, _LARGE)


@compiled
def _is_impossible(score: Any, num_states: int) -> bool:
    for k in range(num_states):
        if not score[k] == -np.inf:
            return False
    return True


@compiled
def _trace_back(score: Any, num_states: int, origins: Any, steps: int, path: Any) -> None:
    """Follow the back pointers from the best last state."""
    state = 0
    for k in range(1, num_states):
        if score[k] > score[state]:
            state = k
    for t in range(steps - 1, -1, -1):
        path[t] = state
        if t > 0:
            state = origins[t, state]


@compiled
def _viterbi(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    first: int,
    last: int,
    origins: Any,  # those of back_pointers
    paths: Any,  # (N, T), int64
    redo: Any,  # (N,): filled with the sequences whose sums are too large
) -> None:
    """Any number of states."""
    num_states = observation.shape[2]
    varying = transition.shape[1] > 1
    score, best = np.empty(num_states), np.empty(num_states)
    origin = np.zeros(num_states, dtype=np.int64)
    filled, shift = -1, 0.0
    for n in range(first, last):
        steps = lengths[n]
        own = n if len(transition) > 1 else 0
        start = array_of(initial, n)
        paths[n] = -1
        redo[n] = False
        peak = -np.inf
        for t in range(steps):
            if t == 0:
                for k in range(num_states):
                    best[k] = start[k]
                    score[k] = start[k] + observation[n, t, k]
            else:
                slice_ = transition[own, t - 1 if varying else 0]
                if varying or filled != own:
                    shift, filled = _largest_move(slice_), own
                for j in range(num_states):
                    best[j] = score[0] + slice_[0, j]
                    origin[j] = 0
                for i in range(1, num_states):
                    for j in range(num_states):
                        move = score[i] + slice_[i, j]
                        better = move > best[j]
                        best[j] = move if better else best[j]
                        origin[j] = i if better else origin[j]
                for j in range(num_states):
                    origins[t, j] = origin[j]
                    score[j] = best[j] + (observation[n, t, j] - peak)
            peak = -np.inf
            for k in range(num_states):
                if score[k] > peak or score[k] != score[k]:
                    peak = score[k]
            redo[n] |= comes_back(best, score, peak, shift if t > 0 else 0.0, _LARGE)
            if peak == -np.inf:
                break
        if not peak == -np.inf:
            _trace_back(score, num_states, origins, steps, paths[n])


@cache
def _make_viterbi(width: int) -> Callable[..., None]:
    """Few states, which live in registers; lanes beyond them hold -inf. Arguments as above."""

    @compiled
    def run(
        initial: Any,
        transition: Any,
        observation: Any,
        lengths: Any,
        first: int,
        last: int,
        origins: Any,
        paths: Any,
        redo: Any,
    ) -> None:
        num_steps, num_states = observation.shape[1], observation.shape[2]
        varying = transition.shape[1] > 1
        flat_observation, flat_origins = observation.reshape(-1), origins.reshape(-1)
        matrix, row, before = np.full(width * width, -np.inf), np.empty(width), np.empty(width)
        # What may have to be looked at: half of what is compared with numbers relative to a shift.
        low, high = simd.splat(-_LARGE / 2, width), simd.splat(_LARGE / 2, width)
        filled, shift = -1, 0.0
        for n in range(first, last):
            steps = lengths[n]
            own = n if len(transition) > 1 else 0
            at = n * num_steps * num_states
            start = array_of(initial, n)
            paths[n] = -1
            best = simd.load_row(start, 0, num_states, -np.inf, width)
            logits = simd.load_row(flat_observation, at, num_states, -np.inf, width)
            score = simd.add(logits, best)
            peak = simd.largest(score)
            large = _comes_back(best, score, peak, 0.0, low, high, before, row)
            for t in range(1, steps):
                if peak == -np.inf:
                    simd.store(row, 0, score)
                    if _is_impossible(row, num_states):
                        break
                    peak = np.nan  # which may hide from it
                if varying or filled != own:
                    slice_, filled = transition[own, t - 1 if varying else 0], own
                    shift = _largest_move(slice_)
                    for i in range(num_states):
                        for j in range(num_states):
                            matrix[i * width + j] = slice_[i, j]
                best = simd.best_moves(score, matrix, flat_origins, t * width)
                logits = simd.load_row(
                    flat_observation, at + t * num_states, num_states, -np.inf, width
                )
                score = simd.add(best, simd.subtract(logits, simd.splat(peak, width)))
                peak = simd.largest(score)
                large |= _comes_back(best, score, peak, shift, low, high, before, row)
            redo[n] = large
            simd.store(row, 0, score)
            if not _is_impossible(row, num_states):
                _trace_back(row, num_states, origins, steps, paths[n])

    return run


@compiled
def exact_viterbi(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    first: int,
    last: int,
    paths: Any,  # (N, T), int64
    redo: Any,  # (N,): the sequences to work on
) -> None:
    """The most likely path in exact sums; ties are exact ones."""
    num_steps, num_states = observation.shape[1], observation.shape[2]
    came_from = np.empty((num_steps, num_states), np.int64)
    for n in range(first, last):
        if not redo[n]:
            continue
        steps = lengths[n]
        slices = array_of(transition, n)
        start = array_of(initial, n)
        width = PAIR
        while True:
            state, reach = _best_path(start, slices, observation[n], steps, width, came_from)
            needed = width_of(reach, steps)
            if needed <= width:
                break
            width = needed
        paths[n] = -1
        if state >= 0:
            for t in range(steps - 1, -1, -1):
                paths[n, t] = state
                state = came_from[t, state]


@compiled
def _best_path(
    initial: Any, transition: Any, observation: Any, steps: int, width: int, came_from: Any
) -> tuple[int, float]:
    """:return: the best last state, -1 if there is none, and the largest of the numbers."""
    num_states = observation.shape[1]
    score = np.empty((2, num_states, width))
    terms, room = np.empty((num_states, width)), np.empty(width)
    shares = np.empty(num_states)
    reach = 0.0
    for t in range(steps):
        slice_ = move_into(transition, t)
        possible = False
        for j in range(num_states):
            now = score[t % 2, j]
            came_from[t, j] = 0
            if t == 0:
                clear(now)
                plus(now, now, initial[j])
            else:
                best = arrive(score[(t - 1) % 2], slice_, j, terms, shares, room)
                if best < 0:
                    put(now, -np.inf)
                    continue
                came_from[t, j] = best
                reach = larger_reach(reach, terms[best])
                plus(now, terms[best], 0.0)
            reach = larger_reach(reach, now)
            plus(now, now, observation[t, j])
            reach = larger_reach(reach, now)
            possible |= now[0] != -np.inf
        if not possible:
            return -1, reach
    return shares_of(score[(steps - 1) % 2], shares, room), reach
