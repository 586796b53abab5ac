"""The result of reading: series of returns over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.reading.packages import require

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Returns:
    """Series of returns over time. It unpacks as ``values, dates, names``.

    :param values: float64 ``(T, D)``, one column per series, NaN where a value is missing.
    :param dates: ``(T,)``, strictly ascending: datetime64[D] for at most one row per day, a finer
        datetime64 for intraday rows, or integers 0, 1, ... for a file without dates.
    :param names: the D names of the series.
    :param periods_per_year: the number of rows per year, for annualising, or None if it cannot be
        inferred from the dates.
    :param frequency: a description of the frequency of the rows, such as ``"daily"``.
    :param time_zone: the time zone of intraday rows if the file has one, such as ``"UTC"`` or
        ``"UTC-05:00"``. Then ``dates`` are in UTC.
    :param prices: the prices at these rows, ``(T, D)``, NaN where missing, if the returns are those
        of prices; otherwise None.
    """

    values: npt.NDArray[np.float64]
    dates: npt.NDArray[Any]
    names: tuple[str, ...]
    periods_per_year: float | None = None
    frequency: str = "unknown"
    time_zone: str | None = None
    prices: npt.NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        rows, series = self.values.shape
        span = f", {self.dates[0]} to {self.dates[-1]}" if rows else ""
        return f"<Returns: {rows} rows of {series} series{span}, frequency={self.frequency!r}>"

    def __iter__(self) -> Iterator[Any]:
        return iter((self.values, self.dates, self.names))

    def last(self, num_rows: int) -> Returns:
        """The last ``num_rows`` rows, or all if there are fewer."""
        prices = None if self.prices is None else self.prices[-num_rows:]
        values, dates = self.values[-num_rows:], self.dates[-num_rows:]
        return replace(self, values=values, dates=dates, prices=prices)

    def select(self, columns: Sequence[int]) -> Returns:
        """The series with these numbers, in this order."""
        prices = None if self.prices is None else self.prices[:, columns]
        names = tuple(self.names[column] for column in columns)
        return replace(self, values=self.values[:, columns], names=names, prices=prices)

    def to_frame(self) -> pd.DataFrame:
        """A pandas DataFrame with the dates as its index and the names as its columns.

        The index has the time zone of the rows, if there is one.

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        pandas = require("pandas", "to_frame")
        index = pandas.Index(self.dates)
        if self.time_zone is not None:
            index = index.tz_localize("UTC").tz_convert(self.time_zone)
        return pandas.DataFrame(self.values, index=index, columns=list(self.names))
