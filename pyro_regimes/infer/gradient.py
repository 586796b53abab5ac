r"""The gradient of the objective in parameters without a closed form, from the same E-step.

Fisher's identity: with the expectations of the hidden path as cotangents,

.. math::
    \nabla_\theta \log p(x \mid \theta) = \sum_t \sum_k \gamma_t(k) \nabla_\theta \log b_k(x_t)
        + \sum_{ij} \xi(i, j) \nabla_\theta \log A_{ij}
        + \sum_k \gamma_1(k) \nabla_\theta \log \pi_k.

So one E-step serves the closed-form updates and the optimiser: this is generalised EM (Dempster,
Laird and Rubin 1977; Lange 1995).
"""

from __future__ import annotations

from typing import Any, Callable

import pyro
import torch
from torch import Tensor

from pyro_regimes.infer.e_step import Expected
from pyro_regimes.infer.tracing import Run

Optim = Callable[[list[Tensor]], Any]


def find_gradients(
    run: Run, expected: dict[str, Expected], names: list[str]
) -> dict[str, Tensor]:
    """The gradients of minus the log joint in the store's unconstrained tensors.

    :param run: a connected one.
    :param expected: of its sites, at the same parameters.
    """
    leaves = {
        name: leaf for name, leaf in pyro.get_param_store().named_parameters() if name in names
    }
    outputs: list[Tensor] = []
    cotangents: list[Tensor] = []

    def add(output: Tensor, cotangent: Tensor) -> None:
        if output.requires_grad:
            outputs.append(output)
            cotangents.append(-cotangent.to(output.dtype).sum_to_size(output.shape))

    for each in expected.values():
        initial, transition, observation = each.data.chain
        gamma = each.data.weigh(each.expectations.smoothed_probs)
        moved = each.data.weigh(each.expectations.expected_transitions)
        add(initial, gamma[..., 0, :])
        add(transition, moved.unsqueeze(-3) if moved.dim() == gamma.dim() else moved)
        add(observation, gamma)
    for value in [latent.log_prob for latent in run.latents.values()] + list(run.others.values()):
        add(value, torch.ones_like(value))
    if not outputs:
        return {}
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def move(optim: Optim, gradients: dict[str, Tensor]) -> None:
    """One step of the optimiser; a leaf's own ``.grad`` stays as it is."""
    leaves = dict(pyro.get_param_store().named_parameters())
    moved = [leaves[name] for name in gradients]
    kept = [leaf.grad for leaf in moved]
    try:
        for leaf, gradient in zip(moved, gradients.values(), strict=True):
            leaf.grad = gradient
        with torch.enable_grad():
            optim(moved)
    finally:
        for leaf, own in zip(moved, kept, strict=True):
            leaf.grad = own
