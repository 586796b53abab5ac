"""Plots of fitted regimes, with matplotlib (the ``app`` extra).

The functions take plain arrays and return a figure. They show nothing and do not change pyplot's
state or matplotlib's settings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Sequence

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From calm to turbulent, distinct in greyscale and for colour-blind readers.
_TEAL, _GREEN, _SAND, _RED, _PURPLE = "#2a9d8f", "#90be6d", "#e9c46a", "#c8553d", "#6d597a"
_COLORS = {
    1: [_TEAL],
    2: [_TEAL, _RED],
    3: [_TEAL, _SAND, _RED],
    4: [_TEAL, _SAND, _RED, _PURPLE],
    5: [_TEAL, _GREEN, _SAND, _RED, _PURPLE],
}
_MORE_COLORS = [*_COLORS[5], "#577590", "#b56576", "#4d4d4d"]

_MOST_BANDS = 170  # that can be told apart in a picture
_MOST_COLUMNS = 5  # of the legend
_HALF_TITLE = 10  # points
_LEAST_HEIGHT = 0.4  # the share of a given axes' height that text above it leaves
_ROUND = (1, 2, 5)  # and these times powers of ten: numbers of rows in a band
_PATHS = {"smoothed": "Viterbi path", "filtered": "filtered"}
_PALE, _FULL = 0.12, 0.55  # opacity of a band of which its regime holds no more than others; all


class _Text(NamedTuple):
    """The size of the text of a panel."""

    is_short: bool
    legend: str
    title: str
    label: str  #: of axes and ticks
    line: int  #: points from one line of the legend to the next
    letters: tuple[int, int, int]  #: in an inch: of the legend, the title, the label


_FULL_TEXT = _Text(False, "small", "large", "medium", 15, (13, 8, 14))
_SHORT_TEXT = _Text(True, "x-small", "medium", "small", 11, (16, 11, 16))
_LARGE_PANEL = (4.5, 2.5)  # inches, the least width and height of a panel with all of the text


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches.

    :raises ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pyro-regimes[app]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def regime_colors(num_regimes: int) -> list[str]:
    """One colour for each regime, in their order."""
    more = (_MORE_COLORS[k % len(_MORE_COLORS)] for k in range(num_regimes))
    return list(_COLORS.get(num_regimes, more))


def plot_regimes(
    returns: npt.ArrayLike,
    states: npt.ArrayLike,
    probs: npt.ArrayLike,
    regime_names: Sequence[str],
    dates: npt.ArrayLike | None = None,
    *,
    ax: Axes | Iterable[Axes] | None = None,
    unit: str = "unit of the data",
    rows_per_band: int | None = None,
    cumulative: bool = True,
    kind: str = "smoothed",
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
      left out here, however short its spells.

    :param returns: ``(T, D)``.
    :param states: the path, ``(T,)``; rows with -1 are not shaded.
    :param probs: ``(T, K)``.
    :param dates: ``(T,)``; None numbers the steps.
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
    :return: a matplotlib figure, of ``ax`` if it is given.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if the lengths differ, or ``ax`` is neither one Axes nor two.
    """
    values, path, shares = np.asarray(returns), np.asarray(states), np.asarray(probs)
    time = np.arange(len(values)) if dates is None else as_time(dates)
    if not len(values) == len(path) == len(shares) == len(time):
        raise ValueError(
            "expected returns, states, probs and dates to have the same length, got "
            f"{len(values)}, {len(path)}, {len(shares)} and {len(time)}"
        )
    bands = _bands(time, path, shares, rows_per_band)
    colors = regime_colors(len(regime_names))
    above, *below = _panels(ax)
    above.plot(time, _line(values, cumulative), color="#222222", linewidth=1.1)
    _shade(above, bands, colors)
    text = _text_of(above)
    title = _title(time, len(regime_names), text.is_short)
    _explain(above, bands, path, regime_names, colors, title, text, _PATHS[kind])
    what = "cumulative return" if cumulative else "observation"
    _label_series(above, values.shape[-1], f"{what} ({unit})", text)
    for panel in [above, *below]:
        panel.tick_params(labelsize=text.label)
        panel.set_xlim(bands.edges[0], bands.edges[-1])
        if time.dtype.kind == "M":
            label_dates(panel)
    (below or [above])[-1].set_xlabel("" if time.dtype.kind == "M" else "step")
    for panel in below:
        _draw_probs(panel, bands, colors, text, kind)
    return figure_of(above)


