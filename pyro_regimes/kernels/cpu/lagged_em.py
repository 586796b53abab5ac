r"""The M-step of Hamilton's autoregression on arrays, for P independent models.

It is that of :mod:`pyro_regimes.emissions.lagged_normal`, from second moments in each tuple of
regimes. The chain has :mod:`.lagged_chain` and :mod:`.stationary`.

A model has means ``(K,)``, coefficients ``(K, p)`` and scales ``(K,)``. An *owner* says for each
regime which is the first that shares its parameter, as in :mod:`.m_step`; -1 is held fixed. Tuples
are numbered with the latest regime varying fastest, so that tuple s has regime
:math:`\lfloor s / K^j \rfloor \bmod K` at lag j.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.lagged_chain import count, prepare
from pyro_regimes.kernels.cpu.lagged_extrapolation import squarem
from pyro_regimes.kernels.cpu.m_step import cholesky, fill_shares
from pyro_regimes.kernels.cpu.stationary import fill_stationary, maximise_stationary

__all__ = [
    "count",
    "fill_shares",
    "fill_stationary",
    "maximise",
    "maximise_stationary",
    "prepare",
    "squarem",
]

_LEAST_PIVOT = 1e-10  # of normal equations, as a share of their diagonal
_LEAST_SHARE = 1e-6  # as in emissions/lagged_normal.py


@compiled
def _solve(matrix: Any, right: Any, factor: Any, out: Any) -> bool:
    """The solution of normal equations; whether they determine it."""
    size = len(out)
    if not cholesky(matrix, 0.0, _LEAST_PIVOT, factor):
        return False
    for i in range(size):
        out[i] = right[i]
        for j in range(i):
            out[i] -= factor[i, j] * out[j]
        out[i] /= factor[i, i]
    for i in range(size - 1, -1, -1):
        for j in range(i + 1, size):
            out[i] -= factor[j, i] * out[j]
        out[i] /= factor[i, i]
        if not math.isfinite(out[i]):
            return False
    return True


@compiled
def _means(
    moments: Any,  # (S, p + 2, p + 2)
    coefficients: Any,  # (K, p)
    scale: Any,  # (K,)
    out: Any,  # (K,), filled: less the origin
) -> bool:
    """The means by weighted least squares."""
    num_states, order = coefficients.shape
    matrix, right = np.zeros((num_states, num_states)), np.zeros(num_states)
    row, factor = np.empty(num_states), np.empty((num_states, num_states))
    for s in range(len(moments)):
        latest, rest = s % num_states, s // num_states
        row[:] = 0.0
        row[latest] = 1.0
        total = moments[s, 0, 1]
        for j in range(order):
            row[rest % num_states] -= coefficients[latest, j]
            total -= coefficients[latest, j] * moments[s, 0, j + 2]
            rest //= num_states
        for i in range(num_states):
            weighted = row[i] / scale[latest] ** 2
            right[i] += weighted * total
            for j in range(num_states):
                matrix[i, j] += weighted * moments[s, 0, 0] * row[j]
    return _solve(matrix, right, factor, out)


@compiled
def _about_means(
    moments: Any,  # (S, p + 2, p + 2)
    shift: Any,  # (K,), the means less the origin
    out: Any,  # (K, p + 2, p + 2), filled
) -> bool:
    """Second moments of the deviations for each latest regime; whether they keep their digits."""
    num_states, size = len(shift), moments.shape[1]
    by, before = np.empty(size), np.zeros((num_states, size))
    out[:] = 0.0
    by[0] = 0.0
    for s in range(len(moments)):
        latest, rest = s % num_states, s
        for j in range(1, size):
            by[j] = shift[rest % num_states]
            rest //= num_states
        weight = moments[s, 0, 0]
        for i in range(size):
            before[latest, i] += moments[s, i, i]
            for j in range(size):
                moved = moments[s, i, j] - moments[s, 0, i] * by[j] - moments[s, 0, j] * by[i]
                out[latest, i, j] += moved + weight * by[i] * by[j]
    for k in range(num_states):
        for i in range(1, size):
            if not out[k, i, i] >= _LEAST_SHARE * before[k, i]:
                return False
    return True


@compiled
def _coefficients(
    about: Any,  # (K, p + 2, p + 2)
    scale: Any,  # (K,)
    owner: Any,  # (K,)
    out: Any,  # (K, p), filled where they are not held fixed
) -> bool:
    """The coefficients by weighted least squares, of each group of regimes."""
    num_states, order = out.shape
    factor, matrix = np.empty((order, order)), np.empty((order, order))
    right, found = np.empty(order), np.empty(order)
    for first in range(num_states):
        if owner[first] != first:
            continue
        matrix[:], right[:] = 0.0, 0.0
        for k in range(first, num_states):
            if owner[k] != first:
                continue
            for i in range(order):
                right[i] += about[k, i + 2, 1] / scale[k] ** 2
                for j in range(order):
                    matrix[i, j] += about[k, i + 2, j + 2] / scale[k] ** 2
        if not _solve(matrix, right, factor, found):
            return False
        for k in range(first, num_states):
            if owner[k] == first:
                out[k] = found
    return True


@compiled
def _scales(
    about: Any,  # (K, p + 2, p + 2)
    coefficients: Any,  # (K, p)
    owner: Any,  # (K,)
    floor: float,
    tiny: float,
    out: Any,  # (K,), filled where they are not held fixed
) -> bool:
    """The root mean squares of the residuals, of each group of regimes."""
    num_states, order = coefficients.shape
    for first in range(num_states):
        if owner[first] != first:
            continue
        weight, scatter = 0.0, 0.0
        for k in range(first, num_states):
            if owner[k] != first:
                continue
            weight += about[k, 0, 0]
            scatter += about[k, 1, 1]
            for i in range(order):
                scatter -= 2.0 * coefficients[k, i] * about[k, 1, i + 2]
                for j in range(order):
                    both = coefficients[k, i] * coefficients[k, j]
                    scatter += both * about[k, i + 2, j + 2]
        value = math.sqrt(max(scatter / weight, floor)) if weight > tiny else 0.0
        if not tiny < value < np.inf:
            return False
        for k in range(first, num_states):
            if owner[k] == first:
                out[k] = value
    return True


@compiled
def maximise(
    moments: Any,  # (P, S, p + 2, p + 2), about the origins
    origin: Any,  # (P or 1,)
    loc: Any,  # (P, K), the old ones
    coefficients: Any,  # (P, K, p)
    scale: Any,  # (P, K)
    free_loc: bool,
    owner_of_coefficients: Any,  # (K,)
    owner_of_scale: Any,  # (K,)
    floor: float,
    tiny: float,
    new_loc: Any,
    new_coefficients: Any,
    new_scale: Any,
    ordinary: Any,  # (P,), filled
) -> None:
    """The M-step of the observations: means, then coefficients given them, then scales."""
    num_states, order = coefficients.shape[1:]
    about, shift = np.empty((num_states, order + 2, order + 2)), np.empty(num_states)
    new_loc[:], new_coefficients[:], new_scale[:] = loc, coefficients, scale
    for p in range(len(loc)):
        ordinary[p] = False
        level = origin[p % len(origin)]
        if free_loc:
            if not _means(moments[p], coefficients[p], scale[p], shift):
                continue
            new_loc[p] = shift + level
        shift[:] = new_loc[p] - level
        if not _about_means(moments[p], shift, about):
            continue
        if not _coefficients(about, scale[p], owner_of_coefficients, new_coefficients[p]):
            continue
        owner, at = owner_of_scale, new_coefficients[p]
        ordinary[p] = _scales(about, at, owner, floor, tiny, new_scale[p])
