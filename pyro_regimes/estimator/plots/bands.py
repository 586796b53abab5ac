"""Rows put together in bands that a picture can show."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array

_MOST_BANDS = 170  # that can be told apart in a picture
_ROUND = (1, 2, 5)  # and these times powers of ten: numbers of rows in a band


class Bands(NamedTuple):
    """Rows put together: N bands of K regimes."""

    edges: npt.NDArray[Any]  #: ``(N + 1,)``, half-way between two rows, as positions in time
    rows: float  #: the average number of rows in a band
    regimes: npt.NDArray[np.int64]  #: ``(N,)``, the most frequent one; -1 where there is none
    frequency: Array  #: ``(N,)``, its share of the rows
    probs: Array  #: ``(N, K)``, averages over the rows


def make_bands(
    time: npt.NDArray[Any], path: npt.NDArray[Any], probs: Array, rows: int | None
) -> Bands:
    """Put rows together in bands of equal size.

    :param time: ``(T,)``, dates or numbers.
    :param path: ``(T,)``, regimes.
    :param probs: ``(T, K)``.
    :param rows: the number of rows in a band; None for a round number that gives a readable plot.
    """
    num_rows, num_regimes = probs.shape
    if rows is None:
        rows = _round_number(num_rows / _MOST_BANDS)
    number = max(1, round(num_rows / rows))
    firsts = np.linspace(0, num_rows, number + 1).round().astype(np.int64)
    counts = np.diff(firsts)
    one_hot = (path[:, None] == np.arange(num_regimes)).astype(np.float64)
    frequencies = np.add.reduceat(one_hot, firsts[:-1]) / counts[:, None]
    average = np.add.reduceat(probs, firsts[:-1]) / counts[:, None]
    # The average probability decides between regimes of the same frequency.
    regimes = (frequencies + 1e-6 * average).argmax(-1)
    highest = frequencies.max(-1)
    regimes[highest == 0] = -1
    return Bands(_edges(time, firsts), num_rows / number, regimes, highest, average)


def _round_number(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below ``least``."""
    power = 1
    while True:
        for factor in _ROUND:
            if factor * power >= least:
                return factor * power
        power *= 10


def _edges(time: npt.NDArray[Any], firsts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Where bands begin and end: half-way between two rows, and half a step beyond the ends."""
    position = time.astype("datetime64[ms]").astype(float) if time.dtype.kind == "M" else time
    steps = np.diff(position) if len(time) > 1 else np.ones(1)
    if len(time) == 1 and time.dtype.kind == "M":
        steps = steps * 86_400_000  # a day
    ends = [position[0] - steps[0] / 2, position[-1] + steps[-1] / 2]
    middles = (position[firsts[1:-1] - 1] + position[firsts[1:-1]]) / 2
    edges: npt.NDArray[Any] = np.concatenate([ends[:1], middles, ends[1:]])
    return edges.astype("datetime64[ms]") if time.dtype.kind == "M" else edges
