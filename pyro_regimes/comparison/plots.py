"""The plot of log-likelihoods over time, with matplotlib (the ``app`` extra)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_regimes.comparison.runs import Comparison, MethodRun
from pyro_regimes.estimator.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_GOAL = 0.1  # nats below the best, which the table calls "to best"
_LEAST = 0.01  # nats, where the vertical axis ends

_NAMES = 0.32  # of the width of a panel, for the names of the first methods

EM_COLOR = "#c8553d"
#: The colours of the runs of a method, from the smallest learning rate on. Hues that colour-blind
#: readers tell apart (Okabe and Ito 2008); methods with several rates also differ in their dashes.
_COLORS = {
    "EM": [EM_COLOR],
    "EM, SQUAREM": ["#6e1f10"],
    "L-BFGS": ["#000000"],
    "Adam": ["#9ecae1", "#4292c6", "#08306b"],
    "ClippedAdam": ["#c4c4c4", "#8f8f8f", "#555555"],
    "DecayingAdam": ["#7fd0b5", "#009e73", "#00523c"],
    "AutoDelta": ["#0072b2"],
    "AutoNormal": ["#e69f00"],
    "AutoMultivariateNormal": ["#cc79a7"],
    "AutoLowRank": ["#8c6d46"],
    "NUTS": ["#222222"],
}
_OTHER = ["#6d597a"]
_DASHES: dict[str, Any] = {
    "EM, SQUAREM": (0, (2, 1)),
    "ClippedAdam": ":",
    "DecayingAdam": (0, (5, 1.5)),
    **dict.fromkeys(["AutoNormal", "AutoMultivariateNormal", "AutoLowRank"], "-."),
}
_WIDTHS = {"EM": 2.8, "EM, SQUAREM": 2.2, "L-BFGS": 2.2}


def plot_comparison(comparison: Comparison) -> Figure:
    """Plot how far below the best log-likelihood each method is, against seconds and passes.

    A line shows the best value so far, as that of a gradient method goes up and down at the end.
    Dots mark where EM, and the first gradient method, come within 0.1 nats of the best value. Runs
    that maximise the log joint are not drawn. Runs that diverged are drawn up to their last value;
    they do not affect the best value.
    """
    figure = new_figure(11, 5.6)
    panels = figure.subplots(1, 2, sharey=True)
    drawn = [run for run in comparison.runs if run.objective != "joint" and len(run.values) > 1]
    sound = [run for run in drawn if not run.diverged] or drawn
    reference = [run for run in sound if run.objective == "likelihood"] or sound
    best = max((max(run.values) for run in reference), default=0.0)
    colors = dict(zip([run.method for run in drawn], method_colors(drawn), strict=True))
    for panel, label, unit in zip(
        panels, ("seconds", "passes over the data"), ("s", "passes"), strict=True
    ):
        for run in drawn:
            place = np.asarray(run.times if unit == "s" else run.passes)[1:]
            below = np.maximum(best - np.maximum.accumulate(run.values)[1:], _LEAST)
            family = _family(run.name)
            panel.plot(
                place,
                below,
                color=colors[run.method],
                linestyle=_DASHES.get(family, "-"),
                linewidth=_WIDTHS.get(family, 1.4),
                label=run.name + (", diverged" if run.diverged else ""),
                zorder=3 if family in _WIDTHS else 2,
            )
        panel.set(xscale="log", yscale="log", xlabel=label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        if drawn:
            panel.axhline(_GOAL, color="#666666", linewidth=0.8, linestyle="--", zorder=1)
            _mark_arrivals(panel, reference, best, unit, colors)
    panels[0].set_ylabel(f"nats below the best (bottom: {_LEAST:g} or less)")
    panels[0].set_title("Best log-likelihood so far, against time", loc="left")
    panels[1].set_title("against passes over the data", loc="left")
    if drawn:
        _group_legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def method_colors(runs: Iterable[MethodRun]) -> list[str]:
    """A colour for each run; of a method the darker the larger its learning rate is."""
    names = [_family(run.name) for run in runs]
    found = []
    for index, name in enumerate(names):
        shades = _COLORS.get(name, _OTHER)
        of_name = names.count(name)
        first = max(0, len(shades) - of_name) if of_name > 1 else len(shades) // 2
        found.append(shades[min(first + names[:index].count(name), len(shades) - 1)])
    return found


def _family(name: str) -> str:
    """The method without its learning rate."""
    return name.split("(")[0]


def _mark_arrivals(
    panel: Axes, runs: Sequence[MethodRun], best: float, unit: str, colors: dict[str, str]
) -> None:
    """Mark where each EM, and the first other method, come within the goal.

    They are named on the left, above the line of the goal, where no method has been yet.
    """
    arrivals = []
    for run in runs:
        reached = np.flatnonzero(np.asarray(run.values)[1:] >= best - _GOAL) + 1
        if len(reached):
            place = (run.times if unit == "s" else run.passes)[reached[0]]
            arrivals.append((place, run))
    arrivals.sort(key=lambda arrival: arrival[0])
    first = next((run for _, run in arrivals if not run.is_em), None)
    marked = [(place, run) for place, run in arrivals if run.is_em or run is first]
    for place, run in marked:
        panel.plot([place], [_GOAL], "o", color=colors[run.method], markersize=6, zorder=4)
    if marked and marked[0][0] > 0:
        _make_room(panel, marked[0][0])
    for row, (place, run) in enumerate(reversed(marked)):
        told = f"{place:.2g} s" if unit == "s" else f"{place:.0f} passes"
        _tell(panel, f"{run.name}: {told}", row, colors[run.method])
    _tell(panel, f"to {_GOAL:g} nats", len(marked), "#666666")


def _make_room(panel: Axes, first: float) -> None:
    """Let the horizontal axis begin so early that the names stand on the left of the lines."""
    low, high = np.log10(panel.get_xlim())
    panel.set_xlim(left=10 ** min(low, (np.log10(first) - _NAMES * high) / (1 - _NAMES)))


def _tell(panel: Axes, text: str, row: int, color: str) -> None:
    """Write above the line of the goal, on the left; rows count from below."""
    panel.annotate(
        text,
        (0, _GOAL),
        xycoords=panel.get_yaxis_transform(),
        xytext=(6, 5 + 13 * row),
        textcoords="offset points",
        fontsize="small",
        color=color,
    )


def _group_legend(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    """A legend below: columns for single runs, for each optimiser, and for the guides."""
    from matplotlib.patches import Patch

    groups: dict[str, list[tuple[Line2D | Patch, str]]] = {}
    for handle, label in zip(handles, labels, strict=True):
        family = _family(label)
        group = "single" if family in _WIDTHS else "Auto" if family.startswith("Auto") else family
        groups.setdefault(group, []).append((handle, label))
    longest = max(map(len, groups.values()))
    empty = (Patch(alpha=0), "")
    entries = [
        entry for group in groups.values() for entry in group + [empty] * (longest - len(group))
    ]
    figure.legend(
        [handle for handle, _ in entries],
        [label for _, label in entries],
        loc="outside lower center",
        ncols=len(groups),
        fontsize="small",
        frameon=False,
    )
