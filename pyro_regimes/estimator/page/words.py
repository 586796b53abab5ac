"""Numbers, dates and lengths of time in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.reading.frequency import Frequency, infer_frequency

_STEPS = {
    "daily": "trading day",
    "daily, weekends too": "day",
    "weekly": "week",
    "every two weeks": "fortnight",
    "monthly": "month",
    "quarterly": "quarter",
    "half-yearly": "half-year",
    "yearly": "year",
}
_DIGITS = 3
_LARGE = 1e5  # from which on numbers have an exponent
_SMALL = 1e-4  # and up to which
_NONE = "–"


def frequency_of(time: npt.NDArray[Any] | None) -> Frequency:
    """The frequency of the dates; an unknown one without dates."""
    return infer_frequency(np.arange(0) if time is None else time)


def step_name(time: npt.NDArray[Any] | None) -> str:
    """What a step is called, such as "trading day"; "step" where the dates do not tell."""
    return _STEPS.get(frequency_of(time).name, "step")


def several(number: float, name: str) -> str:
    """A number with a noun: "1 row", "2 rows", "3.5 days"."""
    if math.isinf(number):
        return f"infinitely many {name}s"
    text = f"{number:,.0f}" if number >= 100 else f"{number:.1f}".removesuffix(".0")
    return f"{text} {name}{'' if text == '1' else 's'}"


def date_of(time: npt.NDArray[Any] | None, row: int) -> str:
    """The date of a row, as "28 December 2022"; else its step, or its number from 1 on."""
    if time is None:
        return f"row {row + 1}"
    if time.dtype.kind != "M":
        return f"step {time[row]:g}"
    moment = time[row].astype("datetime64[s]").item()
    day = f"{moment.day} {moment:%B} {moment.year}"
    midnight = (time == time.astype("datetime64[D]")).all()
    return day if midnight else f"{day}, {moment:%H:%M}"


def percent(probability: float) -> str:
    """A probability; with two decimals near 0 and 1, so that it does not seem exact."""
    near = min(probability, 1 - probability)
    if 0 < near < 5e-5:
        return "< 0.01%" if probability < 0.5 else "> 99.99%"
    return f"{probability:.2%}" if 0 < near < 0.01 else f"{probability:.1%}"


def numbers(values: Sequence[float], unit: str = "") -> list[str]:
    """Numbers with the same decimals, so many that the largest one has three digits.

    :param unit: appended to each, if it is "%".
    """
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0)
    after = "%" if unit == "%" else ""
    if largest and not _SMALL <= largest < _LARGE:
        return [_special(value) or f"{value:.{_DIGITS - 1}e}{after}" for value in values]
    decimals = _DIGITS - 1 - math.floor(math.log10(largest)) if largest else 1
    decimals = min(max(decimals, 0), 6)
    return [_special(value) or _minus(f"{value:,.{decimals}f}") + after for value in values]


def fixed_number(value: float, decimals: int) -> str:
    """A number with this number of decimals."""
    return _special(value) or _minus(f"{value:,.{decimals}f}")


def _special(value: float) -> str:
    if math.isnan(value):
        return _NONE
    return "" if math.isfinite(value) else ("∞" if value > 0 else "−∞")


def _minus(text: str) -> str:
    """With a minus sign; none before a zero."""
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.,") else f"−{text[1:]}"
    return text


def listed(words: Sequence[str]) -> str:
    """Words with commas between them and "and" before the last one."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
