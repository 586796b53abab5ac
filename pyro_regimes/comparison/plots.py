"""Plots of comparisons, with matplotlib (the ``app`` extra)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_regimes.comparison.runs import Comparison
from pyro_regimes.estimator.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_comparison(comparison: Comparison) -> Figure:
    """Plot the log-likelihood of each method against seconds and against passes.

    Runs that maximise the log joint are not drawn. Runs that diverged are drawn up to their last
    value; they do not affect the axes or the best value.
    """
    figure = new_figure(11, 7)
    panels = figure.subplots(2, 2, sharex="col")
    drawn = [run for run in comparison.runs if run.objective != "joint" and len(run.values) > 1]
    sound = [run for run in drawn if not run.diverged] or drawn
    reference = [run for run in sound if run.objective == "likelihood"] or sound
    best = max((max(run.values) for run in reference), default=0.0)
    lowest = min((np.quantile(run.values[1:], 0.1) for run in sound), default=best)
    for run in drawn:
        values, style = np.array(run.values), _style(run.method)
        if run.diverged:
            style["label"] += ", diverged"
        for column, place in enumerate((np.array(run.times), np.array(run.passes))):
            panels[0, column].plot(place[1:], values[1:], **style)
            panels[1, column].plot(place[1:], np.maximum(best - values[1:], 1e-3), **style)
    spread = best - lowest or 1.0
    for column, label in enumerate(("seconds", "passes over the data")):
        above, below = panels[0, column], panels[1, column]
        above.set(xscale="log", ylabel="log-likelihood")
        above.set_ylim(best - 1.3 * spread, best + 0.1 * spread)
        below.set(xscale="log", yscale="log", xlabel=label)
        below.set_ylabel("nats below the best, at least 0.001")
        if drawn:
            _mark_goal(below)
    panels[0, 0].set_title("Against seconds")
    panels[0, 1].set_title("Against passes")
    if drawn:
        handles, labels = panels[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _mark_goal(panel: Axes) -> None:
    panel.axhline(0.1, color="grey", linewidth=0.8)
    place = panel.get_yaxis_transform()
    panel.text(0.02, 0.1, "0.1 nats", va="bottom", color="grey", transform=place)


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
    """One colour for each family of methods; the line of EM is emphasised."""
    name = method.removeprefix("SVI, ").split("(")[0].split(",")[0]
    rate = float(method.split("(")[1].rstrip(")")) if "(" in method else 0.0
    line = ":" if rate >= 0.1 else "--" if rate >= 0.03 else "-"
    width = 2.2 if name == "EM" else 1.2
    color = _FAMILIES.get(name, "#6d597a")
    return {"color": color, "linestyle": line, "linewidth": width, "label": method}


def plot_posteriors(comparison: Comparison) -> Figure:
    """Plot mean and two standard deviations of every parameter, for each site and method."""
    runs = [run for run in comparison.runs if run.posterior is not None]
    if not runs:
        raise ValueError(
            "expected comparison to have a run with a posterior, got none; run a variational "
            "method or NUTS"
        )
    first = runs[0].posterior
    assert first is not None
    figure = new_figure(11, 1 + 2.2 * len(first))
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
