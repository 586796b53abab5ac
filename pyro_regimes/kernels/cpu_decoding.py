r"""The filter, the Viterbi path and random paths, compiled for any number of states.

A kernel works on the sequences (or the paths) ``first`` to ``last`` of a range. Arrays are as
those of :mod:`.cpu_scaled`, and results go to the arrays that come last.

**Numbers that fade.** A prediction and a draw both sum products of probabilities, which is quick
but loses what falls below the smallest number. Such a sum is kept where it is at least
``_TRUSTED``: whatever was lost then is less than 1e-100 of it. A smaller one, 0 included, is added
up again from logarithms, for that state at that step alone. So nothing that can be reached ever
fades, and a state that cannot be reached stays at exactly 0.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Callable

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyro_regimes.kernels import simd
from pyro_regimes.kernels.jit import compiled

_TRUSTED = 1e-200
_MAX_LANES = 16  # the candidates for a maximum of more states do not fit into registers


def lanes_of(num_states: int) -> int:
    """The width of the vectors that hold so many states."""
    return max(4, 1 << (num_states - 1).bit_length())


@compiled
def _fill_matrix(logits: Any, matrix: Any) -> float:
    """``matrix = exp(logits - peak)``.

    :return: the peak, which is the largest entry.
    """
    peak = -np.inf
    for i in range(len(logits)):
        for j in range(len(logits)):
            value = logits[i, j]
            if value > peak or value != value:
                peak = value
    if peak == -np.inf:  # every transition is impossible: 0 throughout, whatever is subtracted
        peak = 0.0
    for i in range(len(logits)):
        for j in range(len(logits)):
            matrix[i, j] = math.exp(logits[i, j] - peak)
    return float(peak)


@compiled
def _log_prediction(filtered: Any, slice_: Any, new: int) -> float:
    r"""``log sum_i exp(filtered_i + slice_ij)`` for one new state j."""
    peak = -np.inf
    for old in range(len(filtered)):
        term = filtered[old] + slice_[old, new]
        if term > peak or term != term:
            peak = term
    if peak == -np.inf:
        return peak
    size = 0.0
    for old in range(len(filtered)):
        size += math.exp(filtered[old] + slice_[old, new] - peak)
    return peak + math.log(size)


@compiled
def filter_sweep(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    first: int,
    last: int,
    logits: Any,  # (N, T, K)
    probs: Any,  # (N, T, K), or (0, 0, 0): the logarithms alone
) -> None:
    r"""The filter :math:`\alpha_t(k) = p(q_t = k \mid x_1, \dots, x_t)` and its logarithm,

    .. math:: \log \alpha_t(j) = \log \sum_i \alpha_{t-1}(i) e^{A_{ij}} + b_t(j) - c_t,

    with :math:`c_t` such that :math:`\sum_j \alpha_t(j) = 1`. From the step at which a sequence has
    become impossible on it is 0; padding repeats the last observation's.
    """
    num_states = observation.shape[2]
    both = len(probs) > 0
    varying = transition.shape[1] > 1
    filtered, share = np.empty(num_states), np.empty(num_states)
    predicted = np.empty(num_states)
    matrix = np.empty((num_states, num_states))
    filled, shift = -1, 0.0
    for n in range(first, last):
        steps = lengths[n]
        own = n if len(transition) > 1 else 0
        start = initial[n if len(initial) > 1 else 0]
        for t in range(steps):
            if t == 0:
                for k in range(num_states):
                    predicted[k] = start[k]
            else:
                slice_ = transition[own, t - 1 if varying else 0]
                if varying or filled != own:
                    shift, filled = _fill_matrix(slice_, matrix), own
                for j in range(num_states):
                    predicted[j] = 0.0
                for i in range(num_states):
                    for j in range(num_states):
                        predicted[j] += share[i] * matrix[i, j]
                for j in range(num_states):
                    if predicted[j] >= _TRUSTED:
                        predicted[j] = math.log(predicted[j]) + shift
                    else:
                        predicted[j] = _log_prediction(filtered, slice_, j)
            peak = -np.inf
            for k in range(num_states):
                filtered[k] = predicted[k] + observation[n, t, k]
                if filtered[k] > peak or filtered[k] != filtered[k]:
                    peak = filtered[k]
            if peak == -np.inf:
                steps = t
                filtered[:] = -np.inf
                share[:] = 0.0
                break
            size = 0.0
            for k in range(num_states):
                filtered[k] -= peak
                share[k] = math.exp(filtered[k])
                size += share[k]
            scale, log_size = 1.0 / size, math.log(size)
            for k in range(num_states):
                filtered[k] -= log_size
                share[k] *= scale
                logits[n, t, k] = filtered[k]
                if both:
                    probs[n, t, k] = share[k]
        for t in range(steps, logits.shape[1]):
            for k in range(num_states):
                logits[n, t, k] = filtered[k]
                if both:
                    probs[n, t, k] = share[k]


def back_pointers(num_steps: int, num_states: int) -> npt.NDArray[np.unsignedinteger]:
    """Room for the back pointers of one sequence, in the smallest integers that hold a state."""
    width = lanes_of(num_states) if num_states <= _MAX_LANES else num_states
    return np.empty((num_steps, width), np.min_scalar_type(num_states - 1))


@cache
def viterbi(num_states: int) -> Callable[..., None]:
    r"""The kernel of the most likely path for so many states.

    Of equal paths it takes the one through the lowest states. Padding, and a path where there is
    none, are -1.

    .. math::
        \delta_t(j) = \max_i (\delta_{t-1}(i) + A_{ij}) + (b_t(j) - \max_k \delta_{t-1}(k)).

    Only differences decide, and kept near 0 they keep their precision over any T. The sums are
    taken in the order of :func:`.decoding.viterbi`, so that a tie here is one there.
    """
    return _make_viterbi(lanes_of(num_states)) if num_states <= _MAX_LANES else _viterbi


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
) -> None:
    """Any number of states."""
    num_states = observation.shape[2]
    varying = transition.shape[1] > 1
    score, best = np.empty(num_states), np.empty(num_states)
    origin = np.zeros(num_states, dtype=np.int64)
    for n in range(first, last):
        steps = lengths[n]
        own = n if len(transition) > 1 else 0
        start = initial[n if len(initial) > 1 else 0]
        paths[n] = -1
        peak = -np.inf
        for t in range(steps):
            if t == 0:
                for k in range(num_states):
                    score[k] = start[k] + observation[n, t, k]
            else:
                slice_ = transition[own, t - 1 if varying else 0]
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
            if peak == -np.inf:
                break
        if not peak == -np.inf:
            _trace_back(score, num_states, origins, steps, paths[n])


@intrinsic
def _best_moves(typingctx: Any, score: Any, matrix: Any, origins: Any, offset: Any) -> Any:
    r"""Lanes of :math:`\max_i (x_i + M_{ij})`; the least such i goes to ``origins[offset + j]``.

    The W x W matrix is flat, the back pointers are flat bytes. The candidates are compared in
    pairs, pairs of pairs and so on, as one would wait for each comparison in turn.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, matrix_value, origins_value, at = args
        width = score.width
        doubles = ir.VectorType(ir.DoubleType(), width)
        integers = ir.VectorType(ir.IntType(64), width)
        bytes_ = ir.VectorType(ir.IntType(8), width)
        rows = context.make_array(matrix)(context, builder, matrix_value).data
        places = context.make_array(origins)(context, builder, origins_value).data
        found = []
        for i in range(width):
            lane = ir.Constant(ir.VectorType(ir.IntType(32), width), [i] * width)
            row = builder.gep(rows, [ir.Constant(ir.IntType(64), i * width)])
            row = builder.load(builder.bitcast(row, ir.PointerType(doubles)), align=8)
            move = builder.fadd(builder.shuffle_vector(vector, vector, lane), row)
            # As wide as the numbers, so that one mask selects both.
            found.append((move, ir.Constant(integers, [i] * width)))
        while len(found) > 1:
            pairs = zip(found[::2], found[1::2], strict=True)
            found = []
            for (lower, from_lower), (higher, from_higher) in pairs:
                better = builder.fcmp_ordered(">", higher, lower)
                found.append(
                    (
                        builder.select(better, higher, lower),
                        builder.select(better, from_higher, from_lower),
                    )
                )
        ((best, origin),) = found
        place = builder.bitcast(builder.gep(places, [at]), ir.PointerType(bytes_))
        builder.store(builder.trunc(origin, bytes_), place, align=1)
        return best

    return score(score, matrix, origins, types.intp), generate


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
    ) -> None:
        num_steps, num_states = observation.shape[1], observation.shape[2]
        varying = transition.shape[1] > 1
        flat_observation, flat_origins = observation.reshape(-1), origins.reshape(-1)
        matrix, row = np.full(width * width, -np.inf), np.empty(width)
        filled = -1
        for n in range(first, last):
            steps = lengths[n]
            own = n if len(transition) > 1 else 0
            at = n * num_steps * num_states
            start = initial[n if len(initial) > 1 else 0]
            paths[n] = -1
            score = simd.add(
                simd.load_row(flat_observation, at, num_states, -np.inf, width),
                simd.load_row(start, 0, num_states, -np.inf, width),
            )
            peak = simd.largest(score)
            for t in range(1, steps):
                if peak == -np.inf:
                    simd.store(row, 0, score)
                    if _is_impossible(row, num_states):
                        break
                    peak = np.nan  # which may hide from it
                if varying or filled != own:
                    slice_, filled = transition[own, t - 1 if varying else 0], own
                    for i in range(num_states):
                        for j in range(num_states):
                            matrix[i * width + j] = slice_[i, j]
                best = _best_moves(score, matrix, flat_origins, t * width)
                logits = simd.load_row(
                    flat_observation, at + t * num_states, num_states, -np.inf, width
                )
                score = simd.add(best, simd.subtract(logits, simd.splat(peak, width)))
                peak = simd.largest(score)
            simd.store(row, 0, score)
            if not _is_impossible(row, num_states):
                _trace_back(row, num_states, origins, steps, paths[n])

    return run


