"""Stationary distributions, and the M-step of chains that start from them, for few states.

The formulas are those of :mod:`pyro_regimes.kernels.stationary` and
:mod:`pyro_regimes.chain.stationary`, whose tensor operations take twenty times as long for small
matrices. Matrices for which these kernels do not serve are reported. All arithmetic is float64, and
the results of one matrix do not depend on others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled

#: Larger matrices are left to tensor operations: a Newton step takes :math:`K^6` operations.
MAX_STATES = 6


@compiled
def _eliminate(probs: Any, reduced: Any, found: Any) -> bool:
    """Fill the stationary distribution, unless the first state is left for good."""
    num_states = len(probs)
    for i in range(num_states):
        total = 0.0
        for j in range(num_states):
            if not probs[i, j] >= 0.0:
                return False
            total += probs[i, j]
        if not 0.0 < total < np.inf:
            return False
        for j in range(num_states):
            reduced[i, j] = probs[i, j] / total
    for last in range(num_states - 1, 0, -1):
        total = 0.0
        for j in range(last):
            total += reduced[last, j]
        if not total > 0.0:
            return False
        for i in range(last):
            reduced[i, last] /= total
            for j in range(last):
                reduced[i, j] += reduced[i, last] * reduced[last, j]
    found[0], size = 1.0, 1.0
    for last in range(1, num_states):
        found[last] = 0.0
        for i in range(last):
            found[last] += found[i] * reduced[i, last]
        size += found[last]
    for i in range(num_states):
        found[i] /= size
    return size < np.inf


@compiled
def fill_stationary(probs: Any, found: Any, served: Any) -> bool:
    """Fill the stationary distributions ``(P, K)`` of matrices ``(P, K, K)``; whether of all.

    :param served: filled: of which, ``(P,)``.
    """
    reduced, every = np.empty(probs.shape[1:]), True
    for p in range(len(probs)):
        served[p] = _eliminate(probs[p], reduced, found[p])
        every &= served[p]
    return every


@compiled
def _log_product(count: float, probability: float) -> float:
    return count * math.log(probability) if count != 0.0 else 0.0


@compiled
def _objective(counts: Any, firsts: Any, probs: Any, initial: Any, work: Any) -> tuple[float, bool]:
    """Q, and whether pi is known; pi is filled."""
    if not _eliminate(probs, work, initial):
        return -np.inf, False
    value = 0.0
    for i in range(len(probs)):
        value += _log_product(firsts[i], initial[i])
        for j in range(len(probs)):
            value += _log_product(counts[i, j], probs[i, j])
    return value, True


@compiled
def _invert(matrix: Any, inverse: Any) -> bool:
    """Fill the inverse, by elimination with pivots, unless the matrix is singular."""
    size = len(matrix)
    for i in range(size):
        for j in range(size):
            inverse[i, j] = (1.0 if i == j else 0.0)
    for k in range(size):
        pivot = k
        for i in range(k + 1, size):
            if abs(matrix[i, k]) > abs(matrix[pivot, k]):
                pivot = i
        if not 0.0 < abs(matrix[pivot, k]) < np.inf:
            return False
        for j in range(size):
            matrix[k, j], matrix[pivot, j] = matrix[pivot, j], matrix[k, j]
            inverse[k, j], inverse[pivot, j] = inverse[pivot, j], inverse[k, j]
        for i in range(size):
            if i != k:
                share = matrix[i, k] / matrix[k, k]
                for j in range(size):
                    matrix[i, j] -= share * matrix[k, j]
                    inverse[i, j] -= share * inverse[k, j]
    for i in range(size):
        for j in range(size):
            inverse[i, j] /= matrix[i, i]
    return True


@compiled
def _solve(firsts: Any, probs: Any, initial: Any, inverse: Any, along: Any) -> bool:
    """Fill Z and u; whether Z exists."""
    num_states = len(probs)
    matrix = np.empty((num_states, num_states))
    for i in range(num_states):
        for j in range(num_states):
            matrix[i, j] = (1.0 if i == j else 0.0) - probs[i, j] + initial[j]
    if not _invert(matrix, inverse):
        return False
    for i in range(num_states):
        along[i] = 0.0
        for k in range(num_states):
            if firsts[k] > 0.0:
                along[i] += inverse[i, k] * (firsts[k] / initial[k])
    return True


@compiled
def _fill_curvature(
    totals: Any,  # (K,): of the rows of the counts
    firsts: Any,
    probs: Any,
    initial: Any,
    inverse: Any,
    along: Any,
    out: Any,  # (K K, K K)
) -> None:
    """Minus the second derivatives of Q in log A."""
    num_states = len(probs)
    centred = np.empty((num_states, num_states))
    for i in range(num_states):
        mean = 0.0
        for j in range(num_states):
            mean += probs[i, j] * along[j]
        for j in range(num_states):
            centred[i, j] = along[j] - mean
    moved, raised = np.empty(num_states), np.empty(num_states)
    change, turned = np.empty(num_states), np.empty(num_states)
    for a in range(num_states):
        for b in range(num_states):  # the direction: of log A[a, b]
            of_row = 0.0
            for j in range(num_states):
                moved[j] = probs[a, j] * ((1.0 if j == b else 0.0) - probs[a, b])
                of_row += moved[j] * along[j]
            inner = 0.0
            for k in range(num_states):
                raised[k] = 0.0
                for j in range(num_states):
                    raised[k] += moved[j] * inverse[j, k]
                raised[k] *= initial[a]
                inner += raised[k] * along[k]
            for i in range(num_states):
                change[i] = -inner + (of_row if i == a else 0.0)
                if firsts[i] > 0.0:
                    change[i] -= firsts[i] / initial[i] ** 2 * raised[i]
            for i in range(num_states):
                turned[i] = 0.0
                for k in range(num_states):
                    turned[i] += inverse[i, k] * change[k]
            for i in range(num_states):
                mean = 0.0
                for j in range(num_states):
                    mean += probs[i, j] * turned[j]
                for j in range(num_states):
                    value = raised[i] * probs[i, j] * centred[i, j]
                    value += initial[i] * probs[i, j] * (turned[j] - mean)
                    if i == a:
                        value += initial[i] * (moved[j] * centred[i, j] - probs[i, j] * of_row)
                        value -= totals[i] * moved[j]
                    out[i * num_states + j, a * num_states + b] = -value


@compiled
def _ascend(
    counts: Any,
    firsts: Any,
    totals: Any,
    probs: Any,
    initial: Any,
    free: Any,  # (K,): the rows that move
    is_plain: bool,
    longest: float,
    direction: Any,
) -> tuple[float, bool]:
    """Fill a direction of log A, if there is one.

    :return: the rise that it promises, and whether it is plain, as in
        :func:`.chain.stationary._ascent`.
    """
    num_states = len(probs)
    size = num_states * num_states
    along, score, scale = np.empty(num_states), np.empty(size), np.empty(size)
    inverse = np.empty((num_states, num_states))
    if not _solve(firsts, probs, initial, inverse, along):
        return 0.0, True
    for i in range(num_states):
        mean = 0.0
        for j in range(num_states):
            mean += probs[i, j] * along[j]
        for j in range(num_states):
            at = i * num_states + j
            score[at] = counts[i, j] - totals[i] * probs[i, j]
            score[at] += initial[i] * probs[i, j] * (along[j] - mean)
            known = (totals[i] + firsts[i]) * probs[i, j]
            scale[at] = 1.0 / math.sqrt(max(known, 1e-300))
            if not free[i] or probs[i, j] == 0.0:
                score[at] = scale[at] = 0.0
    curvature = np.empty((size, size))
    _fill_curvature(totals, firsts, probs, initial, inverse, along, curvature)
    for i in range(size):
        for j in range(i + 1):
            both = 0.5 * (curvature[i, j] + curvature[j, i]) * scale[i] * scale[j]
            curvature[i, j] = curvature[j, i] = both
    for i in range(size):
        for j in range(size):
            if not abs(curvature[i, j]) < np.inf:
                is_plain = True
    gain = 0.0
    if not is_plain:
        values, vectors = np.linalg.eigh(curvature)
        direction[:] = 0.0
        for k in range(size):
            share = 0.0
            for i in range(size):
                share += vectors[i, k] * scale[i] * score[i]
            share /= max(abs(values[k]), 1e-3)
            for i in range(size):
                direction[i] += vectors[i, k] * share
        for i in range(size):
            direction[i] = min(max(scale[i] * direction[i], -longest), longest)
            gain += score[i] * direction[i]
    if is_plain or not gain > 0.0:
        is_plain, gain = True, 0.0
        for i in range(size):
            direction[i] = min(max(scale[i] * scale[i] * score[i], -longest), longest)
            gain += score[i] * direction[i]
    return gain, is_plain


@compiled
def _climb(
    counts: Any,
    firsts: Any,
    totals: Any,
    free: Any,
    limits: Any,  # numbers of steps and of halvings, the least gain, and the longest step
    probs: Any,  # A, where the ascent begins; filled
    value: float,
) -> bool:
    """Newton steps with halving, as long as they raise Q; whether pi was known everywhere."""
    num_states = len(probs)
    initial, there = np.empty(num_states), np.empty(num_states)
    tried, work = np.empty((num_states, num_states)), np.empty((num_states, num_states))
    direction = np.empty(num_states * num_states)
    most_steps, most_halvings, least_gain, longest = limits
    asked = False
    if not _eliminate(probs, work, initial):
        return False
    for _ in range(most_steps):
        gain, is_plain = _ascend(
            counts, firsts, totals, probs, initial, free, asked, longest, direction
        )
        if not gain > least_gain * (1.0 + abs(value)):
            break
        size, has_risen = 1.0, False
        for _ in range(most_halvings):
            for i in range(num_states):
                total = 0.0
                for j in range(num_states):
                    step = size * direction[i * num_states + j]
                    tried[i, j] = probs[i, j] * math.exp(step)
                    total += tried[i, j]
                for j in range(num_states):
                    tried[i, j] /= total
            reached, is_known = _objective(counts, firsts, tried, there, work)
            if is_known and reached >= value + 1e-4 * size * gain:
                probs[:], initial[:], value, has_risen = tried, there, reached, True
                break
            size /= 2.0
        if not has_risen and (asked or is_plain):
            break
        asked = not has_risen
    return True


@compiled
def maximise_stationary(
    transitions: Any,  # (P, K, K): expected transitions
    starts: Any,  # (P, K): expected first states
    old: Any,  # (P, K, K)
    tiny: float,
    limits: Any,
    out: Any,  # (P, K, K), filled
    served: Any,  # (P,), filled: whether out is
) -> None:
    """The M-step of a stationary chain; see :func:`.chain.stationary._maximise`."""
    num_states = starts.shape[1]
    least = 2.2250738585072014e-308
    shape = (num_states, num_states)
    counts, before, work = np.empty(shape), np.empty(shape), np.empty(shape)
    totals, free = np.empty(num_states), np.empty(num_states, np.bool_)
    initial = np.empty(num_states)
    for p in range(len(old)):
        probs, firsts = out[p], starts[p]
        served[p] = False
        for i in range(num_states):
            size, totals[i] = 0.0, 0.0
            for j in range(num_states):
                size += old[p, i, j]
            for j in range(num_states):
                before[i, j] = old[p, i, j] / size
                counts[i, j] = transitions[p, i, j] if before[i, j] > 0.0 else 0.0
                totals[i] += counts[i, j]
            free[i] = totals[i] + firsts[i] > least
            for j in range(num_states):
                probs[i, j] = before[i, j]
                if totals[i] > least and before[i, j] > 0.0:
                    probs[i, j] = max(counts[i, j] / totals[i], tiny)
        value_before, is_known = _objective(counts, firsts, before, initial, work)
        if not is_known:
            continue
        value, is_known = _objective(counts, firsts, probs, initial, work)
        if not (is_known and value >= value_before):
            probs[:], value = before, value_before
        if not abs(value) < np.inf:
            continue
        if not _climb(counts, firsts, totals, free, limits, probs, value):
            continue
        served[p] = True
        for i in range(num_states):
            for j in range(num_states):
                if not free[i]:
                    probs[i, j] = old[p, i, j]
                elif before[i, j] > 0.0:
                    probs[i, j] = max(probs[i, j], tiny)
                else:
                    probs[i, j] = 0.0
                served[p] &= probs[i, j] == probs[i, j]
