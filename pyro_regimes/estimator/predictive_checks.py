"""Statistics of data beside those of data that a fitted model simulates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.sampling import draw_paths
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import TitledTable, titled_html_table, titled_table

if TYPE_CHECKING:
    import pandas as pd

LAGS = (1, 5, 20)  # of the autocorrelations
LEVELS = (0.05, 0.5, 0.95)  # of the quantiles
_MOST_NUMBERS = 2**22  # that are simulated at once

Bools = npt.NDArray[np.bool_]


class PredictiveCheck(NamedTuple):
    """S statistics of D series beside those of simulated data.

    A small p-value says that the model hardly ever gives data of such a statistic. ``str(check)``
    is a table, and :meth:`to_frame` has the numbers.
    """

    statistics: list[str]  #: S names
    series_names: list[str]
    observed: Array  #: ``(D, S)``; NaN if it is not defined, as the skewness of a constant
    quantiles: Array  #: ``(D, S, 3)``, of the simulations: 5 %, 50 % and 95 %
    p_value: Array  #: ``(D, S)``, two-sided
    n_simulations: int

    def __str__(self) -> str:
        return titled_table(*self._table())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return titled_html_table(*self._table())

    def _table(self) -> TitledTable:
        """Its title, labels of rows, columns and notes."""
        names = ["observed", *(f"{level:.0%}" for level in LEVELS), "p-value"]
        rows: list[list[str]] = []
        labels = []
        for number, series in enumerate(self.series_names):
            if len(self.series_names) > 1:
                labels.append(series)
                rows.append([""] * len(names))
            for place, statistic in enumerate(self.statistics):
                labels.append(f"  {statistic}" if len(self.series_names) > 1 else statistic)
                numbers = [self.observed[number, place], *self.quantiles[number, place]]
                p_value = f"{self.p_value[number, place]:.3f}"
                rows.append([*(f"{value:.4g}" for value in numbers), p_value])
        title = f"Observed, and quantiles of {self.n_simulations} simulations of the model"
        return title, labels, list(zip(names, zip(*rows, strict=True), strict=True)), []

    def to_frame(self) -> pd.DataFrame:
        """A pandas DataFrame with a row for each series and statistic.

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        pandas = require("pandas", "to_frame")
        index = pandas.MultiIndex.from_product(
            [self.series_names, self.statistics], names=["series", "statistic"]
        )
        columns = {"observed": self.observed.ravel()}
        for place, level in enumerate(LEVELS):
            columns[f"{level:.0%}"] = self.quantiles[..., place].ravel()
        return pandas.DataFrame(columns | {"p-value": self.p_value.ravel()}, index=index)


def check_predictions(
    hmm: FittedHMM,
    data: Array,
    sizes: list[int],
    series_names: list[str],
    n_simulations: int,
    rng: np.random.RandomState,
) -> PredictiveCheck:
    """Compare data with simulations of the same sequences, with the same entries missing.

    :raises ValueError: if no series has numbers with a mean and a variance.
    """
    spec, parameters = hmm.spec, hmm.parameters
    probs = parameters.initial_probs if hmm.first_probs is None else hmm.first_probs
    first_probs = np.broadcast_to(probs, (len(sizes), probs.shape[-1]))
    used = spec.are_numbers(data.shape[1])
    if not used.any():
        raise ValueError(
            f"expected an emission of numbers with a mean and a variance, got {spec.title}; see "
            "residuals for a check of any emission"
        )
    seen = ~np.isnan(data[:, used])

    def of_batch(values: Array) -> Array:
        return _statistics(values, seen, sizes, spec.of_changes)

    observed = of_batch(data[np.newaxis, :, used])[0]
    at_once = max(1, _MOST_NUMBERS // data.size)
    parts = []
    for first in range(0, n_simulations, at_once):
        number = min(at_once, n_simulations - first)
        drawn = [
            draw_paths(each, parameters, spec, (number, size), rng).observations[..., used]
            for each, size in zip(first_probs, sizes, strict=True)
        ]
        parts.append(of_batch(np.concatenate(drawn, axis=1)))
    simulated = np.concatenate(parts)  # (n, D, S)
    below, above = (simulated <= observed).sum(0), (simulated >= observed).sum(0)
    p_value = np.minimum(2 * (1 + np.minimum(below, above)) / (1 + n_simulations), 1.0)
    # No statistic is compared that some simulation does not have.
    known = np.isfinite(observed) & np.isfinite(simulated).all(0)
    return PredictiveCheck(
        names_of(spec.of_changes),
        [name for name, is_used in zip(series_names, used, strict=True) if is_used],
        observed,
        np.moveaxis(np.quantile(simulated, LEVELS, axis=0), 0, -1),
        np.where(known, p_value, np.nan),
        n_simulations,
    )


def names_of(of_changes: bool) -> list[str]:
    """The names of the statistics; those of changes have a drawdown, too."""
    names = ["mean", "standard deviation", "skewness", "excess kurtosis"]
    names += [f"ACF of squares, lag {lag}" for lag in LAGS]
    return names + ["maximal drawdown"] * of_changes


def _statistics(values: Array, seen: Bools, sizes: list[int], of_changes: bool) -> Array:
    """All statistics of n data sets ``(n, T, D)``: ``(n, D, S)``.

    :param seen: which entries count, ``(T, D)``.
    :param of_changes: whether the drawdown of their sums is one.
    """
    number, series = seen.sum(0), np.arange(seen.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        # Deviations from some value, so that those of equal values are 0.
        level = values[:, seen.argmax(0), series]  # (n, D)
        deviations = np.where(seen, values - level[:, np.newaxis], 0.0)
        shift = deviations.sum(1) / number
        mean = level + shift
        deviations = np.where(seen, deviations - shift[:, np.newaxis], 0.0)
        unit = np.abs(deviations).max(1)  # so that no power under- or overflows
        deviations = deviations / np.where(unit > 0, unit, 1.0)[:, np.newaxis]
        second, third, fourth = ((deviations**power).sum(1) / number for power in (2, 3, 4))
        found = [mean, unit * np.sqrt(second), third / second**1.5, fourth / second**2 - 3]
        squares = np.where(seen, deviations**2 - second[:, np.newaxis], 0.0)
        spread = (squares**2).sum(1)
        found += [_lagged(squares, lag, sizes) / spread for lag in LAGS]
    if of_changes:
        found.append(_drawdown(np.where(seen, values, 0.0), sizes))
    return np.stack(found, axis=-1)


def _lagged(values: Array, lag: int, sizes: list[int]) -> Array:
    """The sums of products of values so many rows apart in the same sequence, ``(n, D)``.

    NaN if no sequence is so long.
    """
    sequence = np.repeat(np.arange(len(sizes)), sizes)
    together = np.flatnonzero(sequence[lag:] == sequence[:-lag])
    if not len(together):
        return np.full((values.shape[0], values.shape[2]), np.nan)
    sums: Array = np.einsum("ntd,ntd->nd", values[:, together + lag], values[:, together])
    return sums


def _drawdown(changes: Array, sizes: list[int]) -> Array:
    """The largest fall of the sum of changes from an earlier level of its sequence, ``(n, D)``."""
    largest = np.zeros((changes.shape[0], changes.shape[2]))
    for last, size in zip(np.cumsum(sizes), sizes, strict=True):
        level = changes[:, last - size : last].cumsum(1)
        peak = np.maximum(np.maximum.accumulate(level, 1), 0.0)  # it begins at 0
        largest = np.maximum(largest, (peak - level).max(1))
    return largest
