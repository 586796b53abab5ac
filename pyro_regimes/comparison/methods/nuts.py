"""NUTS on the model with priors."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS
from torch import Tensor

from pyro_regimes.comparison.methods.variational import intervals
from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.scores import averaged_held_out, held_out, log_densities
from pyro_regimes.comparison.task import Model, Stopwatch, Task, Workspace

METHOD = "NUTS"


def run_nuts(prior_model: Model, task: Task, num_steps: int) -> MethodRun:
    """Run NUTS, with as many warm-up steps as draws, from the start of the other methods."""
    workspace, watch = task.workspace(), Stopwatch()
    passes = 0

    def counted(data: Tensor) -> Any:
        nonlocal passes
        passes += 1
        return prior_model(data)

    samples = _sample(counted, task, workspace, watch, num_steps)
    num_passes = passes
    posterior = intervals(samples)
    point = {name: interval.mean for name, interval in posterior.items()}
    with workspace.entered():
        at_mean = poutine.condition(prior_model, data=point)
        likelihood, joint = log_densities(at_mean, task.data)
        rest = held_out(at_mean, task, likelihood)
    every = max(1, num_steps // task.num_draws)
    draws = [
        {name: value[index] for name, value in samples.items()}
        for index in range(0, num_steps, every)
    ]
    return MethodRun(
        method=METHOD,
        objective="draws",
        log_likelihood=likelihood,
        log_joint=joint,
        held_out=rest,
        held_out_averaged=averaged_held_out(prior_model, draws, task, workspace),
        num_steps=num_steps,
        num_passes=num_passes,
        seconds=watch.seconds,
        times=[watch.seconds],
        passes=[num_passes],
        values=[likelihood],
        point=point,
        posterior=posterior,
    )


def _sample(
    model: Model, task: Task, workspace: Workspace, watch: Stopwatch, num_steps: int
) -> dict[str, Tensor]:
    """Draw from the posterior; the draws of each site are stacked in front.

    This is the loop of :class:`pyro.infer.MCMC`, which keeps a handler on Pyro's stack and
    validation switched off from the first draw to the last. Here both apply to one draw at a time.
    """
    kernel = NUTS(model, init_strategy=task.start())
    with workspace.entered(), pyro.validation_enabled(False), watch:
        kernel.setup(num_steps, task.data)
    position, kept = kernel.initial_params, []
    for step in range(2 * num_steps):
        with workspace.entered(), pyro.validation_enabled(False), watch:
            position = kernel.sample(position)
        if step >= num_steps:
            kept.append(position)
        task.tell(METHOD, step + 1, 2 * num_steps)
    kernel.cleanup()
    draws = {name: torch.stack([each[name] for each in kept]).detach() for name in sorted(kept[0])}
    return {
        name: kernel.transforms[name].inv(value) if name in kernel.transforms else value
        for name, value in draws.items()
    }
