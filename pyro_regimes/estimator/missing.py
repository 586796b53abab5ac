"""Missing entries of the data of a regime model, which are NaN.

The likelihood is that of the observed entries, exactly. What is computed from the data before a fit
(units, starts, checks) is computed from :func:`filled` data, so that it need not handle NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array

_MOST_DONORS = 256  # rows among which the most similar one is searched
_BLOCK = 4096  # rows that are compared with the donors at a time
_UNKNOWN = 2.0  # the expected squared difference of two draws of unit variance
_TIE = 1e-9  # squared distances that differ by less are equal
_MOST_COLUMNS = 5  # that a message lists


def observed_rows(data: Array) -> npt.NDArray[np.bool_]:
    """The rows with at least one observed entry, ``(T,)``."""
    seen: npt.NDArray[np.bool_] = np.asarray((~np.isnan(data)).any(1))
    return seen


def check_columns(data: Array, names: Sequence[str] | None) -> None:
    """:raises ValueError: if a column has no observed entry, of which nothing could be learnt."""
    empty = np.flatnonzero(np.isnan(data).all(0)).tolist() if len(data) else []
    if empty:
        listed = ", ".join(str(i) if names is None else repr(str(names[i])) for i in empty)
        raise ValueError(
            "expected every column of X to have some values, got only missing ones in column"
            f"{'s' * (len(empty) > 1)} {listed}; drop {'them' if len(empty) > 1 else 'it'} "
            "(X.dropna(axis=1, how='all'))"
        )


def filled(data: Array) -> Array:
    """Rows without missing entries that resemble the data; the data themselves if they are such.

    Rows without any observed entry are left out. Any other missing entry is that of the row most
    like its own, by the squared distance of what both have in units of each column, among at most
    256 rows in which it is observed. So a column keeps its support and nearly its variance, and
    columns their dependence. There is nothing random in it.

    :param data: ``(T, D)``, every column with some observed entry.
    """
    if not np.isnan(data).any():
        return data
    data = data[observed_rows(data)]
    missing = np.isnan(data)
    seen = (~missing).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = np.nanstd(data, 0)
        scaled = (data - np.nanmean(data, 0)) / np.where(deviations > 0, deviations, 1.0)
    scaled = np.nan_to_num(scaled, posinf=0.0, neginf=0.0)
    made = data.copy()
    for column in np.flatnonzero(missing.any(0)):
        donors = _spaced(np.flatnonzero(~missing[:, column]))
        rows = np.flatnonzero(missing[:, column])
        for first in range(0, len(rows), _BLOCK):
            block = rows[first : first + _BLOCK]
            nearest = donors[_nearest(scaled, seen, block, donors)]
            made[block, column] = data[nearest, column]
    return made


def _spaced(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if len(rows) <= _MOST_DONORS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _MOST_DONORS).astype(np.int64)]


def _nearest(
    scaled: Array, seen: Array, rows: npt.NDArray[np.int64], donors: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The place of the donor nearest to each row; different ones where many are as near.

    :param scaled: of unit variance, 0 where missing.
    :param seen: 1 for observed entries and 0 for others.
    """
    squares = scaled**2
    distances = squares[rows] @ seen[donors].T + seen[rows] @ squares[donors].T
    distances -= 2 * scaled[rows] @ scaled[donors].T
    in_common = seen[rows] @ seen[donors].T
    distances += _UNKNOWN * (seen[rows].sum(1, keepdims=True) - in_common)
    turn = (np.arange(len(donors)) - rows[:, None]) % len(donors)
    nearest: npt.NDArray[np.int64] = (distances + _TIE / len(donors) * turn).argmin(1)
    return nearest


def complete_rows(data: Array) -> Array | None:
    """The complete rows of data with missing entries, which show how columns depend on each other.

    None if they are few, if a column does not vary in them, or if all rows are complete.
    """
    whole = data[~np.isnan(data).any(1)]
    fewest = max(30, 2 * (data.shape[1] + 1))
    if fewest <= len(whole) < len(data) and (np.ptp(whole, axis=0) > 0).all():
        return whole
    return None


def describe(
    counts: npt.NDArray[Any], num_empty: float, num_rows: float, names: Sequence[str]
) -> str:
    """A line that counts missing entries.

    :param counts: those of each column, ``(D,)``.
    :param num_empty: the number of rows without any observed entry, among ``num_rows``.
    """
    total, size = counts.sum(), num_rows * len(counts)
    listed = [f"{name} {count:g}" for name, count in zip(names, counts, strict=True) if count]
    more = f" and {len(listed) - _MOST_COLUMNS} more" if len(listed) > _MOST_COLUMNS else ""
    where = ", ".join(listed[:_MOST_COLUMNS]) + more
    empty = f"; {num_empty:g} of {num_rows:g} rows have no value" if num_empty else ""
    return f"missing: {total:g} of {size:g} values, {total / size:.1%} ({where}){empty}"
