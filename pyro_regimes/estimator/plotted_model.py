"""The methods of a fitted regime model that show it: plots, and a table of regimes by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.estimator import plots, validation
from pyro_regimes.estimator.by_date import index_of, regimes_frame
from pyro_regimes.estimator.changes import are_changes
from pyro_regimes.estimator.fitted_model import FittedModel
from pyro_regimes.estimator.inputs import date_index
from pyro_regimes.estimator.parameters import Array

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class PlottedModel(FittedModel):
    """The plots of :class:`.RegimeModel`, and :meth:`regimes`."""

    def regimes(
        self,
        X: Any,
        lengths: npt.ArrayLike | None = None,
        *,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        states: Any = None,
        gaps: Any = None,
    ) -> pd.DataFrame:
        """The regime of each row and its probabilities, as a table.

        The columns are ``viterbi``, the name of the regime on the most likely path, empty where
        there is none; ``viterbi_number``, its number, -1 where there is none; and for each regime
        ``filtered_`` and ``smoothed_`` before its name, its probability. The filtered ones use the
        rows up to this one alone, as a back-test must; all others use the whole sequence. It is the
        table that ``pyro-regimes fit`` writes to states.csv.

        :param X: as in :meth:`predict`.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param states: as in :meth:`predict`.
        :param gaps: as in :meth:`predict`.
        :return: a DataFrame with the index of X, or numbers of rows if it has none. Of a list or a
            dict of tables, the index has the number or the key of the table in front.
        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        hmm, data, sizes = self._hmm_of(X, lengths, start, after, states=states, gaps=gaps)
        return regimes_frame(
            index_of(X, len(data)),
            self.regime_names_,
            hmm.decode(data, sizes, "viterbi")[1],
            hmm.posterior(data, sizes, "filtered")[1],
            hmm.posterior(data, sizes, "smoothed")[1],
        )

    def plot(
        self,
        X: Any,
        dates: npt.ArrayLike | None = None,
        *,
        ax: Axes | Iterable[Axes] | None = None,
        unit: str | None = None,
        rows_per_band: int | None = None,
        prices: npt.ArrayLike | None = None,
    ) -> Figure:
        """Plot the cumulative return over bands of regimes, above smoothed probabilities.

        Of an emission that is not of returns, and of levels (series whose mean is positive and far
        from 0 in every regime), the observations are shown instead, averaged over the series. If
        these are levels or have several families, the average is that of their standard scores
        (less the mean, divided by the standard deviation), as they have no common unit.

        A band has the colour of the regime that is most frequent in its rows of the most likely
        path, and is paler where others are among them. :func:`.plots.plot_regimes` has the details.

        :param X: ``(T, D)``, one sequence.
        :param dates: ``(T,)``; None uses the index of X if X has dates, and else numbers the steps.
        :param ax: one matplotlib Axes for the upper panel alone, or a pair for both. None makes a
            figure with both.
        :param unit: the unit of the returns for the label of the axis, such as "%". If series of
            several families do have a common unit, name it, and their own average is shown.
        :param rows_per_band: number of rows that share a colour; None chooses one that can be read.
        :param prices: prices at the rows of X, ``(T,)`` or ``(T, D)``, to show on a logarithmic
            scale in the place of the cumulative return.
        :return: a matplotlib figure, of ``ax`` if it is given.
        :raises ImportError: if matplotlib is not installed.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        data = self._one_sequence(X, "plot")
        if rows_per_band is not None:
            rows_per_band = validation.integer("rows_per_band", rows_per_band, 1)
        if dates is None:
            dates = date_index(X)
        path, probs = self.predict(X), self.predict_proba(X)
        hmm, names = self._hmm(), self._column_names()
        is_sum = are_changes(hmm.spec, hmm.parameters.emission)
        have_units = isinstance(self.emission_, Mapping) or hmm.spec.of_changes
        if have_units and not is_sum and unit is None and data.shape[1] > 1:
            data, unit = plots.standard_scores(data), "standard scores"
        return plots.plot_regimes(
            data,
            path,
            probs,
            self.regime_names_,
            dates,
            ax=ax,
            unit=unit,
            rows_per_band=rows_per_band,
            cumulative=is_sum,
            prices=prices,
            name=None if names is None else names[0],
        )

    def plot_transitions(self, *, ax: Axes | None = None) -> Figure:
        """Plot the transition matrix as a diagram of circles and arrows.

        A circle has the probability of staying in its regime at one step, an arrow that of a
        change.

        :param ax: a matplotlib Axes to draw in. None makes a figure.
        :return: a matplotlib figure, of ``ax`` if it is given.
        :raises ImportError: if matplotlib is not installed.
        :raises ValueError: if ``ax`` is no Axes, or the model is not fitted.
        """
        check_is_fitted(self)
        return plots.plot_transitions(self.transition_matrix_, self.regime_names_, ax=ax)

    def plot_distributions(
        self,
        X: Any,
        *,
        series: Sequence[int | str] | None = None,
        ax: Axes | Iterable[Axes] | None = None,
        unit: str = "",
    ) -> Figure:
        """Plot the distribution of each series in each regime, beside the fitted densities.

        :func:`.plots.plot_distributions` describes what is drawn.

        :param X: as in :meth:`predict`.
        :param series: the names or the numbers of the series to show; None shows all.
        :param ax: one matplotlib Axes for each of them. None makes a figure.
        :param unit: the unit of the data for the labels of the axes, such as "%".
        :return: a matplotlib figure, of ``ax`` if it is given.
        :raises ImportError: if matplotlib is not installed.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        hmm, data, sizes = self._hmm_of(X, None)
        columns = self._columns(series)
        marginals, names = hmm.spec.marginals(hmm.parameters.emission), self._series_names()
        return plots.plot_distributions(
            data[:, columns],
            hmm.posterior(data, sizes, "smoothed")[1],
            [marginals[column] for column in columns],
            [names[column] for column in columns],
            self.regime_names_,
            ax=ax,
            unit=unit,
        )

    def plot_correlations(self, *, ax: Axes | Iterable[Axes] | None = None) -> Figure:
        """Plot the correlations of the series in each regime as heat maps.

        :param ax: one matplotlib Axes for each regime. None makes a figure.
        :return: a matplotlib figure, of ``ax`` if it is given.
        :raises ImportError: if matplotlib is not installed.
        :raises ValueError: if the series are independent in each regime, there is only one, ``ax``
            is not K Axes, or the model is not fitted.
        """
        summary = self.summary()
        if summary.correlation is None or len(summary.series_names) == 1:
            raise ValueError(
                "expected several series with correlations in each regime, got "
                f"{len(summary.series_names)} series of {self._fitted_spec().title}; fit with "
                "covariance_type='full' or 'tied'"
            )
        return plots.plot_correlations(
            summary.correlation, summary.series_names, summary.regime_names, ax=ax
        )

    def _one_sequence(self, X: Any, verb: str) -> Array:
        data, sizes = validation.check_data(self, X, None)
        if len(sizes) > 1:
            raise ValueError(
                f"expected X to be one sequence, got {len(sizes)}; {verb} each sequence alone, "
                "such as X[0] of a list or X['name'] of a dict"
            )
        return data

    def _columns(self, series: Sequence[int | str] | None) -> list[int]:
        """The numbers of the series that a user names."""
        names = self._series_names()
        if series is None:
            return list(range(len(names)))
        if isinstance(series, (str, int, np.integer)):
            series = [series]
        found = [names.index(each) if each in names else each for each in series]
        wrong = [
            each
            for each in found
            if isinstance(each, (str, bool))
            or not isinstance(each, (int, np.integer))
            or not 0 <= each < len(names)
        ]
        if wrong or not found:
            raise ValueError(
                f"expected series to be numbers below {len(names)} or names among "
                f"{', '.join(map(repr, names))}, got {series!r}"
            )
        return [int(each) for each in found]
