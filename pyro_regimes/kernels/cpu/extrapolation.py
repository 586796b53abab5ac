r"""The extrapolation of EM's steps of a Gaussian chain, compiled.

The method and its coordinates are those of :mod:`pyro_regimes.infer.em.squarem`, for P independent
models at once, on the arrays of :mod:`.m_step`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.m_step import cholesky, is_ordinary


@compiled
def _coordinates(
    initial: Any,  # (K,)
    transition: Any,  # (K, K)
    loc: Any,  # (K, D)
    spread: Any,  # (K, D, D or 1)
    owner: Any,  # (B,)
    unit: Any,  # (K, D)
    factor: Any,  # (D or 1, D or 1), overwritten
    point: Any,  # (n,)
) -> bool:
    """The coordinates of one model; False where a covariance is not positive definite.

    Those of blocks that share the parameter of another are 0: a parameter counts once.
    """
    num_states, size, columns = spread.shape
    of_state = len(owner) // num_states
    at = 0
    for i in range(num_states):
        point[at] = math.sqrt(initial[i])
        at += 1
    for i in range(num_states):
        for j in range(num_states):
            point[at] = math.sqrt(transition[i, j])
            at += 1
    for k in range(num_states):
        if columns == size and not cholesky(spread[k], 0.0, 0.0, factor):
            return False
        for i in range(size):
            block = k * of_state + (i if of_state == size else 0)
            is_own = owner[block] < 0 or owner[block] == block
            point[at] = loc[k, i] / unit[k, i]
            point[at + 1] = 0.0
            if is_own:
                point[at + 1] = 0.5 * math.log(spread[k, i, i if columns == size else 0])
            at += 2
            if columns == size:
                for j in range(i):
                    point[at] = factor[i, j] / factor[i, i] if is_own else 0.0
                    at += 1
    return True


@compiled
def row_of(
    roots: Any, after: Any, is_free: bool, tiny: float, least_share: float, out: Any
) -> None:
    """Probabilities of their square roots, at least a share of those after EM's step."""
    total, all_of_them = 0.0, 0.0
    for j in range(len(after)):
        total += roots[j] ** 2
    for j in range(len(after)):
        out[j] = max(roots[j] ** 2 / total, least_share * after[j])
        all_of_them += out[j]
    for j in range(len(after)):
        is_set = is_free and after[j] > 0.0
        out[j] = max(out[j] / all_of_them, tiny) if is_set else after[j]


@compiled
def _covariance(point: Any, at: int, factor: Any, out: Any) -> None:
    """A covariance matrix of its coordinates, which alternate with those of the location."""
    size = len(out)
    for i in range(size):
        deviation, length = math.exp(point[at + 1]), 1.0
        at += 2
        for j in range(i):
            factor[i, j] = point[at + j]
            length += factor[i, j] ** 2
        factor[i, i] = 1.0
        for j in range(i + 1):
            factor[i, j] *= deviation / math.sqrt(length)
        at += i
    for i in range(size):
        for j in range(i + 1):
            total = 0.0
            for k in range(j + 1):
                total += factor[i, k] * factor[j, k]
            out[i, j] = out[j, i] = total


