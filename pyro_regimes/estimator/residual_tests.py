"""Tests of whether pseudo-residuals are independent draws of a standard normal distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.validation import integer
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import TitledTable, titled_html_table, titled_table

if TYPE_CHECKING:
    import pandas as pd

_FEWEST = 3  # residuals of a test


class SeriesTest(NamedTuple):
    """One test of each series; NaN where it cannot be made."""

    statistic: Array  #: ``(D,)``
    p_value: Array  #: ``(D,)``


class ResidualTests(NamedTuple):
    """Tests of the residuals of each series. A small p-value is evidence against the model.

    ``str(tests)`` is a table of p-values, and :meth:`to_frame` has the statistics too.
    """

    series_names: list[str]
    n: npt.NDArray[np.int64]  #: ``(D,)``, number of residuals that are not missing
    jarque_bera: SeriesTest  #: of skewness and kurtosis
    kolmogorov_smirnov: SeriesTest  #: of the distribution, N(0, 1)
    ljung_box: SeriesTest  #: of the autocorrelations; NaN for "ordinary" residuals
    ljung_box_squares: SeriesTest  #: of those of the squares; likewise
    lags: int  #: number of autocorrelations
    kind: str  #: of the residuals

    def __str__(self) -> str:
        return titled_table(*self._table())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return titled_html_table(*self._table())

    def _table(self) -> TitledTable:
        """Its title, labels of rows, columns and notes."""
        columns = [("n", [str(number) for number in self.n])]
        for name, test in self._named().items():
            columns.append((name, [_shown(p_value) for p_value in test.p_value]))
        notes = []
        if self.kind == "ordinary":
            notes.append(
                "Ordinary residuals depend on each other, so the p-values are approximate, and "
                "there are no Ljung-Box tests; forecast residuals have them."
            )
        title = f"p-values of tests of {self.kind} residuals, Ljung-Box up to lag {self.lags}"
        return title, self.series_names, columns, notes

    def to_frame(self) -> pd.DataFrame:
        """A pandas DataFrame with a row for each series.

        Its columns have two levels, the test and "statistic" or "p-value".

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        pandas = require("pandas", "to_frame")
        columns: dict[tuple[str, str], npt.NDArray[Any]] = {("n", ""): self.n}
        for name, test in self._named().items():
            columns[name, "statistic"], columns[name, "p-value"] = test
        return pandas.DataFrame(columns, index=pandas.Index(self.series_names, name="series"))

    def _named(self) -> dict[str, SeriesTest]:
        return {
            "Jarque-Bera": self.jarque_bera,
            "Kolmogorov-Smirnov": self.kolmogorov_smirnov,
            "Ljung-Box": self.ljung_box,
            "of squares": self.ljung_box_squares,
        }


def run_tests(
    values: Array, lengths: list[int], kind: str, lags: int, series_names: list[str]
) -> ResidualTests:
    """All tests of residuals ``(T, D)``, NaN where they are missing.

    :param lengths: the number of rows of each sequence.
    :raises ValueError: if ``lags`` is not a positive integer.
    """
    lags = integer("lags", lags, 1)
    none = (np.nan, np.nan)
    rows: list[list[tuple[float, float]]] = []
    for column in values.T:
        seen = column[~np.isnan(column)]
        if len(seen) < _FEWEST:
            rows.append([none] * 4)
            continue
        is_finite = bool(np.isfinite(seen).all())  # else an observation was impossible
        normal = tuple(stats.jarque_bera(seen)) if is_finite else (np.inf, 0.0)
        tests = [normal, tuple(stats.kstest(seen, "norm"))]
        if kind == "forecast" and is_finite:
            tests += [ljung_box(each, lengths, lags) for each in (column, column**2)]
        rows.append([*tests, *[none] * (4 - len(tests))])
    found = np.array(rows, dtype=np.float64)  # (D, 4, 2)
    moments, equal, independent, squares = (SeriesTest(*each) for each in np.moveaxis(found, 0, 2))
    number = (~np.isnan(values)).sum(0)
    return ResidualTests(
        list(series_names), number, moments, equal, independent, squares, lags, kind
    )


def ljung_box(values: Array, lengths: list[int], lags: int) -> tuple[float, float]:
    r"""The test of Ljung and Box (1978) of autocorrelations up to a lag.

    .. math::
        Q = (n + 2) \sum_{h=1}^H \frac{n}{n_h} r_h^2 \sim \chi^2_H, \qquad
        r_h = \frac{\sum_t z_t z_{t+h}}{\sum_t z_t^2}

    z are the n values less their mean, and :math:`n_h` the number of pairs at lag h within a
    sequence that are both there: n - h in one sequence without missing values. Lags without pairs
    are left out. NaN if there is none, or nothing varies.

    :param values: ``(T,)``, NaN where missing.
    :param lengths: the number of rows of each sequence.
    :return: Q and its p-value.
    """
    lags = min(lags, len(values))
    correlations, pairs = autocorrelations(values, lengths, lags)
    used = pairs > 0
    number = int((~np.isnan(values)).sum())
    if not used.any() or np.isnan(correlations[used]).any():
        return np.nan, np.nan
    statistic = (number + 2) * float(np.sum(number / pairs[used] * correlations[used] ** 2))
    return statistic, float(stats.chi2.sf(statistic, int(used.sum())))


def autocorrelations(
    values: Array, lengths: list[int], lags: int
) -> tuple[Array, npt.NDArray[np.int64]]:
    """The autocorrelations at lags from 1, and their numbers of pairs, as in :func:`ljung_box`.

    :return: ``(lags,)`` each; NaN where nothing varies.
    """
    seen = ~np.isnan(values)
    centred = np.where(seen, values - values[seen].mean(), 0.0)
    variation = float(centred @ centred)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    sums, pairs = np.zeros(lags), np.zeros(lags, np.int64)
    for lag in range(1, min(lags, len(values) - 1) + 1):
        together = seen[lag:] & seen[:-lag] & (sequence[lag:] == sequence[:-lag])
        sums[lag - 1] = centred[lag:][together] @ centred[:-lag][together]
        pairs[lag - 1] = together.sum()
    return (sums / variation if variation > 0 else np.full(lags, np.nan)), pairs


def _shown(p_value: float) -> str:
    if np.isnan(p_value):
        return "-"
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}"
