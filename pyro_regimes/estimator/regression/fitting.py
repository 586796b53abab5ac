"""The best of several starts of a Markov-switching regression."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.estimator import problems
from pyro_regimes.estimator.all_starts import FitEM
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.form import Form, RegressionParameters
from pyro_regimes.estimator.regression.rows import Rows
from pyro_regimes.estimator.regression.starts import Starts
from pyro_regimes.estimator.start_results import StartResults, best_start

#: The least variance in a fit, as a share of that of the residuals of one regression.
_FLOOR = 1e-10


class Fitted(NamedTuple):
    """The best start, with its regimes in order."""

    parameters: RegressionParameters
    history: Array  #: log-likelihood before each iteration, and at the end
    converged: bool
    log_likelihood: float
    starts: StartResults
    problems: list[Warning]


class _End(NamedTuple):
    """How one start ended."""

    arguments: dict[str, Tensor]
    history: Array
    converged: bool
    collapsed: bool
    is_unbounded: bool


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
    :raises ValueError: if no start has a finite log-likelihood.
    """
    tensors = form.tensors(rows)
    lengths = packed_lengths(sizes)
    starts = Starts(form, tensors, rng)
    floor = _FLOOR * starts.deviation**2
    # log p(y) is that in units of u, less the logarithm of u for each value.
    offset = float((~tensors["y"].isnan()).sum()) * np.log(form.unit)
    ends = []
    for number in range(1 if form.num_regimes == 1 else n_init):
        arguments = starts.arguments(number)
        em = FitEM(form.pyro_model(arguments, tensors, lengths), min_eigenvalue=floor)
        result = em.run(num_steps=max_iter, tol=tol, acceleration=acceleration)
        held = {**arguments, **{name: value.clone() for name, value in em.values().items()}}
        history = -np.array(result.history) - offset
        collapsed = bool((held["sigma"].square() <= 2 * floor).any())
        converged = bool(result.converged)
        ends.append(_End(held, history, converged, collapsed, em.is_unbounded))
        if report is not None:
            report(f"start {number}: log-likelihood {history[-1]:.4f}, {len(history) - 1} steps")
    results = StartResults(
        np.array([end.history[-1] for end in ends]),
        np.array([len(end.history) - 1 for end in ends]),
        np.array([end.converged for end in ends]),
        np.array([end.collapsed or not np.isfinite(end.history[-1]) for end in ends]),
        0,
    )
    results = results._replace(best=best_start(results.log_likelihood, results.collapsed))
    best = ends[results.best]
    parameters = form.parameters(best.arguments)
    parameters = parameters.reordered(_order(form, parameters, rows))
    return Fitted(
        parameters,
        best.history,
        best.converged,
        float(best.history[-1]),
        results,
        _problems(best, max_iter, tol),
    )


def packed_lengths(sizes: list[int]) -> Tensor | None:
    """The lengths of several sequences; None of one."""
    return None if len(sizes) == 1 else torch.tensor(sizes)


def _order(form: Form, parameters: RegressionParameters, rows: Rows) -> Any:
    """By sigma if it switches, else by the mean at the average covariates; lowest first."""
    if form.switching_variance:
        return np.argsort(parameters.sigma, kind="stable")
    return np.argsort(parameters.coefficients @ np.nanmean(rows.X, axis=0), kind="stable")


def _problems(best: _End, max_iter: int, tol: float | None) -> list[Warning]:
    if best.collapsed:
        return [
            problems.CollapseWarning(
                "A regime fits its rows exactly in every start, so that its sigma would be 0 and "
                "the likelihood has no maximum. Use fewer regimes, fewer terms that switch, or "
                "switching_variance=False."
            )
        ]
    if best.is_unbounded:
        return [
            problems.ConvergenceWarning(
                "The coefficients of some transition have no maximum: a combination of covariates "
                "separates the rows in which it happens from the others, so that they grow without "
                "bound. Use fewer regimes, or fewer terms in transition_formula."
            )
        ]
    if not best.converged and max_iter > 0 and tol is not None:
        return [problems.of_convergence(len(best.history) - 1)]
    return []
