"""Checks of the fit: residuals, and the selection of the number of regimes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, element, join, note, paragraph, table
from pyro_regimes.estimator.page.picture import picture
from pyro_regimes.estimator.page.words import fixed_number
from pyro_regimes.estimator.plots.figure import cut, new_figure
from pyro_regimes.estimator.residuals import Residuals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SERIES = 12
_PANEL = (3.0, 2.6)  # inches
_LETTERS = 30  # of a title
_LEAST = 0.0001  # a p-value that is shown
_SMALL = 0.01  # p-values that are evidence against the model

#: The columns of a selection: their heads, their decimals, and whether the least or the greatest
#: number is the best.
_CRITERIA = {
    "log_likelihood": ("log-likelihood", 1, None),
    "n_parameters": ("parameters", 0, None),
    "aic": ("AIC", 1, np.nanmin),
    "aicc": ("AICc", 1, np.nanmin),
    "bic": ("BIC", 1, np.nanmin),
    "icl": ("ICL", 1, np.nanmin),
    "held_out": ("held-out log-likelihood", 1, np.nanmax),
    "p_value": ("p-value", 3, None),
}


def residuals(facts: Facts) -> Html | None:
    """Tests of the forecast residuals, and their quantiles beside those of the normal."""
    tests = facts.residuals.tests()
    shown = range(min(len(facts.series), _MOST_SERIES))
    kinds = {
        "normal (Jarque-Bera)": tests.jarque_bera,
        "standard normal (Kolmogorov-Smirnov)": tests.kolmogorov_smirnov,
        "uncorrelated (Ljung-Box)": tests.ljung_box,
        "squares uncorrelated": tests.ljung_box_squares,
    }
    rows = [
        [facts.series[d], *(_p_value(float(test.p_value[d])) for test in kinds.values())]
        for d in shown
    ]
    values = facts.residuals.values
    pictures = [_quantiles(facts, d) for d in shown if np.isfinite(values[:, d]).any()]
    said = (
        "A residual is what a value is, given the rows before it, on the scale of the standard "
        "normal distribution: if the model is right, residuals are independent and standard "
        f"normal. A p-value below {_SMALL} is evidence against the property in its column. "
        f"Correlations are tested up to lag {tests.lags}. In a picture, points in the grey band "
        "(95% for each quantile) agree with the model."
    )
    if facts.residuals.is_discrete.any():
        said += " Residuals of integers are randomised."
    if len(facts.series) > _MOST_SERIES:
        said += f" The first {_MOST_SERIES} of {len(facts.series)} series are shown."
    return join(
        [
            table(["p-values", *kinds], rows),
            element("div", *pictures, class_="small") if pictures else None,
            note(said),
        ]
    )


def _quantiles(facts: Facts, d: int) -> Html:
    return picture(
        lambda: _draw_quantiles(facts.residuals, d, facts.series[d]),
        f"Quantiles of the residuals of {facts.series[d]} beside those of the normal distribution",
        name=f"residuals{d}",
    )


def _draw_quantiles(found: Residuals, d: int, name: str) -> Figure:
    panel = new_figure(*_PANEL).subplots()
    panel.spines[["top", "right"]].set_visible(False)
    figure = found.plot(d, ax=panel)
    panel.set_title("", loc="right")
    panel.set_title(cut(name, _LETTERS), loc="left", fontsize="medium", parse_math=False)
    for legend in filter(None, [panel.get_legend()]):
        legend.remove()  # the note says what it says
    panel.set(xlabel="normal quantile", ylabel="residual")
    return figure


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "–"
    shown = f"< {_LEAST:g}" if value < _LEAST else f"{value:.4f}"
    return element("strong", shown) if value < _SMALL else shown


def selection(facts: Facts) -> Html | None:
    """The table of a selection, if the caller gave one; the best of each column is bold."""
    if facts.selection is None:
        return None
    frame = facts.selection.to_frame()
    number = len(frame)
    sound = ~frame["collapsed"].to_numpy(bool)
    columns = [list(map(str, frame["n_regimes"])), list(map(str, frame["emission"]))]
    heads = ["regimes", "emission"]
    for name, (head, decimals, best) in _CRITERIA.items():
        values: Any = frame[name].to_numpy(float)
        if np.isnan(values).all():
            continue
        usable = np.where(sound, values, np.nan)
        top = np.nan if best is None or np.isnan(usable).all() else best(usable)
        heads.append(head)
        columns.append(
            [
                element("strong", cell) if values[row] == top and sound[row] else cell
                for row in range(number)
                for cell in [fixed_number(values[row], decimals)]
            ]
        )
    rows = list(zip(*columns, strict=True))
    said = [note("Bold: the best of a column.")]
    said += [paragraph(text) for text in facts.selection.notes]
    return join([table(heads, rows), *said])
