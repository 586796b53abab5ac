"""The plot of posteriors, with matplotlib (the ``app`` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.comparison.plots import EM_COLOR, method_colors
from pyro_regimes.comparison.runs import Comparison, MethodRun
from pyro_regimes.estimator.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Array = npt.NDArray[np.float64]

_MOST_PANELS = 6  # beside each other
_MOST_ENTRIES = 12  # in a panel
_ROW = 0.24  # inches, the height of an entry


class _Entries(NamedTuple):
    """Entries of a site that are drawn in one panel."""

    title: str
    indices: Sequence[tuple[int, ...]]  #: of each in the site
    labels: list[str]


def plot_posteriors(comparison: Comparison, series_names: Sequence[str] = ()) -> Figure:
    """Plot the posterior mean and two standard deviations of parameters, by each method.

    A row of panels shows a site, and a panel the entries of one regime, the first dim of the site.
    Of square matrices for each regime only the diagonal is drawn, and of more than twelve entries
    the first twelve. Intervals of probabilities end at 0 and 1.

    :param series_names: labels of the entries along the last dim of sites that are not
        probabilities, where these are as many.
    """
    runs = [run for run in comparison.runs if run.posterior is not None]
    if not runs:
        raise ValueError(
            "expected comparison to have a run with a posterior, got none; run a variational "
            "method or NUTS"
        )
    first = runs[0].posterior
    assert first is not None
    means = {site: np.asarray(interval.mean) for site, interval in first.items()}
    rows = {site: _entries(site, mean, series_names) for site, mean in means.items()}
    heights = [0.75 + _ROW * max(len(each.labels) for each in row) for row in rows.values()]
    figure = new_figure(11, 0.9 + sum(heights))
    columns = max(map(len, rows.values()))
    panels = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    points = [run for run in comparison.runs if run.method == "EM, MAP"]
    for line, (site, row) in zip(panels, rows.items(), strict=True):
        for panel in line[len(row) :]:
            panel.set_visible(False)
        for panel, entries in zip(line, row, strict=False):
            _draw_entries(panel, entries, site, runs, points)
            if panel is not line[0]:
                panel.tick_params(labelleft=False)
        low = min(panel.get_xlim()[0] for panel in line[: len(row)])
        high = max(panel.get_xlim()[1] for panel in line[: len(row)])
        for panel in line[: len(row)]:
            panel.set_xlim(low, high)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        [label.removeprefix("SVI, ") for label in labels],
        loc="outside upper left",
        ncols=len(labels),
        frameon=False,
        title="Posterior mean and two standard deviations",
        alignment="left",
    )
    return figure


def _are_probs(values: _Array) -> bool:
    return bool(values.ndim and (values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-4))


def _entries(site: str, mean: _Array, series_names: Sequence[str]) -> list[_Entries]:
    """The panels of a site."""
    probs = _are_probs(mean)
    is_matrix = mean.ndim > 2 and mean.shape[-1] == mean.shape[-2]
    if is_matrix:
        each = [(i, i) for i in range(mean.shape[-1])]
        what = f"{site}, diagonal"
    else:
        each = list(np.ndindex(mean.shape[1:]))
        what = site
    several = mean.ndim > 1 and mean.shape[0] <= _MOST_PANELS
    if not several:
        each, what = list(np.ndindex(mean.shape)), site
    named = bool(mean.ndim) and len(series_names) == mean.shape[-1] and not probs
    shown = each[:_MOST_ENTRIES]
    left_out = f", {len(shown)} of {len(each)}" if len(each) > len(shown) else ""
    prefix = ("to regime " if several else "regime ") if probs else ""
    labels = [
        series_names[index[-1]] if named else prefix + _numbered(index, is_matrix)
        for index in shown
    ]
    if not several:
        return [_Entries(what + left_out, shown, labels)]
    return [
        _Entries(
            f"{'' if k else f'{what}{left_out}: '}{'from ' if probs else ''}regime {k + 1}",
            [(k, *index) for index in shown],
            labels,
        )
        for k in range(mean.shape[0])
    ]


def _numbered(index: tuple[int, ...], is_matrix: bool) -> str:
    """Numbers from 1; one for the diagonal of a matrix."""
    is_diagonal = is_matrix and len(set(index)) == 1
    return ", ".join(str(i + 1) for i in (index[:1] if is_diagonal else index))


def _draw_entries(
    panel: Axes,
    entries: _Entries,
    site: str,
    runs: Sequence[MethodRun],
    points: Sequence[MethodRun],
) -> None:
    at = tuple(np.array(entries.indices).T) if entries.indices[0] else ()
    place = np.arange(len(entries.labels))
    for index, (run, color) in enumerate(zip(runs, method_colors(runs), strict=True)):
        assert run.posterior is not None
        mean, deviation = (np.asarray(part) for part in run.posterior[site])
        low, high = mean - 2 * deviation, mean + 2 * deviation
        if _are_probs(mean):
            low, high = low.clip(0, 1), high.clip(0, 1)
        middle = np.atleast_1d(mean[at])
        panel.errorbar(
            middle,
            place + 0.7 * ((index + 0.5) / len(runs) - 0.5),
            xerr=np.stack([middle - np.atleast_1d(low[at]), np.atleast_1d(high[at]) - middle]),
            fmt="o",
            markersize=3.5,
            linewidth=1.6,
            color=color,
            label=run.method,
        )
    for run in points:
        values = np.atleast_1d(np.asarray(run.point[site])[at])
        panel.plot(
            values, place, "|", color=EM_COLOR, markersize=11, markeredgewidth=2,
            label=run.method,
        )  # fmt: skip
    panel.set_yticks(place, entries.labels, parse_math=False)
    panel.set_ylim(len(place) - 0.5, -0.5)
    panel.set_title(entries.title, loc="left", fontsize="medium", parse_math=False)
    panel.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
