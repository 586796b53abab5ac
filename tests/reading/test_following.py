"""The dates that follow the last one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_regimes.reading.following import following_dates
from pyro_regimes.reading.frequency import infer_frequency


@pytest.mark.parametrize(
    "freq, count",
    [
        ("B", 40), ("B", 3), ("D", 40), ("W-FRI", 30), ("W-WED", 30), ("2W-FRI", 30), ("ME", 30),
        ("BME", 30), ("MS", 30), ("QE", 12), ("BQE", 30), ("QS", 12), ("6ME", 8), ("YE", 8),
        ("YS", 8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", ["2019-11-14", "2023-02-27"])
def test_the_dates_of_a_frequency_go_on(freq, count, first):
    dates = pd.date_range(first, periods=count + 9, freq=freq).to_numpy("datetime64[D]")
    found = following_dates(dates[:count], 9)
    assert found.dtype == np.dtype("datetime64[D]")
    np.testing.assert_array_equal(found, dates[count:])


def test_the_same_day_of_each_month_is_the_last_one_of_a_shorter_month():
    dates = np.array(["2020-10-30", "2020-11-30", "2020-12-30", "2021-01-30"], "datetime64[D]")
    found = following_dates(dates, 2)
    assert found.astype(str).tolist() == ["2021-02-28", "2021-03-30"]


def test_days_of_trade_are_those_that_have_rows():
    """From Sunday to Thursday, as in some countries; a single Saturday is an exception."""
    dates = np.arange("2020-01-05", "2021-01-08", dtype="datetime64[D]")
    weekday = (dates.astype(int) + 3) % 7  # from Monday on
    kept = dates[(weekday != 4) & ((weekday != 5) | (dates == np.datetime64("2020-06-06")))]
    assert str(kept[-1]) == "2021-01-07"  # a Thursday
    assert following_dates(kept, 2).astype(str).tolist() == ["2021-01-10", "2021-01-11"]


def test_a_holiday_changes_nothing():
    dates = pd.bdate_range("2020-01-01", "2020-12-31").to_numpy("datetime64[D]")
    found = following_dates(np.delete(dates, [0, 77, 102]), 2)
    assert found.astype(str).tolist() == ["2021-01-01", "2021-01-04"]


@pytest.mark.parametrize(
    "dates",
    [
        np.arange(40),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.array(["2020-01-03", "2020-02-11", "2020-03-06", "2020-04-22"], "datetime64[D]"),
        np.array(["2020-01-01", "2020-01-04", "2020-03-01", "2020-03-29"], "datetime64[D]"),
        np.arange("2020-01-01T09", "2020-01-03T09", dtype="datetime64[h]"),
    ],
    ids=["numbers", "one", "any day of a month", "irregular", "intraday"],
)
def test_where_the_frequency_does_not_tell_there_are_none(dates):
    assert following_dates(dates, 3) is None


def test_trade_from_sunday_to_thursday_is_daily():
    dates = np.arange("2020-01-05", "2021-01-08", dtype="datetime64[D]")
    kept = dates[~np.isin((dates.astype(int) + 3) % 7, [4, 5])]
    assert infer_frequency(kept) == ("daily", 252)
