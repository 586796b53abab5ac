"""Reads a column of dates in the one format that fits all of it."""

from __future__ import annotations

import datetime
import re
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.reading.frequency import Frequency
from pyro_regimes.reading.packages import pandas
from pyro_regimes.reading.table import Table

_TIME = re.compile(
    r"(?P<date>.*\d.*?)(?P<gap>[T ]|,\s*)(?P<hour>\d{1,2}):\d{2}(?P<seconds>:\d{2})?"
    r"(?P<fraction>\.\d+)?(?P<half>\s?[AaPp][Mm])?"
)
_ZONE = re.compile(r"\s?(Z|UTC|GMT|[+-]\d{2}:?\d{2})$")
_QUARTER = re.compile(r"(?P<y>\d{4})[-: ]?[Qq](?P<q>[1-4])|[Qq](?P<q2>[1-4])[-/ ]?(?P<y2>\d{4})")
_WEEK = re.compile(r"(\d{4})-?[Ww](\d{1,2})")
_MONTHLY, _QUARTERLY, _YEARLY, _WEEKLY = (
    Frequency("monthly", 12),
    Frequency("quarterly", 4),
    Frequency("yearly", 1),
    Frequency("weekly", 52),
)


class Dates(NamedTuple):
    """The dates of rows.

    :param values: ``(T,)`` datetime64, in days, or finer and in UTC if ``time_zone`` is not None.
    :param time_zone: the time zone of intraday rows, if the file has one.
    :param frequency: the frequency that the format says, such as monthly for 202001.
    """

    values: npt.NDArray[Any]
    time_zone: str | None = None
    frequency: Frequency | None = None


def read_dates(
    table: Table, column: int, name: str, time_column: int | None, dayfirst: bool | None
) -> Dates:
    """Read the dates of all rows.

    :param time_column: a second column that has the time of the day.
    :param dayfirst: whether the day comes before the month; None: as the column tells.
    :raises ValueError: if a cell is no date, dates are of several formats, or they can be read in
        two ways. The message has the line.
    """
    pd = pandas()
    cells = table.columns[column]
    empty = np.flatnonzero(cells.isna().to_numpy())
    if empty.size:
        raise ValueError(
            f"{table.place(int(empty[0]), name)}: expected a date, got ''; fill it in or remove "
            "the row"
        )
    if pd.api.types.is_object_dtype(cells):
        if all(isinstance(cell, datetime.date) for cell in cells):
            cells = pd.to_datetime(cells)
    if pd.api.types.is_datetime64_any_dtype(cells) and time_column is None:
        return _typed(cells)
    texts = _as_text(cells)
    if time_column is not None:
        texts = texts.str.replace(" 00:00:00", "") + " " + _clock(table.columns[time_column])
    return _parse(table, texts, name, dayfirst)


def _typed(cells: Any) -> Dates:
    """Times that the file keeps as times."""
    zone = getattr(cells.dt, "tz", None)
    if zone is None:
        return _finish(cells.to_numpy(), None, None)
    local, utc = cells.dt.tz_localize(None), cells.dt.tz_convert("UTC").dt.tz_localize(None)
    return _finish(local.to_numpy(), utc.to_numpy(), str(zone))


def _as_text(cells: Any) -> Any:
    pd = pandas()
    if pd.api.types.is_float_dtype(cells) and (cells % 1 == 0).all():
        cells = cells.astype("int64")
    return cells.astype(str).str.strip()


def _clock(cells: Any) -> Any:
    """Times of the day such as 09:30, or 093000 as Stooq writes them."""
    texts = _as_text(cells)
    digits = texts.str.fullmatch(r"\d+")
    padded = texts.str.zfill(6)
    colons = padded.str[:2] + ":" + padded.str[2:4] + ":" + padded.str[4:6]
    return texts.where(~digits, colons)


