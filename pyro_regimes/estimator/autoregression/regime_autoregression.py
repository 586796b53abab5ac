"""RegimeAutoregression, a scikit-learn estimator of Hamilton's autoregression."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from pyro_regimes.caller import levels_to_the_caller
from pyro_regimes.estimator import problems, validation
from pyro_regimes.estimator.autoregression.autoregressive_form import AutoregressiveForm
from pyro_regimes.estimator.autoregression.fitted_autoregression import (
    FittedAutoregression,
    series_of,
)
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.errors import delta_errors
from pyro_regimes.estimator.regression.runs import End, of_convergence, run_starts
from pyro_regimes.infer.isolation import plain_torch

#: The least sigma in a fit, as a share of the deviation of the series.
_LEAST = 1e-10


class RegimeAutoregression(FittedAutoregression):
    r"""Markov-switching autoregression in deviations from the mean of the regime, fitted by EM.

    .. math::
        y_t - \mu_{q_t} = \sum_{j=1}^p \phi_j (y_{t-j} - \mu_{q_{t-j}}) + \sigma e_t,
        \qquad e_t \sim N(0, 1)

    (Hamilton 1989.) A change of regime moves the mean at once. The likelihood is that of the rows
    after the first p, given these, and exact: it sums over the regimes of p + 1 rows
    (:class:`.SwitchingAutoregression`). The first regime has the stationary distribution. For
    coefficients of lags themselves, such as those of ``"y ~ lag(y)"``, use
    :class:`.RegimeRegression`.

    :param order: number of lags, p, at least 1.
    :param n_regimes: number of regimes, K. The cost of a step grows as K^(p+1).
    :param switching_autoregression: whether each regime has its own coefficients.
    :param switching_variance: whether each regime has its own sigma.
    :param n_init: number of starts; the best one is kept.
    :param max_iter: maximum number of iterations of EM of each start.
    :param tol: EM stops when an iteration raises the log-likelihood by less. None runs all
        ``max_iter`` iterations.
    :param random_state: seed of the starts: an integer, a NumPy ``RandomState``, or None for a new
        seed at every fit. No global generator is used.
    :param acceleration: "squarem" as in :class:`.RegimeModel`, or None.
    :param errors: the standard errors: "observed" by the second derivatives of the log-likelihood;
        None makes none.
    :param verbose: whether to print the log-likelihood of each start.

    Attributes after :meth:`fit`, with regimes in the order of their means, lowest first:

    =============================  ============================================================
    ``coefficients_``              :class:`.CoefficientTable` of all estimates
    ``means_``                     ``(K,)``
    ``autoregression_``            ``(K, p)``, of lag 1, 2, ...; equal if they do not switch
    ``sigma_``                     ``(K,)``, standard deviations (maximum likelihood)
    ``transition_matrix_``         ``(K, K)``, (old, new)
    ``expected_durations_``        ``(K,)``, steps of a stay
    ``share_of_time_``             ``(K,)``, mean smoothed probability of the rows
    ``regime_names_``              list of K names
    ``log_likelihood_``            of the training data; ``history_`` before each iteration
    ``n_iter_``, ``converged_``    of the kept start
    ``starts_``                    :class:`.StartResults`: how each start ended
    ``n_parameters_``              number of free parameters
    ``n_samples_fit_``             T - p
    =============================  ============================================================

    >>> import numpy as np
    >>> rng = np.random.RandomState(0)
    >>> y = np.where(np.arange(300) // 50 % 2, 5.0, 1.0) + rng.normal(size=300)
    >>> model = RegimeAutoregression(order=1, n_init=5, random_state=0).fit(y)
    >>> model.means_.round(1)
    array([1.1, 5. ])
    """

    def __init__(
        self,
        order: int = 1,
        *,
        n_regimes: int = 2,
        switching_autoregression: bool = False,
        switching_variance: bool = False,
        n_init: int = 20,
        max_iter: int = 1000,
        tol: float | None = 1e-9,
        random_state: int | np.random.RandomState | None = None,
        acceleration: str | None = "squarem",
        errors: str | None = "observed",
        verbose: bool = False,
    ) -> None:
        self.order = order
        self.n_regimes = n_regimes
        self.switching_autoregression = switching_autoregression
        self.switching_variance = switching_variance
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.acceleration = acceleration
        self.errors = errors
        self.verbose = verbose

    def fit(self, y: Any) -> RegimeAutoregression:
        """Fit by maximum likelihood, in a private parameter store.

        If the fit raises, the model keeps its previous fit.

        :param y: one series ``(T,)``, in order of time: an array, a Series (pandas, polars), or a
            table of one column. Values may not be missing.
        :return: the fitted model, ``self``.
        :raises ValueError: if a parameter of the model, or the series, is not valid.
        """
        self._check()
        rng = validation.random_state(self.random_state)
        rows = series_of(y, self.order)
        form = self._form_of(rows)
        values = form.values(rows)
        number = self.n_init if form.num_regimes > 1 else 1
        offset = (len(rows) - form.order) * float(np.log(form.unit))
        with plain_torch(torch.device("cpu")):
            best, starts = run_starts(
                (form.start(values, rng) for _ in range(number)),
                lambda arguments: form.pyro_model(arguments, values),
                self.max_iter, self.tol, self.acceleration, _LEAST, offset,
                print if self.verbose else None,
            )  # fmt: skip
            parameters = form.parameters(best.arguments)
            parameters = parameters.reordered(np.argsort(parameters.means, kind="stable"))
            arguments = form.to_arguments(parameters)
            errors = None
            if self.errors is not None:
                model = form.pyro_model(arguments, values)
                errors = delta_errors(model, arguments, form.from_arguments, self.errors)
            chain = form.distribution(arguments, values)
            share = chain.smoothed_probs(values[form.order :]).mean(0).detach().numpy()
        fitted = {
            "means_": parameters.means,
            "autoregression_": parameters.coefficients,
            "sigma_": parameters.scale,
            "transition_matrix_": parameters.transition_matrix,
            "share_of_time_": share,
            "regime_names_": [f"Regime {k + 1}" for k in range(form.num_regimes)],
            "log_likelihood_": float(best.history[-1]),
            "history_": best.history,
            "n_iter_": len(best.history) - 1,
            "converged_": best.converged,
            "starts_": starts,
            "n_samples_fit_": len(rows) - form.order,
            "_form": form,
            "_errors": errors,
        }
        self._warn(best)
        self.__dict__ = {**vars(self), **fitted}  # all at once, after everything that may raise
        return self

    def _check(self) -> None:
        """:raises ValueError: if a parameter of the constructor is not valid."""
        for name in ("order", "n_regimes", "n_init"):
            validation.integer(name, getattr(self, name), 1)
        validation.integer("max_iter", self.max_iter, 0)
        if self.tol is not None:
            validation.number("tol", self.tol, positive=True)
        for name in ("switching_autoregression", "switching_variance", "verbose"):
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                raise ValueError(f"expected {name} to be True or False, got {value!r}")
        if self.errors is not None:
            validation.one_of("errors", self.errors, ("observed",))
        if self.acceleration is not None:
            validation.one_of("acceleration", self.acceleration, ("squarem",))

    def _form_of(self, rows: Array) -> AutoregressiveForm:
        """:raises ValueError: if the series is too short or does not vary."""
        number = self.n_regimes * (1 + self.order)
        if len(rows) - self.order <= number:
            raise ValueError(
                f"expected more rows than order={self.order} and the {number} means and "
                f"coefficients of {self.n_regimes} regimes, got {len(rows)}"
            )
        most = float(np.abs(rows).max()) or 1.0
        unit = most * float((rows / most).std())
        if unit <= 1e3 * np.finfo(np.float64).eps * most:
            raise ValueError("expected y to vary, got a constant")
        return AutoregressiveForm(
            int(self.n_regimes), int(self.order), bool(self.switching_autoregression),
            bool(self.switching_variance), most * float((rows / most).mean()), unit,
        )  # fmt: skip

    def _warn(self, best: End) -> None:
        """Warn of a start that collapsed or has not converged."""
        if best.collapsed or best.unbounded:
            problem: Warning = problems.CollapseWarning(
                "A regime fits its rows exactly in every start, so that the likelihood has no "
                "maximum. Use fewer regimes, or switching_variance=False."
            )
            found = [problem]
        else:
            found = of_convergence(best, self.max_iter, self.tol)
        for problem in found:
            warnings.warn(problem, stacklevel=levels_to_the_caller())
