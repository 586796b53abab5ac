"""The loss of a random model as Pyro computes it, its gradients, and what L-BFGS gains on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy.optimize import minimize
from torch import Tensor

from tests.infer.random_draws import Model, RandomModel

#: How far L-BFGS may go, in every unconstrained coordinate: not to another mode.
RADIUS = 0.03


def own_loss(drawn: RandomModel) -> float:
    """What ``Trace_ELBO`` says of the model: minus its log joint density."""
    return float(Trace_ELBO().loss(drawn.model, drawn.guide or (lambda: None)))


def objective(model: Model, guide: Model | None) -> Tensor:
    """The same, differentiable in the store's tensors."""
    if guide is not None:
        model = poutine.replay(model, trace=poutine.trace(guide).get_trace())
    return -poutine.trace(model).get_trace().log_prob_sum()


def leaves_of_the_store() -> dict[str, Tensor]:
    return dict(pyro.get_param_store().named_parameters())


def own_gradients(
    drawn: RandomModel, leaves: dict[str, Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """The model's own loss, and its gradients: 0 where nothing depends on a leaf."""
    with torch.enable_grad():
        loss = objective(drawn.model, drawn.guide)
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return float(loss.detach()), {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def gain_of_lbfgs(drawn: RandomModel, names: list[str]) -> float:
    """How much L-BFGS lowers the loss in some leaves of the store, each within RADIUS."""
    leaves = {name: leaf for name, leaf in leaves_of_the_store().items() if name in names}
    if not leaves:
        return 0.0
    every = torch.cat([leaf.detach().double().flatten() for leaf in leaves.values()]).numpy()
    free = np.isfinite(every)  # a probability of exactly 0 is -inf, and stays
    start = every[free]
    refused = own_loss(drawn) + 1e6

    def write(vector: np.ndarray) -> None:
        whole = torch.from_numpy(every.copy())
        whole[torch.from_numpy(free)] = torch.from_numpy(vector.copy())
        parts = whole.split([leaf.numel() for leaf in leaves.values()])
        with torch.no_grad():
            for leaf, part in zip(leaves.values(), parts, strict=True):
                leaf.copy_(part.reshape(leaf.shape))

    def value_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        write(vector)
        try:
            with pyro.validation_enabled(False):  # rows that do not sum to 1 are normalised
                value, gradients = own_gradients(drawn, leaves)
        except (ValueError, RuntimeError):  # a matrix that is not positive definite
            return refused, np.zeros_like(vector)
        flat = torch.cat([each.double().flatten() for each in gradients.values()]).numpy()[free]
        if not math.isfinite(value) or not np.isfinite(flat).all():
            return refused, np.zeros_like(vector)
        return value, flat

    before = value_and_gradient(start)[0]
    bounds = [(entry - RADIUS, entry + RADIUS) for entry in start]
    options = {"maxfun": 60, "maxiter": 50, "ftol": 0.0, "gtol": 1e-9}
    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    write(start)
    return before - float(found.fun)


def smallest_variance(drawn: RandomModel) -> float:
    """The least variance, or eigenvalue of a covariance, of any Gaussian site of the model."""
    model, guide, found = drawn.model, drawn.guide, [math.inf]
    if guide is not None:
        model = poutine.replay(model, trace=poutine.trace(guide).get_trace())
    with torch.no_grad():
        for node in poutine.trace(model).get_trace().nodes.values():
            base: Any = node.get("fn")
            base = getattr(base, "observation_dist", base)
            while hasattr(base, "base_dist"):
                base = getattr(base.base_dist, "observation_dist", base.base_dist)
            if hasattr(base, "covariance_matrix"):
                found.append(float(torch.linalg.eigvalsh(base.covariance_matrix).min()))
            elif hasattr(base, "scale"):
                found.append(float(torch.as_tensor(base.scale).min()) ** 2)
    return min(found)
