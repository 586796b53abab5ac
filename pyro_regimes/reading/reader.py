"""From a file to series of returns: the steps in their order, and the checks of their results."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.reading.cells import clean_name, to_numbers
from pyro_regimes.reading.dates import Dates, read_dates
from pyro_regimes.reading.frames import read_excel, read_json, read_parquet
from pyro_regimes.reading.frequency import UNKNOWN, infer_frequency
from pyro_regimes.reading.packages import pandas
from pyro_regimes.reading.quotes import OTHERS, field_of
from pyro_regimes.reading.returns import Returns
from pyro_regimes.reading.series import Choice, choose, unknown_series
from pyro_regimes.reading.source import read_source
from pyro_regimes.reading.table import Table
from pyro_regimes.reading.text import read_text

_CORRECT = "correct it, or choose other columns with columns= (--columns)"


class _Series(NamedTuple):
    """Series with their dates, before missing values are dealt with.

    :param values: ``(T, D)``, NaN where a cell is missing.
    :param dates: ``(T,)``.
    :param where: the place of a row in the file.
    """

    values: npt.NDArray[np.float64]
    dates: npt.NDArray[Any]
    names: tuple[str, ...]
    where: Callable[[int], str]


def read(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    prices: bool,
    columns: Sequence[str] | None,
    dayfirst: bool | None,
    sort: bool,
    drop_missing: bool,
    decimal: str | None,
) -> tuple[Returns, list[str]]:
    """Read a file, and what the user should know of how it was read.

    See :func:`pyro_regimes.datasets.read_returns`.
    """
    _check_options(columns, decimal)
    table = raw_table(path, decimal)
    choice = choose(table, columns)
    notes = [*table.notes, *choice.notes]
    if choice.quotes and not prices:
        notes.append(
            f"{table.source}: these are prices; prices=True (--prices) turns them into returns"
        )
    dates = _dates_of(table, choice, dayfirst)
    series = _unstack(table, choice, dates, prices) if choice.identifier is not None else None
    if series is None:
        series = _side_by_side(table, choice, dates, prices)
        series = _in_order(table.source, series, sort)
    values, days, names, _ = _with_missing(table.source, series, prices, drop_missing, notes)
    frequency = dates.frequency or infer_frequency(days)
    if frequency.name.startswith("irregular"):  # it may be so only for the rows left out
        frequency = infer_frequency(series.dates)
    levels = values[1:] if prices else None
    if prices:
        with np.errstate(over="ignore"):
            values, days = 100 * (values[1:] / values[:-1] - 1), days[1:]
        others = [name for name in names if field_of(name) in OTHERS]
        if others and columns is None:
            notes.append(
                f"{table.source}: took {', '.join(map(repr, others))} for prices, too; columns= "
                "(--columns) chooses others"
            )
    _check_series(table.source, names, values, days)
    result = Returns(
        values, days, names, frequency.periods_per_year, frequency.name, dates.time_zone, levels
    )
    return result, notes


def raw_table(path: str | os.PathLike[str] | BinaryIO, decimal: str | None) -> Table:
    """The columns of a file of any kind as they are."""
    pandas()
    source = read_source(path)
    if source.kind == "text":
        return read_text(source, decimal)
    readers = {"excel": read_excel, "parquet": read_parquet, "json": read_json}
    return readers[source.kind](source)._replace(decimal=decimal or ".")


def _check_options(columns: Sequence[str] | None, decimal: str | None) -> None:
    if decimal not in (None, ".", ","):
        raise ValueError(f"expected decimal to be '.', ',' or None, got {decimal!r}")
    if columns is None:
        return
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"expected columns to be a list of names, got {columns!r}")
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"expected columns to name different columns, got {list(columns)}")


def _dates_of(table: Table, choice: Choice, dayfirst: bool | None) -> Dates:
    if choice.date is None:
        return Dates(np.arange(len(table.columns[0])), frequency=UNKNOWN)
    return read_dates(table, choice.date, table.labels()[choice.date], choice.time, dayfirst)


# ---- numbers ---------------------------------------------------------------------------------


def _numbers(table: Table, column: int, name: str, prices: bool) -> npt.NDArray[np.float64]:
    cells = table.columns[column]
    numbers, wrong = to_numbers(cells, table.decimal)
    for bad, expected in [
        (wrong, "a number"),
        (np.isinf(numbers), "a finite number"),
        ((numbers <= 0) & prices, "a positive price"),
    ]:
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"{table.place(i, name)}: expected {expected}, got {str(cells.iloc[i])!r}; "
                f"{_CORRECT}"
            )
    return numbers


def _side_by_side(table: Table, choice: Choice, dates: Dates, prices: bool) -> _Series:
    values = np.column_stack(
        [_numbers(table, i, name, prices) for i, name in zip(choice.series, choice.names)]
    )
    return _Series(values, dates.values, tuple(choice.names), table.where)


def _unstack(table: Table, choice: Choice, dates: Dates, prices: bool) -> _Series:
    """Long format: one row per date and series becomes one row per date."""
    pd = pandas()
    assert choice.identifier is not None
    cells = table.columns[choice.identifier]
    if cells.isna().any():
        row = int(np.argmax(cells.isna().to_numpy()))
        label = table.labels()[choice.identifier]
        raise ValueError(
            f"{table.place(row, label)}: expected the name of a series, got a missing value; write "
            "the name, or remove the row"
        )
    labels = cells.astype(str).str.strip()
    codes, found = pd.factorize(labels)
    names = [clean_name(label) for label in found]
    numbers = _numbers(table, choice.series[0], choice.names[0], prices)
    days, rows = np.unique(dates.values, return_inverse=True)
    cell = rows * len(names) + codes
    order = np.argsort(cell, kind="stable")
    again = np.flatnonzero(np.diff(cell[order]) == 0)
    if again.size:
        first, second = order[again[0]], order[again[0] + 1]
        raise ValueError(
            f"{table.source}, {table.where(int(second))}: expected one row per date and series, "
            f"got {names[codes[second]]!r} on {dates.values[second]} again (first on "
            f"{table.where(int(first))}); remove one of them"
        )
    values = np.full((len(days), len(names)), np.nan)
    values[rows, codes] = numbers
    if choice.pick is not None:
        for wanted in choice.pick:
            if wanted not in names:
                raise unknown_series(table, wanted, names)
        values = values[:, [names.index(wanted) for wanted in choice.pick]]
        names = choice.pick
    return _Series(values, days, tuple(names), lambda row: str(days[row]))


# ---- rows ------------------------------------------------------------------------------------


def _in_order(source: str, series: _Series, sort: bool) -> _Series:
    """Check that dates ascend, or sort them; repeated dates are refused in any case."""
    values, dates, names, where = series
    falls = np.flatnonzero(dates[1:] <= dates[:-1])
    if not falls.size:
        return series
    order = np.argsort(dates, kind="stable")
    again = np.flatnonzero(dates[order][1:] == dates[order][:-1])
    if again.size:
        second = np.min(order[again + 1])
        first = int(np.argmax(dates == dates[second]))
        raise ValueError(
            f"{source}, {where(int(second))}: expected one row per date, got {dates[second]} again "
            f"(first on {where(first)}); remove one of them, or, if rows are of several series, "
            "add a column that names them"
        )
    if sort:
        return _Series(
            values[order], dates[order], names, lambda row: where(int(order[row]))
        )
    i = int(falls[0])
    newest = "; the newest row comes first" if len(falls) == len(dates) - 1 else ""
    raise ValueError(
        f"{source}, {where(i + 1)}: expected dates in ascending order, got {dates[i + 1]} after "
        f"{dates[i]}{newest}; sort=True (--sort) sorts the rows"
    )


def _with_missing(
    source: str, series: _Series, prices: bool, drop_missing: bool, notes: list[str]
) -> _Series:
    """Count missing cells, and leave out their rows if the user said so."""
    values, dates, names, where = series
    missing, least = np.isnan(values), 2 if prices else 1
    if len(values) >= least and not missing.any():
        return series
    complete = ~missing.any(axis=1)
    num_complete, num_rows = int(complete.sum()), len(values)
    counts = [
        f"{missing[:, j].sum()} in {names[j]!r} (first on {where(int(np.argmax(missing[:, j])))})"
        for j in np.flatnonzero(missing.any(axis=0))
    ]
    cells = ", ".join(counts[:5]) + (f" and {len(counts) - 5} more columns" if counts[5:] else "")
    if num_rows < least or drop_missing and num_complete < least:
        what = "2 rows of prices" if prices else "1 row of returns"
        got = f"{num_complete} (of {num_rows})"
        raise ValueError(
            f"{source}: expected at least {what} without missing values, got {got}; choose columns "
            "with more values with columns= (--columns)"
        )
    if num_complete < num_rows and not drop_missing:
        gap = "; a missing price leaves the returns before and after it missing" if prices else ""
        number = int(missing.sum())
        are = "1 cell is a missing value" if number == 1 else f"{number} cells are missing values"
        notes.append(
            f"{source}: {are}, in {num_rows - num_complete} of {num_rows} rows: {cells}{gap}. "
            "drop_missing=True (--drop-missing) leaves these rows out"
        )
    elif num_complete < num_rows:
        notes.append(
            f"{source}: dropped {num_rows - num_complete} of {num_rows} rows, which have a missing "
            f"value; the first is {dates[~complete][0]}. Missing: {cells}"
        )
        values, dates = values[complete], dates[complete]
    return _Series(values, dates, names, where)


def _check_series(
    source: str,
    names: tuple[str, ...],
    values: npt.NDArray[np.float64],
    dates: npt.NDArray[Any],
) -> None:
    """Raise for series to which no model of returns can be fitted."""
    for name, column in zip(names, values.T):
        missing = np.isnan(column)
        series = column[~missing] if missing.any() else column
        if not len(series):
            raise ValueError(
                f"{source}, column {name!r}: expected some values, got only missing ones in "
                f"{len(column)} rows; leave it out with columns= (--columns)"
            )
        if np.isinf(series).any():
            date = dates[np.isinf(column)][0]
            raise ValueError(
                f"{source}, column {name!r}: expected prices with finite returns, got an overflow "
                f"on {date}; {_CORRECT}"
            )
        # a single row cannot vary
        if len(series) > 1 and (series == series[0]).all():
            raise ValueError(
                f"{source}, column {name!r}: expected a series that varies, got the return "
                f"{series[0]} in all {len(series)} rows; leave it out with columns= (--columns)"
            )
