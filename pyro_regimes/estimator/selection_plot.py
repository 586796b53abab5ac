"""A plot of criteria against the number of regimes, with matplotlib (the ``app`` extra)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyro_regimes.estimator.candidates import Candidate
from pyro_regimes.estimator.plots import new_figure
from pyro_regimes.messages import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The criteria, with their label, colour and marker, distinct in greyscale, too.
_LINES = {
    "aic": ("AIC", "#e9c46a", "s"),
    "bic": ("BIC", "#1d3557", "o"),
    "icl": ("ICL", "#c8553d", "^"),
    "held_out": ("−2 × held-out", "#2a9d8f", "D"),
}
_STYLES = ["-", "--", ":", "-."]
_LINEAR = 10.0  # differences up to this are on a linear scale
_MOST_COLUMNS = 3  # of panels
_SHIFT = 0.07  # regimes, from the line of one criterion to the next

Points = dict[str, dict[str, list[tuple[int, float]]]]


def plot_selection(candidates: list[Candidate], ax: Axes | Iterable[Axes] | None) -> Figure:
    """Plot the difference of each criterion from its best value; see :meth:`.Selection.plot`."""
    points = _points(candidates)
    families = list(dict.fromkeys(each.family.name for each in candidates))
    panels = _panels(len(families), ax)
    numbers = sorted({each.n_regimes for each in candidates})
    highest = max(y for lines in points.values() for line in lines.values() for _, y in line)
    for place, family in enumerate(families):
        if len(panels) < len(families):
            _draw(panels[0], points[family], f", {family}", _STYLES[place % len(_STYLES)])
        else:
            _draw(panels[place], points[family], "", "-")
            panels[place].set_title(family, loc="left", fontsize="medium", parse_math=False)
    for panel in panels:
        _finish(panel, numbers, highest)
    for place, panel in enumerate(panels if ax is None else []):
        if place % _columns(len(panels)):
            panel.set_ylabel("")  # as all panels have the same scale
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    if ax is None:  # above all panels, where it hides nothing
        entries = [panel.get_legend_handles_labels() for panel in panels]
        shown_once = {label: line for each in entries for line, label in zip(*each, strict=True)}
        figure.legend(
            list(shown_once.values()),
            list(shown_once),
            loc="outside upper left",
            ncols=len(shown_once),
            frameon=False,
        )
    else:
        legend = panels[0].legend(frameon=False, fontsize="small")
        for text in legend.get_texts():  # which may have names of columns
            text.set_parse_math(False)
    return figure


def _draw(panel: Axes, lines: dict[str, list[tuple[int, float]]], more: str, style: str) -> None:
    """The lines of one family, beside each other where they are equal.

    :param more: of the names in the legend.
    """
    for name, line in lines.items():
        label, color, marker = _LINES[name]
        shift = _SHIFT * (list(_LINES).index(name) - (len(_LINES) - 1) / 2)
        values = [y for _, y in line]
        panel.plot(
            [x + shift for x, _ in line],
            values,
            style,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.3,
            label=f"{label}{more}",
        )
        for x, y in line:
            if y == 0:
                panel.plot(x + shift, y, "o", ms=11, mfc="none", mec=color, mew=1.5)


def _points(candidates: list[Candidate]) -> Points:
    """The lines of each family: numbers of regimes, and differences from the best of all.

    :raises ValueError: if no candidate has a criterion.
    """
    sound = [each for each in candidates if not each.is_collapsed]
    points: Points = {each.family.name: {} for each in candidates}
    for name in _LINES:
        factor = -2.0 if name == "held_out" else 1.0
        values = [
            (each, factor * each.value(name)) for each in sound if math.isfinite(each.value(name))
        ]
        least = min((value for _, value in values), default=0.0)
        for each, value in values:
            line = points[each.family.name].setdefault(name, [])
            line.append((each.n_regimes, value - least))
    if not any(points.values()):
        raise ValueError("expected a candidate with a criterion to plot, got none")
    return points


def _finish(panel: Axes, numbers: list[int], highest: float) -> None:
    """Scales, labels and the legend."""
    panel.set_yscale("symlog", linthresh=_LINEAR, linscale=1.0)
    panel.set_ylim(-_LINEAR / 10, max(_LINEAR, 1.5 * highest))
    powers = [10.0**k for k in range(1, 16) if 10.0**k <= 1.5 * max(highest, _LINEAR)]
    panel.set_yticks([0, _LINEAR / 2, *powers])
    panel.set_yticklabels(["0", "5", *(f"{power:,.0f}" for power in powers)])
    panel.minorticks_off()
    panel.set_xticks(numbers)
    panel.set_xlim(numbers[0] - 0.4, numbers[-1] + 0.4)
    panel.set_xlabel("number of regimes")
    panel.set_ylabel("difference from the best (in a ring)")
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _columns(num_families: int) -> int:
    """The number of panels beside each other."""
    return 2 if num_families in (2, 4) else min(num_families, _MOST_COLUMNS)


def _panels(num_families: int, ax: Axes | Iterable[Axes] | None) -> list[Axes]:
    """One panel for each family, or the one that is given.

    :raises ValueError: if ``ax`` is neither.
    """
    if ax is None:
        columns = _columns(num_families)
        rows = math.ceil(num_families / columns)
        figure = new_figure(1.5 + 4.5 * columns, 4.2 * rows)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for spare in grid.flat[num_families:]:
            spare.remove()
        return list(grid.flat[:num_families])
    new_figure(1, 1)  # raises if matplotlib is not installed
    from matplotlib.axes import Axes

    panels = [ax] if isinstance(ax, Axes) or not isinstance(ax, Iterable) else list(ax)
    if len(panels) not in (1, num_families) or not all(isinstance(p, Axes) for p in panels):
        raise ValueError(
            f"expected ax to be one matplotlib Axes, or one for each of {num_families} families, "
            f"got {shown(ax)}"
        )
    return panels
