"""Result types of :class:`.RegimeModel`: a forecast and a summary."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch.distributions import MixtureSameFamily

from pyro_regimes.estimator.parameters import Array


class Forecast(NamedTuple):
    """The marginal predictive distribution of each of the next n observations."""

    regime_probs: Array  #: ``(n, K)``, p(q_{T+h} given x_1..T)
    mean: Array  #: ``(n, D)`` of the mixture
    covariance: Array  #: ``(n, D, D)`` of the mixture
    distribution: MixtureSameFamily  #: the mixture itself, batch shape ``(n,)``


class Summary(NamedTuple):
    """Annualised properties of the regimes; ``str(summary)`` is a table.

    Means and volatilities (standard deviations) are in the unit of the data. Those of one step are
    multiplied by P and by the square root of P, where P is the number of periods per year.
    """

    regime_names: list[str]
    series_names: list[str]
    mean: Array  #: ``(K, D)``, annualised
    volatility: Array  #: ``(K, D)``, annualised
    expected_duration: Array  #: ``(K,)``, 1 / (1 - A_kk) steps
    share_of_time: Array  #: ``(K,)``, the mean smoothed probability over the training data
    transition_matrix: Array  #: ``(K, K)``, (old, new)
    title: str
    notes: list[str]  #: on regimes that hold very few observations

    def __str__(self) -> str:
        rows = [
            ("", self.regime_names),
            ("share of time", [f"{share:.1%}" for share in self.share_of_time]),
            ("expected duration, steps", [f"{steps:.1f}" for steps in self.expected_duration]),
            *self._table("annualised mean", self.mean),
            *self._table("annualised volatility", self.volatility),
            ("transitions, from row to column", [""] * len(self.regime_names)),
        ]
        for name, row in zip(self.regime_names, self.transition_matrix, strict=True):
            rows.append((f"  {name}", [f"{probability:.4f}" for probability in row]))
        label_width = max(len(label) for label, _ in rows)
        width = 2 + max(len(cell) for _, cells in rows for cell in cells)
        lines = [
            label.ljust(label_width) + "".join(c.rjust(width) for c in cells)
            for label, cells in rows
        ]
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([self.title, "", *(line.rstrip() for line in lines), *notes])

    def _table(self, name: str, values: Array) -> list[tuple[str, list[str]]]:
        """Rows for the average over the series and for each series; two decimals for percent."""
        decimals = 2 if np.abs(values).max() >= 10 else 4
        labels, columns = [name], [values.mean(-1)]
        if len(self.series_names) > 1:
            labels = [f"{name}, average", *(f"  {series}" for series in self.series_names)]
            columns.extend(values.T)
        return [
            (label, [f"{value:.{decimals}f}" for value in column])
            for label, column in zip(labels, columns, strict=True)
        ]


def summarise(
    regime_names: list[str],
    series_names: list[str],
    means: Array,
    covariances: Array,
    transition_matrix: Array,
    share_of_time: Array,
    periods_per_year: float,
    title: str,
    notes: list[str],
) -> Summary:
    """Annualise the parameters and collect them in a summary.

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
        notes,
    )
