"""The log densities of Gaussian rows with missing entries, which :mod:`.missing` describes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.densities import WIDTH
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.patterns import FEW, factorise, gather

_LOG_2_PI = math.log(2 * math.pi)


@compiled
def _squares(
    x: Any,  # (D, WIDTH), flat
    mean: Any,  # (D,)
    columns: Any,
    seen: int,
    factor: Any,
    is_full: bool,
    z: Any,  # as x, overwritten
    like: Any,  # lanes of the width to use
) -> Any:
    """The squared lengths of whitened deviations."""
    size, total = len(mean), simd.splat(0.0, like)
    for i in range(seen):
        shift = simd.splat(mean[columns[i]], like)
        left = simd.subtract(simd.load(x, i * WIDTH, like), shift)
        for j in range(i if is_full else 0):
            slope = simd.splat(-factor[j * size + i], like)
            left = simd.multiply_add(slope, simd.load(z, j * WIDTH, like), left)
        left = simd.multiply(left, simd.splat(factor[i * size + i if is_full else i], like))
        simd.store(z, i * WIDTH, left)
        total = simd.multiply_add(left, left, total)
    return total


@compiled
def density_sweep(
    value: Any,  # (U, S, D)
    patterns: Any,
    tables: Any,  # (P,), the table of each model
    loc: Any,  # (P, K, D)
    covariance: Any,  # (P, K, D, D or 1)
    first: int,
    last: int,
    out: Any,  # (P, S, K)
) -> None:
    """The log densities of blocks ``first`` to ``last`` of all models."""
    columns, num_seen, rows, blocks, first_blocks = patterns[:5]
    num_states, size = loc.shape[1], loc.shape[2]
    is_full = covariance.shape[3] == size
    stride = size * size if is_full else size
    factor, constant = np.empty((num_states, stride)), np.empty(num_states)
    x, z, density = np.zeros(size * WIDTH), np.empty(size * WIDTH), np.empty(WIDTH)
    wide, narrow = simd.splat(0.0, WIDTH), simd.splat(0.0, FEW)
    half, few_half = simd.splat(-0.5, WIDTH), simd.splat(-0.5, FEW)
    before = 0  # blocks of the models before
    for p in range(len(tables)):
        table = tables[p]
        begin = max(first_blocks[table], first_blocks[table] + first - before)
        end = min(first_blocks[table + 1], first_blocks[table] + last - before)
        before += first_blocks[table + 1] - first_blocks[table]
        filled = -1
        for block in range(begin, end):
            start, count, pattern = blocks[block, 0], blocks[block, 1], blocks[block, 2]
            seen, order = num_seen[pattern], columns[pattern]
            if pattern != filled:
                filled = pattern
                for k in range(num_states):
                    own = factorise(covariance[p, k], order, seen, seen, factor[k])
                    constant[k] = -own - 0.5 * seen * _LOG_2_PI
            gather(value[table], rows, start, count, order, seen, x)
            for k in range(num_states):
                mean = loc[p, k]
                if count > FEW:
                    total = _squares(x, mean, order, seen, factor[k], is_full, z, wide)
                    shift = simd.splat(constant[k], WIDTH)
                    simd.store(density, 0, simd.multiply_add(half, total, shift))
                else:
                    few = _squares(x, mean, order, seen, factor[k], is_full, z, narrow)
                    few_shift = simd.splat(constant[k], FEW)
                    simd.store(density, 0, simd.multiply_add(few_half, few, few_shift))
                for t in range(count):
                    out[p, rows[start + t], k] = density[t]
