"""The result of :func:`.walk_forward`: probabilities, forecasts, scores and refits as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from pyro_regimes.estimator.exceedances import COLUMNS, read_levels, row_of_tests
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.forecast import read_weights
from pyro_regimes.estimator.forecast_scores import gaussian_marginals, is_gaussian
from pyro_regimes.estimator.inputs import date_index
from pyro_regimes.estimator.marginals import is_circular
from pyro_regimes.estimator.parameter_table import parameter_table
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.plots import plot_regimes
from pyro_regimes.estimator.predictive import Mixture
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.walk import Walk
from pyro_regimes.estimator.windows import Integers, Refit
from pyro_regimes.reading.packages import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class WalkForward(NamedTuple):
    """What a model said at each row, with its scores: the result of :func:`.walk_forward`.

    Every number of a row depends on this row and those before it only. Tables are pandas DataFrames
    with the index of X from row ``min_train`` on.
    """

    index: Any  #: of the rows
    series_names: list[Any]
    horizon: int
    data: Array  #: the rows themselves, ``(n, D)``
    walk: Walk  #: all numbers as arrays
    fits: list[Refit]  #: in order of time

    def __repr__(self) -> str:
        size = f"{len(self.index)} rows from {self.index[0]} to {self.index[-1]}"
        return f"<WalkForward: {size}, {len(self.fits)} refits, horizon {self.horizon}>"

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
        - "CRPS" of each series; lower is better. Angles and categories have none, as they have no
          order, nor does a Student-t regime of one degree of freedom or fewer, which has no mean.
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
        """The share of rows in which a series had the sign of its forecast mean.

        Rows in which the series is missing or 0 do not count.
        """
        pandas = require("pandas", "hit_rate")
        came, mean = self.data[self.horizon :], self.walk.mean[: -self.horizon]
        counts = ~np.isnan(came) & (came != 0)
        hits = counts & (np.sign(came) == np.sign(mean))
        with np.errstate(invalid="ignore"):
            return pandas.Series(hits.sum(0) / counts.sum(0), self.series_names, name="hit rate")

    def quantiles(
        self, levels: float | Iterable[float], *, weights: npt.ArrayLike | None = None
    ) -> pd.DataFrame:
        """The quantiles of the forecasts of each row, which were made ``horizon`` rows before it.

        :param levels: probabilities between 0 and 1; or one.
        :param weights: of the series in a sum, ``(D,)``, as in :class:`.Forecast`, which is one
            "weighted sum" in place of the series; None is each series.
        :return: with a column for each level and series; the first ``horizon`` rows are NaN.
        :raises ValueError: if a level is not between 0 and 1, or a weight is not valid.
        """
        pandas = require("pandas", "quantiles")
        listed, given = read_levels(levels, 1.0), self._weights(weights)
        names = pandas.MultiIndex.from_product(
            [listed, self._names(given)], names=["level", "series"]
        )
        return self._frame(np.concatenate(list(self._quantiles(listed, given)), axis=1), names)

    def value_at_risk(
        self,
        levels: float | Iterable[float] = (0.01, 0.05),
        *,
        weights: npt.ArrayLike | None = None,
    ) -> pd.DataFrame:
        """The losses that are exceeded with these probabilities; a positive number is a loss.

        As :meth:`.Forecast.value_at_risk` of each row, made ``horizon`` rows before it.

        :param levels: probabilities of the tail, between 0 and 0.5; or one.
        :param weights: as in :meth:`quantiles`.
        :return: as :meth:`quantiles`.
        :raises ValueError: if a level is not between 0 and 0.5, a weight is not valid, or the
            emission is not one of returns.
        """
        self._check_returns("value_at_risk", weights)
        return -self.quantiles(read_levels(levels, 0.5), weights=weights)

    def exceedances(
        self,
        levels: float | Iterable[float] = (0.01, 0.05),
        *,
        weights: npt.ArrayLike | None = None,
    ) -> pd.DataFrame:
        """How often a loss exceeded the value at risk, and how likely that is if it is right.

        For each level and series the table has the number of "rows", of "exceedances", their
        "share", the "lower" and "upper" end of its exact 95 % interval (Clopper and Pearson), and
        p-values: "p-value" of the exact binomial test and "Kupiec" of the likelihood ratio that the
        share is the level, and "Christoffersen" of the likelihood ratio that exceedances do not
        follow each other. The last one is NaN for a ``horizon`` above 1, because such forecasts
        overlap, and if nothing follows an exceedance. The other two assume independent rows.

        :param levels: as those of :meth:`value_at_risk`.
        :param weights: as in :meth:`quantiles`. A row counts if no series of the sum is missing.
        :return: by level and series.
        :raises ValueError: as :meth:`value_at_risk` does.
        """
        self._check_returns("exceedances", weights)
        pandas = require("pandas", "exceedances")
        listed, given = read_levels(levels, 0.5), self._weights(weights)
        came = self.data
        if given is not None:
            came = self.data[:, given != 0] @ given[given != 0, None]
        rows = []
        for level, quantiles in zip(listed, self._quantiles(listed, given), strict=True):
            counts = ~np.isnan(came) & ~np.isnan(quantiles)
            pairs = zip((came < quantiles).T, counts.T, strict=True)
            rows += [row_of_tests(*pair, level, self.horizon == 1) for pair in pairs]
        index = pandas.MultiIndex.from_product(
            [listed, self._names(given)], names=["level", "series"]
        )
        return pandas.DataFrame(rows, index=index, columns=COLUMNS)

    @property
    def refits(self) -> pd.DataFrame:
        """The refits, indexed by the first row that each serves.

        The columns are the number of "rows" of the fit, its "log-likelihood", "iterations" and
        "converged", the "start" that was kept, and "warnings". :attr:`models` has the models.
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
            unit=unit,
            cumulative=last._fitted_spec().of_changes,
            kind="filtered",
        )

    def _quantiles(self, levels: Sequence[float], weights: Array | None) -> Array:
        """``(levels, n, D)``, or ``(levels, n, 1)``, of the rows that the forecasts are of."""
        every = list(self._marginals() if weights is None else self._sums(weights))
        num_series = self.data.shape[1] if weights is None else 1
        made = np.full((len(levels), len(self.data), num_series), np.nan)
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
        which, every = self._served()
        if is_gaussian(every[0].spec):
            own = [gaussian_marginals(each.spec, each.parameters.emission) for each in every]
            means, deviations = (np.stack(each)[which] for each in zip(*own, strict=True))
            for series in range(self.data.shape[1]):
                yield slice(None), series, norm(means[..., series], deviations[..., series])
            return
        for number, each in enumerate(every):
            for series, marginal in enumerate(each.spec.marginals(each.parameters.emission)):
                yield which == number, series, marginal

    def _sums(self, weights: Array) -> Iterator[tuple[Any, int, Any]]:
        """The same of the weighted sum of the series."""
        which, every = self._served()
        for number, each in enumerate(every):
            yield which == number, 0, each.spec.portfolio(each.parameters.emission, weights)

    def _served(self) -> tuple[Integers, list[FittedHMM]]:
        """Which of the fits serves each row, ``(n,)``, and those that serve any."""
        numbers, which = np.unique(self.walk.refit, return_inverse=True)
        return which, [model._hmm() for model in (self.fits[n].model for n in numbers) if model]

    def _weights(self, weights: Any) -> Array | None:
        """The weights of the series, as :class:`.Forecast` reads them."""
        if weights is None:
            return None
        are_names = all(isinstance(name, str) for name in self.series_names)
        names = [*self.series_names] if are_names else None
        return read_weights(weights, self.data.shape[1], names)

    def _names(self, weights: Array | None) -> list[Any]:
        return self.series_names if weights is None else ["weighted sum"]

    def _frame(self, values: Array, columns: Any) -> pd.DataFrame:
        return require("pandas", "a table").DataFrame(values, index=self.index, columns=columns)

    def _by_series(self, values: dict[str, Array]) -> pd.DataFrame:
        names = require("pandas", "a table").MultiIndex.from_product([values, self.series_names])
        return self._frame(np.concatenate(list(values.values()), axis=1), names)

    @property
    def has_losses(self) -> bool:
        """Whether the emission is one of returns, which have losses."""
        return self._spec().of_changes

    def _spec(self) -> Spec:
        """The emission."""
        model = self.fits[0].model
        assert model is not None
        return model._fitted_spec()

    def _check_returns(self, method: str, weights: Any) -> None:
        """:raises ValueError: if the emission is not one of returns, which have losses."""
        if weights is None and not self.has_losses:
            raise ValueError(
                f"expected {method} of returns, got {self._spec().title}; use quantiles"
            )
