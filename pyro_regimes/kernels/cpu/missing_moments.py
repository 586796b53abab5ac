"""The expected moments of Gaussian rows with missing entries, which :mod:`.missing` describes."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.densities import WIDTH
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.patterns import FEW, factorise, gather


@compiled
def _regress(
    size: int,
    seen: int,
    factor: Any,  # of :func:`factorise`; its first columns are overwritten from row ``seen`` on
) -> None:
    """The slopes of the regression of the missing entries on the observed ones."""
    for j in range(seen - 1, -1, -1):
        pivot = factor[j * size + j]
        for i in range(seen, size):
            factor[np.uintp(j * size + i)] *= pivot
        for e in range(j):
            slope = factor[e * size + j]
            for i in range(seen, size):
                factor[np.uintp(e * size + i)] -= slope * factor[np.uintp(j * size + i)]


@compiled
def _add_moments(
    x: Any,  # (D, WIDTH), flat
    share: Any,  # (WIDTH,), 0 beyond the block
    mean: Any,  # (D,)
    columns: Any,
    seen: int,
    factor: Any,  # with the slopes
    is_full: bool,
    v: Any,  # as x, overwritten
    first: Any,  # (D,), added to, in the order of the columns
    second: Any,  # flat (D, D) of the lower triangle, or (D,), likewise
    like: Any,  # lanes of the width to use
) -> float:
    """Add up the moments of a block about the mean, with missing entries regressed.

    :return: the sum of the weights.
    """
    size = len(mean)
    weight = simd.load(share, 0, like)
    for i in range(seen):
        shift = simd.splat(mean[columns[i]], like)
        simd.store(v, i * WIDTH, simd.subtract(simd.load(x, i * WIDTH, like), shift))
    stop = size if is_full else seen
    for i in range(seen, stop):
        left = simd.splat(0.0, like)
        for j in range(seen):
            slope = simd.splat(factor[j * size + i], like)
            left = simd.multiply_add(slope, simd.load(v, j * WIDTH, like), left)
        simd.store(v, i * WIDTH, left)
    for i in range(stop):
        own = simd.multiply(weight, simd.load(v, i * WIDTH, like))
        first[i] += simd.total(own)
        if is_full:
            for j in range(i + 1):
                second[i * size + j] += simd.total(
                    simd.multiply(own, simd.load(v, j * WIDTH, like))
                )
        else:
            second[i] += simd.total(simd.multiply(own, simd.load(v, i * WIDTH, like)))
    return float(simd.total(weight))


@compiled
def _put_moments(
    columns: Any,
    seen: int,
    weight: float,
    first: Any,  # (D,), in the order of the columns
    second: Any,  # flat (D, D), or (D,)
    factor: Any,  # with the residual covariance of the missing entries
    all_weight: Any,  # (1,) or (D,), added to
    all_first: Any,  # (D,), likewise
    all_second: Any,  # (D, D or 1), likewise; a matrix's lower triangle
) -> None:
    """Add the moments of a pattern to those of all, in the order of the data's columns."""
    size = len(columns)
    if all_second.shape[1] < size:
        for i in range(seen):
            all_weight[columns[i]] += weight
            all_first[columns[i]] += first[i]
            all_second[columns[i], 0] += second[i]
        return
    all_weight[0] += weight
    for i in range(size):
        to = columns[i]
        all_first[to] += first[i]
        for j in range(i + 1):
            own = second[i * size + j]
            if j >= seen:
                own += weight * factor[j * size + i]
            other = columns[j]
            all_second[max(to, other), min(to, other)] += own


@compiled
def moment_sweep(
    value: Any,  # (U, S, D)
    patterns: Any,
    tables: Any,  # (P,)
    weights: Any,  # (P, S, K)
    loc: Any,  # (P, K, D)
    covariance: Any,  # (P, K, D, D or 1)
    chunks: Any,  # (C, 3): a model, and its first and last block
    first: int,
    last: int,
    weight: Any,  # (C, K, 1 or D), zero
    total: Any,  # (C, K, D), zero
    second: Any,  # (C, K, D, D or 1), zero; of matrices the lower triangle
) -> None:
    """The expected moments of chunks ``first`` to ``last``."""
    columns, num_seen, rows, blocks = patterns[:4]
    num_states, size = loc.shape[1], loc.shape[2]
    is_full = covariance.shape[3] == size
    stride = size * size if is_full else size
    factor = np.empty((num_states, stride))
    own_weight = np.empty(num_states)
    own_first, own_second = np.empty((num_states, size)), np.empty((num_states, stride))
    x, v = np.zeros(size * WIDTH), np.empty(size * WIDTH)
    share = np.zeros(WIDTH)
    wide, narrow = simd.splat(0.0, WIDTH), simd.splat(0.0, FEW)
    for chunk in range(first, last):
        p, begin, end = chunks[chunk, 0], chunks[chunk, 1], chunks[chunk, 2]
        table, filled = tables[p], -1
        for block in range(begin, end):
            start, count, pattern = blocks[block, 0], blocks[block, 1], blocks[block, 2]
            seen, order = num_seen[pattern], columns[pattern]
            if pattern != filled:
                filled = pattern
                own_weight[:], own_first[:], own_second[:] = 0.0, 0.0, 0.0
                if is_full and seen < size:
                    for k in range(num_states):
                        factorise(covariance[p, k], order, seen, size, factor[k])
                        _regress(size, seen, factor[k])
            gather(value[table], rows, start, count, order, seen, x)
            for t in range(count, WIDTH):
                share[t] = 0.0
            for k in range(num_states):
                for t in range(count):
                    share[t] = weights[p, rows[start + t], k]
                mean, slopes = loc[p, k], factor[k]
                if count > FEW:
                    own_weight[k] += _add_moments(
                        x, share, mean, order, seen, slopes, is_full, v,
                        own_first[k], own_second[k], wide,
                    )  # fmt: skip
                else:
                    own_weight[k] += _add_moments(
                        x, share, mean, order, seen, slopes, is_full, v,
                        own_first[k], own_second[k], narrow,
                    )  # fmt: skip
            if block + 1 == end or blocks[block + 1, 2] != pattern:
                for k in range(num_states):
                    _put_moments(
                        order, seen, own_weight[k], own_first[k], own_second[k], factor[k],
                        weight[chunk, k], total[chunk, k], second[chunk, k],
                    )  # fmt: skip
        if is_full:
            for k in range(num_states):
                for i in range(size):
                    for j in range(i):
                        second[chunk, k, j, i] = second[chunk, k, i, j]
