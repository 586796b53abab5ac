"""Data sets: the embedded sector returns, and a reader for CSV files."""

from __future__ import annotations

import csv
import gzip
import math
import os
import warnings
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

# The strings that pandas.read_csv reads as missing values.
MISSING_VALUES = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"]
    + ["<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)


class Returns(NamedTuple):
    """Series of returns over time.

    :param values: float64 ``(T, D)``, one column per series, without missing values.
    :param dates: datetime64[D] ``(T,)``, strictly ascending.
    :param names: the D names of the series.
    """

    values: npt.NDArray[np.float64]
    dates: npt.NDArray[np.datetime64]
    names: tuple[str, ...]

    def last(self, num_rows: int) -> Returns:
        """The last ``num_rows`` rows, or all if there are fewer."""
        return Returns(self.values[-num_rows:], self.dates[-num_rows:], self.names)

    def to_frame(self) -> pd.DataFrame:
        """A pandas DataFrame with the dates as its index and the names as its columns.

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'pyro-regimes[app]'") from error
        return pd.DataFrame(self.values, index=self.dates, columns=list(self.names))


def load_sector_returns() -> Returns:
    """Daily returns of seven US equity sectors, 1990-01-03 to 2022-12-28.

    Each sector is the equal-weight mean of the simple returns of one to five stocks of the S&P 500,
    20 stocks in all. All of them survived, so the returns are biased upward and do not represent an
    index. See ``data/README.md``, which also has the source (skfolio) and its licence.

    >>> values, dates, names = load_sector_returns()
    >>> values.shape, str(dates[0]), names[0]
    ((8312, 7), '1990-01-03', 'InfoTech')

    :returns: :class:`Returns` with values ``(8312, 7)`` in percent, with six decimals. Every call
        returns new arrays.
    """
    file = resources.files("pyro_regimes") / "data" / "sector_returns.csv.gz"
    header, *lines = gzip.decompress(file.read_bytes()).decode("ascii").splitlines()
    names = tuple(header.split(",")[1:])
    values = np.loadtxt(lines, delimiter=",", usecols=range(1, len(names) + 1), ndmin=2)
    dates = np.array([line.split(",", 1)[0] for line in lines], dtype="datetime64[D]")
    return Returns(values, dates, names)


def read_returns(path: str | os.PathLike[str], *, prices: bool = False) -> Returns:
    r"""Read series of returns, or of prices, from a CSV file with a header line.

    Prices become simple returns in percent,

    .. math:: r_t = 100 \left(\frac{p_t}{p_{t-1}} - 1\right);

    returns keep the units of the file. The dates are in the column named ``date``, in upper or
    lower case, or otherwise in the first column. Every other column is a series. Dates are ISO
    (1990-01-31), or in one other format that pandas can infer from the column; the time of day is
    dropped. Rows with a missing value are dropped, with one warning that counts them. A return
    from prices then spans the gap.

    :param path: a comma-separated UTF-8 file.
    :param prices: whether the series are prices.
    :returns: :class:`Returns`; one row fewer than the file if ``prices`` is true.
    :raises ValueError: if the file has no column of series, no rows (fewer than 2 of prices),
        unnamed or repeated columns, or rows of another length than the header; if a value is not a
        finite (for prices, positive) number; if dates are ambiguous, invalid, repeated, not
        ascending or with a time zone; or if a series never changes. The message has file, line and
        column.
    :raises OSError: if ``path`` cannot be read; :class:`FileNotFoundError` if there is no such
        file, :class:`IsADirectoryError` if it is a directory.
    :raises ImportError: if pandas >= 2.2, which reads the dates, is not installed.
    """
    path = Path(path)
    header, rows = _read_rows(path)
    date_column = _find_date_column(path, header)
    names = tuple(header[:date_column] + header[date_column + 1 :])

    dates = _parse_dates(path, header[date_column], {n: row[date_column] for n, row in rows})
    _check_ascending(path, dates, [line for line, _ in rows])
    values = np.array(
        [
            [
                _parse_number(f"{path}, line {line}, column {name!r}", cell, positive=prices)
                for column, (name, cell) in enumerate(zip(header, row))
                if column != date_column
            ]
            for line, row in rows
        ]
    )  # (T, D)

    complete = ~np.isnan(values).any(axis=1)
    num_complete, num_rows = int(complete.sum()), len(rows)
    num_needed = 2 if prices else 1
    if num_complete < num_needed:
        what = "2 rows of prices" if prices else "1 row of returns"
        raise ValueError(
            f"{path}: expected at least {what} without missing values, "
            f"got {num_complete} (of {num_rows})"
        )
    if num_complete < num_rows:
        warnings.warn(
            f"{path}: dropped {num_rows - num_complete} of {num_rows} rows, which have a missing "
            f"value; the first is {dates[~complete][0]}",
            UserWarning,
            stacklevel=2,
        )
        values, dates = values[complete], dates[complete]

    if prices:
        with np.errstate(over="ignore"):
            values, dates = 100 * (values[1:] / values[:-1] - 1), dates[1:]
    _check_series(path, names, values, dates)
    return Returns(values, dates, names)


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the (line number, cells) of every row that is not blank, all stripped.

    It uses the csv module, not pandas, so that an error can name the line and floats are exact.
    """
    if path.is_dir():
        raise IsADirectoryError(f"expected path to name a CSV file, got the directory {path}")
    rows = []
    # utf-8-sig drops the byte order mark that spreadsheets write
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    rows.append((reader.line_num, cells))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: expected comma-separated UTF-8 text, got {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected a header line and rows of data, got an empty file")
    (_, header), *rows = rows
    if not rows:
        raise ValueError(f"{path}: expected rows of data below the header {header}, got none")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: expected {len(header)} cells, as in the header, "
                f"got {len(row)}: {row}"
            )
    return header, rows


def _find_date_column(path: Path, header: list[str]) -> int:
    """Check the column names and return the index of the column of dates."""
    if len(header) < 2:
        raise ValueError(
            f"{path}: expected a column of dates and at least one series, separated by commas, "
            f"got only the column {header[0]!r}"
        )
    repeated = sorted({name for name in header if header.count(name) > 1} - {""})
    if repeated:
        raise ValueError(f"{path}: expected different column names, got {repeated} more than once")
    named_date = [i for i, name in enumerate(header) if name.lower() == "date"]
    if len(named_date) > 1:
        got = [header[i] for i in named_date]
        raise ValueError(f"{path}: expected one column of dates, got {got}")
    date_column = named_date[0] if named_date else 0
    for i, name in enumerate(header):
        # pandas writes the index of a data frame as a first column without a name
        if not name and i != date_column:
            raise ValueError(
                f"{path}: expected a name for every series, got none for column {i + 1}"
            )
    # otherwise the first row of a file without a header would be lost silently
    if _guess_formats(header[date_column]):
        raise ValueError(f"{path}: expected a header line of column names, got the data {header}")
    return date_column


def _import_pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "read_returns needs pandas 2.2 or later: pip install 'pyro-regimes[app]'"
        ) from error
    return pandas


