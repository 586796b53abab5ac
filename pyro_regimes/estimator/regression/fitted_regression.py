"""The methods of a fitted Markov-switching regression that take data."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.estimator import validation
from pyro_regimes.estimator.beginning import initial_probs
from pyro_regimes.estimator.lengths import checked_lengths
from pyro_regimes.estimator.parameters import Array, finite_numbers
from pyro_regimes.estimator.regression.design import Design
from pyro_regimes.estimator.regression.fitting import packed_lengths
from pyro_regimes.estimator.regression.form import Form, RegressionParameters, transition_matrices
from pyro_regimes.estimator.regression.regression_forecast import (
    RegressionForecast,
    mixture_forecast,
)
from pyro_regimes.estimator.regression.rows import INTERCEPT, Rows
from pyro_regimes.infer.isolation import plain_torch

KINDS = ("smoothed", "filtered", "predicted")


class FittedRegression(BaseEstimator):
    """The methods of :class:`.RegimeRegression` that need a fit.

    A subclass sets the attributes below.
    """

    regime_names_: list[str]
    initial_probs_: Array
    coef_: Array
    transition_matrix_: Array
    transition_coefficients_: Array | None
    scale_coefficients_: Array | None
    _design: Design
    _form: Form
    _training_start: Array | None

    def predict(
        self, data: Any, y: Any = None, *, Z: Any = None, lengths: npt.ArrayLike | None = None,
        start: Any = "auto",
    ) -> npt.NDArray[np.int64]:  # fmt: skip
        """The most likely path of regimes (Viterbi), given all rows.

        :param data: as in :meth:`fit`, with the response.
        :param y: as in :meth:`fit`.
        :param Z: as in :meth:`fit`.
        :param lengths: as in :meth:`fit`.
        :param start: probabilities of the first regime: "fitted" for ``initial_probs_``,
            "stationary" for the stationary distribution of ``transition_matrix_``, an array
            ``(K,)``, or "auto": as fitted for rows that begin with the responses with which
            training began, and stationary for others.
        :return: ``(T,)``.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        hmm, rows, _ = self._hmm_of(data, y, Z, lengths, start)
        with self._computing():
            path: npt.NDArray[np.int64] = hmm.viterbi(self._values(rows)).numpy()
        return path

    def predict_proba(
        self, data: Any, y: Any = None, *, Z: Any = None, kind: str = "smoothed",
        lengths: npt.ArrayLike | None = None, start: Any = "auto",
    ) -> Array:  # fmt: skip
        """The probability of each regime at each row.

        :param data: as in :meth:`predict`.
        :param y: as in :meth:`fit`.
        :param Z: as in :meth:`fit`.
        :param kind: "smoothed", given all rows; "filtered", given past and present responses; or
            "predicted", given past ones.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :return: ``(T, K)``.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        return self._probs(data, y, Z, kind, lengths, start)[0]

    def predict_mean(
        self, data: Any, y: Any = None, *, Z: Any = None, kind: str = "predicted",
        lengths: npt.ArrayLike | None = None, start: Any = "auto",
    ) -> Array:  # fmt: skip
        r"""The mean of the response given its covariates, averaged over the regimes.

        .. math:: \hat y_t = \sum_k p(q_t = k \mid \cdot) \, g^{-1}(x_t^\top \beta_k)

        with the link g. That of a binomial response is the probability of a success.

        :param data: as in :meth:`predict`.
        :param y: as in :meth:`fit`.
        :param Z: as in :meth:`fit`.
        :param kind: of the probabilities, as in :meth:`predict_proba`. "predicted" is a forecast of
            one step; the others know the response itself.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :return: ``(T,)``; NaN in rows whose lags are not known.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        probs, rows = self._probs(data, y, Z, kind, lengths, start)
        found: Array = (probs * self._form.response.mean(rows.X @ self.coef_.T)).sum(-1)
        return found

    def score(
        self, data: Any, y: Any = None, *, Z: Any = None, lengths: npt.ArrayLike | None = None,
        start: Any = "auto",
    ) -> float:  # fmt: skip
        """The log-likelihood of the response given the covariates, summed over all rows.

        :param data: as in :meth:`predict`.
        :param y: as in :meth:`fit`.
        :param Z: as in :meth:`fit`.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :return: log p(y).
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        hmm, rows, _ = self._hmm_of(data, y, Z, lengths, start)
        assert rows.y is not None
        with self._computing():
            value = float(hmm.log_likelihood(self._values(rows)))
        return value - float(rows.is_known.sum()) * np.log(self._form.unit)

    def transition_matrices(self, data: Any = None, *, Z: Any = None) -> Array:
        """The transition probabilities at each row's covariates.

        :param data: with the covariates of the transitions; None where these are in Z.
        :param Z: as in :meth:`fit`.
        :return: ``(T, K, K)``, (row, old, new). With ``transition_row="left"`` that of a row moves
            the chain from it to the next row; with "entered", from the row before to it.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        moves = self._design.read_moves(data, Z)
        if moves is None:
            return np.broadcast_to(
                self.transition_matrix_, (len(data), *self.transition_matrix_.shape)
            ).copy()
        return transition_matrices(self._moves(), moves)

    def forecast(
        self, data: Any, future: Any = None, y: Any = None, *, Z: Any = None, future_Z: Any = None,
        trials: npt.ArrayLike | None = None, start: Any = "auto",
    ) -> RegressionForecast:  # fmt: skip
        """Forecast the responses that follow a sequence, given their covariates.

        :param data: the rows so far, one sequence, as in :meth:`predict`.
        :param future: the covariates of the n steps to come, in the form of ``data``, in order of
            time, without the response; a number of steps where the model has no covariates.
        :param y: as in :meth:`fit`.
        :param Z: as in :meth:`fit`.
        :param future_Z: the same of the steps to come, where Z is given.
        :param trials: of a binomial response, the number at each step, ``(n,)`` or one for all.
        :param start: as in :meth:`predict`.
        :return: a :class:`.RegressionForecast`.
        :raises ValueError: if an argument is not valid, covariates of the steps to come are
            missing, or the model is not fitted.
        """
        hmm, rows, _ = self._hmm_of(data, y, Z, None, start)
        with self._computing():
            last = hmm.filtered_probs(self._values(rows))[-1].numpy()
        ahead = self._ahead(future, future_Z)
        matrices = np.broadcast_to(self.transition_matrix_, (len(ahead.X), *[len(last)] * 2))
        if ahead.Z is not None:
            assert rows.Z is not None
            before = np.concatenate([rows.Z[-1:], ahead.Z[:-1]])
            driving = ahead.Z if self._form.enters else before
            matrices = transition_matrices(self._moves(), driving)
        probs = np.empty((len(ahead.X), len(last)))
        for step, matrix in enumerate(matrices):
            last = probs[step] = last @ matrix
        probs /= probs.sum(-1, keepdims=True)
        response, number = self._form.response, self._trials(trials, len(probs))
        components = response.marginal(ahead.X @ self.coef_.T, self._scale(ahead), number)
        return mixture_forecast(probs, components, self.regime_names_)

    def _scale(self, rows: Rows) -> Array | None:
        """In the units of the data, ``(K,)`` or ``(T, K)``; None of a response without one."""
        if self.scale_coefficients_ is None:
            return self._parameters().scale
        assert rows.W is not None
        found: Array = np.exp(rows.W @ self.scale_coefficients_.T)
        return found

    def _trials(self, trials: Any, num_steps: int) -> Array | None:
        name = self._form.response.name
        if self._form.response.has_trials != (trials is not None):
            remedy = "give their numbers" if trials is None else "leave it out"
            raise ValueError(
                f"expected trials with family='binomial' only, got {trials} with {name!r}; {remedy}"
            )
        if trials is None:
            return None
        numbers = np.broadcast_to(finite_numbers("trials", trials), (num_steps,))
        if ((numbers < 0) | (numbers != np.floor(numbers))).any():
            raise ValueError(f"expected trials to be counts, got {numbers.tolist()}")
        return numbers[:, None]

    def _ahead(self, future: Any, future_Z: Any) -> Rows:
        """The covariates of the steps to come."""
        design = self._design
        every = (design.columns, design.transition_columns, design.scale_columns)
        names = [n for each in every if each is not None for n in each.names if n != INTERCEPT]
        if isinstance(future, numbers.Integral) and not names:
            steps = validation.integer("future", future, 1)
            X, Z, W = (None if c is None else np.ones((steps, len(c.names))) for c in every)
            assert X is not None
            return Rows(None, X, Z, W)
        if future is None or isinstance(future, numbers.Number):
            raise ValueError(
                "expected future, the covariates of the steps to come, as the response depends on "
                f"{', '.join(map(repr, names)) or 'no covariates: a number of steps'}; got {future}"
            )
        return self._design.read(future, None, future_Z, needs_y=False)

    def _parameters(self) -> RegressionParameters:
        form = self._form
        matrix = None if form.moves is not None else self.transition_matrix_
        scale = None
        if form.response.scale is not None and form.spread is None:
            scale = getattr(self, f"{form.response.scale}_")
        return RegressionParameters(
            self.initial_probs_, self.coef_, scale, matrix, self.transition_coefficients_,
            self.scale_coefficients_,
        )  # fmt: skip

    def _moves(self) -> Array:
        assert self.transition_coefficients_ is not None
        return self.transition_coefficients_

    def _probs(
        self, data: Any, y: Any, Z: Any, kind: str, lengths: Any, start: Any
    ) -> tuple[Array, Rows]:
        validation.one_of("kind", kind, KINDS)
        hmm, rows, _ = self._hmm_of(data, y, Z, lengths, start)
        with self._computing(), torch.no_grad():
            found = getattr(hmm.posterior(self._values(rows)), f"{kind}_probs")
        return found.numpy(), rows

    def _hmm_of(
        self, data: Any, y: Any, Z: Any, lengths: Any, start: Any
    ) -> tuple[RegimeHMM, Rows, list[int]]:
        """The distribution of the responses of these rows, with their first probabilities."""
        check_is_fitted(self)
        rows = self._design.read(data, y, Z)
        assert rows.y is not None
        sizes = sizes_of(self._design, lengths, len(rows.y))
        first = self._first_probs(start, rows.y, sizes)
        form = self._form
        with self._computing():
            hmm = form.distribution(
                form.to_arguments(self._parameters()), form.tensors(rows), packed_lengths(sizes),
                torch.tensor(first),
            )  # fmt: skip
        return hmm, rows, sizes

    def _first_probs(self, start: Any, y: Array, sizes: list[int]) -> Array:
        training = self._training_start if len(sizes) == 1 else None
        if isinstance(start, str) and start == "auto" and training is None:
            start = "fitted" if self._training_start is None else "stationary"
        gaps = np.ones(len(sizes), dtype=np.int64)
        unit = np.array([self._form.unit])
        return initial_probs(
            start, None, self.initial_probs_, self.transition_matrix_, training, unit, y[:, None],
            sizes, gaps,
        )  # fmt: skip

    def _values(self, rows: Rows) -> torch.Tensor:
        return self._form.tensors(rows)["y"]

    @staticmethod
    def _computing() -> Any:
        return plain_torch(torch.device("cpu"))


def sizes_of(design: Design, lengths: npt.ArrayLike | None, num_rows: int) -> list[int]:
    """The number of rows of each sequence.

    :raises ValueError: if lengths do not fit, or a lag would reach into another sequence.
    """
    if lengths is None:
        return [num_rows]
    if design.has_lags:
        raise ValueError(
            "expected lengths=None where the formula has lag(), which would reach into the "
            "sequence before; give the lags as columns of data"
        )
    return checked_lengths(lengths, num_rows)
