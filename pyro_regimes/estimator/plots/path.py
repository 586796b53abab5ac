"""The path of regimes over the cumulative return, and their probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.plots.bands import Bands, make_bands
from pyro_regimes.estimator.plots.dates import (
    as_time,
    has_nights,
    label_dates,
    label_rows,
    title_of,
)
from pyro_regimes.estimator.plots.direct_labels import label_areas
from pyro_regimes.estimator.plots.figure import (
    INK,
    Text,
    figure_of,
    given_axes,
    label,
    new_figure,
    regime_colors,
    text_of,
)
from pyro_regimes.estimator.plots.legend import FULL, explain
from pyro_regimes.estimator.plots.lines import line_of, line_of_prices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PATHS = {"smoothed": "Viterbi path", "filtered": "filtered"}
_PALE = 0.12  # opacity of a band of which its regime holds no more than others


def plot_regimes(
    returns: npt.ArrayLike,
    states: npt.ArrayLike,
    probs: npt.ArrayLike,
    regime_names: Sequence[str],
    dates: npt.ArrayLike | None = None,
    *,
    ax: Axes | Iterable[Axes] | None = None,
    unit: str | None = None,
    rows_per_band: int | None = None,
    cumulative: bool = True,
    kind: str = "smoothed",
    prices: npt.ArrayLike | None = None,
    name: str | None = None,
) -> Figure:
    """Plot the cumulative return over bands of regimes, above the probabilities of the regimes.

    A path of many rows changes its regime more often than a picture can show. So rows are put
    together in bands of equal length, and both panels show the same bands:

    - Upper panel: the line is the cumulative sum of the average over the series (over those that
      are not missing). A band has the colour of the regime that is most frequent in its rows of the
      path. The colour is paler the fewer of the rows have this regime, so a pale band holds other
      regimes, too. The legend says how many rows make a band, and the share of each regime in the
      whole path.
    - Lower panel: the probability of each regime, averaged over the rows of the band. No regime is
      left out here, however short its spells. Areas with room for it have the name of the regime.

    :param returns: ``(T, D)``.
    :param states: the path, ``(T,)``; rows with -1 are not shaded.
    :param probs: ``(T, K)``.
    :param dates: ``(T,)``; None numbers the steps. Intraday rows are equally far from each other,
        if nights and weekends would take more than a quarter of the axis.
    :param ax: axes to draw in: one for the upper panel alone, or a pair for both. None makes a
        figure with both. Small axes have a short title, legend and label. In a figure without a
        layout engine, the upper edge of the axes is lowered to make room for title and legend.
    :param unit: the unit of the returns for the label of the axis, such as "%".
    :param rows_per_band: None makes a band of 1, 2, 5, 10, 20, ... rows, so that there are at most
        170. With 1 every row has the colour of its own regime.
    :param cumulative: whether the upper panel shows the cumulative sum, as of returns, or the
        observations themselves, as of counts.
    :param kind: what the labels say: "smoothed" for smoothed probabilities and a Viterbi path, or
        "filtered" for filtered probabilities and the most likely regime of each row by these.
    :param prices: ``(T,)`` or ``(T, D)``, to show in the upper panel in place of the returns, on a
        logarithmic scale: one price, or the mean of the logarithms of several, with 100 at the
        first row.
    :param name: what the observations of a single series are, for the label of the axis.
    :return: a matplotlib figure, of ``ax`` if it is given.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if the lengths differ, prices are not positive, or ``ax`` is neither one
        Axes nor two.
    """
    values, path, shares = np.asarray(returns), np.asarray(states), np.asarray(probs)
    time = np.arange(len(values)) if dates is None else as_time(dates)
    if not len(values) == len(path) == len(shares) == len(time):
        raise ValueError(
            "expected returns, states, probs and dates to have the same length, got "
            f"{len(values)}, {len(path)}, {len(shares)} and {len(time)}"
        )
    by_row = has_nights(time)
    position = np.arange(len(time)) if by_row else time
    bands = make_bands(position, path, shares, rows_per_band)
    colors = regime_colors(len(regime_names))
    above, *below = _panels(ax)
    line = line_of(values, cumulative, unit, name)
    if prices is not None:
        line = line_of_prices(prices, len(values))
    above.plot(position, line.values, color=INK, linewidth=1.1)
    if line.is_log:
        _use_log_scale(above)
    _shade(above, bands, colors)
    text = text_of(above)
    title = title_of(time, len(regime_names), text.is_short)
    explain(above, bands, path, regime_names, colors, title, text, _PATHS[kind])
    label(above, line.label, line.more, text)
    for panel in [above, *below]:
        panel.tick_params(labelsize=text.label)
        panel.set_xlim(bands.edges[0], bands.edges[-1])
        if by_row:
            label_rows(panel, time)
        elif time.dtype.kind == "M":
            label_dates(panel)
    (below or [above])[-1].set_xlabel("" if time.dtype.kind == "M" else "step")
    for panel in below:
        _draw_probs(panel, bands, regime_names, colors, text, kind)
    return figure_of(above)


def _panels(ax: Axes | Iterable[Axes] | None) -> list[Axes]:
    """The axes to draw in, one or two."""
    if ax is None:
        figure = new_figure(11, 6.5)
        panels = list(figure.subplots(2, 1, sharex=True, height_ratios=[2, 1]))
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        return panels
    what = "one matplotlib Axes for the upper panel or a pair for both"
    return given_axes(ax, (1, 2), what)


def _shade(panel: Axes, bands: Bands, colors: list[str]) -> None:
    from matplotlib.colors import ListedColormap

    least = 1 / len(colors)
    certain = (bands.frequency - least) / (1 - least) if len(colors) > 1 else bands.frequency
    opacity: Any = _PALE + (FULL - _PALE) * np.clip(certain, 0, 1)[None]
    panel.pcolormesh(
        bands.edges,
        [0, 1],
        np.ma.masked_less(bands.regimes[None].astype(float), 0),
        cmap=ListedColormap(colors),
        vmin=-0.5,
        vmax=len(colors) - 0.5,
        alpha=opacity,
        linewidth=0,
        transform=panel.get_xaxis_transform(),
        rasterized=True,
        zorder=0,
    )


def _draw_probs(
    panel: Axes, bands: Bands, names: Sequence[str], colors: list[str], text: Text, kind: str
) -> None:
    closed = np.concatenate([bands.probs, bands.probs[-1:]])
    panel.stackplot(bands.edges, closed.T, colors=colors, linewidth=0, step="post", alpha=0.85)
    panel.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    mean = f"mean of {bands.rows:.0f} rows" if bands.rows > 1 else ""
    label(panel, f"{kind} probability", mean, text)
    label_areas(panel, bands, names, colors)


def _use_log_scale(panel: Axes) -> None:
    """A logarithmic vertical axis with plain numbers, also where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    panel.set_yscale("log")
    low, high = panel.get_ylim()
    numbers = (1, 2, 5) if high / low > 4 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    panel.yaxis.set_major_locator(LogLocator(subs=numbers, numticks=12))
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    panel.yaxis.set_major_formatter(formatter)
    panel.yaxis.set_minor_formatter(NullFormatter())