def _guess_formats(text: str) -> list[str]:
    """The formats that pandas infers for a date: none, one, or month first and day first."""
    guess_datetime_format = _import_pandas().tseries.api.guess_datetime_format
    with warnings.catch_warnings():
        # pandas warns if the format it found contradicts dayfirst
        warnings.simplefilter("ignore")
        guesses = [guess_datetime_format(text, dayfirst=dayfirst) for dayfirst in (False, True)]
    if guesses[0] and guesses[0].startswith("%Y"):
        guesses = guesses[:1]  # the month follows the year, for both values of dayfirst
    return list(dict.fromkeys(guess for guess in guesses if guess))


def _parse_dates(path: Path, column: str, cells: dict[int, str]) -> npt.NDArray[np.datetime64]:
    """Parse ``cells`` (line number -> text) with one format that fits all of them."""
    pd = _import_pandas()
    lines, texts = list(cells), list(cells.values())
    formats = _guess_formats(texts[0])
    if any("%z" in guess for guess in formats):
        raise ValueError(
            f"{path}, line {lines[0]}, column {column!r}: expected dates without a time zone, "
            f"got {texts[0]!r}"
        )

    readings, num_read = [], 0
    for date_format in formats:
        parsed = pd.to_datetime(pd.Series(texts), format=date_format, errors="coerce")
        dates = parsed.to_numpy().astype("datetime64[D]")
        failed = np.flatnonzero(np.isnat(dates))
        if failed.size == 0:
            readings.append(dates)
        else:
            num_read = max(num_read, int(failed[0]))
    if not readings:
        raise ValueError(
            f"{path}, line {lines[num_read]}, column {column!r}: expected a date such as "
            f"1990-01-31, in one format throughout, got {texts[num_read]!r}"
        )
    if len(readings) == 2 and (differ := readings[0] != readings[1]).any():
        i = int(np.argmax(differ))
        raise ValueError(
            f"{path}, line {lines[i]}, column {column!r}: expected dates such as 1990-01-31, got "
            f"{texts[i]!r}, which may be {readings[0][i]} or {readings[1][i]}"
        )
    return readings[0]


def _check_ascending(path: Path, dates: npt.NDArray[np.datetime64], lines: list[int]) -> None:
    """Check that dates ascend; repeated dates first, as their message is more specific."""
    first_line: dict[np.datetime64, int] = {}
    for line, date in zip(lines, dates):
        if date in first_line:
            raise ValueError(
                f"{path}, line {line}: expected one row per date, got {date} again "
                f"(first on line {first_line[date]})"
            )
        first_line[date] = line
    falls = np.flatnonzero(dates[1:] < dates[:-1])
    if falls.size:
        i = int(falls[0])
        raise ValueError(
            f"{path}, line {lines[i + 1]}: expected dates in ascending order, "
            f"got {dates[i + 1]} after {dates[i]}"
        )


def _parse_number(where: str, cell: str, *, positive: bool) -> float:
    """The number in ``cell``, or NaN if it is missing."""
    if cell in MISSING_VALUES:
        return math.nan
    try:
        number = math.nan if "_" in cell else float(cell)  # float("1_000") is 1000
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{where}: expected a number, got {cell!r}")
    if math.isinf(number):
        raise ValueError(f"{where}: expected a finite number, got {cell!r}")
    if positive and number <= 0:
        raise ValueError(f"{where}: expected a positive price, got {cell!r}")
    return number


def _check_series(
    path: Path,
    names: tuple[str, ...],
    values: npt.NDArray[np.float64],
    dates: npt.NDArray[np.datetime64],
) -> None:
    """Raise for series to which no model of returns can be fitted."""
    for name, series in zip(names, values.T):
        if not np.isfinite(series).all():
            date = dates[~np.isfinite(series)][0]
            raise ValueError(
                f"{path}, column {name!r}: expected prices with finite returns, "
                f"got an overflow on {date}"
            )
        # a single row cannot vary
        if len(series) > 1 and (series == series[0]).all():
            raise ValueError(
                f"{path}, column {name!r}: expected a series that varies, "
                f"got the return {series[0]} in all {len(series)} rows"
            )
