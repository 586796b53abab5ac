"""The regime of the last row in two sentences and a few figures."""

from __future__ import annotations

import numpy as np

from pyro_regimes.estimator.emissions.categories import Categories
from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, element
from pyro_regimes.estimator.page.words import date_of, listed, numbers, percent, several

_MOST_NAMED = 3  # series and other regimes in a sentence


def verdict(facts: Facts) -> Html:
    """The first section, without a heading."""
    sentences = _of_one(facts) if len(facts.names) == 1 else _of_several(facts)
    return element(
        "div",
        element("p", *sentences),
        element("div", *_figures(facts), class_="figures"),
        class_="verdict",
        style=f"--regime: {facts.colors[facts.current]}",
    )


def _of_one(facts: Facts) -> list[str]:
    meaning = _meaning(facts)
    said = f" The model has one regime{meaning}."
    return [f"The data end {'on' if facts.is_dated else 'at'} {_last(facts)}.{said}"]


def _of_several(facts: Facts) -> list[str]:
    k = facts.current
    left = facts.summary.expected_duration[k]
    lasting = f"From here a spell in it lasts {several(left, 'more ' + facts.step)} on average"
    if np.isinf(left):
        lasting = "By the model it never ends"
    return [
        f"{'On' if facts.is_dated else 'At'} {_last(facts)}, at the end of the data, "
        "the most probable regime was ",
        element("strong", facts.names[k]),
        f", with probability {percent(facts.filtered[-1, k])} given the rows up to then. ",
        f"{lasting}{_meaning(facts)}{_beside(facts)}.",
    ]


def _last(facts: Facts) -> str:
    return date_of(facts.time, len(facts.data) - 1)


def _meaning(facts: Facts) -> str:
    """The volatility of the regime; the means of series that are no returns."""
    if facts.summary.is_annualised:
        of = f" (average of {len(facts.series)} series)" if len(facts.series) > 1 else ""
        return f", with an annualised volatility of {_volatility(facts, facts.current)}{of}"
    marginals = facts.spec.marginals(facts.emission)
    shown = [d for d, each in enumerate(marginals) if not isinstance(each, Categories)]
    if not shown:
        return ""
    means = facts.summary.mean
    texts = [
        f"{numbers([*means[:, d]])[facts.current]}{_named(facts.unit)}" for d in shown[:_MOST_NAMED]
    ]
    if len(facts.series) == 1:
        return f", with a mean of {texts[0]}"
    each = [f"{text} ({facts.series[d]})" for d, text in zip(shown, texts, strict=False)]
    return f", with means of {listed(each)}"


def _beside(facts: Facts) -> str:
    """The volatility of the other regimes, where they are few."""
    others = [k for k in range(len(facts.names)) if k != facts.current]
    if not facts.summary.is_annualised or len(others) > _MOST_NAMED:
        return ""
    return "; it is " + listed([f"{_volatility(facts, k)} in {facts.names[k]}" for k in others])


def _figures(facts: Facts) -> list[Html]:
    k = facts.current
    pairs = [(facts.names[k], "most probable regime")]
    if len(facts.names) > 1:
        left = facts.summary.expected_duration[k]
        pairs += [
            (percent(facts.filtered[-1, k]), "its filtered probability"),
            (several(left, facts.step), "expected until it ends"),
        ]
    if facts.summary.is_annualised:
        pairs.append((_volatility(facts, k), "annualised volatility in it"))
    return [
        element("div", element("strong", value), element("span", what)) for value, what in pairs
    ]


def _volatility(facts: Facts, k: int) -> str:
    """The average over the series."""
    average = facts.summary.volatility.mean(-1)
    return numbers([*average], facts.unit or "")[k] + _named(facts.unit)


def _named(unit: str | None) -> str:
    return f" {unit}" if unit not in (None, "%") else ""