@compiled
def _write(
    point: Any,
    after: Any,  # the parameters after EM's step
    free: Any,  # what the M-step sets, as in m_step
    unit: Any,
    tiny: float,
    least_share: float,
    factor: Any,
    out: Any,
) -> None:
    """The parameters at a point; those that are held fixed stay as they are."""
    initial, transition, loc, spread = out
    free_initial, free_rows, free_loc, owner = free
    num_states, size, columns = spread.shape
    at = 0
    row_of(point[:num_states], after[0], free_initial, tiny, least_share, initial)
    for i in range(num_states):
        at += num_states
        roots = point[at : at + num_states]
        row_of(roots, after[1][i], free_rows[i], tiny, least_share, transition[i])
    at += num_states
    of_state = len(owner) // num_states
    for k in range(num_states):
        first = at
        for i in range(size):
            loc[k, i] = point[at] * unit[k, i] if free_loc[k, i] else after[2][k, i]
            if columns < size or size == 1:
                to = owner[k * of_state + i]
                if to < 0:
                    spread[k, i, 0] = after[3][k, i, 0]
                elif to == k * of_state + i:
                    spread[k, i, 0] = math.exp(2 * point[at + 1])
                else:  # a block's owner comes before it
                    spread[k, i, 0] = spread[to // of_state, to % of_state, 0]
            at += 2 + (i if columns == size else 0)
        if columns == size and size > 1:
            if owner[k] == k:
                _covariance(point, first, factor, spread[k])
            else:
                given = spread[owner[k]] if owner[k] >= 0 else after[3][k]
                for i in range(size):
                    for j in range(size):
                        spread[k, i, j] = given[i, j]


@compiled
def length_of(start: Any, middle: Any, end: Any) -> float:
    r""":math:`|\alpha|`; 0 where the three points are nearly on one line, or are no numbers."""
    step, bend = 0.0, 0.0
    for i in range(len(start)):
        one = middle[i] - start[i]
        step += one**2
        bend += (end[i] - middle[i] - one) ** 2
    if not bend > 1e-24 * step or not math.isfinite(bend):
        return 0.0
    return max(1.0, math.sqrt(step / bend))


@compiled
def squarem(
    initial_before: Any,  # (P, K), and so on, as in m_step: before the last step
    transition_before: Any,
    loc_before: Any,
    spread_before: Any,
    initial_now: Any,
    transition_now: Any,
    loc_now: Any,
    spread_now: Any,
    initial_after: Any,  # after one more step
    transition_after: Any,
    loc_after: Any,
    spread_after: Any,
    free_initial: bool,
    free_rows: Any,
    free_loc: Any,
    owner: Any,
    tiny: float,
    floor: float,
    least: float,
    least_share: float,
    bounds: Any,  # (P,), of the lengths
    initial: Any,
    transition: Any,
    loc: Any,
    spread: Any,
    lengths: Any,  # (P,), overwritten
) -> None:
    r"""Extrapolated parameters, and :math:`|\alpha|` of each model.

    It is 0 where the extrapolated parameters are not ordinary.
    """
    num_states, size, columns = spread.shape[1:]
    below = size * (size - 1) // 2 if columns == size else 0
    count = num_states * (1 + num_states + 2 * size + below)
    start, middle, end = np.empty(count), np.empty(count), np.empty(count)
    factor, unit = np.empty((columns, columns)), np.empty((num_states, size))
    free = (free_initial, free_rows, free_loc, owner)
    for p in range(len(initial)):
        for k in range(num_states):
            for d in range(size):
                unit[k, d] = math.sqrt(spread_now[p, k, d, d if columns == size else 0])
        before = (initial_before[p], transition_before[p], loc_before[p], spread_before[p])
        now = (initial_now[p], transition_now[p], loc_now[p], spread_now[p])
        after = (initial_after[p], transition_after[p], loc_after[p], spread_after[p])
        out = (initial[p], transition[p], loc[p], spread[p])
        lengths[p] = 0.0
        if not (
            _coordinates(before[0], before[1], before[2], before[3], owner, unit, factor, start)
            and _coordinates(now[0], now[1], now[2], now[3], owner, unit, factor, middle)
            and _coordinates(after[0], after[1], after[2], after[3], owner, unit, factor, end)
        ):
            continue
        length = min(length_of(start, middle, end), bounds[p])
        if length == 0.0:
            continue
        for i in range(count):
            step = middle[i] - start[i]
            start[i] += 2 * length * step + length**2 * (end[i] - middle[i] - step)
        _write(start, after, free, unit, tiny, least_share, factor, out)
        if is_ordinary(spread[p], owner, tiny, floor, least, factor):
            lengths[p] = length
