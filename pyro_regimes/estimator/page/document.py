"""The whole page."""

from __future__ import annotations

from pyro_regimes.estimator.page import checks, history, origin, outlook, regimes
from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, element, join
from pyro_regimes.estimator.page.style import SHEET
from pyro_regimes.estimator.page.verdict import verdict
from pyro_regimes.estimator.page.words import date_of, several
from pyro_regimes.version import __version__


def document(facts: Facts, title: str | None) -> str:
    """The page as text; sections that do not apply are left out with their headings.

    :param title: None names the regimes and the series.
    """
    title = title or _title(facts)
    sections = {
        "Regimes": regimes.table_of_regimes(facts),
        "History": history.path(facts),
        "Changes of regime": regimes.transitions(facts),
        "Forecast and risk": outlook.outlook(facts),
        "Distributions": history.distributions(facts),
        "Correlations": regimes.correlations(facts),
        "Residual checks": checks.residuals(facts),
        "Number of regimes": checks.selection(facts),
        "Data": origin.data(facts),
        "Settings of the fit": origin.settings(facts),
    }
    body = join(
        element("section", element("h2", name), content)
        for name, content in sections.items()
        if content is not None
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(SHEET)),
    )
    top = element("header", element("h1", title), element("p", _under(facts), class_="under"))
    made = element("footer", element("p", f"Made by pyro_regimes {__version__}.", class_="under"))
    page = element("html", head, element("body", top, verdict(facts), body, made), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _title(facts: Facts) -> str:
    names = facts.series
    what = ", ".join(names) if len(names) <= 3 else f"{len(names)} series"
    return f"Regimes of {what}"


def _under(facts: Facts) -> str:
    rows = several(len(facts.data), "row")
    series = f"{len(facts.series)} series"
    regimes_text = several(len(facts.names), "regime")
    span = ""
    if facts.is_dated:
        span = f", {date_of(facts.time, 0)} to {date_of(facts.time, len(facts.data) - 1)}"
    return f"{regimes_text}, {facts.spec.title}; {rows} of {series}{span}"
