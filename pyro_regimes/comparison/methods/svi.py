"""SVI with an exact loss: on the likelihood, and with AutoDelta on the log joint."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from pyro_regimes.comparison.methods.at_point import mode_scores, restored
from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.scores import (
    gradient_norm,
    held_out,
    log_densities,
    parameter_values,
)
from pyro_regimes.comparison.task import Model, Stopwatch, Task, Workspace

#: What a model raises at parameters that are not finite, or all but singular.
OVERFLOW = (ValueError, torch.linalg.LinAlgError)


class Trajectory(NamedTuple):
    """The path of an optimiser, until its last step or until it diverged."""

    times: list[float]
    passes: list[int]
    values: list[float]
    seconds: float
    diverged: bool

    def fields(self) -> dict[str, Any]:
        """As fields of :class:`.MethodRun`."""
        steps = self.passes[-1]
        return {"num_steps": steps, "num_passes": steps, **self._asdict()}

    def as_diverged(self, method: str, objective: str) -> MethodRun:
        """The run of a method of which nothing but this is known."""
        return MethodRun(
            method=method, objective=objective, log_likelihood=math.nan, point={}, **self.fields()
        )


def run_svi(name: str, model: Model, task: Task, num_steps: int, rate: float) -> MethodRun:
    """SVI on the likelihood: nothing is latent, so the guide is empty and the loss exact."""
    method, workspace = f"SVI, {name}({rate:g})", task.workspace()
    warm_up(model, _no_guide, task, workspace)
    svi = SVI(model, _no_guide, make_optim(name, rate), Trace_ELBO())
    trajectory = _maximise(svi, method, task, workspace, num_steps)
    if trajectory.diverged:
        return trajectory.as_diverged(method, "likelihood")
    with workspace.entered():
        likelihood, _ = log_densities(model, task.data)
        return MethodRun(
            method=method,
            objective="likelihood",
            log_likelihood=likelihood,
            held_out=held_out(model, task, likelihood),
            gradient_norm=gradient_norm(model, task.data),
            point=parameter_values(),
            **trajectory.fields(),
        )


def run_auto_delta(prior_model: Model, task: Task, num_steps: int, rate: float) -> MethodRun:
    """SVI on the log joint, with the points of AutoDelta."""
    method, workspace = f"SVI, AutoDelta({rate:g})", task.workspace()
    with workspace.entered():
        guide = AutoDelta(prior_model, init_loc_fn=task.start())
    warm_up(prior_model, guide, task, workspace)
    svi = SVI(prior_model, guide, make_optim("Adam", rate), Trace_ELBO())
    trajectory = _maximise(svi, method, task, workspace, num_steps)
    if trajectory.diverged:
        return trajectory.as_diverged(method, "joint")
    with workspace.entered():
        scores = mode_scores(prior_model, guide, task)
    return MethodRun(method=method, objective="joint", **scores, **trajectory.fields())


def _maximise(
    svi: SVI, method: str, task: Task, workspace: Workspace, num_steps: int
) -> Trajectory:
    """Steps of an SVI whose loss is exact, and the objective before each and after the last.

    It has diverged where the objective is not finite, or the model fails, at parameters to which
    a step has led. The start is another matter.

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
                        loss = svi.step(task.data)  # the loss before the step
                else:
                    with torch.no_grad():
                        loss = svi.evaluate_loss(task.data)
        except OVERFLOW:
            if not step:
                raise
            loss = math.nan
        if not math.isfinite(loss):
            if not step:
                raise ValueError(f"expected a finite objective at the start, got {-loss}")
            diverged = True
            break
        times.append(now)
        values.append(-loss)
        if step < num_steps:
            task.tell(method, step + 1, num_steps)
    return Trajectory(times, list(range(len(values))), values, watch.seconds, diverged)


def make_optim(name: str, rate: float) -> Any:
    """An optimiser of Pyro's, by name."""
    return getattr(pyro.optim, name)({"lr": rate})


def warm_up(model: Model, guide: Any, task: Task, workspace: Workspace) -> None:
    """Make the parameters and compile the kernels; leave everything at the start."""
    with workspace.entered(), torch.random.fork_rng():
        guide(task.data)
        poutine.trace(model).get_trace(task.data)
    with restored(workspace), workspace.entered(), torch.random.fork_rng():
        SVI(model, guide, make_optim("Adam", 1e-3), Trace_ELBO()).step(task.data)


def _no_guide(data: Tensor) -> None:
    """Nothing is latent: the ELBO is the log-likelihood."""
