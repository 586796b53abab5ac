"""The result of :func:`.walk_forward`: probabilities, forecasts, scores and refits as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, norm

from pyro_regimes.estimator.forecast_scores import gaussian_marginals, is_gaussian
from pyro_regimes.estimator.inputs import date_index
from pyro_regimes.estimator.marginals import is_circular
from pyro_regimes.estimator.parameter_table import parameter_table
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.plots import plot_regimes
from pyro_regimes.estimator.predictive import Mixture
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.windows import Integers, Refit
from pyro_regimes.messages import shown
from pyro_regimes.reading.packages import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Walk(NamedTuple):
    """Numbers of the n rows from the first refit on, NaN where there are none.

    Of the row of a forecast are ``ahead``, ``mean`` and ``deviation``. Of the row that it is of are
    ``log_score``, ``pit`` and ``crps``.
    """

    refit: Integers  #: ``(n,)``, the number of the refit that serves the row
    filtered: Array  #: ``(n, K)``, probabilities of the regimes
    ahead: Array  #: ``(n, K)``, those ``horizon`` rows later
    mean: Array  #: ``(n, D)``
    deviation: Array  #: ``(n, D)``
    log_score: Array  #: ``(n,)``
    pit: Array  #: ``(n, D)``
    crps: Array  #: ``(n, D)``

    @classmethod
    def empty(cls, num_rows: int, num_regimes: int, num_series: int) -> Walk:
        """All NaN."""
        filtered, ahead = np.full((2, num_rows, num_regimes), np.nan)
        mean, deviation, pit, crps = np.full((4, num_rows, num_series), np.nan)
        refit, scores = np.zeros(num_rows, dtype=np.int64), np.full(num_rows, np.nan)
        return cls(refit, filtered, ahead, mean, deviation, scores, pit, crps)


class WalkForward(NamedTuple):
    """What a model said at each row, and how well: the result of :func:`.walk_forward`.

    Every number of a row is of this row and those before it alone. Tables are pandas DataFrames
    with the index of X from row ``min_train`` on.
    """

    index: Any  #: of the rows
    series_names: list[Any]
    horizon: int
    data: Array  #: the rows themselves, ``(n, D)``
    walk: Walk  #: all numbers as arrays
    fits: list[Refit]  #: in order of time

    @property
    def models(self) -> list[RegimeModel | None]:
        """The fitted model of each refit; None where it failed."""
        return [each.model for each in self.fits]

    @property
    def regime_names(self) -> list[str]:
        """The names of the regimes, the same in every refit."""
        first = self.fits[0].model
        assert first is not None
        return first.regime_names_

    @property
    def filtered_probs(self) -> pd.DataFrame:
        """The probability of each regime given the rows up to this one."""
        return self._frame(self.walk.filtered, self.regime_names)

    @property
    def forecasts(self) -> pd.DataFrame:
        """The mean and the standard deviation of each series ``horizon`` rows after this one."""
        return self._by_series({"mean": self.walk.mean, "deviation": self.walk.deviation})

    @property
    def scores(self) -> pd.DataFrame:
        r"""The scores of the forecasts of each row, which were made ``horizon`` rows before it.

        - "log score", :math:`\log p(x_t \mid x_{..t-h})` of all series together; higher is better.
          Of a row without any value it is NaN.
        - "CRPS" of each series, for Gaussian emissions and mixtures of Gaussians; lower is better.
        - "PIT" of each series, :math:`P(X_t \le x_t \mid x_{..t-h})`: uniform if the forecasts are
          right.

        The first ``horizon`` rows have none.
        """
        pandas = require("pandas", "scores")
        log_score = self._frame(self.walk.log_score[:, None], [("log score", "")])
        log_score.columns = pandas.MultiIndex.from_tuples([("log score", "")])
        of_series = self._by_series({"CRPS": self.walk.crps, "PIT": self.walk.pit})
        return pandas.concat([log_score, of_series], axis=1)

    def hit_rate(self) -> pd.Series:
        """The share of rows in which a series had the sign of the mean that was forecast.

        Rows in which it is missing or 0 do not count.
        """
        pandas = require("pandas", "hit_rate")
        came, mean = self.data[self.horizon :], self.walk.mean[: -self.horizon]
        counts = ~np.isnan(came) & (came != 0)
        hits = counts & (np.sign(came) == np.sign(mean))
        with np.errstate(invalid="ignore"):
            return pandas.Series(hits.sum(0) / counts.sum(0), self.series_names, name="hit rate")

    def quantiles(self, levels: Iterable[float]) -> pd.DataFrame:
        """The quantiles of the forecasts of each row, which were made ``horizon`` rows before it.

        :param levels: probabilities between 0 and 1.
        :return: with a column for each level and series; the first ``horizon`` rows are NaN.
        :raises ValueError: if a level is not between 0 and 1.
        """
        pandas = require("pandas", "quantiles")
        listed = _levels(levels, 1.0)
        names = pandas.MultiIndex.from_product(
            [listed, self.series_names], names=["level", "series"]
        )
        return self._frame(np.concatenate(list(self._quantiles(listed)), axis=1), names)

    def value_at_risk(self, levels: Iterable[float] = (0.01, 0.05)) -> pd.DataFrame:
        """The losses that are exceeded with these probabilities; a positive number is a loss.

        As :meth:`.Forecast.value_at_risk` of each row, made ``horizon`` rows before it.

        :param levels: probabilities of the tail, between 0 and 0.5.
        :return: as :meth:`quantiles`.
        :raises ValueError: if a level is not between 0 and 0.5, or the emission is not one of
            returns.
        """
        self._check_returns("value_at_risk")
        return -self.quantiles(_levels(levels, 0.5))

    def exceedances(self, levels: Iterable[float] = (0.01, 0.05)) -> pd.DataFrame:
        """How often a loss exceeded the value at risk, and how likely so many or so few are.

        :param levels: as those of :meth:`value_at_risk`.
        :return: for each level and series the number of rows, of "exceedances", their share, and
            the p-value of an exact binomial test that they are independent with the probability of
            the level.
        :raises ValueError: as :meth:`value_at_risk` does.
        """
        self._check_returns("exceedances")
        pandas = require("pandas", "exceedances")
        rows, places = [], []
        listed = _levels(levels, 0.5)
        for level, quantiles in zip(listed, self._quantiles(listed), strict=True):
            below = self.data < quantiles
            counts = ~np.isnan(self.data) & ~np.isnan(quantiles)
            for name, num_below, number in zip(self.series_names, below.sum(0), counts.sum(0)):
                p_value = binomtest(int(num_below), int(number), level).pvalue if number else np.nan
                share = num_below / number if number else np.nan
                places.append((level, name))
                rows.append((number, num_below, share, p_value))
        return pandas.DataFrame(
            rows,
            index=pandas.MultiIndex.from_tuples(places, names=["level", "series"]),
            columns=["rows", "exceedances", "share", "p-value"],
        )

    @property
    def refits(self) -> pd.DataFrame:
        """The refits: with the first row that each serves as index.

        "rows" that it is of, "log-likelihood" of these, "iterations", "converged", the "start" that
        was kept, and "warnings". :attr:`models` has all else.
        """
        pandas = require("pandas", "refits")
        begin = self.fits[0].window.end
        table = [
            (
                each.window.end - each.window.first,
                np.nan if each.model is None else each.model.log_likelihood_,
                0 if each.model is None else each.model.n_iter_,
                each.model is not None and each.model.converged_,
                each.start,
                "; ".join(each.problems),
            )
            for each in self.fits
        ]
        columns = ["rows", "log-likelihood", "iterations", "converged", "start", "warnings"]
        index = self.index[[each.window.end - begin for each in self.fits]]
        return pandas.DataFrame(table, index=index, columns=columns)

    @property
    def parameters(self) -> pd.DataFrame:
        """The parameters of every refit, with those of a failed one as NaN.

        Columns have the attribute, without the underscore, and the place in it: names of regimes
        and of series, in the order of the dims.
        """
        series = [str(name) for name in self.series_names]
        return parameter_table(self.models, self.regime_names, series, self.refits.index)

    def plot(self, *, ax: Axes | Iterable[Axes] | None = None, unit: str | None = None) -> Figure:
        """Plot the rows as :meth:`.RegimeModel.plot` does, over the regimes that were likely then.

        :param ax: one matplotlib Axes for the upper panel alone, or a pair for both. None makes a
            figure with both.
        :param unit: the unit of the data for the label of the axis, such as "%".
        :return: a matplotlib figure, of ``ax`` if it is given.
        :raises ImportError: if matplotlib is not installed.
        """
        last = next(model for model in reversed(self.models) if model is not None)
        probs = self.walk.filtered
        return plot_regimes(
            self.data,
            probs.argmax(-1),
            probs,
            self.regime_names,
            date_index(self.filtered_probs),
            ax=ax,
            unit=unit or "unit of the data",
            cumulative=last._fitted_spec().of_changes,
            kind="filtered",
        )

    def _quantiles(self, levels: Sequence[float]) -> Array:
        """``(levels, n, D)``, of the rows that the forecasts are of."""
        made = np.full((len(levels), *self.data.shape), np.nan)
        every = list(self._marginals())
        are_angles = all(is_circular(marginal) for _, _, marginal in every)
        for rows, series, marginal in every:
            if is_circular(marginal) and not are_angles:
                continue
            mixture = Mixture(self.walk.ahead[rows], marginal)
            for place, level in enumerate(levels):
                made[place, rows, series] = mixture.ppf(level)
        found = np.full_like(made, np.nan)
        found[:, self.horizon :] = made[:, : -self.horizon]
        return found

    def _marginals(self) -> Iterator[tuple[Any, int, Any]]:
        """Rows, a series, and its distribution in each regime by the fit that serves them.

        Gaussian ones have those of all rows in one.
        """
        numbers, which = np.unique(self.walk.refit, return_inverse=True)
        every = [model._hmm() for model in (self.fits[n].model for n in numbers) if model]
        if is_gaussian(every[0].spec):
            own = [gaussian_marginals(each.spec, each.parameters.emission) for each in every]
            means, deviations = (np.stack(each)[which] for each in zip(*own, strict=True))
            for series in range(self.data.shape[1]):
                yield slice(None), series, norm(means[..., series], deviations[..., series])
            return
        for number, each in enumerate(every):
            for series, marginal in enumerate(each.spec.marginals(each.parameters.emission)):
                yield which == number, series, marginal

    def _frame(self, values: Array, columns: Any) -> pd.DataFrame:
        return require("pandas", "a table").DataFrame(values, index=self.index, columns=columns)

    def _by_series(self, values: dict[str, Array]) -> pd.DataFrame:
        names = require("pandas", "a table").MultiIndex.from_product([values, self.series_names])
        return self._frame(np.concatenate(list(values.values()), axis=1), names)

    def _check_returns(self, method: str) -> None:
        """:raises ValueError: if the emission is not one of returns, which have losses."""
        model = self.fits[0].model
        assert model is not None
        spec = model._fitted_spec()
        if not spec.of_changes:
            raise ValueError(f"expected {method} of returns, got {spec.title}; use quantiles")


def _levels(levels: Iterable[float], most: float) -> list[float]:
    """:raises ValueError: if they are not between 0 and ``most``."""
    try:
        listed = [float(level) for level in levels]
    except (TypeError, ValueError):
        listed = [np.nan]
    if not listed or not all(0 < level < 1 and level <= most for level in listed):
        raise ValueError(
            f"expected levels to be numbers between 0 and {most:g}, got {shown(levels)}"
        )
    return listed