@compiled
def _pick(weights: Any, total: float, uniform: float) -> int:
    """The state in whose part of ``(0, total)`` a uniform number falls, never one of weight 0."""
    mark, passed, state = uniform * total, 0.0, 0
    for k in range(len(weights)):
        passed += weights[k]
        if weights[k] > 0.0:
            state = k
            if passed > mark:
                break
    return state


@compiled
def _exponentiate(weights: Any) -> float:
    """Turn logarithms into weights of which the largest is 1.

    :return: the weights' sum.
    """
    peak = -np.inf
    for k in range(len(weights)):
        peak = max(peak, weights[k])
    total = 0.0
    for k in range(len(weights)):
        weights[k] = math.exp(weights[k] - peak) if weights[k] > -np.inf else 0.0
        total += weights[k]
    return total


@compiled
def posterior_paths(
    logits: Any,  # (N, T, K), float64: the filter
    probs: Any,  # (N, T, K), float64: its exponential
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    matrix: Any,  # (N or 1, 1, K, K), (new, old): exp A up to a factor; or (0, 0, 0, 0), A varies
    lengths: Any,  # (N,)
    uniforms: Any,  # (M, T), in [0, 1)
    skipped: int,  # paths drawn before these: path m is of sequence (skipped + m) mod N
    first: int,
    last: int,
    paths: Any,  # (M, T), int64
) -> None:
    r"""Draw backwards from :math:`p(q_t = i \mid q_{t+1} = j, x) \propto \alpha_t(i) e^{A_{ij}}`.

    Padding and the paths of a sequence of probability zero are -1.
    """
    num_sequences, _, num_states = logits.shape
    varying = len(matrix) == 0
    weights = np.empty(num_states)
    for m in range(first, last):
        n = (skipped + m) % num_sequences
        paths[m] = -1
        end = lengths[n] - 1
        total = 0.0
        for k in range(num_states):
            total += probs[n, end, k]
        if total == 0.0:
            continue
        state = _pick(probs[n, end], total, uniforms[m, end])
        paths[m, end] = state
        own = n if len(transition) > 1 else 0
        for t in range(end - 1, -1, -1):
            total = 0.0
            if not varying:
                for i in range(num_states):
                    weights[i] = probs[n, t, i] * matrix[own, 0, state, i]
                    total += weights[i]
            if not total >= _TRUSTED:
                slice_ = transition[own, t if varying else 0]
                for i in range(num_states):
                    weights[i] = logits[n, t, i] + slice_[i, state]
                total = _exponentiate(weights)
            state = _pick(weights, total, uniforms[m, t])
            paths[m, t] = state


