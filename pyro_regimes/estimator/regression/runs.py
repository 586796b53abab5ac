"""EM from several starts, one after the other, and how each ended."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Callable, NamedTuple

import numpy as np
from torch import Tensor

from pyro_regimes.estimator import problems
from pyro_regimes.estimator.all_starts import FitEM
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.start_results import StartResults, best_start
from pyro_regimes.infer import EMResult


class End(NamedTuple):
    """How one start ended."""

    arguments: dict[str, Tensor]
    history: Array
    converged: bool
    collapsed: bool
    unbounded: list[str]  #: arguments without a maximum


class _StartEM(FitEM):
    """Keeps which parameters have no maximum."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unbounded: list[str] = []

    def _warn(self, message: str) -> None:
        found = re.search("parameter '(.*)' has no maximum", message)
        if found is not None:
            self.unbounded.append(found[1])
        super()._warn(message)


def run_starts(
    starts: Iterable[Mapping[str, Tensor]],
    model: Callable[[Mapping[str, Tensor]], Callable[[], Any]],
    max_iter: int,
    tol: float | None,
    acceleration: str | None,
    least: float,
    offset: float,
    report: Callable[[str], Any] | None = None,
) -> tuple[End, StartResults]:
    """The best of several starts, and how each ended.

    :param starts: an iterable of the arguments of the model at each start.
    :param model: makes the Pyro model function whose parameters start at given arguments.
    :param least: the least scale; a start with one below has collapsed.
    :param offset: what the log-likelihood of the model is too large by.
    :param report: takes a line about each start.
    :raises ValueError: if no start has a finite log-likelihood.
    """
    ends = []
    for number, arguments in enumerate(starts):
        em = _StartEM(model(arguments), min_eigenvalue=least**2)
        result = em.run(num_steps=max_iter, tol=tol, acceleration=acceleration)
        ends.append(_end_of(em, result, arguments, offset))
        if report is not None:
            history = ends[-1].history
            report(
                f"start {number}: log-likelihood {history[-1]:.4f}, {len(history) - 1} steps"
            )
    results = _results(ends)
    return ends[results.best], results


def _end_of(
    em: _StartEM, result: EMResult, arguments: Mapping[str, Tensor], offset: float
) -> End:
    held = {**arguments, **{name: value.clone() for name, value in em.values().items()}}
    history = -np.array(result.history) - offset
    collapsed = False
    if em.min_eigenvalue > 0 and "scale" in held:
        collapsed = bool((held["scale"].square() <= 2 * em.min_eigenvalue).any())
    return End(held, history, bool(result.converged), collapsed, em.unbounded)


def _results(ends: list[End]) -> StartResults:
    final = np.array([end.history[-1] for end in ends])
    collapsed = np.array([end.collapsed for end in ends]) | ~np.isfinite(final)
    return StartResults(
        final,
        np.array([len(end.history) - 1 for end in ends]),
        np.array([end.converged for end in ends]),
        collapsed,
        best_start(final, collapsed),
    )


def of_convergence(best: End, max_iter: int, tol: float | None) -> list[Warning]:
    """A warning if the best start has not converged."""
    steps = len(best.history) - 1
    if best.converged or max_iter == 0 or tol is None:
        return []
    if steps == max_iter:
        return [problems.of_convergence(steps)]
    return [
        problems.ConvergenceWarning(
            f"The best start stopped after {steps} iterations, but the gradient there does not "
            "confirm a maximum, as where the data do not determine the parameters. Use fewer "
            "regimes or fewer terms."
        )
    ]
