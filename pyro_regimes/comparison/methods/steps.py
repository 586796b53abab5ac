"""Single steps of SVI: by Pyro's ``SVI``, or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from pyro_regimes.comparison.methods.at_point import restored
from pyro_regimes.comparison.scores import parameter_leaves
from pyro_regimes.comparison.task import Model, Task, Workspace
from pyro_regimes.distributions import RegimeHMM

#: Errors that a model raises at parameters that are not finite or nearly singular.
OVERFLOW = (ValueError, torch.linalg.LinAlgError)


class Steps(Protocol):
    """Steps of SVI on the task's data. Call the methods inside the workspace."""

    def step(self) -> float:
        """Make a step; return the loss before it."""

    def loss(self) -> float:
        """The loss, without a step."""


def make_steps(
    model: Model, guide: Any, optim: str, rate: float, task: Task, workspace: Workspace
) -> Steps:
    """Create the parameters and compile what a step needs; leave the parameters at the start.

    :param optim: "Adam" or "ClippedAdam".
    """
    with workspace.entered(), torch.random.fork_rng():
        guide(task.data)
        poutine.trace(model).get_trace(task.data)
        _compile_log_space(task.data)
    if task.jit_compile:
        with workspace.entered(), torch.random.fork_rng():
            return CompiledSteps(model, guide, optim, rate, task.data)
    with restored(workspace), workspace.entered(), torch.random.fork_rng():
        PyroSteps(model, guide, "Adam", 1e-3, task.data).step()
    return PyroSteps(model, guide, optim, rate, task.data)


def _compile_log_space(data: Tensor) -> None:
    """Compile the kernel for sequences whose probabilities underflow, which may occur at any step.

    In the first step the second regime is impossible, to working precision; the second step needs
    it.
    """
    zero = data.new_zeros(())
    logits = (10_000 * torch.eye(2, dtype=zero.dtype, device=zero.device)).log()
    hmm = RegimeHMM(
        initial_logits=zero.expand(2).clone().requires_grad_(),
        transition_logits=logits,
        observation_dist=dist.Normal(zero.new_tensor([0.0, 100.0]), 1.0),
    )
    hmm.log_prob(zero.new_tensor([0.0, 100.0])).backward()


class PyroSteps:
    """Steps of :class:`pyro.infer.SVI`, for any model."""

    def __init__(self, model: Model, guide: Any, optim: str, rate: float, data: Tensor) -> None:
        self._svi = SVI(model, guide, getattr(pyro.optim, optim)({"lr": rate}), Trace_ELBO())
        self._data = data

    def step(self) -> float:
        return self._svi.step(self._data)

    def loss(self) -> float:
        with torch.no_grad():
            return self._svi.evaluate_loss(self._data)


class CompiledSteps:
    """The same steps, equal to the last bit, without Pyro's handlers and without validation.

    The operations of one evaluation of the loss are recorded (:func:`torch.jit.trace`) and
    repeated in each step, and one optimiser updates all parameters. On a few thousand observations
    this takes about half the time. The model and the guide must be static: the same sites and
    parameters in every step, and no control flow that depends on their values. Create the object
    inside the workspace, after the parameters.
    """

    def __init__(self, model: Model, guide: Any, optim: str, rate: float, data: Tensor) -> None:
        leaves = list(parameter_leaves().values())
        self._inputs = (data, *leaves)
        self._recorded = _record(model, guide, self._inputs)
        self._as_written = lambda: Trace_ELBO().loss(model, guide, data)
        self._optim = (
            ClippedAdam(leaves, lr=rate)
            if optim == "ClippedAdam"
            else torch.optim.Adam(leaves, lr=rate, foreach=True)
        )
        self._loss().backward()  # compiles the kernels
        self._optim.zero_grad()

    def step(self) -> float:
        loss = self._loss()
        loss.backward()
        self._optim.step()
        self._optim.zero_grad()
        return float(loss.detach())

    def loss(self) -> float:
        with torch.no_grad():
            return float(self._loss())

    def _loss(self) -> Tensor:
        random_state = torch.get_rng_state()
        try:
            with as_recorded():
                loss: Tensor = self._recorded(*self._inputs)
                return loss
        except RuntimeError:
            torch.set_rng_state(random_state)  # the same draws, so that the error occurs again
            self._as_written()  # raises the model's own error, with its type
            raise


@contextmanager
def recording() -> Iterator[None]:
    """A context for :func:`torch.jit.trace`, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit.trace`", DeprecationWarning)
        yield


@contextmanager
def as_recorded() -> Iterator[None]:
    """A context for the calls of recorded functions."""
    try:
        # Optimised execution would round gradients differently.
        with torch.jit.optimized_execution(False):
            yield
    except RuntimeError as error:
        # A recorded function replaces every error in it by a RuntimeError.
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        raise


def _record(model: Model, guide: Any, inputs: tuple[Tensor, ...]) -> Any:
    """The loss of ``Trace_ELBO`` as a function of the data and of all unconstrained parameters."""
    elbo = Trace_ELBO()

    def loss(data: Tensor, *leaves: Tensor) -> Tensor:
        # The model and the guide read the same tensors from the parameter store.
        found: Tensor = elbo.differentiable_loss(model, guide, data)
        return found

    with recording(), pyro.validation_enabled(False):
        return torch.jit.trace(loss, inputs, check_trace=False)
