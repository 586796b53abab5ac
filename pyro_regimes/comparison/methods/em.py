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
from pyro_regimes.infer.em.loop import Loop


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
    task.tell(method, 0, num_steps)
    # The whole run, so that every kernel that it needs is compiled: which ones depends on the data,
    # and a state that empties or a probability that underflows may need others late.
    with restored(workspace):
        TimedEM(model, guide, workspace).run(task.data, num_steps=num_steps, tol=task.tol)
    em = TimedEM(model, guide, workspace)
    result = em.run(task.data, num_steps=num_steps, tol=task.tol)
    seconds = em.seconds
    # Of as many steps as it took: it has ended, and the rest of num_steps does not follow.
    task.tell(method, result.num_steps, result.num_steps, -result.history[-1])
    return {
        "num_steps": result.num_steps,
        "num_passes": result.num_e_steps,
        "seconds": seconds,
        "times": em.times(result),
        "passes": list(range(1, result.num_steps + 2)),  # the first value costs an E-step
        "values": [-loss for loss in result.history],
    }


class TimedEM(EM):
    """EM in a workspace that measures its iterations, apart from planning and the final checks.

    All iterations on tensors cost the same. A callback would time each of them, and cost more than
    they do.
    """

    def __init__(
        self, model: Model, guide: Callable[..., Any] | None, workspace: Workspace
    ) -> None:
        super().__init__(model, guide)
        self._workspace = workspace

    def run(self, *args: Any, **kwargs: Any) -> EMResult:
        """As :meth:`.EM.run`, timed."""
        self._iterations: list[tuple[float, float]] = []  # of each loop: begin and end
        self._began = time.perf_counter()
        result = super().run(*args, **kwargs)
        self.seconds = time.perf_counter() - self._began
        return result

    def times(self, result: EMResult) -> list[float]:
        """Seconds from the beginning of the run to each value of its history.

        The first value is that of the start; the first step includes the planning.
        """
        planned = self._iterations[0][0] - self._began
        each = (self._iterations[-1][1] - self._iterations[0][0]) / max(1, result.num_steps)
        return [0.0, *(planned + each * step for step in range(1, result.num_steps + 1))]

    def _iterate(self, loop: Loop, *settings: Any) -> None:
        began = time.perf_counter()
        super()._iterate(loop, *settings)
        self._iterations.append((began, time.perf_counter()))

    @contextmanager
    def _pyro(self) -> Iterator[None]:
        with self._workspace.pyro(), super()._pyro():
            yield
