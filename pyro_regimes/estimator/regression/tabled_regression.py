"""The criteria and the table of a fitted regression or autoregression."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.estimator import validation
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.coefficient_table import CoefficientTable


class TabledRegression(BaseEstimator):
    """What estimators have in common whose fit is a table of estimates.

    A subclass sets the attributes below.
    """

    log_likelihood_: float
    n_samples_fit_: int
    transition_matrix_: Array
    _form: Any  #: with its ``num_parameters``

    @property
    def n_parameters_(self) -> int:
        """The number of free parameters, p in :meth:`aic`."""
        check_is_fitted(self)
        return self._form.num_parameters

    def aic(self) -> float:
        r"""Akaike's criterion of the fit, :math:`-2 \log p(y) + 2 p`.

        p counts coefficients, scales, transitions, and the K - 1 initial probabilities if they are
        "free".

        :return: the criterion.
        :raises ValueError: if the model is not fitted.
        """
        return 2 * self.n_parameters_ - 2 * self.log_likelihood_

    def bic(self) -> float:
        r"""Schwarz's criterion of the fit, :math:`-2 \log p(y) + p \log T`.

        T is the number of rows whose response is not missing.

        :return: the criterion.
        :raises ValueError: if the model is not fitted.
        """
        return float(np.log(self.n_samples_fit_)) * self.n_parameters_ - 2 * self.log_likelihood_

    @property
    def expected_durations_(self) -> Array:
        r"""The mean number of steps of a stay in each regime, :math:`1 / (1 - A_{kk})`, ``(K,)``.

        A is ``transition_matrix_``. It is infinite for a regime that is never left.
        """
        check_is_fitted(self)
        with np.errstate(divide="ignore"):
            found: Array = 1 / np.maximum(1 - np.diagonal(self.transition_matrix_), 0)
        return found

    @property
    def coefficients_(self) -> CoefficientTable:
        """The :class:`.CoefficientTable` of all estimates, with intervals of 95 %."""
        return self.conf_int(0.95)

    def conf_int(self, level: float = 0.95) -> CoefficientTable:
        """The table of all estimates, with intervals.

        :param level: the probability that an interval covers, above 0 and below 1.
        :return: a :class:`.CoefficientTable`.
        :raises ValueError: if the level is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        validation.number("level", level, positive=True)
        if level >= 1:
            raise ValueError(f"expected level below 1, got {level}; 0.95 is 95 %")
        return self._table(level)

    def _table(self, level: float) -> CoefficientTable:
        raise NotImplementedError
