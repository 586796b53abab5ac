"""What a user gives as X: tables, series, lists and dicts of them, in order of time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from pyro_regimes.reading.chunks import Chunks, is_empty
from pyro_regimes.reading.frequency import infer_frequency
from pyro_regimes.reading.returns import Returns

_TRADING_DAYS = 252.0  # in a year
_MOST_DATES = 100_000  # from which the frequency of chunks is inferred
_DATE_KINDS = ("datetime64", "datetime", "date", "period")  # pandas' names of inferred types


def as_tables(X: Any) -> tuple[list[Any], bool]:
    """The tables of which X consists, ``(T, D)`` each, and whether X was a collection of them.

    A list of 1-D arrays or Series holds univariate sequences, and a Series is one. A list of lists
    of numbers is one table, as everywhere in scikit-learn.

    :return: tables in which masked values, and None or pandas' NA among objects, are NaN.
    :raises ValueError: if X mixes series and tables, is an empty collection, or has dates that are
        not in order.
    """
    if isinstance(X, Chunks):
        raise ValueError(
            "expected X in memory, got Chunks, which only RegimeModel.fit and EM.run take; give "
            "the chunks one by one, with after= the probabilities of the row before, or to an "
            "OnlineFilter"
        )
    if isinstance(X, Returns):
        X = X.to_frame()
    if hasattr(X, "ngroups"):
        raise ValueError(
            f"expected X to be a table or several, got a {type(X).__name__}; a dict holds the "
            "tables of groups: {name: part for name, part in groups}"
        )
    collected: list[Any] | None = None
    if isinstance(X, Mapping) and not hasattr(X, "shape"):  # some sparse matrices are dicts
        collected = list(X.values())
        if not collected:
            raise ValueError("expected X to hold at least one sequence, got an empty dict")
    elif isinstance(X, (list, tuple)) and len(X):
        dims = {np.ndim(each) for each in X}
        are_arrays = all(hasattr(each, "ndim") for each in X)
        if dims == {2} or (dims == {1} and are_arrays):
            collected = list(X)
        elif are_arrays and dims == {1, 2}:
            raise ValueError(
                "expected X to be a list of series or a list of tables, got some of each; make a "
                "series a table by x[:, None] or x.to_frame()"
            )
    tables = [with_nan(each) for each in ([X] if collected is None else collected)]
    for each in tables:
        check_dates(each)
    if collected is None:
        return [_as_table(tables[0])], False
    return [np.asarray(each)[:, None] if np.ndim(each) == 1 else each for each in tables], True


def _as_table(each: Any) -> Any:
    """A Series as a table with its name, if that is a text; anything else as it is."""
    if getattr(each, "ndim", None) == 1 and hasattr(each, "to_frame"):
        return each.to_frame() if isinstance(each.name, str) else np.asarray(each)[:, None]
    return each


def with_nan(table: Any) -> Any:
    """Missing values that numpy does not convert to NaN as NaN; anything else as it is."""
    if np.ma.is_masked(table):
        return table.astype(np.float64).filled(np.nan)
    dtypes = getattr(table, "dtypes", getattr(table, "dtype", None))
    if not np.any(np.asarray(dtypes) == object):
        return table
    if hasattr(table, "notna"):
        return table.astype(object).where(table.notna(), np.nan)
    missing = np.vectorize(is_missing, otypes=[np.bool_])(table)
    return np.where(missing, np.nan, table) if missing.any() else table


def is_missing(value: Any) -> bool:
    """Whether a cell is None or pandas' NA."""
    return value is None or type(value).__name__ == "NAType"  # pandas need not be installed


def date_index(table: Any) -> Any | None:
    """The index of a DataFrame or a Series whose rows have dates; of anything else None."""
    index = getattr(table, "index", None)
    return index if getattr(index, "inferred_type", None) in _DATE_KINDS else None


def periods_per_year(X: Any) -> float:
    """The number of rows in a year, by the dates of the first table of X; 252 without dates."""
    if isinstance(X, Returns):
        return X.periods_per_year or _TRADING_DAYS
    if isinstance(X, Mapping) and not hasattr(X, "shape"):
        X = list(X.values())
    index = date_index(X[0] if isinstance(X, (list, tuple)) and len(X) else X)
    if index is None:
        return _TRADING_DAYS
    return infer_frequency(dates_of(index)).periods_per_year or _TRADING_DAYS


def dates_of(index: Any) -> npt.NDArray[np.datetime64]:
    """The dates of an index of :func:`date_index`, in its own time zone and to the second."""
    if index.inferred_type == "period":
        index = index.to_timestamp()
    elif getattr(index, "tz", None) is not None:
        index = index.tz_localize(None)
    return np.asarray(index).astype("datetime64[s]")


def chunk_tables(chunk: Any) -> list[Any]:
    """The tables of a chunk that is not empty; an array of one dim is of one series."""
    is_series = getattr(chunk, "ndim", 0) == 1 and not hasattr(chunk, "to_frame")
    return as_tables([chunk] if is_series else chunk)[0]


