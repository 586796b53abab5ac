"""Selects the columns of a table that are dates, and those that are series."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.reading.cells import (
    DATE,
    MISSING,
    NUMBER,
    TEXT,
    classify,
    clean_name,
    is_compact_date,
)
from pyro_regimes.reading.packages import pandas
from pyro_regimes.reading.quotes import are_prices, choose_quote, say_quote, split_names
from pyro_regimes.reading.table import DATE_NAMES, IDENTIFIERS, Table, base_name

_ROW_NUMBERS = {"", "index", "t", "n", "row", "obs", "no", "nr", "#", "id", "unnamed: 0", "time"}
_SAMPLE = 50


class UnknownColumn(ValueError):
    """The error for a name in ``columns`` that the file does not have."""


class Choice(NamedTuple):
    """The columns to read, as indices.

    :param date: the dates; None if rows are numbered.
    :param time: the times of the day, if they are apart.
    :param identifier: in long format, the column that says to which series a row belongs.
    :param series: the series; in long format the one column of values.
    :param names: the names of these series.
    :param pick: in long format, the series to keep, in this order; None: all.
    :param quotes: whether the series were taken from the quotes of a day (open, high, low, close).
    :param notes: what the user should know of the choice.
    """

    date: int | None
    time: int | None
    identifier: int | None
    series: list[int]
    names: list[str]
    pick: list[str] | None
    quotes: bool
    notes: list[str]


def choose(table: Table, columns: Sequence[str] | None) -> Choice:
    """Choose the columns to read.

    :param columns: the names that the user chose; fields of quotes and tickers also, where a header
        of several rows or the long format has them.
    :raises ValueError: if names repeat or are missing, or the choice is the user's.
    """
    table = table._replace(header=_fill_merged(table.header))
    labels = table.labels()
    date = find_dates(table, labels)
    if len(table.header) == 1 and not (columns and set(columns) <= set(labels)):
        table = table._replace(header=_split_header(labels, date))
    rest = [i for i in range(len(labels)) if i != date]
    beside = len(rest) > 1 and 0 in rest and (date is None or labels[0] in ("", "Unnamed: 0"))
    if beside and _is_row_numbers(table.columns[0], labels[0]):
        rest.remove(0)
    time = None
    if date is not None:
        clocks = (i for i in rest if base_name(labels[i]) == "time" and _is_clock(table, i))
        time = next(clocks, None)
    # a separator at the end of each line makes a column without a name and without values
    rest = [
        i for i in rest if i != time and (labels[i] or not table.columns[i].isna().all())
    ]
    if not rest:
        only = labels[date if date is not None else 0]
        raise ValueError(
            f"{table.source}: expected a column of dates and at least one series, got only the "
            f"column {only!r}; check that the file has the values, and its separator"
        )
    _check_names(table, labels, rest)

    notes: list[str] = []
    identifier = _find_identifier(table, labels, rest)
    if identifier is not None and (date is None or not table.columns[date].duplicated().any()):
        identifier = None
    named = ""
    if identifier is not None:
        rest.remove(identifier)
    for i in list(rest):
        wanted = columns is not None and labels[i] in columns
        if _is_text(table, i) and len(rest) > 1 and not wanted:
            values = table.columns[i].dropna().unique()
            if len(values) == 1 and (len(table.columns[i]) > 1 or _is_identifier(labels[i])):
                rest.remove(i)
                if _is_identifier(labels[i]):
                    named = clean_name(values[0])
                else:
                    notes.append(
                        f"{table.source}: left out {labels[i]!r}, which has the text "
                        f"{str(values[0])!r} in all rows"
                    )
    if len(table.header) > 1:
        series, names, quotes = _from_levels(table, labels, rest, columns, notes)
        pick = None
    elif identifier is not None:
        series, names, pick, quotes = _from_long(table, labels, rest, columns, notes)
    else:
        series, names, quotes = _from_wide(table, labels, rest, columns, notes)
        pick = None
        if quotes and named and len(names) == 1 and columns is None:
            names = [named]
    return Choice(date, time, identifier, series, names, pick, quotes, notes)


def _split_header(labels: list[str], date: int | None) -> list[list[str]]:
    """A header of two rows for names such as ``ACME.Close``; one row for others."""
    names = [label for i, label in enumerate(labels) if i != date]
    levels = split_names(names) if choose_quote(names) is None else None
    if levels is None:
        return [labels]
    if date is None:
        return [*levels]
    return [[*row[:date], labels[date], *row[date:]] for row in levels]


# ---- dates -----------------------------------------------------------------------------------


def find_dates(table: Table, labels: list[str]) -> int | None:
    """The number of the column of dates; None if there is none.

    :raises ValueError: if several columns are named as dates.
    """
    pd = pandas()
    bases = [base_name(label) for label in labels]
    named = [i for i, base in enumerate(bases) if base == "date"]
    if len(named) > 1:
        raise ValueError(
            f"{table.source}: expected one column of dates, got {[labels[i] for i in named]}; "
            "rename or remove one of them"
        )
    if named:
        return named[0]
    for i, column in enumerate(table.columns):
        if pd.api.types.is_datetime64_any_dtype(column) or _majority(column) == DATE:
            return i
    first, head = table.columns[0], _head(table.columns[0])
    if head and all(is_compact_date(cell) for cell in head) and (
        bases[0] in DATE_NAMES | {""} or all(a < b for a, b in zip(head, head[1:]))
    ):
        return 0
    for i, base in enumerate(bases):
        if base in DATE_NAMES and not _is_row_numbers(table.columns[i], base):
            return i
    # the reader of dates says which cell is no date
    return 0 if _majority(first) == TEXT and not _is_identifier(labels[0]) else None


def _head(column: Any) -> list[Any]:
    return column.iloc[:_SAMPLE].dropna().tolist()


def _majority(column: Any) -> str:
    if pandas().api.types.is_numeric_dtype(column):
        return NUMBER
    kinds = [classify(cell) for cell in _head(column)]
    kinds = [kind for kind in kinds if kind != MISSING]
    return max(sorted(set(kinds)), key=kinds.count) if kinds else MISSING


def _is_text(table: Table, column: int) -> bool:
    return _majority(table.columns[column]) == TEXT


def _is_row_numbers(column: Any, name: str) -> bool:
    """Whether numbers ascend by the same step, and are neither years nor seconds since 1970."""
    if base_name(name) not in _ROW_NUMBERS | DATE_NAMES:
        return False
    numbers = pandas().to_numeric(column, errors="coerce").to_numpy(dtype=float)
    steps = np.diff(numbers)
    ascend = bool(np.isfinite(numbers).all()) and bool((steps > 0).all())
    regular = bool(np.allclose(steps, steps[:1], rtol=1e-6, atol=0))
    return ascend and regular and not 1500 <= numbers[0] <= 2200 and abs(numbers[0]) < 1e8


def _is_clock(table: Table, column: int) -> bool:
    return all(
        re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?|\d{1,6}", str(cell).strip())
        for cell in _head(table.columns[column])
    )


def _is_identifier(label: str) -> bool:
    return base_name(label) in IDENTIFIERS


# ---- series ----------------------------------------------------------------------------------


def _fill_merged(header: list[list[str]]) -> list[list[str]]:
    """Merged cells of an upper row have their name in the first one."""
    filled = [row[:] for row in header]
    for upper, lower in zip(filled, header[1:]):
        for i in range(1, len(upper)):
            if lower[i] and lower[i - 1] and not upper[i]:
                upper[i] = upper[i - 1]
    return filled


def _check_names(table: Table, labels: list[str], rest: list[int]) -> None:
    names = [labels[i] for i in rest]
    repeated = sorted({name for name in names if names.count(name) > 1} - {""})
    if repeated:
        raise ValueError(
            f"{table.source}: expected different column names, got {repeated} more than once; "
            "rename them"
        )
    for i in rest:
        if not labels[i]:
            raise ValueError(
                f"{table.source}: expected a name for every series, got none for column {i + 1}; "
                "write one into the header"
            )


def _unknown(table: Table, wanted: str, names: Sequence[str]) -> UnknownColumn:
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return UnknownColumn(
        f"{table.source}: expected columns to name columns of the file, got {wanted!r}{hint}; "
        f"the file has {list(names)[:20]}"
    )


def _from_wide(
    table: Table,
    labels: list[str],
    rest: list[int],
    columns: Sequence[str] | None,
    notes: list[str],
) -> tuple[list[int], list[str], bool]:
    names = [labels[i] for i in rest]
    if columns is not None:
        for wanted in columns:
            if wanted not in names:
                raise _unknown(table, wanted, names)
        chosen = [rest[names.index(wanted)] for wanted in columns]
        return chosen, list(columns), are_prices(columns, names)
    quote = choose_quote(names)
    if quote is None:
        return rest, names, False
    notes.append(say_quote(table.source, names[quote], names))
    return [rest[quote]], [names[quote]], True


def _from_levels(
    table: Table,
    labels: list[str],
    rest: list[int],
    columns: Sequence[str] | None,
    notes: list[str],
) -> tuple[list[int], list[str], bool]:
    """Series below a header of several rows, of which one may have the fields of quotes."""
    upper = [row for row in ([each[i] for i in rest] for each in table.header) if any(row)]
    has_quotes = (row for row in upper if choose_quote(list(dict.fromkeys(row))) is not None)
    fields = next(has_quotes, None)
    if fields is None or len(upper) < 2:
        return _from_wide(table, labels, rest, columns, notes)
    tickers = [
        " ".join(filter(None, level)) for level in zip(*(row for row in upper if row is not fields))
    ]
    wanted_fields: list[str] = []
    wanted_tickers: list[str] = []
    for wanted in columns or []:
        if wanted not in fields and wanted not in tickers:
            raise _unknown(table, wanted, list(dict.fromkeys([*fields, *tickers])))
        (wanted_fields if wanted in fields else wanted_tickers).append(wanted)
    if not wanted_fields:
        quote = choose_quote(list(dict.fromkeys(fields)))
        assert quote is not None
        wanted_fields = [list(dict.fromkeys(fields))[quote]]
        notes.append(say_quote(table.source, wanted_fields[0], list(dict.fromkeys(fields))))
    chosen = [
        (j, ticker if len(wanted_fields) == 1 else f"{ticker} {field}")
        for ticker in wanted_tickers or dict.fromkeys(tickers)
        for field in wanted_fields
        for j in range(len(rest))
        if tickers[j] == ticker and fields[j] == field
    ]
    quotes = are_prices(wanted_fields, list(dict.fromkeys(fields)))
    return [rest[j] for j, _ in chosen], [name for _, name in chosen], quotes


# ---- long format -----------------------------------------------------------------------------


def _find_identifier(table: Table, labels: list[str], rest: list[int]) -> int | None:
    """The column that says to which series a row belongs, where dates repeat."""
    texts = [i for i in rest if _is_text(table, i) or _is_identifier(labels[i])]
    varying = [i for i in texts if table.columns[i].nunique() > 1]
    if len(varying) > 1:
        varying = sorted(
            [i for i in varying if _is_identifier(labels[i])],
            key=lambda i: list(IDENTIFIERS).index(base_name(labels[i])),
        ) or varying
    return varying[0] if varying else None


def _from_long(
    table: Table,
    labels: list[str],
    rest: list[int],
    columns: Sequence[str] | None,
    notes: list[str],
) -> tuple[list[int], list[str], list[str] | None, bool]:
    """The column of values, and the series to keep."""
    values = [i for i in rest if not _is_text(table, i)]
    names = [labels[i] for i in values]
    wanted = [name for name in columns or [] if name in names]
    pick = [name for name in columns or [] if name not in names] or None
    if len(wanted) == 1:
        return [values[names.index(wanted[0])]], wanted, pick, are_prices(wanted, names)
    quote = choose_quote(names)
    if quote is not None and not wanted:
        notes.append(say_quote(table.source, names[quote], names))
        return [values[quote]], [names[quote]], pick, True
    if len(values) != 1 or wanted:
        raise ValueError(
            f"{table.source}: expected one column of values beside dates and names (long format), "
            f"got {wanted or names}; choose one with columns= (--columns)"
        )
    return values, names, pick, False


def unknown_series(table: Table, wanted: str, names: Sequence[str]) -> UnknownColumn:
    """The error for a series in long format that is not in the file."""
    return _unknown(table, wanted, names)
