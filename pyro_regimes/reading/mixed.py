"""A table of numbers and categories, as a regression takes it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pyro_regimes.reading.cells import to_numbers
from pyro_regimes.reading.dates import read_dates
from pyro_regimes.reading.packages import pandas
from pyro_regimes.reading.reader import raw_table
from pyro_regimes.reading.series import find_dates
from pyro_regimes.reading.table import Table

if TYPE_CHECKING:
    import pandas as pd


def read_mixed(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    dayfirst: bool | None = None,
    decimal: str | None = None,
) -> pd.DataFrame:
    """Read all columns of a file: those of numbers as numbers, and others as text.

    :param path: as of :func:`pyro_regimes.datasets.read_returns`.
    :param dayfirst: whether the day comes before the month in dates; None: as these tell.
    :param decimal: the decimal mark; None: as the numbers tell.
    :return: a DataFrame with the dates, if there are some, as its index. Missing cells are NaN.
    :raises ValueError: if the file is no table, a date cannot be read, or a column of
        numbers has a cell that is none.
    """
    table = raw_table(path, decimal)
    labels = table.labels()
    if len(set(labels)) < len(labels):
        repeated = next(name for name in labels if labels.count(name) > 1)
        raise ValueError(
            f"{table.source}: expected a name of its own for each column, got {repeated!r} more "
            "than once; rename the columns"
        )
    date = find_dates(table, labels)
    columns = {
        name: _values(table, place, name)
        for place, name in enumerate(labels)
        if place != date
    }
    index = None
    if date is not None:
        index = pandas().Index(read_dates(table, date, labels[date], None, dayfirst).values)
    frame: pd.DataFrame = pandas().DataFrame(columns, index=index)
    return frame


def _values(table: Table, place: int, name: str) -> Any:
    """Numbers if all cells are, and text or flags otherwise.

    :raises ValueError: if most cells are numbers, but not all.
    """
    column = table.columns[place]
    numbers, wrong = to_numbers(column, table.decimal)
    if not wrong.any():
        return numbers
    if np.isfinite(numbers).sum() > wrong.sum():
        row = int(wrong.argmax())
        raise ValueError(
            f"{table.place(row, name)}: expected a number as in most rows, got "
            f"{str(column.iloc[row])!r}; correct it, or write categories as text in every row"
        )
    return column.to_numpy(dtype=object)