class ChunkDates:
    """The dates of chunks, as far as they have some: that they ascend, and how often rows come.

    :param chunks: which may know their first dates.
    """

    def __init__(self, chunks: Chunks) -> None:
        self._continues = chunks.continues
        self._last: Any | None = None  # the last date
        self._dates = chunks.dates  # the first ones of the first sequence

    def add(self, chunk: Any) -> None:
        """The dates of the next chunk, whose own ascend.

        :raises ValueError: if it does not follow the chunk before.
        """
        index = None if is_empty(chunk) else date_index(chunk_tables(chunk)[0])
        if index is None:
            return
        if self._continues or not len(self._dates):
            self._dates = np.append(self._dates, dates_of(index))[:_MOST_DATES]
        if self._continues:
            remedy = ", or give Chunks(..., continues=False) whole sequences"
            self._last = last_date(index, self._last, "the chunk before", remedy)

    @property
    def periods_per_year(self) -> float:
        """The number of rows in a year; 252 without dates."""
        return infer_frequency(self._dates).periods_per_year or _TRADING_DAYS


def last_date(index: Any, before: Any | None, where: str, remedy: str = "") -> Any:
    """The last date of rows that follow others.

    :param index: their dates, which ascend.
    :param before: the last date of the rows before; None if there is none.
    :param where: what these were, and ``remedy`` what else to do, for messages.
    :raises ValueError: if they do not follow.
    """
    try:
        follows = before is None or before < index[0]
    except TypeError as error:
        raise ValueError(
            f"expected dates of the kind of {where}, got {index[0]!r} after {before!r}"
        ) from error
    if not follows:
        raise ValueError(
            f"expected rows in order of time, got the date {index[0]} after {before} in {where}; "
            f"sort them, and give each row once{remedy}"
        )
    return index[-1]


def check_dates(table: Any) -> None:
    """:raises ValueError: if the rows have dates that do not ascend."""
    if getattr(getattr(table, "index", None), "nlevels", 1) > 1:
        raise ValueError(
            "expected X with one row for each step, got an index of several levels; a dict of "
            "tables holds several sequences: {name: part.droplevel(0) for name, part in "
            "X.groupby(level=0)}"
        )
    index = date_index(table)
    if index is None or (index.is_monotonic_increasing and index.is_unique):
        return
    if index.hasnans:
        raise ValueError("expected X to have a date for every row, got a missing one; drop the row")
    if not index.is_monotonic_increasing:
        falls = np.flatnonzero(np.asarray(index[1:] < index[:-1]))
        before, after = index[falls[0]], index[falls[0] + 1]
        raise ValueError(
            f"expected X in order of time, got the date {after} after {before}; sort it by "
            "X.sort_index()"
        )
    repeated = index[index.duplicated()][0]
    raise ValueError(
        f"expected one row of X for each date, got {repeated} more than once; keep one by "
        "X[~X.index.duplicated()]"
    )


def check_are_numbers(table: Any) -> None:
    """:raises ValueError: if columns hold dates, durations or text, or two have one name."""
    kind = getattr(getattr(table, "dtype", None), "kind", "f")
    if kind in "mM":
        what = "dates" if kind == "M" else "durations"
        raise ValueError(
            f"expected X to hold numbers, got {what} of dtype {table.dtype}; leave them out, or "
            "divide durations by their unit, such as np.timedelta64(1, 'D')"
        )
    if not hasattr(table, "iloc") or getattr(table, "ndim", 0) != 2:
        return
    if not table.columns.is_unique:
        repeated = table.columns[table.columns.duplicated()][0]
        raise ValueError(
            f"expected X with a name of its own for each column, got {repeated!r} more than once; "
            "rename the columns"
        )
    for j, (name, kind) in enumerate(zip(table.columns, table.dtypes, strict=True)):
        if kind.kind in "biufc":
            continue
        values = table.iloc[:, j].dropna()
        first = values.iloc[0] if len(values) else None
        is_date = hasattr(first, "year") or isinstance(first, str) and _is_date(first)
        if kind.kind in "mM" or first is not None and not _is_number(first):
            remedy = (
                "dates belong into the index: "
                f"X.set_index({name!r}) with the dates by pandas.to_datetime, or "
                "pandas.read_csv(..., index_col=0, parse_dates=True)"
                if is_date
                else "divide it by a unit of time, such as pandas.Timedelta('1D')"
                if kind.kind == "m"
                else "leave it out, or number its categories from 0; if it names sequences, such "
                f"as persons, X is a dict: {{key: part.drop(columns={name!r}) for key, part in "
                f"table.groupby({name!r})}}"
            )
            raise ValueError(
                f"expected the columns of X to hold numbers, got {name!r} with {str(first)!r}; "
                f"{remedy}"
            )


def _is_date(text: str) -> bool:
    return bool(re.match(r"\d{4}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2}", text))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def row_name(X: Any) -> Callable[[int], str]:
    """A function from the number of a row of X to its date, or to the number if it has none."""
    index = date_index(X)
    if index is None:
        return str
    return lambda row: str(index[row]).removesuffix(" 00:00:00")