def standard_scores(values: Array) -> Array:
    """Each series less its mean, divided by its standard deviation; 0 if it is constant."""
    numbers = np.maximum((~np.isnan(values)).sum(0), 1)
    centred = values - np.nansum(values, 0) / numbers
    deviations = np.sqrt(np.nansum(centred**2, 0) / numbers)
    scores: Array = centred / np.where(deviations > 0, deviations, 1.0)
    return scores


def _line(values: Array, cumulative: bool) -> Array:
    """The average over the series that are not missing; its sum does not move where all are."""
    seen = ~np.isnan(values)
    average = np.nansum(values, -1) / np.maximum(seen.sum(-1), 1)
    line: Array = average.cumsum() if cumulative else np.where(seen.any(-1), average, np.nan)
    return line


class _Bands(NamedTuple):
    """Rows put together: N bands of K regimes."""

    edges: npt.NDArray[Any]  #: ``(N + 1,)``, half-way between two rows, as positions in time
    rows: float  #: the average number of rows in a band
    regimes: npt.NDArray[np.int64]  #: ``(N,)``, the most frequent one; -1 where there is none
    frequency: Array  #: ``(N,)``, its share of the rows
    probs: Array  #: ``(N, K)``, averages over the rows


def _bands(
    time: npt.NDArray[Any], path: npt.NDArray[Any], probs: Array, rows: int | None
) -> _Bands:
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
    return _Bands(_edges(time, firsts), num_rows / number, regimes, highest, average)


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


def as_time(dates: Any) -> npt.NDArray[Any]:
    """Dates as datetime64, of periods their beginnings; numbers as they are."""
    dates = getattr(dates, "array", dates)  # of a pandas Index or Series
    if hasattr(dates, "to_timestamp"):  # periods
        dates = dates.to_timestamp()
    if getattr(dates, "tz", None) is not None:  # local time
        dates = dates.tz_localize(None)
    time = np.asarray(dates)
    return time if time.dtype.kind in "iufM" else time.astype("datetime64[ms]")


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


def given_axes(ax: Any, numbers: tuple[int, ...], expected: str) -> list[Axes]:
    """The axes that a user gives to draw in, one or several, in an array of any shape.

    :param numbers: how many there may be.
    :param expected: what is expected, for an error.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if they are others.
    """
    new_figure(1, 1)  # raises if matplotlib is not installed
    from matplotlib.axes import Axes

    is_one = isinstance(ax, Axes) or not isinstance(ax, Iterable)
    panels = [ax] if is_one else np.array(list(ax), dtype=object).ravel().tolist()
    if len(panels) not in numbers or not all(isinstance(each, Axes) for each in panels):
        raise ValueError(f"expected ax to be {expected}, got {ax!r}")
    return panels


def _text_of(panel: Axes) -> _Text:
    width, height = _LARGE_PANEL
    return _FULL_TEXT if _width(panel) >= width and _height(panel) >= height else _SHORT_TEXT


def _label_series(panel: Axes, num_series: int, what: str, text: _Text) -> None:
    average = f"average of {num_series} series" if num_series > 1 else ""
    _label(panel, what, average, text)


def _label(panel: Axes, what: str, more: str, text: _Text) -> None:
    """Label the vertical axis, in several lines where it is short."""
    lines = [what] if text.is_short or not more else [what, more]
    letters = max(12, int(text.letters[2] * _height(panel)))
    label = "\n".join(textwrap.fill(line, letters) for line in lines)
    panel.set_ylabel(label, fontsize=text.label, labelpad=1 if text.is_short else None)


def _shade(panel: Axes, bands: _Bands, colors: list[str]) -> None:
    from matplotlib.colors import ListedColormap

    least = 1 / len(colors)
    certain = (bands.frequency - least) / (1 - least) if len(colors) > 1 else bands.frequency
    opacity: Any = _PALE + (_FULL - _PALE) * np.clip(certain, 0, 1)[None]
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


