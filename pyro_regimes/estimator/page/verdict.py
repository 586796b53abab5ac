"""The regime of the last row in two sentences and four figures."""

from __future__ import annotations

import numpy as np

from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, element
from pyro_regimes.estimator.page.words import date_of, numbers, percent, several


def verdict(facts: Facts) -> Html:
    """The first section, without a heading."""
    k, last = facts.current, len(facts.data) - 1
    name, chance = facts.names[k], percent(facts.filtered[-1, k])
    left = facts.summary.expected_duration[k]
    spread = _average(facts, k)
    own = len(facts.names) > 1
    is_dated = facts.time is not None and facts.time.dtype.kind == "M"
    when = f"On {date_of(facts.time, last)}" if is_dated else f"At {date_of(facts.time, last)}"
    first = f"{when}, the last row of the data, the regime was "
    lasting = f"It is expected to last {several(left, 'more ' + facts.step)}"
    if np.isinf(left):
        lasting = "The model has no end for it"
    of = f" (mean of {len(facts.series)} series)" if len(facts.series) > 1 else ""
    meaning = f", with {_article(facts.spread_name)} {facts.spread_name} of {spread}{of}"
    least = [_average(facts, j) for j in range(len(facts.names))]
    others = ", ".join(
        f"{least[j]} in {facts.names[j]}" for j in range(len(facts.names)) if j != k
    )
    beside = f"; it is {others}." if own and len(facts.names) <= 4 else "."
    sentences = element(
        "p",
        first,
        element("strong", name),
        f" with probability {chance}, given the rows up to then. " if own else ". ",
        lasting + meaning + beside,
    )
    return element(
        "div",
        sentences,
        element("div", *_figures(facts, k, chance, spread), class_="figures"),
        class_="verdict",
        style=f"--regime: {facts.colors[k]}",
    )


def _figures(facts: Facts, k: int, chance: str, spread: str) -> list[Html]:
    pairs = [(facts.names[k], "regime of the last row")]
    left = facts.summary.expected_duration[k]
    if len(facts.names) > 1:
        pairs += [
            (chance, "its filtered probability"),
            (several(left, facts.step), "expected until it ends"),
        ]
    pairs.append((spread, facts.spread_name))
    return [
        element("div", element("strong", value), element("span", what)) for value, what in pairs
    ]


def _average(facts: Facts, k: int) -> str:
    spread = facts.summary.volatility.mean(-1)
    return numbers([*spread], facts.unit or "")[k] + _named(facts.unit)


def _named(unit: str | None) -> str:
    return f" {unit}" if unit not in (None, "%") else ""


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
