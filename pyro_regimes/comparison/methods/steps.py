"""Single steps of SVI: by Pyro's ``SVI``, or compiled."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_regimes.comparison.methods.at_point import restored
from pyro_regimes.comparison.methods.loss import CompiledLoss, create_parameters
from pyro_regimes.comparison.methods.optimisers import Optimiser
from pyro_regimes.comparison.task import Model, Task, Workspace


class Steps(Protocol):
    """Steps of SVI on the task's data. Call the methods inside the workspace."""

    def step(self) -> float:
        """Make a step; return the loss before it."""

    def loss(self) -> float:
        """The loss, without a step."""


def make_steps(
    model: Model, guide: Any, optim: Optimiser, task: Task, workspace: Workspace
) -> Steps:
    """Create the parameters and compile what a step needs; leave the parameters at the start."""
    create_parameters(model, guide, task, workspace)
    if task.jit_compile:
        with workspace.entered(), torch.random.fork_rng():
            return CompiledSteps(model, guide, optim, task.data)
    with restored(workspace), workspace.entered(), torch.random.fork_rng():
        PyroSteps(model, guide, Optimiser("Adam", 1e-3), task.data).step()
    return PyroSteps(model, guide, optim, task.data)


class PyroSteps:
    """Steps of :class:`pyro.infer.SVI`, for any model."""

    def __init__(self, model: Model, guide: Any, optim: Optimiser, data: Tensor) -> None:
        self._svi = SVI(model, guide, optim.of_pyro(), Trace_ELBO())
        self._data = data

    def step(self) -> float:
        """One step, and the loss before it."""
        return self._svi.step(self._data)

    def loss(self) -> float:
        """The loss at the present parameters."""
        with torch.no_grad():
            return self._svi.evaluate_loss(self._data)


class CompiledSteps:
    """The same steps, equal to the last bit, with a :class:`.CompiledLoss`.

    One optimiser updates all parameters. Create the object inside the workspace, after the
    parameters.
    """

    def __init__(self, model: Model, guide: Any, optim: Optimiser, data: Tensor) -> None:
        self._loss = CompiledLoss(model, guide, data)
        self._optim = optim.of_leaves(self._loss.leaves)
        self._loss().backward()  # compiles the kernels
        self._optim.zero_grad()

    def step(self) -> float:
        """One step, and the loss before it."""
        loss = self._loss()
        loss.backward()
        self._optim.step()
        self._optim.zero_grad()
        return float(loss.detach())

    def loss(self) -> float:
        """The loss at the present parameters."""
        with torch.no_grad():
            return float(self._loss())
