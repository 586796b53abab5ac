r"""The gradient of the objective in parameters without a closed form, from the same E-step.

Fisher's identity: with the expectations of the hidden path as cotangents,

.. math::
    \nabla_\theta \log p(x \mid \theta) = \sum_t \sum_k \gamma_t(k) \nabla_\theta \log b_k(x_t)
        + \sum_{ij} \xi(i, j) \nabla_\theta \log A_{ij}
        + \sum_k \gamma_1(k) \nabla_\theta \log \pi_k.

So the closed-form updates and the optimiser share one E-step. This is generalised EM (Dempster,
Laird and Rubin 1977; Lange 1995).
"""

from __future__ import annotations

from typing import Any, Callable

import pyro
import torch
from torch import Tensor

from pyro_regimes.infer.em.e_step import Expected
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.tracing import Run

Optim = Callable[[list[Tensor]], Any]


def find_gradients(
    run: Run, expected: dict[str, Expected], names: list[str], ranks: Ranks | None = None
) -> dict[str, Tensor]:
    """The gradients of minus the log joint in the store's unconstrained tensors.

    :param run: a connected one.
    :param expected: of its sites, at the same parameters.
    """
    leaves = {
        name: leaf for name, leaf in pyro.get_param_store().named_parameters() if name in names
    }
    given = log_terms(run, expected, ranks is None or ranks.is_first)
    terms = [(term, weight) for term, weight in given if term.requires_grad]
    outputs = [term for term, _ in terms]
    cotangents = [-weight for _, weight in terms]
    if not outputs and ranks is None:
        return {}
    found: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if outputs:
        found = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
    if ranks is None:
        return gradients
    return dict(zip(gradients, ranks.add([*gradients.values()]), strict=True))


def log_terms(
    run: Run, expected: dict[str, Expected], has_priors: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """The log terms of a run's joint density and their expected counts; Q is the inner product.

    :param run: a connected one.
    :param expected: of its sites, at the same parameters.
    """
    terms = []
    for each in expected.values():
        initial, transition, observation = each.data.chain
        gamma = each.data.weigh(each.expectations.smoothed_probs)
        moved = each.data.weigh(each.expectations.expected_transitions)
        terms.append((initial, gamma[..., 0, :]))
        terms.append((transition, moved.unsqueeze(-3) if moved.dim() == gamma.dim() else moved))
        terms.append((observation, gamma))
    others = [latent.log_prob for latent in run.latents.values()] + list(run.others.values())
    for value in others if has_priors else []:
        terms.append((value, torch.ones_like(value)))
    return [(term, weight.to(term.dtype).sum_to_size(term.shape)) for term, weight in terms]


def move(optim: Optim, gradients: dict[str, Tensor]) -> None:
    """Make one step of the optimiser; the ``.grad`` of a leaf does not change."""
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