def _parse(table: Table, texts: Any, name: str, dayfirst: bool | None) -> Dates:
    first = texts.iloc[0]
    zone, offsets = None, None
    if _TIME.match(first) and _ZONE.search(first):
        found = texts.str.extract(_ZONE, expand=False)
        missing = np.flatnonzero(found.isna().to_numpy())
        if missing.size:
            i = int(missing[0])
            raise ValueError(
                f"{table.place(i, name)}: expected a time with its zone, as in {first!r}, got "
                f"{texts.iloc[i]!r}; write all times with the zone, or none"
            )
        labels, codes = np.unique(found.to_numpy(dtype=str), return_inverse=True)
        minutes = np.array([_minutes(label) for label in labels])
        offsets = minutes[codes].astype("timedelta64[m]")
        zone = _zone_name(set(minutes.tolist()))
        texts = texts.str.replace(_ZONE, "", regex=True)

    readings, num_read = [], 0
    for date_format, reading in _readings(texts, dayfirst):
        failed = np.flatnonzero(np.isnat(reading))
        if failed.size == 0:
            readings.append((date_format, reading))
        else:
            num_read = max(num_read, int(failed[0]))
    if not readings:
        hint = ""
        if dayfirst is not None:
            hint = f" with dayfirst={dayfirst} (--{'' if dayfirst else 'no-'}dayfirst)"
        raise ValueError(
            f"{table.place(num_read, name)}: expected a date such as 1990-01-31, in one format "
            f"throughout,{hint} got {texts.iloc[num_read]!r}; write all dates as 1990-01-31"
        )
    local = readings[0][1]
    for _, other in readings[1:]:
        if (differ := local != other).any():
            i = int(np.argmax(differ))
            one, two = (str(each[i].astype("datetime64[D]")) for each in (local, other))
            raise ValueError(
                f"{table.place(i, name)}: expected dates that can be read in one way, such as "
                f"1990-01-31, got {texts.iloc[i]!r}, which may be {one} or {two}; say "
                "dayfirst=True or dayfirst=False (--dayfirst or --no-dayfirst)"
            )
    date_format = readings[0][0]
    if "%y" in date_format and local.max() > np.datetime64(datetime.date.today()) + 366:
        i = int(np.argmax(local))
        raise ValueError(
            f"{table.place(i, name)}: expected years of four digits, got {texts.iloc[i]!r}, which "
            "would be in the future; write the years in full"
        )
    utc = None if offsets is None else local - offsets
    return _finish(local, utc, zone)._replace(frequency=_frequency_of(date_format))


def _readings(texts: Any, dayfirst: bool | None) -> list[tuple[str, npt.NDArray[Any]]]:
    """Each format that fits the first text, and all texts read by it; NaT where it does not fit."""
    pd = pandas()
    first = texts.iloc[0]
    if _QUARTER.fullmatch(first):
        parts = texts.str.extract(f"^(?:{_QUARTER.pattern})$")
        year, quarter = parts["y"].fillna(parts["y2"]), parts["q"].fillna(parts["q2"])
        month = (quarter.astype(float) * 3 - 2).fillna(0).astype(int).astype(str)
        return [("quarter", _to_datetime(year + "-" + month, "%Y-%m"))]
    if _WEEK.fullmatch(first):
        weeks = texts.str.replace(_WEEK, r"\1-W\2-1", regex=True)
        return [("week", _to_datetime(weeks, "%G-W%V-%u"))]
    if re.fullmatch(r"\d{9,10}|\d{12,13}", first):  # what JSON and exchanges have for a time
        numbers = pd.to_numeric(texts, errors="coerce")
        unit = "ms" if len(first) > 10 else "s"
        return [("epoch", pd.to_datetime(numbers, unit=unit, errors="coerce").to_numpy())]
    if re.fullmatch(r"\d{4}\.\d{1,2}", first):  # 1871.1 is October in Shiller's file
        texts = texts.str.replace(r"\.1$", ".10", regex=True)
    found = []
    for date_format in _formats(first, dayfirst):
        reading = _to_datetime(texts, date_format)
        # fractions of a second are left out where they are zero
        if np.isnat(reading).any() and date_format.startswith("%Y-%m-%d"):
            iso = texts.str.match(r"\d{4}-\d\d-\d\d").to_numpy(dtype=bool)
            again = pd.to_datetime(texts.where(iso), format="ISO8601", errors="coerce")
            if "%H" in date_format:
                reading = again.to_numpy()
        found.append((date_format, reading))
    return found


def _to_datetime(texts: Any, date_format: str) -> npt.NDArray[Any]:
    return pandas().to_datetime(texts, format=date_format, errors="coerce").to_numpy()


