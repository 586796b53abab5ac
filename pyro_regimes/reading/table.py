"""A table of raw columns, and its position in the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pyro_regimes.reading.cells import DATE, MISSING, NUMBER, TEXT, classify, is_compact_date

# The names of columns of dates, in lower case.
DATE_NAMES = frozenset(
    ["date", "dates", "datetime", "timestamp", "time", "day", "month", "quarter", "year", "period"]
    + ["observation_date", "time_period", "trade date", "exchange date", "open time", "open_time"]
    + ["yyyymm", "yyyymmdd", "datum", "fecha", "data", "datadate", "caldt", "ref_date"]
)
# The names of columns that say to which series a row belongs, the likeliest first.
IDENTIFIERS = dict.fromkeys(
    ["ticker", "symbol", "name", "series", "variable", "asset", "instrument", "item", "tic", "code"]
    + ["permno", "permco", "gvkey", "isin", "cusip", "sedol", "ric", "id", "security", "sector"]
    + ["industry", "country", "act_symbol"]
).keys()
# The first cells of the upper rows of a header, as yfinance and pandas-datareader write them.
_LEVEL_NAMES = frozenset(["price", "ticker", "tickers", "symbol", "symbols", "attributes"])
_MOST_HEADER_ROWS = 3


class Table(NamedTuple):
    """A table of raw columns.

    :param source: how messages name the file.
    :param header: rows of names, mostly one, each as long as ``columns``.
    :param columns: pandas Series of numbers, times or text, with the index 0, 1, ...
    :param where: the place of a row in the file, such as ``"line 7"``.
    :param decimal: the decimal mark of numbers in columns of text.
    :param notes: what the user should know of how the file was read.
    """

    source: str
    header: list[list[str]]
    columns: list[Any]
    where: Callable[[int], str]
    decimal: str = "."
    notes: tuple[str, ...] = ()

    def labels(self) -> list[str]:
        """One name for each column, of the rows of the header."""
        return [" ".join(filter(None, dict.fromkeys(names))) for names in zip(*self.header)]

    def place(self, row: int, column: str) -> str:
        """The place of a cell, as error messages begin with it."""
        return f"{self.source}, {self.where(row)}, column {column!r}"


class Layout(NamedTuple):
    """Where a table lies among rows of cells.

    :param header: the indices of the rows of the header.
    :param data: the index of the first row of data; the number of rows if there are none.
    :param width: the number of columns.
    :param date_column: the column that holds dates in most rows, if there is one.
    """

    header: list[int]
    data: int
    width: int
    date_column: int | None


def base_name(name: str) -> str:
    """A name in lower case without the angle brackets of some vendors."""
    return name.strip("<> ").lower()


def locate(source: str, rows: Sequence[Sequence[Any]]) -> Layout:
    """Find the header and the first row of data below titles, remarks and blank rows.

    :param rows: the cells of the first rows of a file, empty for a blank row.
    :raises ValueError: if there is no header, or nothing but a header.
    """
    kinds = [[_kind(cell, column) for column, cell in enumerate(row)] for row in rows]
    filled = [i for i, row in enumerate(kinds) if any(kind != MISSING for kind in row)]
    if not filled:
        raise ValueError(
            f"{source}: expected a header line and rows of data, got an empty table; check that "
            "the file was saved completely"
        )
    sizes = Counter(len(rows[i]) for i in filled[-50:])
    width = max(sizes, key=lambda size: (sizes[size], size))
    body = [i for i in filled if len(rows[i]) == width]
    date_column = _find_date_column([kinds[i] for i in body])
    data = next((i for i in body if _is_data(kinds[i], date_column)), None)
    if data is None:
        # rows that begin with text: the first is the header, and the reader of dates refuses them
        data = body[1] if len(body) > 1 else len(rows)
    above = [i for i in filled if i < data and len(rows[i]) == width]
    if not above:
        got = [str(cell) for cell in rows[data]]
        raise ValueError(
            f"{source}: expected a header line of column names, got the data {got}; add a line "
            "such as date,first,second above them"
        )
    # first rows of data without a readable date, or of another length: the errors about them follow
    while len(above) > 1 and NUMBER in kinds[above[-1]][1:] and _num_names(kinds[above[-2]]) > 1:
        above.pop()
    header = _header_rows(rows, kinds, above, date_column)
    data = next((i for i in filled if i > header[-1]), len(rows))
    if data >= len(rows):
        names = [str(cell) for cell in rows[header[-1]]]
        raise ValueError(
            f"{source}: expected rows of data below the header {names}, got none; check that the "
            "file was saved or downloaded completely"
        )
    return Layout(header, data, width, date_column)


def _kind(cell: Any, column: int) -> str:
    return DATE if column == 0 and is_compact_date(cell) else classify(cell)


def _find_date_column(body: list[list[str]]) -> int | None:
    """The column that has dates in at least half of the rows, the first of the best."""
    counts = Counter(column for row in body for column, kind in enumerate(row) if kind == DATE)
    if not counts or 2 * max(counts.values()) < len(body):
        return None
    return min(counts, key=lambda column: (-counts[column], column))


def _is_data(kinds: list[str], date_column: int | None) -> bool:
    if date_column is not None:
        return kinds[date_column] == DATE
    return TEXT not in kinds and (NUMBER in kinds or DATE in kinds)


def _num_names(kinds: list[str]) -> int:
    return sum(kind != MISSING for kind in kinds)


def _header_rows(
    rows: Sequence[Sequence[Any]], kinds: list[list[str]], above: list[int], date_column: int | None
) -> list[int]:
    """The rows of the header among those above the data: one, or up to three levels of names."""
    header = [above.pop()]
    column = date_column or 0
    while above and len(header) < _MOST_HEADER_ROWS and above[-1] == header[0] - 1:
        lower, upper = header[0], above[-1]
        alone = _num_names(kinds[lower]) == 1 < len(kinds[lower])
        blank = MISSING in (kinds[lower][column], kinds[upper][column])
        level = base_name(str(rows[lower][column])) in _LEVEL_NAMES
        if _num_names(kinds[upper]) < 2 or not (alone or blank or level):
            break
        header.insert(0, above.pop())
    return header
