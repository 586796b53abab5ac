"""Rows with missing entries, sorted by pattern, and what the kernels for them share.

Rows with the same entries missing, a *pattern*, share one factorisation, the first rows of a
Cholesky factor in the order of observed and missing entries. Patterns depend on the data only;
:func:`find_patterns` sorts the rows by them once. Rows of one pattern are processed in blocks as
those of :mod:`.densities`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels.cpu.densities import WIDTH
from pyro_regimes.kernels.cpu.jit import compiled

FEW = 8  #: rows of a block for which a narrow vector suffices

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
def factorise(
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
def gather(
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
