"""Checks of the fit: residuals, and the selection of the number of regimes."""

from __future__ import annotations

from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, join, note, table


def selection(facts: Facts) -> Html | None:
    """The table of a selection, if the caller gave one."""
    if facts.selection is None:
        return None
    frame = facts.selection.to_frame()
    rows = [[str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return join([table([str(name) for name in frame.columns], rows)])


def residuals(facts: Facts) -> Html | None:
    return None if facts.residuals is None else note("")
