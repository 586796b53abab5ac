"""The dates that follow the last one, where the dates before tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.reading.frequency import infer_frequency

Days = npt.NDArray[np.datetime64]

_DAYS = {"weekly": 7, "every two weeks": 14}
_MONTHS = {"monthly": 1, "quarterly": 3, "half-yearly": 6, "yearly": 12}
_FEWEST_ROWS = 10  # that tell on which days of the week there is trade
_HAS_ROWS = 0.02  # the least share of the rows on such a day
_WEEKDAYS = np.array([True] * 5 + [False] * 2)


def following_dates(dates: npt.NDArray[Any], number: int) -> Days | None:
    """The next dates by the frequency of the rows, ``datetime64[D]``, ``(number,)``.

    Of daily rows they are the next days of the week that have rows; holidays are not known. Of rows
    in every month, quarter or year they have the same place in the month: the last day, the last
    weekday, or the same day.

    :param dates: ascending, ``(T,)``.
    :return: None if the rows have no dates, are intraday or irregular, or if dates that come
        monthly or less often have no such place in common.
    """
    if dates.dtype != np.dtype("datetime64[D]") or len(dates) < 2:
        return None
    name, last, steps = infer_frequency(dates).name, dates[-1], np.arange(1, number + 1)
    if name == "daily":
        found: Days = np.busday_offset(last, steps, roll="backward", weekmask=_weekmask(dates))
        return found
    if name == "daily, weekends too":
        return last + steps
    if name in _DAYS:
        return last + _DAYS[name] * steps
    if name in _MONTHS:
        return _in_months(dates, last.astype("datetime64[M]") + _MONTHS[name] * steps)
    return None


def _weekmask(dates: Days) -> npt.NDArray[np.bool_]:
    """The days of the week that have rows, from Monday on."""
    if len(dates) < _FEWEST_ROWS:
        return _WEEKDAYS
    weekdays = (dates.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    found: npt.NDArray[np.bool_] = np.bincount(weekdays, minlength=7) >= _HAS_ROWS * len(dates)
    return found


def _in_months(dates: Days, months: npt.NDArray[Any]) -> Days | None:
    """The day of these months that the dates have in theirs."""
    known = dates.astype("datetime64[M]")
    day = (dates - known.astype("datetime64[D]")).max()
    for place in (_last_day, _last_weekday, lambda which: _same_day(which, day)):
        if (place(known) == dates).all():
            return place(months)
    return None


def _last_day(months: npt.NDArray[Any]) -> Days:
    found: Days = (months + 1).astype("datetime64[D]") - 1
    return found


def _last_weekday(months: npt.NDArray[Any]) -> Days:
    found: Days = np.busday_offset(_last_day(months), 0, roll="backward")
    return found


def _same_day(months: npt.NDArray[Any], day: Any) -> Days:
    """This day, counted from 0, or the last one of a shorter month."""
    return np.minimum(months.astype("datetime64[D]") + day, _last_day(months))
