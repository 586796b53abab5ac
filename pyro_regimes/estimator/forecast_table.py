"""A :class:`.Forecast` as tables of text, and as a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import fixed, percent, text_table

if TYPE_CHECKING:
    import pandas as pd

#: The probability of each tail, for quantiles and losses.
LEVEL = 0.05


class Part(NamedTuple):
    """One property of all series."""

    name: str  #: in a file
    title: str  #: of the table; "" if it is not shown
    values: Array  #: ``(n, D)``


def parts_of(found: Any, level: float) -> list[Part]:
    """The mean, the standard deviation, two quantiles, and of returns the risk of each series."""
    parts = [
        Part("mean", "mean", found.mean),
        Part("deviation", "standard deviation", found.deviation),
    ]
    if not found.spec.is_circular:
        lower, upper = found.quantile([level, 1 - level])
        parts.append(Part("lower", f"quantile {level:g}", lower))
        parts.append(Part("upper", f"quantile {1 - level:.12g}", upper))
    if found.spec.of_changes:
        parts.append(Part("value_at_risk", "", found.value_at_risk(level)))
        parts.append(Part("expected_shortfall", "", found.expected_shortfall(level)))
    return parts


def as_text(
    found: Any,
    parts: list[Part],
    regimes: Sequence[str],
    series: Sequence[str],
    steps: Sequence[str],
    width: int = 80,
) -> str:
    """A table of the regimes, and one of each part that is shown.

    :param steps: the labels of the rows.
    """
    probs = percent(found.regime_probs.T)
    tables = [text_table("probability", steps, zip(regimes, probs, strict=True), width)]
    for part in parts:
        if part.title:
            columns = zip(series, fixed(part.values.T), strict=True)
            tables.append(text_table(part.title, steps, columns, width))
    return "\n\n".join(tables)


def as_frame(
    found: Any, parts: list[Part], regimes: Sequence[Any], series: Sequence[Any]
) -> pd.DataFrame:
    """Columns of two levels: a property, and the regime or the series that it is of."""
    pandas = require("pandas", "to_frame")
    tables = [("probability", regimes, found.regime_probs)]
    tables += [(part.name, series, part.values) for part in parts]
    columns = {
        (name, each): column
        for name, of, values in tables
        for each, column in zip(of, values.T, strict=True)
    }
    index = pandas.RangeIndex(1, len(found.mean) + 1, name="step")
    return pandas.DataFrame(columns, index=index)