def _formats(text: str, dayfirst: bool | None) -> list[str]:
    """The strptime formats of a text: none, one, or one with the day first and one without."""
    date, clock = text, ""
    if match := _TIME.fullmatch(text):
        date = match["date"]
        clock = match["gap"] + ("%I:%M" if match["half"] else "%H:%M")
        clock += ":%S" if match["seconds"] else ""
        clock += ".%f" if match["fraction"] else ""
        if match["half"]:
            clock += match["half"][:-2] + "%p"
    dates = _date_formats(date, dayfirst)
    if not dates and len(text) >= 6 and any(char.isdigit() for char in text):
        with warnings.catch_warnings():
            # pandas warns if the format it found contradicts dayfirst
            warnings.simplefilter("ignore")
            guess = pandas().tseries.api.guess_datetime_format(text, dayfirst=bool(dayfirst))
        return [guess] if guess else []
    return [each + clock for each in dates]


def _date_formats(text: str, dayfirst: bool | None) -> list[str]:
    if match := re.fullmatch(r"\d{4}([-/. ])\d{1,2}([-/. ])\d{1,2}", text):
        return [f"%Y{match[1]}%m{match[2]}%d"]
    if match := re.fullmatch(r"\d{1,2}([-/. ])\d{1,2}\1(\d{4}|\d{2})", text):
        year = "%Y" if len(match[2]) == 4 else "%y"
        month_first, day_first = (
            match[1].join([*order, year]) for order in (("%m", "%d"), ("%d", "%m"))
        )
        if dayfirst is None and match[1] != ".":
            return [month_first, day_first]
        return [month_first if dayfirst is False else day_first]  # with points the day is first
    for pattern, formats in [
        (r"\d{8}", ["%Y%m%d"]),
        (r"\d{6}", ["%Y%m"]),
        (r"\d{4}", ["%Y"]),
    ]:
        if re.fullmatch(pattern, text):
            return formats
    if match := re.fullmatch(r"\d{1,2}([-/])\d{4}", text):
        return [f"%m{match[1]}%Y"]
    if match := re.fullmatch(r"\d{4}([-/:.Mm ]|-M)\d{1,2}", text):
        return [f"%Y{match[1]}%m"]
    for pattern, order in [
        (r"\d{1,2}(?P<a>[-/. ]*)[A-Za-z]{3,9}(?P<b>[-/., ]*)(?P<y>\d{4}|\d{2})", "%d{a}{m}{b}{y}"),
        (r"[A-Za-z]{3,9}(?P<a>[-/. ]+)\d{1,2}(?P<b>,? ?)(?P<y>\d{4})", "{m}{a}%d{b}{y}"),
        (r"[A-Za-z]{3,9}(?P<a>[-/. ]+)(?P<b>)(?P<y>\d{4}|\d{2})", "{m}{a}{y}"),
        (r"(?P<y>\d{4})(?P<a>[-/ ]*)[A-Za-z]{3,9}(?P<b>)", "{y}{a}{m}"),
    ]:
        if match := re.fullmatch(pattern, text):
            year = "%y" if len(match["y"]) == 2 else "%Y"
            return [order.format(a=match["a"], b=match["b"], y=year, m=m) for m in ("%b", "%B")]
    return []


def _frequency_of(date_format: str) -> Frequency | None:
    if date_format == "quarter":
        return _QUARTERLY
    if date_format == "week":
        return _WEEKLY
    if date_format == "epoch" or "%d" in date_format:
        return None
    return _MONTHLY if "%m" in date_format or "%b" in date_format.lower() else _YEARLY


def _minutes(label: str) -> int:
    if label[0] not in "+-":
        return 0
    hours, minutes = int(label[1:3]), int(label[-2:])
    return (60 * hours + minutes) * (-1 if label[0] == "-" else 1)


def _zone_name(minutes: set[int]) -> str:
    """UTC also for several offsets, which come from summer time."""
    if len(minutes) > 1 or minutes == {0}:
        return "UTC"
    (offset,) = minutes
    hours, rest = divmod(abs(offset), 60)
    return f"UTC{'-' if offset < 0 else '+'}{hours:02d}:{rest:02d}"


def _finish(local: npt.NDArray[Any], utc: npt.NDArray[Any] | None, zone: str | None) -> Dates:
    """Days, if all rows have one time of the day; the instants of intraday rows otherwise."""
    days = local.astype("datetime64[D]")
    clock = local - days
    if (clock == clock[0]).all():
        return Dates(days)
    instants = local if utc is None else utc
    seconds = instants.astype("datetime64[s]")
    return Dates(seconds if (seconds == instants).all() else instants, zone)