def _explain(
    panel: Axes,
    bands: _Bands,
    path: npt.NDArray[Any],
    names: Sequence[str],
    colors: list[str],
    title: str,
    text: _Text,
    of_path: str,
) -> None:
    """A legend above the panel, where it hides nothing, and a title above it."""
    from matplotlib.patches import Patch

    seen = np.isin(np.arange(len(names)), path)
    held = np.isin(np.arange(len(names)), bands.regimes) | ~seen
    patches = [
        Patch(
            color=color,
            alpha=_FULL,
            label=f"{name} {(path == k).mean():.0%}"
            if text.is_short
            else f"{name}, {(path == k).mean():.0%} of rows"
            + ("" if held[k] else "\nin no band the most frequent"),
        )
        for k, (name, color) in enumerate(zip(names, colors, strict=True))
    ]
    shaded = f"Shaded: regime of each row ({of_path})"
    if bands.rows > 1:
        shaded = (
            f"Shaded: most frequent regime of each {bands.rows:.0f} rows ({of_path}), paler "
            "where other regimes are among them"
        )
    letters, title_letters = (int(each * _width(panel)) for each in text.letters[:2])
    explained = [] if text.is_short else textwrap.wrap(shaded, max(20, letters))
    entries = [str(patch.get_label()).split("\n") for patch in patches]
    longest = (5 if text.is_short else 8) + max(len(line) for entry in entries for line in entry)
    columns = int(np.clip(letters // longest, 1, min(len(names), _MOST_COLUMNS)))
    panel.legend(
        handles=[patch for column in range(columns) for patch in patches[column::columns]],
        title="\n".join(explained) or None,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        borderpad=0,
        frameon=False,
        ncols=columns,
        fontsize=text.legend,
        title_fontsize=text.legend,
        **({"handlelength": 1.2, "columnspacing": 1.0} if text.is_short else {}),
    )
    rows = [entries[first : first + columns] for first in range(0, len(entries), columns)]
    lines = len(explained) + sum(max(map(len, row)) for row in rows)
    wrapped = textwrap.fill(title, max(15, title_letters))
    panel.set_title(wrapped, loc="left", fontsize=text.title, pad=6 + text.line * lines)
    if figure_of(panel).get_layout_engine() is None:
        _make_room(panel, text.line * lines + 15 * wrapped.count("\n"))


def _make_room(panel: Axes, points: int) -> None:
    """Lower the upper edge of axes in a figure without a layout, as text stands above it.

    Between a panel and the one above, tick labels leave half of the room for a title.
    """
    kept = max(_LEAST_HEIGHT, 1 - (points + _HALF_TITLE) / 72 / _height(panel))
    place = panel.get_position()
    panel.set_position((place.x0, place.y0, place.width, place.height * kept))
    panel.set_in_layout(True)  # which set_position() ends


def _width(panel: Axes) -> float:
    """In inches."""
    return panel.get_window_extent().width / figure_of(panel).dpi


def _height(panel: Axes) -> float:
    """In inches."""
    return panel.get_window_extent().height / figure_of(panel).dpi


def figure_of(panel: Axes) -> Figure:
    figure = panel.get_figure(root=True)
    assert figure is not None
    return figure


def _title(time: npt.NDArray[Any], num_regimes: int, is_short: bool) -> str:
    regimes = "1 regime" if num_regimes == 1 else f"{num_regimes} regimes"
    if time.dtype.kind != "M":
        return f"{regimes}, {len(time)} steps"
    years = [str(each) for each in time[[0, -1]].astype("datetime64[Y]")]
    if is_short and years[0] != years[1]:
        return f"{regimes}, {years[0]} to {years[1]}"
    whole_days = (time == time.astype("datetime64[D]")).all()
    first, last = (
        np.datetime_as_string(each, unit="D" if whole_days else "m").replace("T", " ")
        for each in time[[0, -1]]
    )
    return f"{regimes}, {first}" + (f" to {last}" if len(time) > 1 else "")


def label_dates(panel: Axes) -> None:
    from matplotlib.dates import MONTHLY, AutoDateLocator, ConciseDateFormatter

    most = int(np.clip(1.2 * _width(panel), 4, 11))
    locator = AutoDateLocator(minticks=max(2, most // 3), maxticks=most)
    # Else it warns where half-years are too many and years too few.
    locator.intervald[MONTHLY] = [*locator.intervald[MONTHLY], 12]
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _draw_probs(
    panel: Axes, bands: _Bands, colors: list[str], text: _Text, kind: str
) -> None:
    closed = np.concatenate([bands.probs, bands.probs[-1:]])
    panel.stackplot(bands.edges, closed.T, colors=colors, linewidth=0, step="post", alpha=0.85)
    panel.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    mean = f"mean of {bands.rows:.0f} rows" if bands.rows > 1 else ""
    _label(panel, f"{kind} probability", mean, text)
