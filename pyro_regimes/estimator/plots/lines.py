"""The line of the upper panel: a cumulative return, prices, or the observations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array


class Line(NamedTuple):
    """A line with what it shows."""

    values: Array  #: ``(T,)``
    label: str
    more: str  #: of the label: of how many series it is the average
    is_log: bool = False  #: whether the axis is logarithmic


def line_of(values: Array, cumulative: bool, unit: str | None, name: str | None) -> Line:
    """The average over the series that are not missing; its sum does not move where all are.

    :param name: of a single series, where its observations are shown.
    """
    seen = ~np.isnan(values)
    average = np.nansum(values, -1) / np.maximum(seen.sum(-1), 1)
    line: Array = average.cumsum() if cumulative else np.where(seen.any(-1), average, np.nan)
    if name is not None and values.shape[-1] == 1 and not cumulative:
        label = name if unit is None else f"{name} ({unit})"
    else:
        what = "cumulative return" if cumulative else "observation"
        label = f"{what} ({unit or 'unit of the data'})"
    return Line(line, label, _average(values.shape[-1]))


def line_of_prices(prices: npt.ArrayLike, num_rows: int) -> Line:
    """The price of one series; of several the mean of the logarithms, with 100 at the first row.

    A series has no price before its first one. Where the mean gains or loses a series it is moved,
    so that it changes by the mean change of the series that are there.

    :param prices: ``(T,)`` or ``(T, D)``, NaN where missing.
    :raises ValueError: if they are not positive, or have another number of rows.
    """
    found = np.asarray(prices, dtype=np.float64)
    table = found[:, None] if found.ndim == 1 else found
    if table.ndim != 2 or len(table) != num_rows or not (np.isnan(table) | (table > 0)).all():
        what = f"shape {found.shape}"
        if table.ndim == 2 and len(table) == num_rows:
            what = f"{table[~(np.isnan(table) | (table > 0))][0]:g}"
        raise ValueError(
            f"expected prices to be positive numbers with a row for each of the {num_rows} rows of "
            f"returns, got {what}"
        )
    number = table.shape[1]
    if number == 1:
        return Line(table[:, 0], "price, log scale", "", True)
    changes = np.diff(_carried(np.log(table)), axis=0)
    seen = ~np.isnan(changes)
    mean = np.nansum(changes, 1) / np.maximum(seen.sum(1), 1)
    index = 100 * np.exp(np.concatenate([[0.0], mean.cumsum()]))
    return Line(index, "price index, log scale", f"{_average(number)}, first row 100", True)


def standard_scores(values: Array) -> Array:
    """Each series less its mean, divided by its standard deviation; 0 if it is constant."""
    numbers = np.maximum((~np.isnan(values)).sum(0), 1)
    centred = values - np.nansum(values, 0) / numbers
    deviations = np.sqrt(np.nansum(centred**2, 0) / numbers)
    scores: Array = centred / np.where(deviations > 0, deviations, 1.0)
    return scores


def _carried(table: Array) -> Array:
    """Missing entries take the last value before them; those before the first one stay missing."""
    rows = np.where(np.isnan(table), 0, np.arange(len(table))[:, None])
    last = np.maximum.accumulate(rows, axis=0)
    return np.take_along_axis(table, last, axis=0)


def _average(number: int) -> str:
    return f"average of {number} series" if number > 1 else ""
