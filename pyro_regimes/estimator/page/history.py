"""The data with their regimes: over time, and their distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, element, join, note
from pyro_regimes.estimator.page.picture import picture
from pyro_regimes.estimator.plots import plot_distributions, plot_regimes, standard_scores
from pyro_regimes.estimator.plots.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE, _NARROW = (9.5, 6.0), (3.6, 5.0)  # inches
_PANEL = (3.0, 2.2)
_MOST_SERIES = 12


def path(facts: Facts) -> Html:
    """The path and the probabilities, once for wide and once for narrow screens."""
    return join(
        [
            *(
                picture(
                    lambda size=size: _draw_path(facts, size),  # type: ignore[misc]
                    "The data over time, shaded by regime, above the probabilities of the regimes",
                    name=f"path-{name}",
                    class_=name,
                )
                for name, size in (("wide", _WIDE), ("narrow", _NARROW))
            ),
            note(
                "Shades: the regimes of the most likely path. Below: the probability of each "
                "regime. Both use all rows, also those after each date, so they are no test of a "
                "trading rule."
            ),
        ]
    )


def _draw_path(facts: Facts, size: tuple[float, float]) -> Figure:
    figure = new_figure(*size)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    data, unit = facts.data, facts.unit
    is_sum = facts.summary.is_annualised
    have_units = _are_of_several_kinds(facts) or facts.spec.of_changes and data.shape[1] > 1
    if not is_sum and unit is None and have_units:
        data, unit = standard_scores(data), "standard scores"
    return plot_regimes(
        data,
        facts.path,
        facts.smoothed,
        facts.names,
        facts.time,
        ax=axes,
        unit=unit,
        cumulative=is_sum,
        prices=facts.prices,
        name=facts.series[0],
    )


def _are_of_several_kinds(facts: Facts) -> bool:
    parts: Any = getattr(facts.spec, "parts", ())
    return len(parts) > 1 or isinstance(parts, Mapping)


def distributions(facts: Facts) -> Html:
    """A panel for each series, at most a dozen."""
    marginals = facts.spec.marginals(facts.emission)
    shown = range(min(len(marginals), _MOST_SERIES))
    pictures = [
        picture(
            lambda d=d: _draw_distribution(facts, d, marginals[d]),  # type: ignore[misc]
            f"Distribution of {facts.series[d]} in each regime",
            name=f"distribution{d}",
        )
        for d in shown
    ]
    several = len(facts.names) > 1
    said = "Bars: histogram of the data. Line: the fitted density."
    if several:
        said = (
            "Grey bars: histogram of all data; coloured ones: of each regime, in which a value "
            "counts by its smoothed probability. Coloured lines: fitted densities of the regimes, "
            "times their shares; thin line: their sum. Points take the place of lines for "
            "integers."
        )
    if len(marginals) > _MOST_SERIES:
        said += f" The first {_MOST_SERIES} of {len(marginals)} series are shown."
    said += " The lowest and the highest 0.1% of the values are left out."
    legend = element(
        "p",
        *(
            element(
                "span",
                element("span", class_="swatch", style=f"--regime: {color}"),
                f"{name}  ",
            )
            for name, color in zip(facts.names, facts.colors, strict=True)
        ),
        class_="note legend",
    )
    grid = element("div", *pictures, class_="small")
    return join([legend if several else None, grid, note(said)])


def _draw_distribution(facts: Facts, d: int, marginal: Any) -> Figure:
    panel = new_figure(*_PANEL).subplots()
    return plot_distributions(
        facts.data[:, d : d + 1],
        facts.smoothed,
        [marginal],
        facts.series[d : d + 1],
        facts.names,
        ax=panel,
        unit=facts.unit or "",
    )
