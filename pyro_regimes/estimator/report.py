"""Result types of :class:`.RegimeModel`: imputed values and a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, NamedTuple

import numpy as np

from pyro_regimes.estimator.changes import are_changes
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import Row, html_table, titled_table

if TYPE_CHECKING:
    import pandas as pd


class Imputation(NamedTuple):
    """The mean and the variance of each value given all values that are not missing.

    A value that is not missing is its own mean, with variance 0.
    """

    mean: Array  #: ``(T, D)``
    variance: Array  #: ``(T, D)``


class Summary(NamedTuple):
    """Annualised properties of the regimes.

    ``str(summary)`` is a table of 80 letters in a line, :meth:`to_string` one of any width. A
    notebook shows it as HTML. :meth:`to_frame` has the numbers.

    Means and volatilities (standard deviations) are in the unit of the data. Those of one step are
    multiplied by P and by the square root of P, where P is the number of periods per year.
    """

    regime_names: list[str]
    series_names: list[str]
    mean: Array  #: ``(K, D)``, annualised
    volatility: Array  #: ``(K, D)``, annualised
    correlation: Array | None  #: ``(K, D, D)``; None where series are independent in each regime
    expected_duration: Array  #: ``(K,)``, 1 / (1 - A_kk) steps
    share_of_time: Array  #: ``(K,)``, the mean smoothed probability over the training data
    transition_matrix: Array  #: ``(K, K)``, (old, new)
    title: str
    notes: list[str]  #: on missing values, the starts, and regimes that may be none
    is_annualised: bool = True  #: else mean and volatility are those of one step
    parameters: Mapping[str, Array] = {}  #: others, by name: ``(K,)`` or ``(K, D)``

    def __str__(self) -> str:
        return self.to_string()

    def __repr__(self) -> str:
        return str(self)

    def to_string(self, width: int = 80) -> str:
        """The table as text.

        :param width: letters in a line. Regimes that do not fit follow below, in a table of their
            own; a label of a row is never cut.
        :return: the text, of several lines.
        """
        head, *rows = self._rows()
        labels = [f"  {row.label}" if row.is_part else row.label for row in rows]
        longest = max(len(cell) for row in [head, *rows] for cell in row.cells)
        name, *cells = ([cell.rjust(longest) for cell in row.cells] for row in [head, *rows])
        columns = zip(name, zip(*cells, strict=True), strict=True)
        return titled_table(self.title, labels, columns, self.notes, width)

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        head, *rows = self._rows()
        return html_table(self.title, head, rows, self.notes)

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a pandas DataFrame, with a column for each regime.

        The rows have two levels, a property and the series or the regime that it is of, so that
        ``to_frame().loc["annualised mean"]`` is the table of means, series by regime. Of the
        correlations it has the average over the pairs of series; :attr:`correlation` has them all.

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        pandas = require("pandas", "to_frame")
        rows = {
            ("share of time", ""): self.share_of_time,
            ("expected duration", ""): self.expected_duration,
        }
        for name, values in (("mean", self.mean), ("volatility", self.volatility)):
            name = self._name_of(name)
            if len(self.series_names) > 1 and self.is_annualised:
                rows["average " + name, ""] = values.mean(-1)
            for series, column in zip(self.series_names, values.T, strict=True):
                rows[name, series] = column
        for name, values in self.parameters.items():
            own = values.ndim > 1
            for series, column in zip(
                self.series_names if own else [""], values.T if own else [values], strict=True
            ):
                rows[name, series] = column
        correlation = self._average_correlation()
        if correlation is not None:
            rows["average correlation", ""] = correlation
        for regime, row in zip(self.regime_names, self.transition_matrix, strict=True):
            rows["transition from", regime] = row
        index = pandas.MultiIndex.from_tuples(rows, names=["property", "of"])
        columns = pandas.Index(self.regime_names, name="regime")
        return pandas.DataFrame(np.stack(list(rows.values())), index=index, columns=columns)

    def _rows(self) -> list[Row]:
        """The table as text, from the row of the regimes' names on."""
        rows = [
            Row("", self.regime_names),
            Row("share of time", [f"{share:.1%}" for share in self.share_of_time]),
            Row("expected duration, steps", [f"{n:.1f}" for n in self.expected_duration]),
            *self._of_series(self._name_of("mean"), self.mean),
            *self._of_series(self._name_of("volatility"), self.volatility),
        ]
        for name, values in self.parameters.items():
            rows += self._of_series(name, values.reshape(len(self.regime_names), -1))
        correlation = self._average_correlation()
        if correlation is not None:
            rows.append(Row("average correlation", [f"{each:.2f}" for each in correlation]))
        rows.append(Row("transitions, from row to column", [""] * len(self.regime_names)))
        for name, row in zip(self.regime_names, self.transition_matrix, strict=True):
            rows.append(Row(name, [f"{probability:.4f}" for probability in row], is_part=True))
        return rows

    def _name_of(self, property: str) -> str:
        """What a mean or a volatility is called."""
        if self.is_annualised:
            return f"annualised {property}"
        return "standard deviation" if property == "volatility" else property

    def _of_series(self, name: str, values: Array) -> list[Row]:
        """Rows for the average over the series and for each series; two decimals for percent."""
        decimals = 2 if np.abs(values).max() >= 10 else 4
        average = [f"{value:.{decimals}f}" for value in values.mean(-1)]
        if values.shape[-1] == 1:
            return [Row(name, average)]
        rows = [Row(f"{name}, average", average)]
        if not self.is_annualised:  # series of other units
            rows = [Row(name, [""] * len(average))]
        for series, column in zip(self.series_names, values.T, strict=True):
            cells = [f"{value:.{decimals}f}" for value in column]
            rows.append(Row(series, cells, is_part=True))
        return rows

    def _average_correlation(self) -> Array | None:
        """The mean over the pairs of series, ``(K,)``; None where there are none."""
        num_series = len(self.series_names)
        if self.correlation is None or num_series == 1:
            return None
        first, second = np.triu_indices(num_series, 1)
        average: Array = self.correlation[:, first, second].mean(-1)
        return average


def summarise(
    regime_names: list[str],
    series_names: list[str],
    spec: Spec,
    emission: Emission,
    transition_matrix: Array,
    expected_duration: Array,
    share_of_time: Array,
    periods_per_year: float,
    title: str,
    notes: list[str],
) -> Summary:
    """Collect the parameters in a summary, annualised if they are those of changes."""
    moments = spec.moments(emission)
    of_changes = are_changes(spec, emission)
    periods = periods_per_year if of_changes else 1.0
    return Summary(
        list(regime_names),
        list(series_names),
        moments.means * periods,
        spec.deviations(emission) * periods**0.5,
        _correlation(spec.typical(emission)),
        expected_duration,
        share_of_time,
        transition_matrix,
        title,
        notes,
        of_changes,
        spec.described(emission),
    )


def _correlation(moments: Moments) -> Array | None:
    """Correlation matrices ``(K, D, D)``; None where series are independent."""
    if moments.are_independent:
        return None
    deviations = np.sqrt(moments.variances)
    correlation = moments.covariances / (deviations[:, :, None] * deviations[:, None])
    diagonal = np.arange(correlation.shape[-1])
    correlation[:, diagonal, diagonal] = 1.0
    found: Array = np.clip(correlation, -1.0, 1.0)
    return found
