"""Plots of fitted regimes, with matplotlib (the ``app`` extra).

The functions take plain arrays and return a figure. They show nothing and do not change pyplot's
state or matplotlib's settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From good to bad for up to three regimes, distinct in greyscale and for colour-blind readers.
_COLORS = ["#2a9d8f", "#e9c46a", "#c8553d", "#6d597a", "#577590", "#90be6d", "#b56576", "#4d4d4d"]


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
    if num_regimes == 2:
        return [_COLORS[0], _COLORS[2]]
    return [_COLORS[k % len(_COLORS)] for k in range(num_regimes)]


def plot_regimes(
    returns: npt.ArrayLike,
    states: npt.ArrayLike,
    probs: npt.ArrayLike,
    regime_names: Sequence[str],
    dates: npt.ArrayLike | None = None,
) -> Figure:
    """Plot the cumulative return, shaded by regime, above the probabilities of the regimes.

    :param returns: ``(T, D)``; the line is the cumulative sum of the average over the D series.
    :param states: the path, ``(T,)``; steps with -1 are not shaded.
    :param probs: ``(T, K)``.
    :param dates: ``(T,)``; None numbers the steps.
    :return: a matplotlib figure.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if the lengths differ.
    """
    values, path, shares = np.asarray(returns), np.asarray(states), np.asarray(probs)
    time = np.arange(len(values)) if dates is None else np.asarray(dates)
    if not len(values) == len(path) == len(shares) == len(time):
        raise ValueError(
            "expected returns, states, probs and dates to have the same length, got "
            f"{len(values)}, {len(path)}, {len(shares)} and {len(time)}"
        )
    figure = new_figure(11, 6)
    from matplotlib.patches import Patch

    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    colors = regime_colors(len(regime_names))
    _shade(above, time, path, colors)
    above.plot(time, values.mean(-1).cumsum(), color="black", linewidth=0.8)
    patches = [
        Patch(color=color, alpha=0.45, label=name)
        for name, color in zip(regime_names, colors, strict=True)
    ]
    above.set_ylabel("cumulative return\n(sum of the average series)")
    above.legend(handles=patches, loc="upper left", title="regime (Viterbi)", framealpha=0.9)
    above.margins(x=0)
    below.stackplot(time, shares.T, colors=colors, linewidth=0)
    below.set(
        ylim=(0, 1), ylabel="smoothed\nprobability", xlabel="" if dates is not None else "step"
    )
    return figure


def _shade(panel: Axes, time: npt.NDArray[Any], path: npt.NDArray[Any], colors: list[str]) -> None:
    """Shade each step half-way to its neighbours, so that the shortest regime is visible."""
    from matplotlib.colors import ListedColormap

    position = time.astype("datetime64[s]").astype(float) if time.dtype.kind == "M" else time
    edges = np.interp(np.arange(len(time) + 1) - 0.5, np.arange(len(time)), position)
    if time.dtype.kind == "M":
        edges = edges.astype("datetime64[s]")
    panel.pcolormesh(
        edges,
        [0, 1],
        np.ma.masked_less(path[None].astype(float), 0),
        cmap=ListedColormap(colors),
        vmin=-0.5,
        vmax=len(colors) - 0.5,
        alpha=0.45,
        linewidth=0,
        transform=panel.get_xaxis_transform(),
        rasterized=True,
    )