@compiled
def prior_paths(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    matrix: Any,  # (N or 1, 1, K, K), (old, new): exp A, row by row; or (0, 0, 0, 0), A varies
    num_sequences: int,
    uniforms: Any,  # (M, T), in [0, 1)
    skipped: int,  # paths drawn before these: path m is of sequence (skipped + m) mod N
    first: int,
    last: int,
    paths: Any,  # (M, T), int64
) -> None:
    r"""Draw forwards from :math:`p(q_1 = j) \propto e^{\pi_j}` and
    :math:`p(q_t = j \mid q_{t-1} = i) \propto e^{A_{ij}}`.
    """
    num_states = initial.shape[1]
    varying = len(matrix) == 0
    weights = np.empty(num_states)
    for m in range(first, last):
        n = (skipped + m) % num_sequences
        own = n if len(transition) > 1 else 0
        weights[:] = initial[n if len(initial) > 1 else 0]
        state = _pick(weights, _exponentiate(weights), uniforms[m, 0])
        paths[m, 0] = state
        for t in range(1, paths.shape[1]):
            if varying:
                weights[:] = transition[own, t - 1, state]
                state = _pick(weights, _exponentiate(weights), uniforms[m, t])
            else:
                row = matrix[own, 0, state]
                total = 0.0
                for k in range(num_states):
                    total += row[k]
                state = _pick(row, total, uniforms[m, t])
            paths[m, t] = state
