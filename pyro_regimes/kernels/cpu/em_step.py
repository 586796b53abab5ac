r"""The loops of an EM step of a Gaussian hidden Markov model on arrays.

Densities, the E-step and weighted moments are the kernels that every model uses. :func:`prepare`
and :func:`maximise` run before and after them, for P independent models at once. A whole step on
arrays avoids tensor operations: a few hundred short operations take longer than the kernels do for
some thousand observations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.densities import fill_log_density
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.launch import sweep_arrays
from pyro_regimes.kernels.cpu.moments import sum_moments

__all__ = ["fill_log_density", "maximise", "prepare", "sum_moments", "sweep_arrays"]


@compiled
def _cholesky(matrix: Any, floor: float, least: float, factor: Any) -> bool:
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
def prepare(
    initial: Any,  # (P, K)
    transition: Any,  # (P, K, K)
    loc: Any,  # (P, K, D)
    covariance: Any,  # (P, K, D, D)
    log_initial: Any,  # (P or N, K)
    log_transition: Any,  # (P or N, 1, K, K)
    mean: Any,  # (P or N, K, D)
    factor: Any,  # (P or N, K, D, D)
    sound: Any,  # (P,)
) -> bool:
    """What the kernels take, and of which models every covariance is positive definite.

    The others have factors that are no use, of numbers all the same.

    :return: whether there are no others.
    """
    num_states = initial.shape[1]
    each = len(log_initial) // len(initial)
    whole = True
    for p in range(len(initial)):
        sound[p] = True
    for n in range(len(log_initial)):
        p = n // each
        total = 0.0
        for i in range(num_states):
            total += initial[p, i]
        for i in range(num_states):
            row = 0.0
            for j in range(num_states):
                row += transition[p, i, j]
            log_initial[n, i] = math.log(initial[p, i] / total) if initial[p, i] > 0 else -np.inf
            for j in range(num_states):
                entry = transition[p, i, j]
                log_transition[n, 0, i, j] = math.log(entry / row) if entry > 0 else -np.inf
            for d in range(loc.shape[2]):  # numba takes a second to compile an array's assignment
                mean[n, i, d] = loc[p, i, d]
            if not _cholesky(covariance[p, i], 0.0, 0.0, factor[n, i]):
                sound[p] = whole = False
                for d in range(loc.shape[2]):
                    for e in range(loc.shape[2]):
                        factor[n, i, d, e] = 1.0 if d == e else 0.0
    return whole


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
def _maximise_one(
    smoothed: Any,  # (n, T, K), of the model's n sequences
    moved: Any,
    weight: Any,
    first: Any,
    second: Any,
    old_initial: Any,  # (K,)
    old_transition: Any,
    old_loc: Any,
    tiny: float,
    floor: float,
    least: float,
    initial: Any,
    transition: Any,
    loc: Any,
    covariance: Any,
    counts: Any,  # (K, K); this and the next are overwritten
    starts: Any,  # (K,)
    factor: Any,  # (D, D)
) -> bool:
    """The M-step of one model; False where it is not ordinary."""
    num_states, size = old_loc.shape
    starts[:] = 0.0
    counts[:] = 0.0
    for n in range(len(weight)):
        for k in range(num_states):
            starts[k] += smoothed[n, 0, k]
            for j in range(num_states):
                counts[k, j] += moved[n, 0, k, j]
    if not _share(starts, old_initial, tiny, initial):
        return False
    for k in range(num_states):
        if not _share(counts[k], old_transition[k], tiny, transition[k]):
            return False
        total = 0.0
        for n in range(len(weight)):
            total += weight[n, k]
        if not total > tiny:
            return False
        for i in range(size):
            step = 0.0
            for n in range(len(weight)):
                step += first[n, k, i]
            loc[k, i] = step / total  # for now, from the old location
        for i in range(size):
            for j in range(i + 1):
                about = 0.0
                for n in range(len(weight)):
                    about += second[n, k, i, j]
                about = about / total - loc[k, i] * loc[k, j]
                covariance[k, i, j] = about
                covariance[k, j, i] = about
            # About the new location the square is less by that of the step: more than a
            # thousandth of it must be left, lest digits are lost.
            if loc[k, i] ** 2 > 1e3 * covariance[k, i, i]:
                return False
        if not _cholesky(covariance[k], 0.0, least, factor):
            return False
        if floor > 0.0 and not _cholesky(covariance[k], floor, 0.0, factor):
            return False
        for i in range(size):
            loc[k, i] += old_loc[k, i]
    return True


@compiled
def maximise(
    smoothed: Any,  # (N, T, K)
    moved: Any,  # (N, 1, K, K)
    weight: Any,  # (N, K)
    first: Any,  # (N, K, D), of the deviations from the old locations
    second: Any,  # (N, K, D, D), likewise
    old_initial: Any,  # (P, K)
    old_transition: Any,  # (P, K, K)
    old_loc: Any,  # (P, K, D)
    tiny: float,
    floor: float,
    least: float,
    initial: Any,
    transition: Any,
    loc: Any,
    covariance: Any,
    ordinary: Any,  # (P,)
) -> bool:
    """The M-step (equations 28, 27, 35 and 41), and of which models it is ordinary.

    :return: whether of all.
    """
    whole = True
    num_states, size = old_loc.shape[1:]
    each = len(weight) // len(old_loc)
    counts = np.empty((num_states, num_states))
    starts, factor = np.empty(num_states), np.empty((size, size))
    for p in range(len(old_loc)):
        ordinary[p] = _maximise_one(
            smoothed[p * each : (p + 1) * each],
            moved[p * each : (p + 1) * each],
            weight[p * each : (p + 1) * each],
            first[p * each : (p + 1) * each],
            second[p * each : (p + 1) * each],
            old_initial[p],
            old_transition[p],
            old_loc[p],
            tiny,
            floor,
            least,
            initial[p],
            transition[p],
            loc[p],
            covariance[p],
            counts,
            starts,
            factor,
        )
        whole = whole and ordinary[p]
    return whole
