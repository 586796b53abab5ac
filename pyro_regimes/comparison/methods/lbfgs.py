"""L-BFGS on the likelihood, in the unconstrained parameters in which SVI makes its steps.

Byrd, Lu, Nocedal and Zhu (1995), as :func:`scipy.optimize.minimize` implements it, with the line
search of Moré and Thuente. It needs an exact loss, so the model must not be random.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import OptimizeResult, minimize
from threadpoolctl import threadpool_limits

from pyro_regimes.comparison.methods.at_point import maximum_scores, not_finite
from pyro_regimes.comparison.methods.loss import OVERFLOW, Loss, make_loss, no_guide
from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.task import Model, Stopwatch, Task, Workspace

METHOD = "L-BFGS"

_Array = npt.NDArray[np.float64]

#: The differences of gradients from which the Hessian is approximated. Of 10, 30, 60 and 100, 100
#: needs the fewest passes on the sector returns of ``benchmarks/em_or_svi.py``, where 10 and 30 end
#: below the best. On its other workloads all but 10 need about as many.
_NUM_PAIRS = 100

#: The successive iterations that must gain little, as the steps of an optimiser in EM.
_STEADY = 10


def run_lbfgs(model: Model, task: Task, num_steps: int) -> MethodRun:
    """Run L-BFGS on the likelihood.

    It stops after ``num_steps`` iterations, if each of ten successive ones raises the
    log-likelihood by less than ``task.tol`` (one may gain little far below a maximum), or if no
    step in the search direction raises it.

    :raises ValueError: if the model has no parameters, or its objective is not finite at the start.
    """
    workspace = task.workspace()
    task.tell(METHOD, 0, num_steps)
    loss = make_loss(model, no_guide, task, workspace)
    search = _Search(loss, task, workspace, num_steps)
    search.run()
    with workspace.entered():
        scores = maximum_scores(model, task)
    return MethodRun(
        method=METHOD,
        objective="likelihood",
        num_steps=len(search.values) - 1,
        num_passes=search.num_passes,
        seconds=search.watch.seconds,
        times=search.times,
        passes=search.passes,
        values=search.values,
        **scores,
    )


class _Search:
    """One run, with its trajectory. Only evaluations enter the workspace."""

    def __init__(self, loss: Loss, task: Task, workspace: Workspace, num_steps: int) -> None:
        self._loss, self._task, self._workspace = loss, task, workspace
        self._num_steps = num_steps
        self.watch = Stopwatch()
        self.num_passes = 0
        self.times: list[float] = []
        self.passes: list[int] = []
        self.values: list[float] = []

    def run(self) -> None:
        """Maximise; leave the parameters at the last iterate."""
        with self._workspace.entered():
            start = np.concatenate([_to_numpy(leaf) for leaf in self._loss.leaves])
        # SciPy's linear algebra on a few hundred numbers gains nothing from threads, and idle ones
        # of OpenBLAS slow torch's: ten times the seconds on two cores.
        with threadpool_limits(1, user_api="blas"), self.watch:
            found = minimize(
                self._evaluate,
                start,
                jac=True,
                method="L-BFGS-B",
                callback=self._completed,
                options={
                    "maxcor": _NUM_PAIRS,
                    "maxiter": self._num_steps,
                    "maxfun": sys.maxsize,
                    "ftol": 0.0,
                    "gtol": 0.0,
                },
            )
        with self._workspace.entered():
            self._place(found.x)
        self._task.tell(METHOD, len(self.values) - 1, len(self.values) - 1, self.values[-1])

    def _evaluate(self, point: _Array) -> tuple[float, _Array]:
        """The loss and its gradient; a large number where the model fails or is not finite."""
        with self.watch.paused(), self._workspace.entered(), self.watch:
            self.num_passes += 1
            self._place(point)
            try:
                loss = self._loss()
                gradients = torch.autograd.grad(
                    loss, self._loss.leaves, allow_unused=True, materialize_grads=True
                )
                value = float(loss.detach())
            except OVERFLOW:
                if not self.values:
                    raise
                value = math.nan
            if math.isfinite(value):
                gradient = np.concatenate([_to_numpy(each) for each in gradients])
                if np.isfinite(gradient).all():
                    if not self.values:
                        self._record(-value, 0.0)
                    return value, gradient
        if not self.values:
            raise not_finite(-value)
        # Above all that has been accepted, and finite, so that the line search interpolates.
        return -self.values[-1] + abs(self.values[0]) + 1.0, np.zeros_like(point)

    def _completed(self, intermediate_result: OptimizeResult) -> None:
        """Record an iteration.

        :raises StopIteration: if it has converged.
        """
        with self.watch.paused():
            self._record(-float(intermediate_result.fun), self.watch.seconds)
            self._task.tell(METHOD, len(self.values) - 1, self._num_steps, self.values[-1])
        tol, recent = self._task.tol, self.values[-_STEADY - 1 :]
        if tol is not None and len(recent) > _STEADY and max(np.diff(recent)) < tol:
            raise StopIteration

    def _record(self, value: float, seconds: float) -> None:
        self.times.append(seconds)
        self.passes.append(self.num_passes)
        self.values.append(value)

    def _place(self, point: _Array) -> None:
        """Set the parameters."""
        position = 0
        with torch.no_grad():
            for leaf in self._loss.leaves:
                part = torch.from_numpy(point[position : position + leaf.numel()])
                leaf.copy_(part.reshape(leaf.shape))
                position += leaf.numel()


def _to_numpy(value: torch.Tensor) -> _Array:
    found: _Array = value.detach().double().cpu().numpy().ravel()
    return found
