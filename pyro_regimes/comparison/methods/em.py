"""EM on the likelihood, and on the log joint of a model with priors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from pyro import poutine
from pyro.infer.autoguide import AutoDelta

from pyro_regimes.comparison.methods.at_point import mode_scores, restored
from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.scores import (
    gradient_norm,
    held_out,
    log_densities,
    parameter_values,
)
from pyro_regimes.comparison.task import Model, Task, Workspace
from pyro_regimes.infer import EM, EMResult


def run_em(model: Model, task: Task, num_steps: int) -> MethodRun:
    """Run EM on the likelihood."""
    workspace = task.workspace()
    with workspace.entered():
        poutine.trace(model).get_trace(task.data)  # creates the parameters
    trajectory = _run("EM", model, None, task, workspace, num_steps)
    with workspace.entered():
        likelihood, _ = log_densities(model, task.data)
        return MethodRun(
            method="EM",
            objective="likelihood",
            log_likelihood=likelihood,
            held_out=held_out(model, task, likelihood),
            gradient_norm=gradient_norm(model, task.data),
            point=parameter_values(),
            **trajectory,
        )


def run_em_map(prior_model: Model, task: Task, num_steps: int) -> MethodRun:
    """Run EM on the log joint, with an AutoDelta guide."""
    workspace = task.workspace()
    with workspace.entered():
        guide = AutoDelta(prior_model, init_loc_fn=task.start())
        guide(task.data)  # creates the parameters, at the start
    trajectory = _run("EM, MAP", prior_model, guide, task, workspace, num_steps)
    with workspace.entered():
        return MethodRun(
            method="EM, MAP",
            objective="joint",
            **mode_scores(prior_model, guide, task),
            **trajectory,
        )


def _run(
    method: str,
    model: Model,
    guide: Callable[..., Any] | None,
    task: Task,
    workspace: Workspace,
    num_steps: int,
) -> dict[str, Any]:
    """Run EM and return the fields of :class:`.MethodRun` that describe its trajectory."""
    with restored(workspace):  # compiles the kernels
        TimedEM(model, guide, workspace).run(task.data, num_steps=2, tol=None)
    em = TimedEM(model, guide, workspace)
    result = em.run(task.data, num_steps=num_steps, tol=task.tol)
    seconds = em.seconds
    task.tell(method, result.num_steps, num_steps)
    return {
        "num_steps": result.num_steps,
        "num_passes": result.num_e_steps,
        "seconds": seconds,
        "times": em.times(result),
        "passes": list(range(1, result.num_steps + 2)),  # the first value costs an E-step
        "values": [-loss for loss in result.history],
    }


class TimedEM(EM):
    """EM in a workspace that records when it uses Pyro.

    EM uses Pyro before its first step, to plan, and after its last step, to write and check the
    parameters. The steps between run on tensors and cost the same each. A callback could time each
    step, but would cost more than the step. (Steps that run the model are not recorded. EM makes
    these only if the model is not the same function at every call.)
    """

    def __init__(
        self, model: Model, guide: Callable[..., Any] | None, workspace: Workspace
    ) -> None:
        super().__init__(model, guide)
        self._workspace = workspace
        self._depth = 0
        self._sections: list[tuple[float, float]] = []  # begin and end of each use of Pyro

    def run(self, *args: Any, **kwargs: Any) -> EMResult:
        """Run as :meth:`.EM.run`, and measure the time."""
        self._sections = []
        self._began = time.perf_counter()
        result = super().run(*args, **kwargs)
        self.seconds = time.perf_counter() - self._began
        return result

    def times(self, result: EMResult) -> list[float]:
        """Seconds from the beginning of the run to each value of its history.

        The first value is that of the start; the first step includes the planning.
        """
        planned = self._sections[0][1] - self._began
        done = self._sections[min(1, len(self._sections) - 1)][0] - self._began
        each = max(0.0, done - planned) / max(1, result.num_steps)
        return [0.0, *(planned + each * step for step in range(1, result.num_steps + 1))]

    @contextmanager
    def _pyro(self) -> Iterator[None]:
        with self._workspace.pyro(), super()._pyro():
            began, self._depth = time.perf_counter(), self._depth + 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._sections.append((began, time.perf_counter()))
