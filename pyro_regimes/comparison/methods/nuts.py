"""NUTS on the model with priors."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from torch import Tensor

from pyro_regimes.comparison.methods.loss import as_recorded, recording
from pyro_regimes.comparison.methods.variational import intervals
from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.scores import averaged_held_out, held_out, log_densities
from pyro_regimes.comparison.task import Model, Stopwatch, Task, Workspace

METHOD = "NUTS"


def run_nuts(prior_model: Model, task: Task, num_steps: int) -> MethodRun:
    """Run NUTS, with as many warm-up steps as draws, from the start of the other methods."""
    workspace, watch = task.workspace(), Stopwatch()
    task.tell(METHOD, 0, 2 * num_steps)
    samples, num_passes = _sample(prior_model, task, workspace, watch, num_steps)
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
) -> tuple[dict[str, Tensor], int]:
    """Draw from the posterior; also return the number of runs of the model.

    The draws of each site are stacked in front. This is the loop of :class:`pyro.infer.MCMC`, which
    keeps a handler on Pyro's stack and validation switched off from the first draw to the last.
    Here both apply to one draw at a time.
    """
    with workspace.entered(), pyro.validation_enabled(False), recording():
        potential = _Potential(model, task)
        potential.compile()
    with workspace.entered(), pyro.validation_enabled(False), watch:
        kernel = NUTS(potential_fn=potential, transforms=potential.transforms)
        kernel.initial_params = potential.start
        kernel.setup(num_steps)
    position, kept = kernel.initial_params, []
    for step in range(2 * num_steps):
        with workspace.entered(), pyro.validation_enabled(False), watch:
            position = kernel.sample(position)
        if step >= num_steps:
            kept.append(position)
        task.tell(METHOD, step + 1, 2 * num_steps)
    kernel.cleanup()
    draws = {name: torch.stack([each[name] for each in kept]).detach() for name in sorted(kept[0])}
    transforms = potential.transforms
    return {
        name: transforms[name].inv(value) if name in transforms else value
        for name, value in draws.items()
    }, potential.num_runs


class _Potential:
    """The negative log joint in unconstrained parameters, and the number of runs of the model."""

    def __init__(self, model: Model, task: Task) -> None:
        self.num_runs = 0

        def counted(data: Tensor) -> Any:
            self.num_runs += 1
            return model(data)

        # The same function that NUTS(model) would make.
        self.start, self._evaluate, self.transforms, _ = initialize_model(
            counted,
            (task.data,),
            init_strategy=task.start(),
            jit_compile=task.jit_compile,
            skip_jit_warnings=True,
        )

    def compile(self) -> None:
        """Record the model, and compile what its evaluation and its gradient need."""
        runs = self.num_runs
        potential_grad(self, self.start)
        self.num_runs = runs

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        before = self.num_runs
        try:
            with as_recorded():
                found: Tensor = self._evaluate(parameters)
                return found
        finally:
            self.num_runs = before + 1  # a recorded potential does not call the model
