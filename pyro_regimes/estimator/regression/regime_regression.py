"""RegimeRegression, a scikit-learn estimator of Markov-switching regression."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.caller import levels_to_the_caller
from pyro_regimes.estimator import validation
from pyro_regimes.estimator.beginning import NUM_ROWS
from pyro_regimes.estimator.regression import settings
from pyro_regimes.estimator.regression.described_regression import DescribedRegression
from pyro_regimes.estimator.regression.design import Design
from pyro_regimes.estimator.regression.errors import RegressionErrors, regression_errors
from pyro_regimes.estimator.regression.fitted_regression import sizes_of
from pyro_regimes.estimator.regression.fitting import Fitted, fit
from pyro_regimes.estimator.regression.form import Form, transition_matrices
from pyro_regimes.estimator.regression.responses import RESPONSES
from pyro_regimes.estimator.regression.rows import Rows
from pyro_regimes.estimator.regression.saved_regression import (
    read_regression,
    write_regression,
)
from pyro_regimes.infer.isolation import plain_torch

#: Attributes of a family, which those of another one do not have.
_OTHER_SCALES = {f"{each.scale}_" for each in RESPONSES.values() if each.scale is not None}


class RegimeRegression(DescribedRegression):
    r"""Markov-switching regression, fitted by EM from many starts.

    .. math::
        g(E[y_t \mid q_t]) = x_t^\top \beta_{q_t}, \qquad
        p(q_{t+1} = j \mid q_t = i) = \frac{\exp(z_t^\top \gamma_{ij})}
            {\sum_l \exp(z_t^\top \gamma_{il})}, \quad \gamma_{ii} = 0

    (Goldfeld and Quandt 1973; Hamilton 1989; with covariates in the transitions Diebold, Lee and
    Weinbach 1994.) Without ``transition_formula`` the transition matrix is constant. A Gaussian
    response has :math:`y_t = x_t^\top \beta_{q_t} + \sigma_{q_t} \varepsilon_t`; other families
    are generalised linear models (McCullagh and Nelder 1989) in each regime.

    Data are a DataFrame of pandas or polars, with formulas; or arrays, without. Formulas are those
    of formulaic, which remember the training data: other data have its levels of categories, knots
    of splines and means. A formula is code that is run, as in R; do not take one from a stranger.

    :param formula: such as "y ~ 1 + x", with the response on the left. None is for arrays.
    :param switching: the terms (or columns) whose coefficients depend on the regime, such as
        ``["1", "x"]``; "1" is the intercept. The others have one coefficient for all regimes. None
        is all terms, and ``[]`` none.
    :param switching_variance: whether each regime has its own sigma, or shape of a gamma.
    :param family: the distribution of the response given its mean: "gaussian"; "poisson" of counts;
        "bernoulli" of 0 and 1; "binomial" of successes and failures, with a formula
        "successes + failures ~ x" or an array y ``(T, 2)``; "exponential" and "gamma" of positive
        numbers.
    :param link: g, of the mean: "identity" for gaussian, "logit" or "probit" for bernoulli and
        binomial, and "log" for the others. None is the first one.
    :param scale_formula: covariates of sigma, such as "~ z"; None for a constant sigma. Their
        coefficients are of :math:`\log \sigma_t`, in each regime if ``switching_variance``.
    :param transition_formula: covariates of the transitions, such as "~ z"; None for a constant
        matrix. Their coefficients are the log-odds of a move against staying.
    :param transition_row: which row's covariates drive the transition from a row to the next one:
        "left" is the row that is left, :math:`z_t` as above (Diebold et al., hmmTMB); "entered"
        the one that is entered, :math:`z_{t+1}` (statsmodels, EViews). Sources differ, and the
        likelihood with them. With "left" the next regime's distribution is known before its row.
    :param n_regimes: number of regimes, K.
    :param initial: the distribution of the first regime: "stationary" is that of the transition
        matrix, as in Stata, EViews and statsmodels; "free" is estimated; "uniform" is 1 / K. None
        is "stationary" where the transition matrix is constant, and "free" where it is not, as
        there is no one stationary distribution then.
    :param n_init: number of starts; the best one is kept. Regressions have many local maxima: more
        regimes and more terms need more starts.
    :param max_iter: maximum number of iterations of EM of each start.
    :param tol: EM stops when an iteration raises the log-likelihood by less. None runs all
        ``max_iter`` iterations.
    :param random_state: seed of the starts: an integer, a NumPy ``RandomState``, or None for a new
        seed at every fit. No global generator is used.
    :param acceleration: None, or "squarem" as in :class:`.RegimeModel`.
    :param errors: the standard errors: "observed" by the second derivatives of the log-likelihood;
        "sandwich", which stays valid if the model is misspecified; None makes none.
    :param fit_intercept: whether arrays X get a column of ones in front. A formula says itself.
    :param verbose: whether to print the log-likelihood of each start.

    Attributes after :meth:`fit`, with regimes in the order of sigma, lowest first, or, if there is
    none or it does not switch, of the mean at the average covariates:

    =============================  ============================================================
    ``coefficients_``              :class:`.CoefficientTable` of all estimates
    ``coef_``                      ``(K, P)``; equal for terms that do not switch
    ``coef_names_``                the P names of columns
    ``sigma_``                     ``(K,)``, of a gaussian, standard deviations (maximum
                                   likelihood); at the average covariates if it depends on some
    ``shape_``                     ``(K,)``, of a gamma, whose variance is mean^2 / shape
    ``scale_coefficients_``        ``(K, S)``, of the logarithm of sigma; None if constant
    ``transition_matrix_``         ``(K, K)``, (old, new); at the average of the covariates if it
                                   depends on some
    ``transition_coefficients_``   ``(K, K, Q)``, (old, new), with 0 for staying; None if constant
    ``initial_probs_``             ``(K,)``
    ``covariance_``                ``(K P, K P)``, of the estimates ``coef_``, regime by regime;
                                   None without standard errors
    ``expected_durations_``        ``(K,)``, steps of a stay at ``transition_matrix_``
    ``share_of_time_``             ``(K,)``, mean smoothed probability of rows with a response
    ``regime_names_``              list of K names
    ``log_likelihood_``            of the training data; ``history_`` before each iteration
    ``n_iter_``, ``converged_``    of the kept start
    ``starts_``                    :class:`.StartResults`: how each start ended
    ``n_parameters_``              number of free parameters
    ``n_samples_fit_``             number of rows with a response, and ``n_missing_`` without
    =============================  ============================================================

    >>> import numpy as np
    >>> rng = np.random.RandomState(0)
    >>> x, regime = rng.normal(size=300), np.arange(300) // 50 % 2
    >>> y = np.where(regime, 2 + x, -x) + 0.3 * rng.normal(size=300)
    >>> model = RegimeRegression("y ~ x", random_state=0, switching_variance=False)
    >>> model.fit({"x": x, "y": y}).coef_.round(1)
    array([[-0., -1.],
           [ 2.,  1.]])
    """

    def __init__(
        self,
        formula: str | None = None,
        *,
        switching: Sequence[str] | None = None,
        switching_variance: bool = True,
        family: str = "gaussian",
        link: str | None = None,
        scale_formula: str | None = None,
        transition_formula: str | None = None,
        transition_row: str = "left",
        n_regimes: int = 2,
        initial: str | None = None,
        n_init: int = 20,
        max_iter: int = 1000,
        tol: float | None = 1e-9,
        random_state: int | np.random.RandomState | None = None,
        acceleration: str | None = None,
        errors: str | None = "observed",
        fit_intercept: bool = True,
        verbose: bool = False,
    ) -> None:
        self.formula = formula
        self.switching = switching
        self.switching_variance = switching_variance
        self.family = family
        self.link = link
        self.scale_formula = scale_formula
        self.transition_formula = transition_formula
        self.transition_row = transition_row
        self.n_regimes = n_regimes
        self.initial = initial
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.acceleration = acceleration
        self.errors = errors
        self.fit_intercept = fit_intercept
        self.verbose = verbose

    def fit(
        self, data: Any, y: Any = None, *, Z: Any = None, lengths: npt.ArrayLike | None = None
    ) -> RegimeRegression:
        """Fit by maximum likelihood, in a private parameter store.

        With a formula, ``data`` is a table with the response; without, ``data`` is the matrix X of
        covariates. Covariates may not be missing; the rows of a missing response count as steps
        without an observation, and so do the first rows where the formula has ``lag(x)`` or
        ``lag(y, 2)``. If the fit raises, the model keeps its previous fit.

        :param data: a DataFrame (pandas, polars) or a dict of columns, in order of time; or an
            array ``(T, P)`` or a DataFrame of numbers, where the model has no formula.
        :param y: the response ``(T,)``, NaN where missing, where the model has no formula.
        :param Z: covariates of the transitions ``(T, Q)``, without a column of ones, where the
            model has no formula; None for a constant matrix.
        :param lengths: the number of rows of each sequence, if the rows are of several.
        :return: the fitted model, ``self``.
        :raises ValueError: if a parameter of the model, or the data, are not valid: it names the
            columns and rows of covariates that are missing, and columns that depend on others.
        """
        settings.check(self)
        design = settings.design(self)
        rows = design.learn(data, y, Z)
        assert rows.y is not None
        sizes = sizes_of(design, lengths, len(rows.y))
        form = settings.form(self, design, rows)
        rng = validation.random_state(self.random_state)
        with plain_torch(torch.device("cpu")):
            found = fit(
                form, rows, sizes, self.n_init, self.max_iter, self.tol, self.acceleration, rng,
                print if self.verbose else None,
            )  # fmt: skip
            errors = None
            if self.errors is not None:
                errors = regression_errors(form, found.parameters, rows, sizes, self.errors)
        fitted = _attributes(found, form, design, errors, rows, sizes)
        for problem in found.problems:
            warnings.warn(problem, stacklevel=levels_to_the_caller())
        kept = {n: v for n, v in vars(self).items() if n not in _OTHER_SCALES}
        self.__dict__ = {**kept, **fitted}  # all at once, after everything that may raise
        return self

    def fit_predict(
        self, data: Any, y: Any = None, *, Z: Any = None, lengths: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.int64]:
        """Fit, and return the most likely path of regimes of the training data.

        :param data: as in :meth:`fit`.
        :param y: as in :meth:`fit`.
        :param Z: as in :meth:`fit`.
        :param lengths: as in :meth:`fit`.
        :return: ``(T,)``.
        :raises ValueError: as :meth:`fit` does.
        """
        self.fit(data, y, Z=Z, lengths=lengths)
        return self.predict(data, y, Z=Z, lengths=lengths, start="fitted")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model as JSON without rounding. An existing file is replaced atomically.

        The file has what the formulas remember of the training data (categories, knots, means) and
        its first rows, by which they are known again. A ``random_state`` that is a generator is
        not saved; it loads as None.

        :param path: the file to write.
        :raises OSError: if the file cannot be written.
        :raises ValueError: if the model is not fitted, a parameter that was set after the fit is
            not valid, or a formula remembers what is no number or text.
        """
        check_is_fitted(self)
        write_regression(path, self)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, trust_formula: bool = False
    ) -> RegimeRegression:
        """Read a model that :meth:`save` wrote.

        Formulas are code. Those that call other functions than those of formulaic, such as
        ``bs(x)`` and ``C(x)``, and NumPy's, such as ``np.sqrt(x)``, are refused unless
        trusted, so that no file can run code that it brings.

        :param path: the file to read.
        :param trust_formula: whether formulas may call anything.
        :return: the model.
        :raises ValueError: if the file is not a saved model, has an unknown version, or a formula
            that is not trusted.
        :raises OSError: if the file cannot be read.
        """
        return read_regression(path, cls, trust_formula)


