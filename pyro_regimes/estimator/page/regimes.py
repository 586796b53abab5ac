"""The regimes: their numbers, changes between them, correlations in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, element, join, note, table
from pyro_regimes.estimator.page.picture import picture
from pyro_regimes.estimator.page.words import numbers, percent
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.plots import plot_correlations, plot_transitions

_MOST_CIRCLES = 8
_MOST_SERIES = 40  # of a table and of heat maps


def table_of_regimes(facts: Facts) -> Html:
    """The numbers of the summary, with their intervals if there are some."""
    summary, rows = facts.summary, []
    rows.append(["share of time", *map(percent, summary.share_of_time)])
    duration = numbers([*summary.expected_duration])
    rows.append(
        _with_intervals(facts, f"expected duration, {facts.step}s", duration, "expected duration")
    )
    parts: list[int] = []
    for name, values in ((facts.mean_name, summary.mean), (facts.spread_name, summary.volatility)):
        _add_series(facts, rows, parts, name, values)
    for name, value in summary.parameters.items():
        if value.ndim == 1:
            rows.append([name, *numbers([*value])])
        elif not _is_again(value, summary.mean):
            _add_series(facts, rows, parts, name, value, average=False)
    if summary.correlation is not None and len(facts.series) > 1:
        pairs = np.triu_indices(len(facts.series), 1)
        average = summary.correlation[:, pairs[0], pairs[1]].mean(-1)
        rows.append(["average correlation", *numbers([*average])])
    return join([table(["", *_heads(facts)], rows, parts), note(_explanation(facts))])


def _heads(facts: Facts) -> list[Html]:
    """The names of the regimes with their colours."""
    return [
        element("span", element("span", class_="swatch", style=f"--regime: {color}"), name)
        for name, color in zip(facts.names, facts.colors, strict=True)
    ]


def _add_series(
    facts: Facts,
    rows: list[list[str]],
    parts: list[int],
    name: str,
    values: Array,
    average: bool = True,
) -> None:
    """A row for the average over the series, and one for each series, ``(K, D)``."""
    unit = facts.unit or ""
    if len(facts.series) == 1:
        rows.append(_with_intervals(facts, name, numbers([*values[:, 0]], unit), name, 0))
        return
    same = facts.summary.is_annualised and average
    head = numbers([*values.mean(-1)], unit) if same else [""] * len(facts.names)
    rows.append([f"{name}, average of the series" if same else name, *head])
    for d, series in enumerate(facts.series[:_MOST_SERIES]):
        parts.append(len(rows))
        rows.append(_with_intervals(facts, series, numbers([*values[:, d]], unit), name, d))


def _with_intervals(
    facts: Facts, label: str, cells: list[str], name: str, series: int | None = None
) -> list[str]:
    """A row of cells with the interval of each below it."""
    of = "" if series is None else facts.series[series]
    found = [_interval(facts.intervals, (name, of, regime)) for regime in facts.names]
    shown = []
    for cell, ends in zip(cells, found, strict=True):
        if ends is None:
            shown.append(cell)
            continue
        low, high = numbers(ends, facts.unit or "" if series is not None else "")
        shown.append(join([cell, element("span", f"{low} to {high}", class_="interval")]))
    return [label, *shown]


def _interval(intervals: Any, key: tuple[str, str, str]) -> tuple[float, float] | None:
    if intervals is None or key not in intervals.index:
        return None
    lower, upper = (float(np.ravel(intervals.loc[key, end])[0]) for end in ("lower", "upper"))
    return None if np.isnan(lower) or np.isnan(upper) else (lower, upper)


def _is_again(value: Array, means: Array) -> bool:
    """Whether a parameter repeats the means."""
    return value.shape == means.shape and bool(np.allclose(value, means))


def _explanation(facts: Facts) -> str:
    said = [
        f"Share of time: the mean smoothed probability over the data of the fit. Expected "
        f"duration: the mean length of a spell in the regime, in {facts.step}s."
    ]
    if facts.summary.is_annualised:
        said.append(
            f"Means and volatilities are in {facts.in_unit}, for a year of "
            f"{facts.periods_per_year:g} {facts.step}s."
        )
    else:
        said.append(f"Means and standard deviations are those of one {facts.step}.")
    if len(facts.series) > _MOST_SERIES:
        said.append(f"The first {_MOST_SERIES} of {len(facts.series)} series are shown.")
    if facts.intervals is not None:
        said.append(f"Below a number: its {facts.level:.0%} confidence interval.")
    return " ".join([*said, *facts.summary.notes])


def transitions(facts: Facts) -> Html | None:
    """The transition matrix, as a diagram or as a table of many regimes."""
    if len(facts.names) == 1:
        return None
    matrix = facts.summary.transition_matrix
    rows = [
        [f"from {name}", *map(percent, row)] for name, row in zip(facts.names, matrix, strict=True)
    ]
    if facts.intervals is not None:
        rows = [
            [f"from {old}", *(_transition(facts, i, j) for j in range(len(matrix)))]
            for i, old in enumerate(facts.names)
        ]
    head = ["", *(f"to {name}" for name in facts.names)]
    shown = None
    if len(facts.names) <= _MOST_CIRCLES:
        shown = picture(
            lambda: plot_transitions(matrix, facts.names),
            "Diagram of the probabilities of changes between the regimes",
            name="transitions",
        )
    return join(
        [
            shown,
            table(head, rows),
            note(
                f"The probability of each regime one {facts.step} after each regime. In a circle: "
                "that of staying in it; on an arrow: that of the change."
                if shown
                else f"The probability of each regime one {facts.step} after each regime."
            ),
        ]
    )


def _transition(facts: Facts, old: int, new: int) -> str:
    names, cell = facts.names, percent(facts.summary.transition_matrix[old, new])
    ends = _interval(facts.intervals, (f"transition from {names[old]}", names[new], names[old]))
    if ends is None:
        return cell
    low, high = map(percent, ends)
    return join([cell, element("span", f"{low} to {high}", class_="interval")])


def correlations(facts: Facts) -> Html | None:
    """Heat maps, where series are correlated."""
    correlation, number = facts.summary.correlation, len(facts.series)
    if correlation is None or not 1 < number <= _MOST_SERIES:
        return None
    pictures = [
        picture(
            lambda k=k: plot_correlations(  # type: ignore[misc]
                correlation[k : k + 1], facts.series, facts.names[k : k + 1]
            ),
            f"Correlations of the series in {facts.names[k]}",
            name=f"correlations{k}",
        )
        for k in range(len(facts.names))
    ]
    return join(
        [
            element("div", *pictures, class_="small"),
            note("Correlations of the series within each regime, from −1 (blue) to 1 (red)."),
        ]
    )
