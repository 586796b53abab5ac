"""Common code of the methods that return a point estimate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine

from pyro_regimes.comparison.scores import (
    gradient_norm,
    held_out,
    log_densities,
    parameter_leaves,
    parameter_values,
)
from pyro_regimes.comparison.task import Model, Task, Workspace
from pyro_regimes.infer.draws import point_values


def maximum_scores(model: Model, task: Task) -> dict[str, Any]:
    """The fields of :class:`.MethodRun` at the parameters of a model without latent sites."""
    likelihood, _ = log_densities(model, task.data)
    return {
        "log_likelihood": likelihood,
        "held_out": held_out(model, task, likelihood),
        "gradient_norm": gradient_norm(model, task.data),
        "point": parameter_values(),
    }


def not_finite(objective: float) -> ValueError:
    """The error of a method whose start has this objective."""
    return ValueError(
        f"expected model to have a finite objective at its start, got {objective}; change its "
        "initial values"
    )


def mode_scores(prior_model: Model, guide: Any, task: Task) -> dict[str, Any]:
    """The fields of :class:`.MethodRun` at the point of an AutoDelta guide."""
    point = point_values(guide, task.data)
    at_point = poutine.condition(prior_model, data=point)
    likelihood, joint = log_densities(at_point, task.data)
    placed = poutine.trace(guide).get_trace(task.data)
    replayed = poutine.replay(prior_model, trace=placed)
    return {
        "log_likelihood": likelihood,
        "log_joint": joint,
        "held_out": held_out(at_point, task, likelihood),
        "gradient_norm": gradient_norm(replayed, task.data),
        "point": point,
    }


@contextmanager
def restored(workspace: Workspace) -> Iterator[None]:
    """Restore the parameters on exit, in place, as a module may hold the same tensors."""
    with workspace.entered():
        start = {name: leaf.detach().clone() for name, leaf in parameter_leaves().items()}
    try:
        yield
    finally:
        with workspace.entered(), torch.no_grad():
            for name, leaf in parameter_leaves().items():
                leaf.copy_(start[name])
