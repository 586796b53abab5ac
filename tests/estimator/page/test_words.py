"""Numbers and dates in words, by hand."""

import numpy as np
import pytest

from pyro_regimes.estimator.page import words


@pytest.mark.parametrize(
    "values, unit, expected",
    [
        ([12.345, -1.0], "%", ["12.3%", "−1.0%"]),
        ([0.01234, -0.00001], "", ["0.0123", "0.0000"]),
        ([1234.5, 1.0], "", ["1,234", "1"]),
        ([123456.7, 2.0], "", ["1.23e+05", "2.00e+00"]),
        ([0.0, 0.0], "", ["0.0", "0.0"]),
        ([np.nan, np.inf, -np.inf, 1.0], "", ["–", "∞", "−∞", "1.00"]),
        ([2e-7], "", ["2.00e-07"]),
    ],
)
def test_numbers(values, unit, expected):
    assert words.numbers(values, unit) == expected


@pytest.mark.parametrize(
    "probability, expected",
    [
        (0.5, "50.0%"),
        (0.0012, "0.12%"),
        (0.9987, "99.87%"),
        (1.0, "100.0%"),
        (0.0, "0.0%"),
        (1e-9, "< 0.01%"),
        (1 - 1e-9, "> 99.99%"),
    ],
)
def test_percent(probability, expected):
    assert words.percent(probability) == expected


def test_several():
    assert words.several(1, "row") == "1 row" and words.several(2, "row") == "2 rows"
    assert words.several(6.33, "day") == "6.3 days" and words.several(1.0, "day") == "1 day"
    assert words.several(1234.5, "day") == "1,234 days"
    assert words.several(np.inf, "day") == "infinitely many days"


def test_dates():
    days = np.array(["2022-12-28", "2022-12-29"], "datetime64[D]")
    assert words.date_of(days, 1) == "29 December 2022"
    hours = np.array(["2022-12-28T09:30", "2022-12-28T10:30"], "datetime64[s]")
    assert words.date_of(hours, 0) == "28 December 2022, 09:30"
    assert words.date_of(None, 4) == "row 5"
    assert words.date_of(np.arange(2001, 2007), 5) == "step 2006"


@pytest.mark.parametrize(
    "start, step, name",
    [("2020-01-06", 7, "week"), ("2020-01-01", 1, "day"), ("2020-01-01", 365, "year")],
)
def test_steps_have_the_name_of_their_frequency(start, step, name):
    time = np.datetime64(start) + np.arange(30) * step
    assert words.step_name(time) == name
    assert words.step_name(None) == words.step_name(np.arange(30)) == "step"
