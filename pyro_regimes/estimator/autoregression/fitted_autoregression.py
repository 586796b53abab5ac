"""The methods of a fitted Markov-switching autoregression."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.distributions import SwitchingAutoregression
from pyro_regimes.estimator import problems, validation
from pyro_regimes.estimator.autoregression.autoregressive_form import (
    AutoregressiveForm,
    AutoregressiveParameters,
)
from pyro_regimes.estimator.inputs import check_dates, row_name
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.predictive import Mixture
from pyro_regimes.estimator.regression import tables_of_data as tables
from pyro_regimes.estimator.regression.coefficient_table import (
    ALL,
    CoefficientTable,
    RegressionSummary,
    TableRow,
    table_of,
)
from pyro_regimes.estimator.regression.errors import DeltaErrors
from pyro_regimes.estimator.regression.fitted_regression import KINDS
from pyro_regimes.estimator.regression.regression_forecast import (
    RegressionForecast,
    mixture_forecast,
)
from pyro_regimes.estimator.regression.tabled_regression import TabledRegression
from pyro_regimes.estimator.start_results import StartResults
from pyro_regimes.infer.isolation import plain_torch


class FittedAutoregression(TabledRegression):
    """The methods of :class:`.RegimeAutoregression` that need a fit.

    A subclass sets the attributes below.
    """

    order: int
    means_: Array
    autoregression_: Array
    sigma_: Array
    share_of_time_: Array
    regime_names_: list[str]
    starts_: StartResults
    _form: AutoregressiveForm
    _errors: DeltaErrors | None

    def predict(self, y: Any) -> npt.NDArray[np.int64]:
        """The most likely path of regimes (Viterbi), given all rows.

        :param y: a series, as in :meth:`fit`.
        :return: ``(T - p,)``, of the rows after the first p.
        :raises ValueError: if the series is not valid, or the model is not fitted.
        """
        model, rows = self._model_of(y)
        with plain_torch(torch.device("cpu")):
            path: npt.NDArray[np.int64] = model.viterbi(rows).numpy()
        return path

    def predict_proba(self, y: Any, *, kind: str = "smoothed") -> Array:
        """The probability of each regime at each row after the first p.

        :param y: a series, as in :meth:`fit`.
        :param kind: "smoothed", given all rows; "filtered", given past and present ones; or
            "predicted", given past ones.
        :return: ``(T - p, K)``.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        validation.one_of("kind", kind, KINDS)
        model, rows = self._model_of(y)
        with plain_torch(torch.device("cpu")), torch.no_grad():
            found: Array = getattr(model.posterior(rows), f"{kind}_probs").numpy()
        return found

    def score(self, y: Any) -> float:
        """The log-likelihood of the rows after the first p, given these.

        :param y: a series, as in :meth:`fit`.
        :return: log p(y).
        :raises ValueError: if the series is not valid, or the model is not fitted.
        """
        model, rows = self._model_of(y)
        with plain_torch(torch.device("cpu")), torch.no_grad():
            value = float(model.log_prob(rows))
        return value - len(rows) * float(np.log(self._form.unit))

    def forecast(self, y: Any) -> RegressionForecast:
        """The distribution of the row after a series: a mixture over the regimes of p + 1 rows.

        :param y: the rows so far, as in :meth:`fit`.
        :return: a :class:`.RegressionForecast` of one step.
        :raises ValueError: if the series is not valid, or the model is not fitted.
        """
        model, rows = self._model_of(y)
        form = self._form
        with plain_torch(torch.device("cpu")), torch.no_grad():
            ahead = model.forecast(rows)
        # The last of the p + 1 regimes of a tuple is that of the next row.
        weights, means, scale = (
            each.numpy().reshape(-1, form.num_regimes).T
            for each in (
                ahead.mixture_distribution.probs,
                form.centre + form.unit * ahead.component_distribution.loc,
                form.unit * ahead.component_distribution.scale,
            )
        )
        probs = weights.sum(-1)
        given = weights / np.where(probs > 0, probs, 1.0)[:, None]
        components = Mixture(given[None], norm(means[None], scale[None]))
        return mixture_forecast(probs[None], components, self.regime_names_)

    def _table(self, level: float) -> CoefficientTable:
        method = "none" if self._errors is None else self._errors.method
        return table_of(self._table_rows(), level, method)

    def summary(self, level: float = 0.95) -> RegressionSummary:
        """What the fit is of, how good it is, and the table of all estimates.

        :param level: the probability that an interval covers.
        :return: a :class:`.RegressionSummary`; ``print`` shows it.
        :raises ValueError: if the level is not valid, or the model is not fitted.
        """
        table, form = self.conf_int(level), self._form
        facts = [
            ("Markov-switching autoregression", "in deviations from the regime's mean"),
            ("Order", str(form.order)),
            ("Regimes", str(form.num_regimes)),
            ("Observations", f"{self.n_samples_fit_}, after the first {form.order}"),
            ("Log-likelihood", f"{self.log_likelihood_:.5f}"),
            ("AIC", f"{self.aic():.3f}"),
            ("BIC", f"{self.bic():.3f}"),
            ("Initial distribution", "stationary"),
            ("Expected durations", ", ".join(f"{each:.2f}" for each in self.expected_durations_)),
            ("Shares of time", ", ".join(f"{share:.1%}" for share in self.share_of_time_)),
        ]
        notes = list(self.starts_.describe()) + problems.of_shares(
            self.regime_names_, self.share_of_time_, self.expected_durations_,
            self.n_samples_fit_, 2 + 2 * form.switching_variance, "Compare fewer regimes.",
        )  # fmt: skip
        return RegressionSummary(
            facts, table, notes + ([] if self._errors is None else self._errors.notes)
        )

    def _table_rows(self) -> list[TableRow]:
        form, names = self._form, self.regime_names_
        errors = {} if self._errors is None else self._errors.errors
        values = self._parameters()._asdict()
        rows: list[TableRow] = []

        def add(of: str, term: str, field: str, place: tuple[int, ...], kind: str) -> None:
            error = float(errors[field][place]) if field in errors else np.nan
            rows.append(((of, term), float(values[field][place]), error, kind))

        def add_lags(of: str, k: int) -> None:
            for j in range(form.order):
                add(of, f"lag {j + 1}", "coefficients", (k, j), "coefficient")

        for k, name in enumerate(names):
            add(name, "mean", "means", (k,), "coefficient")
            if form.switching_autoregression:
                add_lags(name, k)
            if form.switching_variance:
                add(name, "sigma", "scale", (k,), "scale")
        if not form.switching_autoregression:
            add_lags(ALL, 0)
        if not form.switching_variance:
            add(ALL, "sigma", "scale", (0,), "scale")
        for i, old in enumerate(names if len(names) > 1 else []):
            for j, new in enumerate(names):
                add("transition probabilities", f"{old} to {new}", "transition_matrix", (i, j),
                    "probability")  # fmt: skip
        return rows

    def _parameters(self) -> AutoregressiveParameters:
        return AutoregressiveParameters(
            self.means_, self.autoregression_, self.sigma_, self.transition_matrix_
        )

    def _model_of(self, y: Any) -> tuple[SwitchingAutoregression, torch.Tensor]:
        """The distribution of the rows after the first p, and these rows."""
        check_is_fitted(self)
        form = self._form
        values = form.values(series_of(y, form.order))
        with plain_torch(torch.device("cpu")):
            model = form.distribution(form.to_arguments(self._parameters()), values)
        return model, values[form.order :]


def series_of(y: Any, order: int) -> Array:
    """One series ``(T,)``.

    :raises ValueError: if it is none, too short, or has missing values.
    """
    if hasattr(y, "index"):
        check_dates(y)
    matrix, _ = tables.as_matrix("y", y)
    if matrix.shape[1] != 1:
        raise ValueError(f"expected y to be one series, got shape {matrix.shape}")
    wrong = np.flatnonzero(~np.isfinite(matrix[:, 0]))
    if len(wrong):
        raise ValueError(
            f"expected y without missing values, got {matrix[wrong[0], 0]} in row "
            f"{row_name(y)(int(wrong[0]))}; an autoregression needs all rows"
        )
    if len(matrix) <= order:
        raise ValueError(f"expected y with more rows than order={order}, got {len(matrix)}")
    return matrix[:, 0]
