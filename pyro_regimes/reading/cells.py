"""The content of a cell: a number, a date, text, or nothing."""

from __future__ import annotations

import datetime
import math
import numbers
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.reading.packages import pandas

# The strings that pandas reads as missing values, and those that vendors write.
MISSING_VALUES = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"]
    + ["<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)
VENDORS_MISSING_VALUES = MISSING_VALUES | {
    *[".", "..", "-", "--", "\u2013", "\u2014", "ND", "n.a.", "N.A.", "#NV", "#VALUE!", "#DIV/0!"],
    *["#N/A Field Not Applicable", "#N/A Invalid Security", "NaT", "missing"],
}

_GROUP = "[ \u00a0\u2009\u202f'\u2019]"  # blanks and apostrophes between groups of three digits
_EXPONENT = r"(?:[eE][+-]?\d+)?"
_NUMBER = {
    mark: rf"(?:(?:[1-9]\d{{0,2}}(?:{group}\d{{3}})+|\d+)(?:{decimal}\d*)?|{decimal}\d+){_EXPONENT}"
    for mark, group, decimal in [
        (".", f"(?:,|{_GROUP})", r"\."),
        (",", rf"(?:\.|{_GROUP})", ","),
    ]
}
_CURRENCY = "[$\u20ac\u00a3\u00a5]?"
# a sign, brackets for a negative number, a currency, a percent sign
_DECORATED = {
    mark: re.compile(
        rf"(?P<sign>[+\u2212-]?)(?P<open>\(?){_CURRENCY}\s?(?P<number>{number})\s?{_CURRENCY}%?\)?"
    )
    for mark, number in _NUMBER.items()
}
# most numbers, for which there is a fast way
_PLAIN = {".": r"[+-]?\d+(?:\.\d+)?%?", ",": r"[+-]?\d+(?:,\d+)?%?"}
_DATE = re.compile(
    r"""
    (?: \d{4}[-/.: ]\d{1,2}[-/. ]\d{1,2}            # 2020-01-31
      | \d{1,2}[-/. ]\d{1,2}[-/. ](?:\d{4}|\d{2})   # 31.01.2020, 1/31/20
      | \d{1,2}[-/. ]?[A-Za-z]{3,9}[-/., ]*(?:\d{4}|\d{2})    # 31-Jan-2020
      | (?:[A-Za-z]{3},?\ )?[A-Za-z]{3,9}\ \d{1,2},?\ \d{4}   # Jan 31, 2020
      | [A-Za-z]{3,9}[-/. ](?:\d{4}|\d{2})          # Jan 2020
      | \d{1,2}[-/]\d{4}                           # 01/2020
    ) (?: [T ,]+\d{1,2}:\d{2}.* )?
    | \d{4}[-: ]?[QqMmWw]\d{1,2}                    # 1947Q1, 1990M01
    | \d{4}[-/:]\d{2}                               # 1990-01
    | [Qq][1-4][-/ ]?\d{4}                          # Q1 1947
    """,
    re.VERBOSE,
)
_COMPACT_DATE = re.compile(r"(?:1[5-9]|2[01])\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])?")

DATE, NUMBER, MISSING, TEXT = "date", "number", "missing", "text"


def classify(cell: Any) -> str:
    """``DATE``, ``NUMBER``, ``MISSING`` or ``TEXT``. Digits alone are a number."""
    if cell is None or cell is pandas().NaT or (isinstance(cell, float) and math.isnan(cell)):
        return MISSING
    if isinstance(cell, (datetime.date, np.datetime64)):
        return DATE
    if not isinstance(cell, str):
        return NUMBER if isinstance(cell, numbers.Number) else TEXT
    text = cell.strip()
    if text in VENDORS_MISSING_VALUES:
        return MISSING
    if any(pattern.fullmatch(text) for pattern in _DECORATED.values()) or _is_float(text):
        # 31.01.2020 is no number, but 1947 01 might be one
        return NUMBER
    return DATE if _DATE.fullmatch(text) else TEXT


def is_compact_date(cell: Any) -> bool:
    """Whether digits may be a date, as in 20200131 or 202001."""
    return isinstance(cell, (str, int)) and bool(_COMPACT_DATE.fullmatch(str(cell).strip()))


def decimal_evidence(cell: str) -> set[str]:
    """The decimal marks with which a number can be read, if it has a point or a comma."""
    cell = cell.strip()
    if "." not in cell and "," not in cell:
        return set()
    return {mark for mark, pattern in _DECORATED.items() if pattern.fullmatch(cell)}


def to_numbers(column: Any, decimal: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The numbers of a column, and which of its cells are not numbers.

    Percent signs and currencies are removed, and so are blanks, apostrophes, points or commas
    between groups of three digits. Missing cells are NaN.

    :param column: a pandas Series of numbers, or of text.
    :param decimal: the decimal mark of text, ``"."`` or ``","``.
    """
    pd = pandas()
    if pd.api.types.is_bool_dtype(column):
        return np.full(len(column), np.nan), np.ones(len(column), dtype=bool)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(column), bool)
    found = np.full(len(column), np.nan)
    wrong = np.zeros(len(column), dtype=bool)
    plain = np.zeros(len(column), dtype=bool)
    if isinstance(column.dtype, pd.StringDtype):
        plain = column.str.fullmatch(_PLAIN[decimal]).to_numpy(dtype=bool, na_value=False)
        texts = column[plain].str.rstrip("%")
        texts = texts.str.replace(",", ".", regex=False) if decimal == "," else texts
        found[plain] = texts.astype(float)
    cells = column.to_numpy(dtype=object)
    for i in np.flatnonzero(~plain & ~column.isna().to_numpy()):
        found[i], wrong[i] = _to_number(cells[i], _DECORATED[decimal], decimal)
    return found, wrong


def _to_number(cell: Any, pattern: re.Pattern[str], decimal: str) -> tuple[float, bool]:
    """The number in a cell, NaN if it is missing, and whether it is something else."""
    if not isinstance(cell, str):
        kind = classify(cell)
        if kind == NUMBER and not isinstance(cell, bool):
            return _float_of(cell)
        return math.nan, kind != MISSING
    text = cell.strip()
    match = pattern.fullmatch(text)
    if match:
        digits = re.sub(_GROUP, "", match["number"])
        digits = digits.replace("," if decimal == "." else ".", "").replace(decimal, ".")
        negative = match["sign"] in ("-", "\u2212") or bool(match["open"])
        return -float(digits) if negative else float(digits), False
    if text in VENDORS_MISSING_VALUES:
        return math.nan, False
    return (float(text), False) if _is_float(text) else (math.nan, True)


def _float_of(cell: Any) -> tuple[float, bool]:
    """The number, and whether it is none that a float can hold."""
    try:
        return float(cell), False
    except (OverflowError, TypeError):  # 10**400, complex numbers
        return np.nan, True


def clean_name(cell: Any) -> str:
    """The name of a column without control characters, which would act on a terminal."""
    if classify(cell) == MISSING and not isinstance(cell, str):
        return ""
    printable = "".join(char if char.isprintable() else " " for char in str(cell))
    return " ".join(printable.split())


def _is_float(text: str) -> bool:
    """Infinities and further spellings of Python, but not 1_000 and not NaN."""
    try:
        return "_" not in text and not math.isnan(float(text))
    except ValueError:
        return False
