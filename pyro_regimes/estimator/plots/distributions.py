"""The distribution of each series in each regime, beside the fitted one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.marginals import Marginal, is_circular, is_discrete, log_density
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.plots.figure import (
    INK,
    cut,
    figure_of,
    panels_for,
    regime_colors,
    width_of,
)
from pyro_regimes.estimator.predictive import Mixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LETTERS = 11  # of a title, in an inch
_GREY = "#8c8c8c"
_TOTAL, _OWN = 0.3, 0.4  # opacities of bars of all values, and of a regime
_MOST_COLUMNS = 3
_OUTSIDE = 0.001  # the probability at either end that a panel leaves out
_POINTS = 300  # of a curve
_MOST_BARS = 60
_MOST_VALUES = 60  # of integers with a bar each
_ABOVE = 1.08  # times the highest bar: the least height of a panel
_HIGHEST = 1.6  # times the highest bar: the greatest height, where a density goes to infinity


def plot_distributions(
    values: npt.ArrayLike,
    probs: npt.ArrayLike,
    marginals: Sequence[Marginal],
    series_names: Sequence[str],
    regime_names: Sequence[str],
    *,
    ax: Axes | Iterable[Axes] | None = None,
    unit: str = "",
) -> Figure:
    """Draw the distribution of each series beside the fitted one, a panel each.

    Coloured bars are the histogram of the series in each regime, in which a value counts in each
    regime by its probability, and grey ones that of all values. Lines are the fitted densities of
    the regimes, in the same colours; the dark line is their sum, the density of the mixture. Areas,
    and heights of integers, are shares of all values, so that a rare regime is low. Integers have a
    bar each, and points in the place of lines. A panel leaves out the lowest and the highest 0.1 %
    of the values.

    :param values: ``(T, D)``, NaN where missing.
    :param probs: smoothed probabilities of the regimes, ``(T, K)``.
    :param marginals: the distribution of each series in every regime, D objects.
    :param series_names: D names, the titles.
    :param regime_names: K names.
    :param ax: D matplotlib Axes to draw in. None makes a figure.
    :param unit: of the values, for the axes.
    :return: a matplotlib figure, of ``ax`` if it is given.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if the numbers of series differ, or ``ax`` is not D Axes.
    """
    table, shares = np.asarray(values, dtype=np.float64), np.asarray(probs, dtype=np.float64)
    if not table.shape[1] == len(marginals) == len(series_names):
        raise ValueError(
            "expected values, marginals and series_names of the same number of series, got "
            f"{table.shape[1]}, {len(marginals)} and {len(series_names)}"
        )
    panels = panels_for(ax, len(series_names), (3.4, 2.5), _MOST_COLUMNS)
    colors = regime_colors(len(regime_names))
    for panel, column, marginal, name in zip(
        panels, table.T, marginals, series_names, strict=True
    ):
        seen = ~np.isnan(column)
        short = cut(name, max(8, int(_LETTERS * width_of(panel))))
        panel.set_title(short, loc="left", fontsize="medium", parse_math=False)
        panel.set_xlabel(unit, parse_math=False)
        panel.set_yticks([])
        panel.spines[["top", "right", "left"]].set_visible(False)
        if seen.any() and shares[seen].sum() > 0:
            draw = _draw_integers if is_discrete(marginal) else _draw_density
            draw(panel, column[seen], shares[seen], marginal, colors)
    return figure_of(panels[0])


def _draw_density(
    panel: Axes, values: Array, probs: Array, marginal: Marginal, colors: list[str]
) -> None:
    if is_circular(marginal):
        values = np.angle(np.exp(1j * values))
        low, high = -np.pi, np.pi
    else:
        low, high = np.quantile(values, [_OUTSIDE, 1 - _OUTSIDE])
        room = 0.05 * (high - low) or max(abs(high), 1.0) * 1e-3
        least, most = (float(np.ravel(end)[0]) for end in Mixture(_even(probs), marginal).support())
        low, high = max(low - room, least), min(high + room, most)
    edges = np.linspace(low, high, _num_bars(values, low, high) + 1)
    bars = _heights(values, probs, edges)
    if len(colors) > 1:
        panel.stairs(bars.sum(0), edges, fill=True, color=_GREY, alpha=_TOTAL, linewidth=0)
    for height, color in zip(bars, colors, strict=True):
        panel.stairs(height, edges, fill=True, color=color, alpha=_OWN, linewidth=0)
    points = np.linspace(low, high, _POINTS + 2)[1:-1]  # a density may be infinite at an end
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        density = np.exp(log_density(marginal, points[:, None])) * probs.mean(0)  # (N, K)
    top = bars.sum(0).max()
    for line, color in zip(density.T, colors, strict=True):
        panel.plot(points, line, color=color, linewidth=1.6)
    if len(colors) > 1:
        panel.plot(points, density.sum(1), color=INK, linewidth=1.0)
    highest = np.nanmax(np.where(np.isfinite(density), density, 0.0).sum(1))
    panel.set(xlim=(low, high), ylim=(0, float(np.clip(highest, top, _HIGHEST * top)) * _ABOVE))


def _draw_integers(
    panel: Axes, values: Array, probs: Array, marginal: Marginal, colors: list[str]
) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = np.floor(np.quantile(values, [_OUTSIDE, 1 - _OUTSIDE]))
    step = int(np.ceil((high - low + 1) / _MOST_VALUES))  # integers in a bar
    firsts = np.arange(low, high + 1, step)
    edges = np.append(firsts, firsts[-1] + step) - 0.5
    bars = _heights(values, probs, edges) * step
    middles = (edges[:-1] + edges[1:]) / 2
    cumulative = marginal.cdf(np.floor(edges)[:, None])  # (N + 1, K)
    fitted = np.diff(cumulative, axis=0) * probs.mean(0)
    if len(colors) > 1:
        panel.bar(middles, bars.sum(0), 0.8 * step, color=_GREY, alpha=_TOTAL, linewidth=0)
    for height, color in zip(bars, colors, strict=True):
        panel.bar(middles, height, 0.8 * step, color=color, alpha=_OWN, linewidth=0)
    for line, color in zip(fitted.T, colors, strict=True):
        panel.plot(middles, line, "o", color=color, markersize=3)
    if len(colors) > 1:
        panel.plot(middles, fitted.sum(1), "_", color=INK, markersize=7)
    top = max(bars.sum(0).max(), fitted.sum(1).max())
    panel.set(xlim=(edges[0], edges[-1]), ylim=(0, top * _ABOVE))
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _even(probs: Array) -> Array:
    number = probs.shape[-1]
    return np.full(number, 1 / number)


def _num_bars(values: Array, low: float, high: float) -> int:
    """By the rule of Freedman and Diaconis (1981)."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    width = 2 * (upper - lower) / len(values) ** (1 / 3)
    if not width > 0:
        return 10
    return int(np.clip(np.ceil((high - low) / width), 5, _MOST_BARS))


def _heights(values: Array, probs: Array, edges: Array) -> Array:
    """Histograms of the regimes as densities, which add up to that of all values, ``(K, N)``."""
    total = float(probs.sum())
    widths = np.diff(edges)
    counts: Any = [np.histogram(values, edges, weights=weights)[0] for weights in probs.T]
    return np.stack(counts) / total / widths
