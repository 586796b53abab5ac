"""Dates on the horizontal axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.plots.figure import width_of
from pyro_regimes.messages import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DAY = 86_400_000.0  # milliseconds
_PAUSE = 3.0  # usual steps; a longer one is a night, a weekend or another pause
_MUCH = 0.25  # of the axis


def as_time(dates: Any) -> npt.NDArray[Any]:
    """Dates as datetime64, of periods their beginnings; numbers as they are.

    :raises ValueError: if they are neither.
    """
    dates = getattr(dates, "array", dates)  # of a pandas Index or Series
    if hasattr(dates, "to_timestamp"):  # periods
        dates = dates.to_timestamp()
    if getattr(dates, "tz", None) is not None:  # local time
        dates = dates.tz_localize(None)
    time = np.asarray(dates)
    try:
        return time if time.dtype.kind in "iufM" else time.astype("datetime64[ms]")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected dates to be dates or numbers, got {shown(dates)}: {error}; see "
            "pandas.to_datetime"
        ) from error


def has_nights(time: npt.NDArray[Any]) -> bool:
    """Whether rows are intraday, and hours without rows would take much of an axis of time."""
    if time.dtype.kind != "M" or len(time) < 3:
        return False
    steps = np.diff(time.astype("datetime64[ms]")).astype(np.float64)
    usual = float(np.median(steps))
    closed = steps[steps > _PAUSE * usual].sum()
    return usual < _DAY and bool(closed > _MUCH * steps.sum())


def label_rows(panel: Axes, time: npt.NDArray[Any]) -> None:
    """Label an axis of row numbers: the first rows of days, or times of day of a day or two."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    days = time.astype("datetime64[D]")
    rows = np.flatnonzero(np.concatenate([[True], days[1:] != days[:-1]]))
    most, are_days = _most_labels(panel), len(rows) >= 3
    if are_days:
        rows = rows[:: -(-len(rows) // most)]
    else:
        rows = np.unique(np.linspace(0, len(time) - 1, most // 2 + 1).astype(int))
    style = "%d %b" if are_days else "%H:%M"
    texts = [each.strftime(style) for each in time[rows].astype("datetime64[s]").astype(object)]
    below = days[rows].astype("datetime64[Y]") if are_days else days[rows]
    for i in np.flatnonzero(np.concatenate([[True], below[1:] != below[:-1]])):
        texts[i] += f"\n{below[i]}"
    panel.xaxis.set_major_locator(FixedLocator(rows.tolist()))
    panel.xaxis.set_major_formatter(FixedFormatter(texts))


def _most_labels(panel: Axes) -> int:
    """The number of labels that have room."""
    return int(np.clip(1.2 * width_of(panel), 4, 11))


def label_dates(panel: Axes) -> None:
    """Label the horizontal axis with as many dates as have room."""
    from matplotlib.dates import MONTHLY, AutoDateLocator, ConciseDateFormatter

    most = _most_labels(panel)
    locator = AutoDateLocator(minticks=max(2, most // 3), maxticks=most)
    # Else it warns where half-years are too many and years too few.
    locator.intervald[MONTHLY] = [*locator.intervald[MONTHLY], 12]
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def title_of(time: npt.NDArray[Any], num_regimes: int, is_short: bool) -> str:
    """A title with the number of regimes and the dates of the first and the last row."""
    regimes = "1 regime" if num_regimes == 1 else f"{num_regimes} regimes"
    if time.dtype.kind != "M":
        return f"{regimes}, {len(time)} steps"
    years = [str(each) for each in time[[0, -1]].astype("datetime64[Y]")]
    if is_short and years[0] != years[1]:
        return f"{regimes}, {years[0]} to {years[1]}"
    whole_days = (time == time.astype("datetime64[D]")).all()
    first, last = (
        np.datetime_as_string(each, unit="D" if whole_days else "m").replace("T", " ")
        for each in time[[0, -1]]
    )
    return f"{regimes}, {first}" + (f" to {last}" if len(time) > 1 else "")
