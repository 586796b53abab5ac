"""SVI with an exact loss: on the likelihood, and with AutoDelta on the log joint."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pyro.infer.autoguide import AutoDelta

from pyro_regimes.comparison.methods.at_point import maximum_scores, mode_scores, not_finite
from pyro_regimes.comparison.methods.loss import OVERFLOW, no_guide
from pyro_regimes.comparison.methods.optimisers import Optimiser
from pyro_regimes.comparison.methods.steps import Steps, make_steps
from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.task import Model, Stopwatch, Task, Workspace


class Trajectory(NamedTuple):
    """The trajectory of an optimiser, up to its last step or its divergence."""

    times: list[float]
    passes: list[int]
    values: list[float]
    seconds: float
    diverged: bool

    def fields(self) -> dict[str, Any]:
        """The fields of :class:`.MethodRun`."""
        steps = self.passes[-1]
        return {"num_steps": steps, "num_passes": steps, **self._asdict()}

    def as_diverged(self, method: str, objective: str) -> MethodRun:
        """The run of a method that diverged, with this trajectory and no results."""
        return MethodRun(
            method=method, objective=objective, log_likelihood=math.nan, point={}, **self.fields()
        )


def run_svi(name: str, model: Model, task: Task, num_steps: int, rate: float) -> MethodRun:
    """Run SVI on the likelihood. No site is latent, so the guide is empty and the loss exact."""
    optim, workspace = Optimiser(name, rate, num_steps), task.workspace()
    method = f"SVI, {optim}"
    task.tell(method, 0, num_steps)
    steps = make_steps(model, no_guide, optim, task, workspace)
    trajectory = _maximise(steps, method, task, workspace, num_steps)
    if trajectory.diverged:
        return trajectory.as_diverged(method, "likelihood")
    with workspace.entered():
        scores = maximum_scores(model, task)
    return MethodRun(method=method, objective="likelihood", **scores, **trajectory.fields())


def run_auto_delta(prior_model: Model, task: Task, num_steps: int, rate: float) -> MethodRun:
    """Run SVI on the log joint, with an AutoDelta guide."""
    method, workspace = f"SVI, AutoDelta({rate:g})", task.workspace()
    task.tell(method, 0, num_steps)
    with workspace.entered():
        guide = AutoDelta(prior_model, init_loc_fn=task.start())
    steps = make_steps(prior_model, guide, Optimiser("Adam", rate), task, workspace)
    trajectory = _maximise(steps, method, task, workspace, num_steps)
    if trajectory.diverged:
        return trajectory.as_diverged(method, "joint")
    with workspace.entered():
        scores = mode_scores(prior_model, guide, task)
    return MethodRun(method=method, objective="joint", **scores, **trajectory.fields())


def _maximise(
    steps: Steps, method: str, task: Task, workspace: Workspace, num_steps: int
) -> Trajectory:
    """Run steps of an SVI with an exact loss; record the objective before each and after the last.

    The run has diverged if, after a step, the objective is not finite or the model fails.

    :raises ValueError: if the objective is not finite at the start.
    """
    watch = Stopwatch()
    times: list[float] = []
    values: list[float] = []
    diverged = False
    for step in range(num_steps + 1):
        now = watch.seconds
        try:
            with workspace.entered():
                if step < num_steps:
                    with watch:
                        loss = steps.step()  # the loss before the step
                else:
                    loss = steps.loss()
        except OVERFLOW:
            if not step:
                raise
            loss = math.nan
        if not math.isfinite(loss):
            if not step:
                raise not_finite(-loss)
            diverged = True
            break
        times.append(now)
        values.append(-loss)
        if step < num_steps:
            task.tell(method, step + 1, num_steps, -loss)
    return Trajectory(times, list(range(len(values))), values, watch.seconds, diverged)
