r"""Densities and expected moments of Gaussian rows with missing entries, compiled for the CPU.

Let O and M be the observed and the missing entries of a row. The log density of a state is that of
:math:`x_O`, and the expected moments that an M-step needs are those of the row with :math:`x_M`
replaced by its regression on :math:`x_O`, plus the residual covariance of the regression:

.. math::
    \hat x_M = \mu_M + \Sigma_{MO} \Sigma_{OO}^{-1} (x_O - \mu_O), \qquad
    C_{MM} = \Sigma_{MM} - \Sigma_{MO} \Sigma_{OO}^{-1} \Sigma_{OM}.

Rows with the same entries missing, a *pattern*, share one factorisation, the first rows of a
Cholesky factor in the order O, M. Patterns depend on the data only; :func:`find_patterns` sorts the
rows by them once. Rows of one pattern are processed in blocks as those of :mod:`.densities`.

A spread may be diagonal, ``(D, 1)``. Then a missing entry counts in no sum, and each series has
weights of its own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.densities import WIDTH, grain_of
from pyro_regimes.kernels.cpu.jit import compiled, spread

_FEW = 8  # steps for which a narrow vector does

_LOG_2_PI = math.log(2 * math.pi)

Integers = npt.NDArray[np.int64]


class Patterns(NamedTuple):
    """The rows of U tables, sorted by which entries are missing.

    ``columns`` lists the columns of each of Q patterns, the observed ones first. A block is a range
    of ``rows`` of one pattern, at most :data:`.densities.WIDTH` of them: where it begins, how many
    they are, and the pattern. Rows without an observed entry are in no block.
    """

    columns: Integers  #: ``(Q, D)``
    num_seen: Integers  #: ``(Q,)``
    rows: Integers  #: numbers of rows in their table, sorted by table and pattern
    blocks: Integers  #: ``(B, 3)``
    first_blocks: Integers  #: ``(U + 1,)``, where the blocks of each table begin
    empty: Integers  #: numbers of rows without an observed entry, sorted by table
    first_empty: Integers  #: ``(U + 1,)``


def find_patterns(missing: npt.NDArray[np.bool_], counts: npt.NDArray[np.bool_]) -> Patterns:
    """Sort the rows of tables by their missing entries.

    :param missing: ``(U, S, D)``.
    :param counts: the rows that are data and no padding, ``(U, S)``.
    """
    tables, num_rows, size = missing.shape
    packed = np.packbits(missing.reshape(-1, size), axis=1)
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    gone = missing.reshape(-1, size)[first]
    columns = np.argsort(gone, axis=1, kind="stable")
    num_seen = size - gone.sum(1)
    which = which.reshape(tables, num_rows)
    rows, blocks, empty = [], [], []
    first_blocks, first_empty, at = [0], [0], 0
    for table in range(tables):
        some = num_seen[which[table]] > 0
        own = np.flatnonzero(counts[table] & some)
        own = own[np.argsort(which[table, own], kind="stable")]
        kinds = which[table, own]
        begins = np.flatnonzero(np.diff(kinds, prepend=-1))
        lengths = np.diff(np.append(begins, len(own)))
        each = -(-lengths // WIDTH)  # blocks of each pattern
        within = np.arange(each.sum()) - np.repeat(each.cumsum() - each, each)
        starts = np.repeat(begins, each) + within * WIDTH
        number = np.minimum(WIDTH, np.repeat(begins + lengths, each) - starts)
        blocks.append(np.stack([at + starts, number, kinds[starts]], 1))
        rows.append(own)
        empty.append(np.flatnonzero(counts[table] & ~some))
        at += len(own)
        first_blocks.append(first_blocks[-1] + len(starts))
        first_empty.append(first_empty[-1] + len(empty[-1]))
    return Patterns(
        columns.astype(np.int64),
        num_seen.astype(np.int64),
        np.concatenate(rows).astype(np.int64),
        np.concatenate(blocks).astype(np.int64),
        np.array(first_blocks, np.int64),
        np.concatenate(empty).astype(np.int64),
        np.array(first_empty, np.int64),
    )


@compiled
def _factorise(
    covariance: Any,  # (D, D), or variances (D, 1)
    columns: Any,  # (D,), the observed ones first
    seen: int,
    stop: int,  # the number of entries to consider
    factor: Any,  # flat (D, D), or (D,)
) -> float:
    """The first columns of the Cholesky factor in this order, with the pivots inverted.

    Column j is at ``factor[j * D :]``. The columns from ``seen`` on are those of the residual
    covariance of the missing entries.

    :return: half of the log determinant of the observed entries' covariance.
    """
    size, half = len(columns), 0.0
    if covariance.shape[1] < size:
        for i in range(seen):
            root = math.sqrt(covariance[columns[i], 0])
            half += math.log(root)
            factor[i] = 1.0 / root
        return half
    for j in range(stop):
        for i in range(j, stop):
            factor[np.uintp(j * size + i)] = covariance[columns[i], columns[j]]
    for j in range(seen):
        root = math.sqrt(factor[j * size + j])
        half += math.log(root)
        inverse = 1.0 / root
        factor[j * size + j] = inverse
        for i in range(j + 1, stop):
            factor[np.uintp(j * size + i)] *= inverse
        for e in range(j + 1, stop):
            slope = factor[j * size + e]
            for i in range(e, stop):
                factor[np.uintp(e * size + i)] -= slope * factor[np.uintp(j * size + i)]
    return half


@compiled
def _regress(
    size: int,
    seen: int,
    factor: Any,  # as above; its first columns are overwritten from row ``seen`` on
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
def _gather(
    value: Any,  # (S, D)
    rows: Any,
    start: int,
    count: int,
    columns: Any,
    seen: int,
    x: Any,  # (D, WIDTH), flat
) -> None:
    """The observed entries of a block's rows."""
    for t in range(count):
        row = rows[start + t]
        for i in range(seen):
            x[i * WIDTH + t] = value[row, columns[i]]


