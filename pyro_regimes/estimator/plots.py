"""Pictures of fitted regimes and of comparisons, with matplotlib (the ``app`` extra).

Functions take plain arrays and return a figure that belongs to the caller: nothing is shown, and
neither pyplot's state nor matplotlib's settings are touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_regimes.infer.compare import Comparison

# From good to bad for up to three regimes, distinct in grey and to colour-blind eyes.
_COLORS = ["#2a9d8f", "#e9c46a", "#c8553d", "#6d597a", "#577590", "#90be6d", "#b56576", "#4d4d4d"]


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pyro-regimes[app]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def regime_colors(num_regimes: int) -> list[str]:
    """A colour for each regime, in their order."""
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
    """Cumulative return shaded by regime, and the regimes' probabilities below.

    :param returns: ``(T, D)``; the line is the running sum of their average over the D series.
    :param states: the path, ``(T,)``; -1 stays unshaded.
    :param probs: ``(T, K)``.
    :param dates: ``(T,)``; None: steps are numbered.
    :return: a matplotlib figure.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if the lengths differ.
    """
    values, path, shares = np.asarray(returns), np.asarray(states), np.asarray(probs)
    time = np.arange(len(values)) if dates is None else np.asarray(dates)
    if not len(values) == len(path) == len(shares) == len(time):
        raise ValueError(
            "expected returns, states, probs and dates of one length, got "
            f"{len(values)}, {len(path)}, {len(shares)} and {len(time)}"
        )
    figure = _figure(11, 6)
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    colors = regime_colors(len(regime_names))
    # One cell a step, from half-way to its neighbours, so that the shortest regime shows.
    position = time.astype("datetime64[s]").astype(float) if time.dtype.kind == "M" else time
    edges = np.interp(np.arange(len(time) + 1) - 0.5, np.arange(len(time)), position)
    if time.dtype.kind == "M":
        edges = edges.astype("datetime64[s]")
    shade = np.ma.masked_less(path[None].astype(float), 0)
    above.pcolormesh(
        edges,
        [0, 1],
        shade,
        cmap=ListedColormap(colors),
        vmin=-0.5,
        vmax=len(colors) - 0.5,
        alpha=0.45,
        linewidth=0,
        transform=above.get_xaxis_transform(),
        rasterized=True,
    )
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


def plot_comparison(comparison: Comparison) -> Figure:
    """The log-likelihood that each method has reached, against seconds and against passes."""
    figure = _figure(11, 7)
    runs = [run for run in comparison.runs if len(run.values) > 1]
    best = max(max(run.values) for run in runs if run.objective == "likelihood" or len(runs) == 1)
    panels = figure.subplots(2, 2, sharex="col")
    lowest = []
    for run in runs:
        drawn = _style(run.method)
        values = np.array(run.values)
        if run.objective == "joint":
            continue  # another objective, which has another best
        for column, place in enumerate((np.array(run.times), np.array(run.passes))):
            panels[0, column].plot(place[1:], values[1:], **drawn)
            panels[1, column].plot(place[1:], np.maximum(best - values[1:], 1e-3), **drawn)
        lowest.append(np.quantile(values[1:], 0.1))
    spread = best - min(lowest)
    for column, label in enumerate(("seconds", "passes over the data")):
        above, below = panels[0, column], panels[1, column]
        above.set(xscale="log", ylabel="log-likelihood")
        above.set_ylim(best - 1.3 * spread, best + 0.1 * spread)
        below.axhline(0.1, color="grey", linewidth=0.8)
        below.text(
            0.02, 0.1, "0.1 nats", va="bottom", color="grey", transform=below.get_yaxis_transform()
        )
        below.set(xscale="log", yscale="log", xlabel=label, ylabel="nats below the best")
    panels[0, 0].set_title("Against seconds")
    panels[0, 1].set_title("Against passes")
    panels[0, 1].legend(loc="lower right", fontsize="small", framealpha=0.9)
    return figure


_FAMILIES = {
    "EM": "#c8553d",
    "Adam": "#577590",
    "ClippedAdam": "#90a8b8",
    "AutoDelta": "#b56576",
    "AutoNormal": "#2a9d8f",
    "AutoMultivariateNormal": "#8ab17d",
    "AutoLowRank": "#e9c46a",
    "NUTS": "#222222",
}


def _style(method: str) -> dict[str, Any]:
    """One colour a family; EM stands out."""
    name = method.removeprefix("SVI, ").split("(")[0].split(",")[0]
    rate = float(method.split("(")[1].rstrip(")")) if "(" in method else 0.0
    line = ":" if rate >= 0.1 else "--" if rate >= 0.03 else "-"
    width = 2.2 if name == "EM" else 1.2
    color = _FAMILIES.get(name, "#6d597a")
    return {"color": color, "linestyle": line, "linewidth": width, "label": method}


def plot_posteriors(comparison: Comparison) -> Figure:
    """Mean and two standard deviations of every parameter, method beside method, by site."""
    runs = [run for run in comparison.runs if run.posterior is not None]
    if not runs:
        raise ValueError("expected a run with a posterior, got none")
    first = runs[0].posterior
    assert first is not None
    figure = _figure(11, 1 + 2.2 * len(first))
    panels = np.atleast_1d(figure.subplots(len(first), 1))
    point = next((run for run in comparison.runs if run.method == "EM, MAP"), None)
    for panel, site in zip(panels, first, strict=True):
        for index, run in enumerate(runs):
            assert run.posterior is not None
            mean, deviation = (np.asarray(part).ravel() for part in run.posterior[site])
            shift = 0.7 * ((index + 0.5) / len(runs) - 0.5)
            style = _style(run.method)
            panel.errorbar(
                np.arange(len(mean)) + shift,
                mean,
                2 * deviation,
                fmt="o",
                markersize=2,
                linewidth=1,
                color=style["color"],
                label=run.method,
            )
        if point is not None:
            values = np.asarray(point.point[site]).ravel()
            place = np.arange(len(values))
            panel.plot(place, values, "_", color=_FAMILIES["EM"], markersize=9, label="EM, MAP")
        panel.set(ylabel=site, xticks=[])
        panel.margins(x=0.01)
    panels[0].legend(loc="upper right", fontsize="small", ncols=len(runs) + 1)
    panels[0].set_title("Posterior means and two standard deviations (scaled data)")
    return figure
