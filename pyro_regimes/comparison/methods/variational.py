"""SVI on the model with priors, with Pyro's Gaussian guides."""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

from pyro_regimes.comparison.methods.loss import OVERFLOW
from pyro_regimes.comparison.methods.optimisers import Optimiser
from pyro_regimes.comparison.methods.steps import Steps, make_steps
from pyro_regimes.comparison.methods.svi import Trajectory
from pyro_regimes.comparison.runs import Interval, MethodRun
from pyro_regimes.comparison.scores import averaged_held_out, held_out, log_densities
from pyro_regimes.comparison.task import Model, Stopwatch, Task, Workspace
from pyro_regimes.infer.draws import draw_sites, point_values

GUIDES: dict[str, Callable[..., Any]] = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRank": AutoLowRankMultivariateNormal,
}

#: How often a run evaluates the log-likelihood at the guide's medians, which is not timed.
_NUM_EVALUATIONS = 100
_ELBO_PARTICLES = 20
_INIT_SCALE = 0.01


def run_guide(
    name: str, prior_model: Model, task: Task, num_steps: int, rate: float
) -> MethodRun:
    """Run SVI with one of :data:`GUIDES`."""
    method, workspace = f"SVI, {name}({rate:g})", task.workspace()
    task.tell(method, 0, num_steps)
    with workspace.entered():
        guide = GUIDES[name](prior_model, init_loc_fn=task.start(), init_scale=_INIT_SCALE)
    steps = make_steps(prior_model, guide, Optimiser("Adam", rate), task, workspace)

    def likelihood_at_medians() -> float:
        with workspace.entered():
            at_medians = poutine.condition(prior_model, data=guide.median(task.data))
            return log_densities(at_medians, task.data).likelihood

    trajectory = _maximise(steps, likelihood_at_medians, method, task, workspace, num_steps)
    if trajectory.diverged:
        return trajectory.as_diverged(method, "ELBO")
    return MethodRun(
        method=method,
        objective="ELBO",
        **_scores(prior_model, guide, task, workspace),
        **trajectory.fields(),
    )


def _maximise(
    steps: Steps,
    evaluate: Callable[[], float],
    method: str,
    task: Task,
    workspace: Workspace,
    num_steps: int,
) -> Trajectory:
    """Run steps of an SVI with a noisy loss; evaluate an exact value from time to time."""
    watch = Stopwatch()
    times, passes, values = [0.0], [0], [evaluate()]
    every = max(1, num_steps // _NUM_EVALUATIONS)
    diverged = False
    for step in range(1, num_steps + 1):
        value, moved = values[-1], step > 1
        try:
            with workspace.entered(), watch:
                loss = steps.step()
            moved = True
            if not math.isfinite(loss):
                value = math.nan
            elif step % every == 0 or step == num_steps:
                value = evaluate()
        except OVERFLOW:
            if not moved:
                raise
            value = math.nan
        if not math.isfinite(value):
            diverged = True
            break
        task.tell(method, step, num_steps, -loss)
        if step % every == 0 or step == num_steps:
            times.append(watch.seconds)
            passes.append(step)
            values.append(value)
    return Trajectory(times, passes, values, watch.seconds, diverged)


def _scores(prior_model: Model, guide: Any, task: Task, workspace: Workspace) -> dict[str, Any]:
    """The fields of :class:`.MethodRun` that are computed from a fitted guide."""
    with workspace.entered():
        at_medians = poutine.condition(prior_model, data=guide.median(task.data))
        likelihood, joint = log_densities(at_medians, task.data)
        with torch.no_grad():
            elbo = -Trace_ELBO(num_particles=_ELBO_PARTICLES).loss(prior_model, guide, task.data)
    draws = []
    for _ in range(max(task.num_draws, 200)):
        with workspace.entered():
            draws.append(draw_sites(guide, task.data))
    with workspace.entered():
        scores: dict[str, Any] = {
            "log_likelihood": likelihood,
            "log_joint": joint,
            "elbo": float(elbo),
            "held_out": held_out(at_medians, task, likelihood),
            "point": point_values(guide, task.data),
        }
    first = draws[: task.num_draws]
    scores["held_out_averaged"] = averaged_held_out(prior_model, first, task, workspace)
    stacked = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    scores["posterior"] = intervals(stacked)
    return scores


def intervals(draws: dict[str, Tensor]) -> dict[str, Interval]:
    """Mean and standard deviation of draws, which are stacked in front."""
    return {name: Interval(value.mean(0), value.std(0)) for name, value in draws.items()}
