"""EM on the likelihood, and on the log joint of a model with priors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from pyro import poutine
from pyro.infer.autoguide import AutoDelta

from pyro_regimes.comparison.methods.at_point import maximum_scores, mode_scores, restored
from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.task import Model, Task, Workspace
from pyro_regimes.infer import EM, EMResult
from pyro_regimes.infer.em.loop import Loop


def run_em(model: Model, task: Task, num_steps: int) -> MethodRun:
    """Run EM on the likelihood."""
    return maximise_likelihood("EM", model, task, num_steps)


def maximise_likelihood(
    method: str, model: Model, task: Task, num_steps: int, acceleration: str | None = None
) -> MethodRun:
    """Run EM on the likelihood, by :meth:`.EM.run` with this ``acceleration``."""
    workspace = task.workspace()
    with workspace.entered():
        poutine.trace(model).get_trace(task.data)  # creates the parameters
    trajectory = _run(method, model, None, task, workspace, num_steps, acceleration)
    with workspace.entered():
        scores = maximum_scores(model, task)
    return MethodRun(method=method, objective="likelihood", **scores, **trajectory)


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
    acceleration: str | None = None,
) -> dict[str, Any]:
    """Run EM and return the fields of :class:`.MethodRun` that describe its trajectory."""
    task.tell(method, 0, num_steps)
    settings = {"num_steps": num_steps, "tol": task.tol, "acceleration": acceleration}
    # The whole run, so that every kernel that it needs is compiled: which ones depends on the data,
    # and a state that empties or a probability that underflows may need others late.
    with restored(workspace):
        counted = TimedEM(model, guide, workspace)
        counted.run(task.data, callback=counted.count, **settings)
    em = TimedEM(model, guide, workspace)
    result = em.run(task.data, **settings)
    seconds = em.seconds
    # Of as many steps as it took: it has ended, and the rest of num_steps does not follow.
    task.tell(method, result.num_steps, result.num_steps, -result.history[-1])
    return {
        "num_steps": result.num_steps,
        "num_passes": result.num_e_steps,
        "seconds": seconds,
        "times": em.times(result),
        "passes": counted.passes,
        "values": [-loss for loss in result.history],
    }


class TimedEM(EM):
    """EM in a workspace that measures its iterations, apart from planning and the final checks.

    All iterations on tensors cost the same. A callback would time each of them, and cost more than
    they do.
    """

    _shows_parameters = False  # to the callback
    _joins_ranks = False  # it fits the data of this process

    def __init__(
        self, model: Model, guide: Callable[..., Any] | None, workspace: Workspace
    ) -> None:
        super().__init__(model, guide)
        self._workspace = workspace
        self.passes = [1]  #: passes before each value of the history, by :meth:`count`

    def count(self, step: int, loss: float) -> None:
        """A callback of :meth:`run` that counts E-steps, also of steps that were rejected."""
        self.passes[step:] = [self._loop.ascent.num_e_steps]

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
        self._loop = loop
        began = time.perf_counter()
        super()._iterate(loop, *settings)
        self._iterations.append((began, time.perf_counter()))

    @contextmanager
    def _pyro(self) -> Iterator[None]:
        with self._workspace.pyro(), super()._pyro():
            yield
