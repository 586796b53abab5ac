"""Scores of the final parameters of a method.

The functions run a model, so call them inside :meth:`.Workspace.entered`. The exception is
:func:`averaged_held_out`, which enters the workspace once for each draw.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_regimes.comparison.task import Model, Task, Workspace
from pyro_regimes.infer.regimes import find_hmm


class LogDensities(NamedTuple):
    """Log densities of a model at its data."""

    likelihood: float  #: log p(x), from the RegimeHMM sites only
    joint: float  #: with the priors


def log_densities(model: Model, data: Tensor) -> LogDensities:
    """The log-likelihood and the log joint of a model whose latent sites are conditioned."""
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(data)
        joint = float(trace.log_prob_sum())
        nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
        likelihood = sum(float(n["log_prob_sum"]) for n in nodes if find_hmm(n) is not None)
        return LogDensities(likelihood, joint)


def held_out(model: Model, task: Task, log_likelihood: float) -> float | None:
    """log p(held out | data), or None without held-out data.

    :param log_likelihood: that of the data.
    """
    if task.held_out is None:
        return None
    both = torch.cat([task.data, task.held_out], task.time_dim)
    return log_densities(model, both).likelihood - log_likelihood


def averaged_held_out(
    prior_model: Model, draws: list[dict[str, Tensor]], task: Task, workspace: Workspace
) -> float | None:
    """The log of the mean over draws of p(held out | data, draw)."""
    if task.held_out is None:
        return None
    found = []
    for draw in draws:
        with workspace.entered():
            at_draw = poutine.condition(prior_model, data=draw)
            found.append(held_out(at_draw, task, log_densities(at_draw, task.data).likelihood))
    return float(torch.tensor(found, dtype=torch.float64).logsumexp(0)) - math.log(len(found))


def gradient_norm(model: Model, data: Tensor) -> float:
    """The norm of the gradient of the log joint in all unconstrained parameters."""
    loss: Any = -poutine.trace(model).get_trace(data).log_prob_sum()
    leaves = list(parameter_leaves().values())
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return math.sqrt(sum(float(each.square().sum()) for each in found if each is not None))


def parameter_leaves() -> dict[str, Tensor]:
    """The unconstrained tensors of the parameter store."""
    return dict(pyro.get_param_store().named_parameters())


def parameter_values() -> dict[str, Tensor]:
    """Copies of the constrained values of the parameter store."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
