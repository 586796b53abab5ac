"""Plots of the pseudo-residuals of one series, with matplotlib (the ``app`` extra)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import beta

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.plots import (
    as_time,
    figure_of,
    given_axes,
    label_dates,
    new_figure,
)
from pyro_regimes.estimator.residual_tests import autocorrelations
from pyro_regimes.estimator.validation import integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _RED, _GREY, _LINE = "#577590", "#c8553d", "#d9d9d9", "#222222"
_NORMAL = 1.96  # between plus and minus so many, 95 % of a standard normal distribution
_LEVEL = 0.95  # of the bands
_MOST_POINTS = 1_000  # in a plot of quantiles


def plot_residuals(
    values: Array,
    lengths: list[int],
    *,
    title: str,
    dates: Any = None,
    lags: int = 30,
    ax: Axes | Iterable[Axes] | None = None,
) -> Figure:
    """Plot residuals over time, their quantiles, their histogram and their autocorrelations.

    - Over time: one point for each residual, with lines at 0 and at plus and minus 1.96, between
      which 95 % lie if the model is right.
    - Quantiles beside those of the standard normal distribution. Each of them lies in the band with
      probability 95 % if the model is right.
    - Histogram with the standard normal density.
    - Autocorrelations of the residuals and of their squares, with lines at
      :math:`\\pm 1.96 / \\sqrt n`.

    :param values: ``(T,)``, NaN where missing.
    :param lengths: the number of rows of each sequence.
    :param title: of the figure; of the axes if there is only one.
    :param dates: of the rows, ``(T,)``; None numbers them.
    :param lags: number of autocorrelations.
    :param ax: as in :meth:`.Residuals.plot`.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if there are no finite values, or ``ax`` is neither one Axes nor four.
    """
    seen = values[np.isfinite(values)]
    if not len(seen):
        raise ValueError(f"expected residuals to plot, got none that is finite: {title}")
    lags = min(integer("lags", lags, 1), max(len(values) - 1, 1))
    panels = _panels(ax)
    if len(panels) == 1:
        _draw_quantiles(panels[0], seen)
        panels[0].set_title(title, loc="right", fontsize="medium", parse_math=False)
        return figure_of(panels[0])
    time, quantiles, histogram, correlations = panels
    _draw_time(time, values, dates, title)
    _draw_quantiles(quantiles, seen)
    _draw_histogram(histogram, seen)
    _draw_correlations(correlations, values, lengths, lags)
    return figure_of(time)


def _panels(ax: Axes | Iterable[Axes] | None) -> list[Axes]:
    """One axes, or four."""
    if ax is None:
        panels = list(new_figure(11, 7).subplots(2, 2).flat)
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        return panels
    what = "one matplotlib Axes for the quantiles or four for all"
    return given_axes(ax, (1, 4), what)


def _draw_time(panel: Axes, values: Array, dates: Any, title: str) -> None:
    time = np.arange(len(values)) if dates is None else as_time(dates)
    outside = np.abs(values) > _NORMAL
    for rows, color in ((~outside, _BLUE), (outside, _RED)):
        panel.plot(time[rows], values[rows], ".", color=color, markersize=3, rasterized=True)
    for level in (-_NORMAL, 0, _NORMAL):
        panel.axhline(level, color=_LINE, linewidth=0.8, linestyle="--" if level else "-")
    panel.set_ylabel("residual")
    if time.dtype.kind == "M":
        label_dates(panel)
    else:
        panel.set_xlabel("step")
    share = np.mean(outside[~np.isnan(values)])
    panel.set_title(
        f"{title}\n{share:.1%} beyond ±1.96, 5.0% expected",
        loc="left",
        fontsize="medium",
        parse_math=False,
    )


def _draw_quantiles(panel: Axes, seen: Array) -> None:
    number = len(seen)
    ranks = np.arange(1, number + 1)
    if number > _MOST_POINTS:  # all of those in the tails
        ends = _MOST_POINTS // 4
        middle = np.linspace(ends, number - ends, _MOST_POINTS // 2).astype(int)
        ranks = np.unique(np.concatenate([ranks[:ends], middle, ranks[-ends:]]))
    expected = ndtri((ranks - 0.5) / number)
    low, high = (
        ndtri(beta.ppf(share, ranks, number + 1 - ranks))
        for share in ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)
    )
    label = f"{_LEVEL:.0%} of each quantile"
    panel.fill_between(expected, low, high, color=_GREY, linewidth=0, label=label)
    panel.plot(expected[[0, -1]], expected[[0, -1]], color=_LINE, linewidth=0.8)
    ordered = np.sort(seen)[ranks - 1]
    panel.plot(expected, ordered, ".", color=_BLUE, markersize=4, rasterized=True)
    panel.set(xlabel="quantile of N(0, 1)", ylabel="quantile of the residuals")
    # Quantiles rise, so this corner is empty.
    panel.legend(loc="upper left", frameon=False, fontsize="medium")


def _draw_histogram(panel: Axes, seen: Array) -> None:
    number = int(np.clip(2 * len(seen) ** (1 / 3), 8, 60))
    edge = max(3.0, float(np.abs(np.clip(seen, -6, 6)).max()))
    edges = np.linspace(-edge, edge, number + 1).tolist()
    inside = np.clip(seen, -edge, edge)  # what lies beyond is in the outermost bars
    panel.hist(inside, edges, density=True, color=_BLUE, alpha=0.6, edgecolor="white")
    points = np.linspace(-edge, edge, 200)
    density = np.exp(-(points**2) / 2) / np.sqrt(2 * np.pi)
    panel.plot(points, density, color=_LINE, linewidth=1.1, label="N(0, 1)")
    panel.set(xlabel="residual", ylabel="density")
    _explain(panel)


def _draw_correlations(panel: Axes, values: Array, lengths: list[int], lags: int) -> None:
    number = int((~np.isnan(values)).sum())
    lags = min(lags, len(values))
    places = np.arange(1, lags + 1)
    finite = np.where(np.isfinite(values), values, np.nan)
    drawn = ((finite, _BLUE, -0.18, "residuals"), (finite**2, _RED, 0.18, "their squares"))
    for series, color, shift, label in drawn:
        found, pairs = autocorrelations(series, lengths, lags)
        panel.bar(
            places + shift, np.where(pairs > 0, found, np.nan), 0.36, color=color, label=label
        )
    for level in (-_NORMAL / number**0.5, _NORMAL / number**0.5):
        panel.axhline(level, color=_LINE, linewidth=0.8, linestyle="--")
    panel.axhline(0, color=_LINE, linewidth=0.8)
    panel.set(xlabel="lag", ylabel="autocorrelation")
    _explain(panel)


def _explain(panel: Axes) -> None:
    """A legend above the panel, where it hides nothing."""
    panel.legend(
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, borderpad=0, frameon=False,
        ncols=3, fontsize="medium",
    )  # fmt: skip
