"""The methods of a fitted regime model that check it against data."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.estimator import residuals, validation
from pyro_regimes.estimator.fitted_model import FittedModel
from pyro_regimes.estimator.inputs import date_index
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
