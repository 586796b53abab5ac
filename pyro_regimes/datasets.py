"""Data sets: the embedded sector returns, and a reader for files."""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Sequence
from importlib import resources
from typing import BinaryIO

import numpy as np

from pyro_regimes.reading import reader
from pyro_regimes.reading.returns import Returns

__all__ = ["Returns", "load_sector_returns", "read_returns"]


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
    return Returns(values, dates, names, periods_per_year=252, frequency="daily")


def read_returns(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    prices: bool = False,
    columns: Sequence[str] | None = None,
    dayfirst: bool | None = None,
    sort: bool = False,
    drop_missing: bool = False,
    decimal: str | None = None,
) -> Returns:
    r"""Read series of returns, or of prices, from a file with a header.

    Prices become simple returns in percent,

    .. math:: r_t = 100 \left(\frac{p_t}{p_{t-1}} - 1\right);

    returns keep the units of the file, and percent signs are removed. The file is delimited text
    (.csv, .txt), possibly compressed (.csv.gz, .zip), .xlsx, .parquet or .json. Its type,
    separator, decimal mark, encoding, header and format of dates are inferred from its content. An
    ambiguous file raises an error. The page on files lists the formats.

    The dates are in the column named ``date``, or in the first column that contains dates. Without
    dates, rows are numbered. Every other column is a series. If the columns are open, high, low and
    close, the adjusted close is read, or else the close, with a warning. In long format (date,
    name, value) each name becomes a series.

    :param path: a file, or a binary stream such as ``sys.stdin.buffer``.
    :param prices: whether the series are prices.
    :param columns: the names of the series to read, in this order. For open, high, low and close,
        also the name of the field, and tickers.
    :param dayfirst: whether 01/02/2020 is the first of February. By default this is inferred from
        the column, and an ambiguous column is an error. In dates with points, such as 01.02.2020,
        the day is always first.
    :param sort: whether to sort the rows by date if they are not in ascending order.
    :param drop_missing: whether to drop rows with a missing value; a return of prices then spans
        the gap. Else it stays, as NaN. A warning counts missing values by column.
    :param decimal: the decimal mark of numbers in text, ``"."`` or ``","``. By default it is
        inferred from the numbers, and ambiguous numbers are an error.
    :returns: :class:`Returns`; one row fewer than the file if ``prices`` is true.
    :raises ValueError: if the file cannot be read as such a table: no header, no rows (fewer than 2
        of prices), unnamed or repeated columns, rows of another length than the header; if a value
        is not a finite (for prices, positive) number; if dates are ambiguous, invalid, repeated or
        not ascending; or if a series never changes or has no value. The message says where, what
        was expected, what was found, and the remedy.
    :raises OSError: if ``path`` cannot be read; :class:`FileNotFoundError` if there is no such
        file, :class:`IsADirectoryError` if it is a directory.
    :raises ImportError: if pandas >= 2.2, or the package that reads this format, is not installed.
    """
    returns, notes = reader.read(
        path,
        prices=prices,
        columns=columns,
        dayfirst=dayfirst,
        sort=sort,
        drop_missing=drop_missing,
        decimal=decimal,
    )
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return returns
