"""The best of several starts of a Markov-switching regression."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.estimator import problems
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.form import Form, RegressionParameters
from pyro_regimes.estimator.regression.rows import Rows
from pyro_regimes.estimator.regression.runs import End, of_convergence, run_starts
from pyro_regimes.estimator.regression.starts import Starts
from pyro_regimes.estimator.start_results import StartResults

#: The least sigma in a fit, as a share of the largest response: what rounding leaves of residuals.
_LEAST = 1e3 * float(np.finfo(np.float64).eps)


_NO_MEAN = (
    "Some coefficients of the mean have no maximum: a combination of covariates separates the "
    "responses at a bound, such as 0, from the others, so that they grow without bound. Use fewer "
    "regimes, or fewer terms that switch."
)
_NO_SCALE = (
    "The scale of some regime has no maximum: the regime fits some of its rows exactly. Use fewer "
    "regimes, fewer terms, or switching_variance=False."
)

#: What is said of arguments without a maximum.
_NO_MAXIMUM = {
    "transition_coefficients": (
        "The coefficients of some transition have no maximum: a combination of covariates "
        "separates the rows in which it happens from the others, so that they grow without "
        "bound. Use fewer regimes, or fewer terms in transition_formula."
    ),
    "scale": _NO_SCALE,
    "scale_coefficients": _NO_SCALE,
}


class Fitted(NamedTuple):
    """The best start, with its regimes in order."""

    parameters: RegressionParameters
    history: Array  #: log-likelihood before each iteration, and at the end
    converged: bool
    log_likelihood: float
    share_of_time: Array  #: ``(K,)``, mean smoothed probability of rows with a response
    starts: StartResults
    problems: list[Warning]


def fit(
    form: Form,
    rows: Rows,
    sizes: list[int],
    n_init: int,
    max_iter: int,
    tol: float | None,
    acceleration: str | None,
    rng: np.random.RandomState,
    report: Callable[[str], Any] | None = None,
) -> Fitted:
    """Fit a model of these rows by EM from several starts, one after the other.

    :param sizes: the number of rows of each sequence.
    :param report: takes a line about each start.
    :raises ValueError: if one regression explains the response exactly, or no start has a finite
        log-likelihood.
    """
    tensors, response = form.tensors(rows), form.response
    lengths = packed_lengths(sizes)
    assert rows.y is not None
    known = rows.is_known
    starts = Starts(form, tensors, response.working(rows.y / form.unit, rows.trials), rng)
    least = _LEAST * float(tensors["y"].nan_to_num().abs().max()) if response.has_unit else 0.0
    if response.has_unit and starts.deviation <= least:
        raise ValueError(
            "expected a response that varies about one regression of all rows, got one that it "
            "explains exactly; it has no sigma"
        )
    # log p(y) is that in units of u, less the logarithm of u for each value.
    offset = float(known.sum()) * np.log(form.unit)
    number = 1 if form.num_regimes == 1 else n_init
    best, results = run_starts(
        (starts.arguments(each) for each in range(number)),
        lambda arguments: form.pyro_model(arguments, tensors, lengths),
        max_iter, tol, acceleration, least, offset, report,
    )  # fmt: skip
    parameters = form.parameters(best.arguments)
    parameters = parameters.reordered(_order(form, parameters, rows))
    hmm = form.distribution(form.to_arguments(parameters), tensors, lengths)
    share = hmm.smoothed_probs(tensors["y"])[tensors["known"]].mean(0).detach().numpy()
    return Fitted(
        parameters,
        best.history,
        best.converged,
        float(best.history[-1]),
        share,
        results,
        _problems(best, max_iter, tol),
    )


def packed_lengths(sizes: list[int]) -> Tensor | None:
    """The lengths of several sequences; None of one."""
    return None if len(sizes) == 1 else torch.tensor(sizes)


def _order(form: Form, parameters: RegressionParameters, rows: Rows) -> Any:
    """By sigma if it switches, else by the mean at the average covariates; lowest first.

    A sigma that depends on covariates is that at their averages.
    """
    if form.switching_variance and form.response.has_unit:
        if parameters.scale is not None:
            return np.argsort(parameters.scale, kind="stable")
        assert rows.W is not None and parameters.scale_coefficients is not None
        average = np.nanmean(rows.W, axis=0)
        return np.argsort(parameters.scale_coefficients @ average, kind="stable")
    return np.argsort(parameters.coefficients @ np.nanmean(rows.X, axis=0), kind="stable")


def _problems(best: End, max_iter: int, tol: float | None) -> list[Warning]:
    if best.collapsed:
        return [
            problems.CollapseWarning(
                "A regime fits its rows exactly in every start, so that its sigma would be 0 and "
                "the likelihood has no maximum. Use fewer regimes, fewer terms that switch, or "
                "switching_variance=False."
            )
        ]
    if best.unbounded:
        told = [_NO_MAXIMUM.get(name, _NO_MEAN) for name in dict.fromkeys(best.unbounded)]
        return [problems.ConvergenceWarning(" ".join(dict.fromkeys(told)))]
    return of_convergence(best, max_iter, tol)
