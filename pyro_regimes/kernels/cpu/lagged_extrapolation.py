r"""The extrapolation of EM's steps of Hamilton's autoregression, compiled.

The method and its coordinates are those of :mod:`pyro_regimes.infer.em.squarem`, for P independent
models at once, on the arrays of :mod:`.lagged_em`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.extrapolation import length_of, row_of
from pyro_regimes.kernels.cpu.jit import compiled


@compiled
def _of_model(given: Any, p: int) -> Any:
    """The parameters of one model."""
    return given[0][p], given[1][p], given[2][p], given[3][p], given[4][p]


@compiled
def _coordinates(
    given: Any,  # of one model: initial (K,) or (0,), transition, loc, coefficients, scale
    owners: Any,  # of the coefficients and of the scales
    unit: Any,  # (K,), scales
    point: Any,  # (n,), filled
) -> None:
    """Coordinates of :mod:`pyro_regimes.emissions.charts`; a shared parameter counts once."""
    initial, transition, loc, coefficients, scale = given
    num_states, order = coefficients.shape
    at = 0
    for i in range(len(initial)):
        point[at] = math.sqrt(initial[i])
        at += 1
    for i in range(num_states):
        for j in range(num_states):
            point[at] = math.sqrt(transition[i, j])
            at += 1
    for k in range(num_states):
        point[at] = loc[k] / unit[k]
        point[at + 1] = math.log(scale[k]) if owners[1][k] in (-1, k) else 0.0
        at += 2
        for j in range(order):
            point[at] = coefficients[k, j] if owners[0][k] in (-1, k) else 0.0
            at += 1


@compiled
def _write(
    point: Any,
    after: Any,  # the parameters after EM's step
    free: Any,
    unit: Any,
    floor: float,
    tiny: float,
    least_share: float,
    out: Any,
) -> bool:
    """The parameters at a point; those that are held fixed stay. Whether they are valid."""
    initial, transition, loc, coefficients, scale = out
    num_states, order = coefficients.shape
    at = len(initial)
    if at > 0:
        row_of(point[:at], after[0], free[0], tiny, least_share, initial)
    for i in range(num_states):
        is_free = free[1][i % len(free[1])]
        row_of(point[at : at + num_states], after[1][i], is_free, tiny, least_share, transition[i])
        at += num_states
    for k in range(num_states):
        loc[k] = point[at] * unit[k] if free[2] else after[2][k]
        scale[k], coefficients[k] = after[4][k], after[3][k]
        if free[4][k] == k:
            scale[k] = max(math.exp(point[at + 1]), math.sqrt(floor))
        elif free[4][k] >= 0:  # the owner comes before
            scale[k] = scale[free[4][k]]
        at += 2
        for j in range(order):
            if free[3][k] == k:
                coefficients[k, j] = point[at]
            elif free[3][k] >= 0:
                coefficients[k, j] = coefficients[free[3][k], j]
            at += 1
        if not tiny < scale[k] < np.inf:
            return False
    total = np.sum(transition) + np.sum(loc) + np.sum(coefficients) + np.sum(initial)
    return bool(math.isfinite(total))


@compiled
def squarem(
    before: Any,  # initial (P, K) or (P, 0), transition, loc, coefficients and scale
    now: Any,
    after: Any,
    free: Any,  # as in :func:`maximise`
    floor: float,
    tiny: float,
    least_share: float,
    bounds: Any,  # (P,), of the lengths
    new: Any,  # as ``now``, filled
    lengths: Any,  # (P,), filled
) -> None:
    """As :func:`.extrapolation.squarem`."""
    num_states, order = now[3].shape[1:]
    size = now[0].shape[1] + num_states * (num_states + 2 + order)
    start, middle, end = np.empty(size), np.empty(size), np.empty(size)
    owners = (free[3], free[4])
    for p in range(len(lengths)):
        unit = now[4][p]
        _coordinates(_of_model(before, p), owners, unit, start)
        _coordinates(_of_model(now, p), owners, unit, middle)
        _coordinates(_of_model(after, p), owners, unit, end)
        length = min(length_of(start, middle, end), bounds[p])
        lengths[p] = 0.0
        if length == 0.0:
            continue
        for i in range(size):
            step = middle[i] - start[i]
            start[i] += 2 * length * step + length**2 * (end[i] - middle[i] - step)
        own, out = _of_model(after, p), _of_model(new, p)
        if _write(start, own, free, unit, floor, tiny, least_share, out):
            lengths[p] = length
