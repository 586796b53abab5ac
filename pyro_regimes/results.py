"""What :class:`.RegimeModel` returns: a forecast and a readable summary."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch.distributions import MixtureSameFamily

from pyro_regimes.gaussian_hmm import Array


class Forecast(NamedTuple):
    """The marginal predictive distribution of each of the next n observations."""

    regime_probs: Array  #: ``(n, K)``, p(q_{T+h} given x_1..T)
    mean: Array  #: ``(n, D)`` of the mixture
    covariance: Array  #: ``(n, D, D)`` of the mixture
    distribution: MixtureSameFamily  #: the mixture itself, batch shape ``(n,)``


class Summary(NamedTuple):
    """The regimes in a practitioner's units; ``str(summary)`` is a table.

    Means and volatilities (standard deviations) are those of one step, times P and times the
    square root of P, with P the periods in a year: in the unit of the data.
    """

    regime_names: list[str]
    series_names: list[str]
    mean: Array  #: ``(K, D)``, annualised
    volatility: Array  #: ``(K, D)``, annualised
    expected_duration: Array  #: ``(K,)``, 1 / (1 - A_kk) steps
    share_of_time: Array  #: ``(K,)``, the mean smoothed probability over the training data
    transition_matrix: Array  #: ``(K, K)``, (old, new)
    title: str

    def __str__(self) -> str:
        series = len(self.series_names) > 1
        lines: list[tuple[str, list[str]]] = [
            ("share of time", [f"{share:.1%}" for share in self.share_of_time]),
            ("expected duration, steps", [f"{steps:.1f}" for steps in self.expected_duration]),
        ]
        for name, table in [("mean", self.mean), ("volatility", self.volatility)]:
            lines.append(
                (
                    f"annualised {name}" + ", average" * series,
                    [_number(value) for value in table.mean(-1)],
                )
            )
            if series:
                lines += [
                    (f"  {label}", [_number(value) for value in column])
                    for label, column in zip(self.series_names, table.T, strict=True)
                ]
        transitions = [
            (f"  {name}", [f"{probability:.4f}" for probability in row])
            for name, row in zip(self.regime_names, self.transition_matrix, strict=True)
        ]
        lines += [("transitions, from row to column", [""] * len(self.regime_names)), *transitions]
        cells = [self.regime_names, *(cells for _, cells in lines)]
        label_width = max(len(label) for label, _ in lines)
        width = 2 + max(len(cell) for row in cells for cell in row)
        rows = [("", self.regime_names), *lines]
        text = [
            (label.ljust(label_width) + "".join(cell.rjust(width) for cell in row)).rstrip()
            for label, row in rows
        ]
        return "\n".join([self.title, "", *text])


def _number(value: float) -> str:
    """Four significant digits or two decimals, whichever shows more."""
    return f"{value:.2f}" if abs(value) >= 10 or value == 0 else f"{value:.4g}"


def summarise(
    regime_names: list[str],
    series_names: list[str],
    means: Array,
    covariances: Array,
    transition_matrix: Array,
    share_of_time: Array,
    periods_per_year: float,
    title: str,
) -> Summary:
    """Annualise.

    :param covariances: ``(K, D, D)``.
    """
    with np.errstate(divide="ignore"):
        expected_duration = 1 / np.maximum(1 - np.diagonal(transition_matrix), 0)
    return Summary(
        list(regime_names),
        list(series_names),
        means * periods_per_year,
        np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1) * periods_per_year),
        expected_duration,
        share_of_time,
        transition_matrix,
        title,
    )