@compiled
def _density_sweep(
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
    wide, narrow = simd.splat(0.0, WIDTH), simd.splat(0.0, _FEW)
    half, few_half = simd.splat(-0.5, WIDTH), simd.splat(-0.5, _FEW)
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
                    own = _factorise(covariance[p, k], order, seen, seen, factor[k])
                    constant[k] = -own - 0.5 * seen * _LOG_2_PI
            _gather(value[table], rows, start, count, order, seen, x)
            for k in range(num_states):
                mean = loc[p, k]
                if count > _FEW:
                    total = _squares(x, mean, order, seen, factor[k], is_full, z, wide)
                    shift = simd.splat(constant[k], WIDTH)
                    simd.store(density, 0, simd.multiply_add(half, total, shift))
                else:
                    few = _squares(x, mean, order, seen, factor[k], is_full, z, narrow)
                    few_shift = simd.splat(constant[k], _FEW)
                    simd.store(density, 0, simd.multiply_add(few_half, few, few_shift))
                for t in range(count):
                    out[p, rows[start + t], k] = density[t]


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
def _moment_sweep(
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
    wide, narrow = simd.splat(0.0, WIDTH), simd.splat(0.0, _FEW)
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
                        _factorise(covariance[p, k], order, seen, size, factor[k])
                        _regress(size, seen, factor[k])
            _gather(value[table], rows, start, count, order, seen, x)
            for t in range(count, WIDTH):
                share[t] = 0.0
            for k in range(num_states):
                for t in range(count):
                    share[t] = weights[p, rows[start + t], k]
                mean, slopes = loc[p, k], factor[k]
                if count > _FEW:
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


def fill_seen_log_density(
    value: npt.NDArray[Any],  # (U, S, D)
    patterns: Patterns,
    tables: Integers,  # (P,)
    loc: npt.NDArray[np.float64],  # (P, K, D)
    covariance: npt.NDArray[np.float64],  # (P, K, D, D or 1), positive definite
    out: npt.NDArray[Any],  # (P, S, K)
) -> None:
    """The log densities of the observed entries; 0 for a row without any.

    Padding is not written.
    """

    def work(first: int, last: int) -> None:
        _density_sweep(value, tuple(patterns), tables, loc, covariance, first, last, out)

    for p, table in enumerate(tables.tolist()):
        begin, end = patterns.first_empty[table : table + 2]
        out[p, patterns.empty[begin:end]] = 0.0
    number = int(np.diff(patterns.first_blocks)[tables].sum())
    spread(work, number, _grain(loc, covariance))


def sum_expected_moments(
    value: npt.NDArray[Any],  # (U, S, D)
    patterns: Patterns,
    tables: Integers,  # (P,)
    weights: npt.NDArray[Any],  # (P, S, K)
    loc: npt.NDArray[np.float64],  # (P, K, D)
    covariance: npt.NDArray[np.float64],  # (P, K, D, D or 1), positive definite
) -> tuple[npt.NDArray[np.float64], ...]:
    """The expected moments about the locations, as :func:`.moments.sum_moments` has them.

    The weights are ``(P, K, 1)``, or ``(P, K, D)`` of independent series. As there, sums do not
    depend on the number of threads or on other models.
    """
    num_states, size = loc.shape[1:]
    grain = _grain(loc, covariance)
    pieces = []
    for p, table in enumerate(tables.tolist()):
        begin, end = patterns.first_blocks[table : table + 2].tolist()
        edges = [*range(begin, end, grain), end] if end > begin else [begin, end]
        pieces += [(p, low, high) for low, high in zip(edges, edges[1:])]
    chunks = np.array(pieces, np.int64)
    columns = covariance.shape[3]
    shape = (len(chunks), num_states)
    own = (1,) if columns == size else (size,)
    sums = np.zeros(shape + own), np.zeros(shape + (size,)), np.zeros(shape + (size, columns))

    def work(first: int, last: int) -> None:
        _moment_sweep(
            value, tuple(patterns), tables, weights, loc, covariance, chunks, first, last, *sums
        )

    spread(work, len(chunks), 1)
    if len(chunks) == len(tables):
        return sums
    firsts = np.flatnonzero(np.diff(chunks[:, 0], prepend=-1))
    return tuple(np.add.reduceat(each, firsts) for each in sums)


def _grain(loc: npt.NDArray[np.float64], covariance: npt.NDArray[np.float64]) -> int:
    num_states, size = loc.shape[1:]
    # A pattern may have one row; then its factorisation takes longer.
    return grain_of(WIDTH, num_states, size, covariance.shape[3] > 1)
