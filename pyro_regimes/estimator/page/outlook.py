"""The next steps: regimes, intervals and losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyro_regimes.estimator.emissions.categories import Categories
from pyro_regimes.estimator.marginals import is_circular
from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.html import Html, join, note, table
from pyro_regimes.estimator.page.words import numbers, percent
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.predictive import Mixture

STEPS = 20  #: that are forecast
_SHOWN = (1, 5, 20)
_INSIDE = 0.9  # the probability of an interval
_TAILS = (0.05, 0.01)
_MOST_SERIES = 40


def regimes_ahead(facts: Facts) -> Html | None:
    """The probabilities of the regimes at some of the next steps."""
    if len(facts.names) == 1:
        return None
    found = facts.forecast
    change = found.change_probability()
    rows = [
        [
            f"{step} {facts.step}{'s' * (step > 1)}",
            *map(percent, found.regime_probs[step - 1]),
            percent(change[step - 1]),
        ]
        for step in _SHOWN
    ]
    head = ["after the last row", *facts.names, "present regime has ended"]
    return table(head, rows, caption="Probability of each regime")


def next_step(facts: Facts) -> Html:
    """The distribution of the observations of the next step, and its risk."""
    rows = _rows(facts, _columns(facts))
    head = ["", "expected", f"{_INSIDE:.0%} interval"]
    said = [
        f"Expected: the mean of the next {facts.step}; in the interval it lies with probability "
        f"{_INSIDE:.0%}, by the model."
    ]
    if facts.summary.is_annualised:
        head += [f"{what} {tail:.0%}" for tail in _TAILS for what in ("VaR", "ES")]
        said.append(
            "VaR 5% (value at risk): the loss that is exceeded with probability 5%. ES 5% "
            "(expected shortfall): the mean loss in the worst 5% of cases. Losses are positive."
        )
    said.append(
        f"Numbers are in {facts.in_unit}, for one {facts.step}, not annualised. The error of the "
        "fitted parameters is not in them."
    )
    if len(facts.series) > _MOST_SERIES:
        said.append(f"The first {_MOST_SERIES} of {len(facts.series)} series are shown.")
    return join(
        [table(head, rows, caption=f"The next {facts.step}"), note(" ".join(said))]
    )


def outlook(facts: Facts) -> Html:
    """The probabilities of the regimes, and the distribution of the next step."""
    return join([regimes_ahead(facts), next_step(facts)])


def _columns(facts: Facts) -> Array:
    """The mean, the ends of the interval and the losses of each series, ``(D, 3 or 7)``."""
    found, marginals = facts.forecast, facts.spec.marginals(facts.emission)
    number = min(len(marginals), _MOST_SERIES)
    columns = np.full((number, 3), np.nan)
    for d in range(number):
        if isinstance(marginals[d], Categories):
            continue
        columns[d, 0] = found.mean[0, d]
        if not is_circular(marginals[d]):
            mixture = Mixture(found.regime_probs[0], marginals[d])
            columns[d, 1:] = mixture.ppf([(1 - _INSIDE) / 2, (1 + _INSIDE) / 2])
    if not facts.summary.is_annualised:
        return columns
    return np.column_stack([columns, _losses(facts, None)[:number]])


def _losses(facts: Facts, weights: Array | None) -> Array:
    """Value at risk and expected shortfall for each tail, ``(..., 4)``."""
    found = facts.forecast
    risk = found.value_at_risk([*_TAILS], weights=weights)
    shortfall = found.expected_shortfall([*_TAILS], weights=weights)
    first = [each[place][0] for place in range(len(_TAILS)) for each in (risk, shortfall)]
    return np.stack(first, -1)


def _rows(facts: Facts, columns: Array) -> list[list[str]]:
    rows = []
    marginals = facts.spec.marginals(facts.emission)
    for d, line in enumerate(columns):
        cells = _cells(facts, line)
        marginal = marginals[d]
        if isinstance(marginal, Categories):
            probs = facts.forecast.regime_probs[0] @ marginal.probs
            best = int(probs.argmax())
            cells = [f"most likely {best} ({percent(probs[best])})", "–"]
        rows.append([facts.series[d], *cells])
    portfolio = _portfolio(facts)
    if portfolio is not None:
        rows.append(["equal-weighted average", *_cells(facts, portfolio)])
    return rows


def _cells(facts: Facts, line: Array) -> list[str]:
    mean, low, high, *losses = numbers([*line], facts.unit or "")
    inside = "–" if np.isnan(line[1]) else f"{low} to {high}"
    return [mean, inside, *losses]


def _portfolio(facts: Facts) -> Array | None:
    """That of the average of the series, if it is known."""
    number = len(facts.series)
    if not facts.summary.is_annualised or number == 1:
        return None
    weights: Array = np.full(number, 1 / number)
    interval: Callable[..., tuple[Array, Array]] = facts.forecast.interval
    try:
        low, high = interval(_INSIDE, weights=weights)
    except ValueError:  # sums have no known distribution
        return None
    mean = facts.forecast.mean[0] @ weights
    return np.array([mean, low[0], high[0], *_losses(facts, weights)])
