"""What was done to the data, and the settings of the fit."""

from __future__ import annotations

import numpy as np

from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, facts_table, join, paragraph
from pyro_regimes.estimator.page.words import date_of, frequency_of, listed, several

_MOST_NAMES = 40


def data(facts: Facts) -> Html:
    """Rows, dates, columns and missing values."""
    num_rows, num_series = facts.data.shape
    rows = [["rows", f"{num_rows:,}"]]
    if facts.is_dated:
        rows.append(["first row", date_of(facts.time, 0)])
        rows.append(["last row", date_of(facts.time, num_rows - 1)])
        rows.append(["frequency", frequency_of(facts.time).name])
    named = facts.series[:_MOST_NAMES]
    more = f" and {num_series - len(named)} others" if num_series > len(named) else ""
    rows.append([f"columns ({num_series})", ", ".join(named) + more])
    if facts.unit is not None:
        rows.append(["unit", facts.unit])
    said = [paragraph(_missing(facts)), *(paragraph(each) for each in facts.notes)]
    return join([facts_table(rows), *said])


def _missing(facts: Facts) -> str:
    absent = np.isnan(facts.data)
    counts = absent.sum(0)
    if not counts.any():
        return "No value is missing."
    columns = [
        f"{facts.series[d]} ({counts[d]:,})" for d in np.argsort(-counts, kind="stable")[:10]
        if counts[d]
    ]  # fmt: skip
    total, left = int(counts.sum()), int((counts > 0).sum()) - len(columns)
    verb = "is" if total == 1 else "are"
    whole = int(absent.all(1).sum())
    rows = f" In {several(whole, 'row')} all values are missing." if whole else ""
    more = f" and {left} other columns" if left else ""
    return (
        f"{several(total, 'value')} of {facts.data.size:,} {verb} missing, in {listed(columns)}"
        f"{more}.{rows} Nothing was filled in: the likelihood is that of the values that are there."
    )


def settings(facts: Facts) -> Html:
    """The settings of the fit, with their values."""
    return facts_table(facts.settings)
