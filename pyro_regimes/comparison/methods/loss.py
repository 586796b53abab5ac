"""The loss of SVI as a function of the parameters: by Pyro's handlers, or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_regimes.comparison.scores import parameter_leaves
from pyro_regimes.comparison.task import Model, Task, Workspace
from pyro_regimes.distributions import RegimeHMM

#: Errors that a model raises at parameters that are not finite or nearly singular.
OVERFLOW = (ValueError, torch.linalg.LinAlgError)


class Loss(Protocol):
    """The loss at the parameters of the store. Call it inside the workspace."""

    leaves: list[Tensor]  #: the unconstrained parameters

    def __call__(self) -> Tensor:
        """The loss, with its graph."""


def make_loss(model: Model, guide: Any, task: Task, workspace: Workspace) -> Loss:
    """Create the parameters and compile what the loss and its gradient need.

    :raises ValueError: if the model has no parameters.
    """
    create_parameters(model, guide, task, workspace)
    with workspace.entered(), torch.random.fork_rng():
        make: Callable[..., Loss] = CompiledLoss if task.jit_compile else PyroLoss
        loss = make(model, guide, task.data)
        if not loss.leaves:
            raise ValueError("expected model to have parameters (pyro.param), got none")
        torch.autograd.grad(loss(), loss.leaves, allow_unused=True)  # compiles the kernels
        return loss


def create_parameters(model: Model, guide: Any, task: Task, workspace: Workspace) -> None:
    """Create the parameters, and compile the kernel that any later step may need."""
    with workspace.entered(), torch.random.fork_rng():
        guide(task.data)
        poutine.trace(model).get_trace(task.data)
        _compile_log_space(task.data)


def no_guide(data: Tensor) -> None:
    """An empty guide: without latent sites the ELBO is the log-likelihood."""


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


class PyroLoss:
    """The loss of ``Trace_ELBO``, for any model. Create it after the parameters."""

    def __init__(self, model: Model, guide: Any, data: Tensor) -> None:
        self.leaves = list(parameter_leaves().values())
        self._model, self._guide, self._data = model, guide, data

    def __call__(self) -> Tensor:
        loss: Tensor = Trace_ELBO().differentiable_loss(self._model, self._guide, self._data)
        return loss


class CompiledLoss:
    """The same loss, equal to the last bit, without Pyro's handlers and without validation.

    The operations of one evaluation are recorded (:func:`torch.jit.trace`) and repeated. On a few
    thousand observations a gradient takes about half the time. The model and the guide must be
    static: the same sites and parameters in every run, and no control flow that depends on their
    values. Create the object inside the workspace, after the parameters.
    """

    def __init__(self, model: Model, guide: Any, data: Tensor) -> None:
        self.leaves = list(parameter_leaves().values())
        self._inputs = (data, *self.leaves)
        self.recorded = _record(model, guide, self._inputs)
        self._as_written = lambda: Trace_ELBO().loss(model, guide, data)

    def __call__(self) -> Tensor:
        random_state = torch.get_rng_state()
        try:
            with as_recorded():
                loss: Tensor = self.recorded(*self._inputs)
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