def _attributes(
    found: Fitted, form: Form, design: Design, errors: RegressionErrors | None, rows: Rows,
    sizes: list[int],
) -> dict[str, Any]:  # fmt: skip
    """What :meth:`RegimeRegression.fit` sets."""
    assert rows.y is not None
    parameters = found.parameters
    matrix = parameters.transition_matrix
    if matrix is None:
        assert rows.Z is not None and parameters.transition_coefficients is not None
        average = rows.Z.mean(0, keepdims=True)
        matrix = transition_matrices(parameters.transition_coefficients, average)[0]
    known, scale = int(rows.is_known.sum()), parameters.scale
    if parameters.scale_coefficients is not None:
        assert rows.W is not None
        scale = np.exp(parameters.scale_coefficients @ np.nanmean(rows.W, axis=0))
    own = {} if scale is None else {f"{form.response.scale}_": scale}
    return own | {
        "initial_probs_": parameters.initial_probs,
        "coef_": parameters.coefficients,
        "coef_names_": list(design.columns.names),
        "transition_matrix_": matrix,
        "transition_coefficients_": parameters.transition_coefficients,
        "scale_coefficients_": parameters.scale_coefficients,
        "covariance_": None if errors is None else errors.covariance,
        "share_of_time_": found.share_of_time,
        "regime_names_": [f"Regime {k + 1}" for k in range(form.num_regimes)],
        "log_likelihood_": found.log_likelihood,
        "history_": found.history,
        "n_iter_": len(found.history) - 1,
        "converged_": found.converged,
        "starts_": found.starts,
        "n_samples_fit_": known,
        "n_missing_": len(rows.y) - known,
        "_design": design,
        "_form": form,
        "_errors": errors,
        "_training_start": rows.y[:NUM_ROWS, None].copy() if len(sizes) == 1 else None,
    }
