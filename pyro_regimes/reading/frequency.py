"""The frequency of the rows: its name, and the number of rows per year."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Frequency(NamedTuple):
    """How often rows come.

    :param name: the frequency in words, such as ``"daily"``.
    :param periods_per_year: the number of rows in a year; None if it is not known.
    """

    name: str
    periods_per_year: float | None


UNKNOWN = Frequency("unknown", None)

# The median number of days between two rows, at least and at most.
_REGULAR = [
    (6, 8, Frequency("weekly", 52)),
    (13, 15, Frequency("every two weeks", 26)),
    (27, 32, Frequency("monthly", 12)),
    (88, 93, Frequency("quarterly", 4)),
    (180, 185, Frequency("half-yearly", 2)),
    (363, 368, Frequency("yearly", 1)),
]
_TRADING_DAYS, _CALENDAR_DAYS = 252, 365
_DAY_SHARE = 0.05  # the least share of a day of the week that has rows, and no rare exception
_FEW_DAYS = 14  # which need not have all days of the week
_WEEKEND_SHARE = 0.24  # of few days; it is 2 / 7, or 1 / 5 where trade is from Sunday to Thursday


def infer_frequency(dates: npt.NDArray[Any]) -> Frequency:
    """The frequency of ascending dates, from the median distance between two of them.

    A year has 252 trading days, or 365 days where weekends have rows too. Intraday rows are
    counted: the median number of rows in a day that has any, times the number of days.

    :param dates: datetime64 ``(T,)``; anything else has no frequency.
    """
    if not np.issubdtype(dates.dtype, np.datetime64) or len(dates) < 2:
        return UNKNOWN
    days = dates.astype("datetime64[D]")
    distinct, counts = np.unique(days, return_counts=True)
    gaps = np.diff(distinct).astype(np.int64)
    weekdays = np.bincount((distinct.astype(np.int64) + 3) % 7, minlength=7)
    has_all = bool((weekdays > _DAY_SHARE * len(distinct)).all())
    if len(distinct) < _FEW_DAYS:
        has_all = bool(weekdays[5:].sum() > _WEEKEND_SHARE * len(distinct))
    days_per_year = _CALENDAR_DAYS if has_all else _TRADING_DAYS
    rows_per_day = float(np.median(counts))
    if rows_per_day > 1:
        return Frequency(f"intraday, {rows_per_day:g} a day", rows_per_day * days_per_year)
    gap = float(np.median(gaps))
    # a few rows around a weekend
    if gap <= 1 or (gap <= 4 and len(gaps) < 5):
        name = "daily" if days_per_year == _TRADING_DAYS else "daily, weekends too"
        return Frequency(name, days_per_year)
    for least, most, frequency in _REGULAR:
        if least <= gap <= most:
            return frequency
    years = gaps.sum() / 365.25
    per_year = float(f"{len(gaps) / years:.3g}")
    return Frequency(f"irregular, about {per_year:g} a year", per_year)
