r"""The M-step of a hidden Markov model on arrays, for P independent models at once.

:func:`maximise` is that of a model of Gaussian observations, and :func:`maximise_chain` that of
the chain alone.

A spread is a covariance matrix for each state, ``(K, D, D)``, or a variance for each state and
series, ``(K, D, 1)``. Its *blocks* are the matrices, ``(K, 1)``, or the variances, ``(K, D)``.
``owner`` numbers the blocks in that order and gives each the first of those that are equal by
construction: one matrix for all states is tied, one variance for all series of a state spherical.
It is -1 for a block that is held fixed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled


@compiled
def cholesky(matrix: Any, floor: float, least: float, factor: Any) -> bool:
    """The lower factor of ``matrix - floor I``.

    :return: whether every pivot's square is more than ``least`` times the matrix's diagonal.
    """
    size = len(matrix)
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j] - (floor if i == j else 0.0)
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if i == j:
                if not total > least * matrix[i, i]:
                    return False
                factor[i, i] = math.sqrt(total)
            else:
                factor[i, j] = total / factor[j, j]
                factor[j, i] = 0.0
    return True


@compiled
def _share(counts: Any, old: Any, tiny: float, out: Any) -> bool:
    """Probabilities from counts; one that underflows stays the least number, a zero stays one."""
    total = 0.0
    for k in range(len(counts)):
        total += counts[k]
    if not total > tiny:
        return False
    for k in range(len(counts)):
        out[k] = counts[k] / total
        if old[k] > 0.0:
            out[k] = max(out[k], tiny)
    return True


@compiled
def fill_shares(counts: Any, old: Any, tiny: float, out: Any) -> None:
    """Probabilities from counts ``(n, K)``; NaN for a row without."""
    for row in range(len(counts)):
        if not _share(counts[row], old[row], tiny, out[row]):
            for k in range(counts.shape[1]):
                out[row, k] = np.nan


@compiled
def _maximise_chain(
    starts: Any,  # (K,), expected counts
    counts: Any,  # (K, K)
    old_initial: Any,
    old_transition: Any,
    free_initial: bool,
    free_rows: Any,  # (K,)
    tiny: float,
    initial: Any,
    transition: Any,
) -> bool:
    """Initial and transition probabilities (28 and 27); False where a row has no weight."""
    for k in range(len(starts)):
        initial[k] = old_initial[k]
        for j in range(len(starts)):
            transition[k, j] = old_transition[k, j]
    if free_initial and not _share(starts, old_initial, tiny, initial):
        return False
    for k in range(len(starts)):
        if free_rows[k] and not _share(counts[k], old_transition[k], tiny, transition[k]):
            return False
    return True


@compiled
def maximise_chain(
    starts: Any,  # (P, K), expected counts, with those of priors
    counts: Any,  # (P, K, K), likewise
    old_initial: Any,  # (P, K)
    old_transition: Any,  # (P, K, K)
    free_initial: bool,
    free_rows: Any,  # (K,)
    tiny: float,
    initial: Any,
    transition: Any,
    ordinary: Any,  # (P,)
) -> bool:
    """The M-step of the chain alone, and of which models it is ordinary.

    :return: whether of all.
    """
    whole = True
    for p in range(len(initial)):
        ordinary[p] = _maximise_chain(
            starts[p],
            counts[p],
            old_initial[p],
            old_transition[p],
            free_initial,
            free_rows,
            tiny,
            initial[p],
            transition[p],
        )
        whole = whole and ordinary[p]
    return whole


@compiled
def _scatter(
    total: Any,  # (K, 1 or D)
    first: Any,  # (K, D), of the deviations from the old locations
    second: Any,  # (K, D, D or 1), likewise
    step: Any,  # (K, D), of the locations
    out: Any,  # (K, D, D or 1)
) -> bool:
    r"""Sums of squares and products about the new locations.

    With the sums s and S of deviations from the old location, and its step m, they are
    :math:`S - m s^\top - s m^\top + n m m^\top`.

    :return: False where digits are lost: the step is large beside the spread.
    """
    num_states, size = step.shape
    is_full = second.shape[2] == size
    for k in range(num_states):
        for i in range(size):
            own = total[k, min(i, total.shape[1] - 1)]
            for j in range(0 if is_full else i, i + 1):
                lost = step[k, i] * first[k, j] + first[k, i] * step[k, j]
                lost -= own * step[k, i] * step[k, j]
                column = j if is_full else 0
                out[k, i, column] = second[k, i, column] - lost
                if is_full:
                    out[k, j, i] = out[k, i, j]
            if own * step[k, i] ** 2 > 1e3 * out[k, i, i if is_full else 0]:
                return False
    return True


@compiled
def _pool(
    scatter: Any,  # (B, E), of B blocks of E entries
    total: Any,  # (K, 1 or D)
    owner: Any,  # (B,)
    old: Any,  # (B, E)
    weight: Any,  # (B,), overwritten
    spread: Any,  # (B, E)
) -> None:
    """New spreads: the scatters of the blocks of one owner over their weights."""
    of_state = len(owner) // len(total)
    for b in range(len(owner)):
        weight[b] = 0.0
        for e in range(scatter.shape[1]):
            spread[b, e] = 0.0
    for b in range(len(owner)):
        to = owner[b]
        if to >= 0:
            weight[to] += total[b // of_state, min(b % of_state, total.shape[1] - 1)]
            for e in range(scatter.shape[1]):
                spread[to, e] += scatter[b, e]
    for b in range(len(owner) - 1, -1, -1):  # a block's owner comes before it
        to = owner[b]
        for e in range(scatter.shape[1]):
            spread[b, e] = spread[to, e] / weight[to] if to >= 0 else old[b, e]


@compiled
def is_ordinary(
    spread: Any,  # (K, D, D or 1)
    owner: Any,  # (B,)
    tiny: float,
    floor: float,
    least: float,
    factor: Any,  # (D or 1, D or 1), overwritten
) -> bool:
    """Whether no new spread is nearly singular or below the floor."""
    size = spread.shape[1]
    if spread.shape[2] < size or size == 1:
        variances = spread.reshape(-1)
        for b in range(len(owner)):
            if owner[b] == b and not variances[b] > max(tiny, floor):
                return False
        return True
    for k in range(len(owner)):
        if owner[k] == k:
            if not cholesky(spread[k], 0.0, least, factor):
                return False
            if floor > 0.0 and not cholesky(spread[k], floor, 0.0, factor):
                return False
    return True


@compiled
def _maximise_emission(
    total: Any,  # (K, 1 or D)
    first: Any,  # (K, D), of the deviations from the old locations
    second: Any,  # (K, D, D or 1), likewise
    old_loc: Any,  # (K, D)
    old_spread: Any,  # (K, D, D or 1)
    free_loc: Any,  # (K, D)
    owner: Any,  # (B,)
    bounds: Any,  # tiny, floor, least
    work: Any,  # (K, D), (K, D, D or 1), (B,) and (D or 1, D or 1), overwritten
    loc: Any,
    spread: Any,
) -> bool:
    """Locations and spreads (35 and 41); False where they are not ordinary."""
    step, scatter, weight, factor = work
    tiny, floor, least = bounds
    for k in range(len(total)):
        for d in range(total.shape[1]):
            if not total[k, d] > tiny:
                return False
        for d in range(loc.shape[1]):
            own = total[k, min(d, total.shape[1] - 1)]
            step[k, d] = first[k, d] / own if free_loc[k, d] else 0.0
            loc[k, d] = old_loc[k, d] + step[k, d]
    if not _scatter(total, first, second, step, scatter):
        return False
    blocks = (len(owner), -1)
    _pool(
        scatter.reshape(blocks),
        total,
        owner,
        old_spread.reshape(blocks),
        weight,
        spread.reshape(blocks),
    )
    return is_ordinary(spread, owner, tiny, floor, least, factor)


@compiled
def maximise(
    starts: Any,  # (P, K), expected counts, with those of priors
    counts: Any,  # (P, K, K), likewise
    total: Any,  # (P, K, 1), or (P, K, D) where series have weights of their own
    first: Any,  # (P, K, D), of the deviations from the old locations
    second: Any,  # (P, K, D, D or 1), likewise
    old_initial: Any,  # (P, K)
    old_transition: Any,  # (P, K, K)
    old_loc: Any,  # (P, K, D)
    old_spread: Any,  # (P, K, D, D or 1)
    free_initial: bool,
    free_rows: Any,  # (K,)
    free_loc: Any,  # (K, D)
    owner: Any,  # (B,)
    tiny: float,
    floor: float,
    least: float,
    initial: Any,
    transition: Any,
    loc: Any,
    spread: Any,
    ordinary: Any,  # (P,)
) -> bool:
    """The M-step (equations 28, 27, 35 and 41), and of which models it is ordinary.

    :return: whether of all.
    """
    num_states, size, columns = old_spread.shape[1:]
    work = (
        np.empty((num_states, size)),
        np.empty((num_states, size, columns)),
        np.empty(len(owner)),
        np.empty((columns, columns)),
    )
    whole = True
    for p in range(len(old_loc)):
        ordinary[p] = _maximise_chain(
            starts[p],
            counts[p],
            old_initial[p],
            old_transition[p],
            free_initial,
            free_rows,
            tiny,
            initial[p],
            transition[p],
        ) and _maximise_emission(
            total[p],
            first[p],
            second[p],
            old_loc[p],
            old_spread[p],
            free_loc,
            owner,
            (tiny, floor, least),
            work,
            loc[p],
            spread[p],
        )
        whole = whole and ordinary[p]
    return whole
