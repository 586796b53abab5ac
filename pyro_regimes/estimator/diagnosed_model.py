"""The methods of a fitted regime model that check it against data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.estimator import residuals, validation
from pyro_regimes.estimator.fitted_model import FittedModel
from pyro_regimes.estimator.inputs import date_index
from pyro_regimes.estimator.predictive_checks import PredictiveCheck, check_predictions
from pyro_regimes.estimator.residuals import Residuals


class DiagnosedModel(FittedModel):
    """The methods of :class:`.RegimeModel` that compare a fit with data."""

    def residuals(
        self,
        X: Any,
        kind: str = "forecast",
        *,
        by: str = "series",
        lengths: npt.ArrayLike | None = None,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        gaps: Any = None,
    ) -> Residuals:
        r"""Normal pseudo-residuals, which are standard normal if the model is right.

        .. math:: z_t = \Phi^{-1}(F(x_t)), \qquad F(x_t) = \sum_k w_{tk} F_k(x_t)

        F is the distribution function of an observation given others, a mixture of those of the
        regimes (Zucchini, MacDonald and Langrock, Hidden Markov Models for Time Series, 2nd ed.,
        chapter 6). Values far from 0 are outliers; :meth:`.Residuals.tests` and
        :meth:`.Residuals.plot` compare their distribution with the normal one.

        :param X: as in :meth:`predict`.
        :param kind: "forecast" given the rows before, so that they are also independent of each
            other; or "ordinary" given all other rows, before and after.
        :param by: "series" takes each series alone. "rosenblatt" takes it given the series before
            it in the same row, too, so that the D residuals of a row are independent (Rosenblatt
            1952). They depend on the order of the columns.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param gaps: as in :meth:`predict`.
        :return: a :class:`pyro_regimes.estimator.Residuals`, with the values ``(T, D)``.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        validation.one_of("kind", kind, residuals.KINDS)
        validation.one_of("by", by, residuals.ORDERS)
        hmm, data, sizes = self._hmm_of(X, lengths, start, after, gaps=gaps)
        lower, upper, middle = residuals.find_residuals(hmm, data, sizes, kind, by)
        is_discrete = bool((lower < upper).any())
        return Residuals(
            middle,
            lower if is_discrete else None,
            upper if is_discrete else None,
            kind,
            by,
            self._series_names(),
            sizes,
            date_index(X),
        )

    def predictive_check(
        self,
        X: Any,
        n_simulations: int = 200,
        *,
        random_state: int | np.random.RandomState | None = None,
        lengths: npt.ArrayLike | None = None,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
    ) -> PredictiveCheck:
        r"""Compare statistics of X with those of data of the same size that the model simulates.

        They are the mean, the standard deviation, the skewness, the excess kurtosis, the
        autocorrelations of the squared deviations from the mean at lags 1, 5 and 20, and, if the
        emission is one of changes, the maximal drawdown: the largest fall of their sum from an
        earlier level. With n simulations, of which b have a statistic that is not larger and a one
        that is not smaller, the two-sided p-value is

        .. math:: p = \min\left(1, 2\, \frac{1 + \min(a, b)}{1 + n}\right)

        The parameters are those of the fit in all simulations (a parametric bootstrap without
        refitting). As they were fitted to X, p-values are rather too large than too small.

        Entries that are missing in X do not count in the simulations, either. Series of angles and
        of categories have no such statistics, and are left out.

        :param X: as in :meth:`predict`.
        :param n_simulations: number of simulations, at least 1. The least p-value is 2 / (1 + n).
        :param random_state: seed of the simulations; None uses that of the model.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`, for the simulations.
        :param after: as in :meth:`predict`, likewise.
        :return: a :class:`pyro_regimes.estimator.PredictiveCheck`, which prints as a table.
        :raises ValueError: if an argument is not valid, no series has such statistics, or the model
            is not fitted.
        """
        check_is_fitted(self)
        n_simulations = validation.integer("n_simulations", n_simulations, 1)
        seed = self.random_state if random_state is None else random_state
        hmm, data, sizes = self._hmm_of(X, lengths, start, after)
        rng = validation.random_state(seed)
        names = self._series_names()
        return check_predictions(hmm, data, sizes, names, n_simulations, rng)
