"""Correlations of the series in each regime, as heat maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Sequence

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.plots.figure import cut, figure_of, height_of, panels_for, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 3
_LETTERS = 14  # of the name of a series
_CELL = 0.3  # inches, the least width of a cell that shows its number
_LABELLED = 0.12  # and of one whose series is named
_COLORS = "RdBu_r"
_PALE = 0.6  # correlations below it, on which text is dark


def plot_correlations(
    correlation: npt.ArrayLike,
    series_names: Sequence[str],
    regime_names: Sequence[str],
    *,
    ax: Axes | Iterable[Axes] | None = None,
) -> Figure:
    """Draw a heat map of the correlations of the series for each regime.

    All have the same colours, from -1 (blue) over 0 (white) to 1 (red). Cells that are large enough
    show their number.

    :param correlation: ``(K, D, D)``.
    :param series_names: D names. Long ones are cut.
    :param regime_names: K names, the titles.
    :param ax: K matplotlib Axes to draw in. None makes a figure.
    :return: a matplotlib figure, of ``ax`` if it is given.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if the shapes do not agree, or ``ax`` is not K Axes.
    """
    matrices, names = np.asarray(correlation, dtype=np.float64), list(series_names)
    expected = (len(regime_names), len(names), len(names))
    if matrices.shape != expected:
        raise ValueError(f"expected correlation to have shape {expected}, got {matrices.shape}")
    panels = panels_for(ax, len(matrices), (3.6, 3.6), _MOST_COLUMNS)
    for panel, matrix, name in zip(panels, matrices, regime_names, strict=True):
        panel.imshow(matrix, cmap=_COLORS, vmin=-1, vmax=1, interpolation="nearest")
        panel.set_title(name, loc="left", fontsize="medium", parse_math=False)
        _name_series(panel, names)
        _write_numbers(panel, matrix)
    return figure_of(panels[0])


def _name_series(panel: Axes, names: list[str]) -> None:
    every = _cell(panel, len(names))
    step = 1 if every >= _LABELLED else int(np.ceil(_LABELLED / every))
    places = range(0, len(names), step)
    short = [cut(names[place], _LETTERS) for place in places]
    panel.set_xticks(places, short, rotation=90, fontsize="small", parse_math=False)
    panel.set_yticks(places, short, fontsize="small", parse_math=False)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def _write_numbers(panel: Axes, matrix: npt.NDArray[np.float64]) -> None:
    if _cell(panel, len(matrix)) < _CELL:
        return
    for (row, column), value in np.ndenumerate(matrix):
        color = "#111111" if abs(value) < _PALE else "#fdfdfd"
        text = "1" if row == column else _number(float(value))
        panel.text(column, row, text, ha="center", va="center", size="small", color=color)


def _cell(panel: Axes, number: int) -> float:
    """The width of a cell, in inches."""
    return min(width_of(panel), height_of(panel)) / number


def _number(value: float) -> str:
    """Two decimals without the zero before them; no sign before .00."""
    text = f"{value:.2f}".replace("-0.00", "0.00")
    return text.replace("0.", ".").replace("-", "−")
