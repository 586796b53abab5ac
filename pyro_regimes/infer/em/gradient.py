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
    :param ranks: over which they are added; priors count on the first one.
    """
    counts = ranks is None or ranks.is_first
    priors = other_densities(run) if counts else []
    found = differentiate(log_terms(expected, priors), names)
    return found if ranks is None else add_over_ranks(found, names, ranks)


def differentiate(terms: list[tuple[Tensor, Tensor]], names: list[str]) -> dict[str, Tensor]:
    """The gradients of minus Q in the store's unconstrained tensors; empty if all are constants.

    :param terms: as :func:`log_terms` returns them.
    """
    leaves = _leaves(names)
    terms = [(term, weight) for term, weight in terms if term.requires_grad]
    if not terms:
        return {}
    found = torch.autograd.grad(
        [term for term, _ in terms],
        list(leaves.values()),
        [-weight for _, weight in terms],
        materialize_grads=True,
        allow_unused=True,
    )
    return dict(zip(leaves, found, strict=True))


def add_over_ranks(
    gradients: dict[str, Tensor], names: list[str], ranks: Ranks
) -> dict[str, Tensor]:
    """The sums of the gradients of all ranks, of which some may have none."""
    own = {
        name: gradients[name] if name in gradients else torch.zeros_like(leaf)
        for name, leaf in _leaves(names).items()
    }
    return dict(zip(own, ranks.add([*own.values()]), strict=True))


def _leaves(names: list[str]) -> dict[str, Tensor]:
    """The unconstrained tensors that the store holds."""
    held = pyro.get_param_store().named_parameters()
    return {name: leaf for name, leaf in held if name in names}


def other_densities(run: Run) -> list[Tensor]:
    """The log densities of the sites without a hidden path."""
    return [latent.log_prob for latent in run.latents.values()] + list(run.others.values())


def log_terms(
    expected: dict[str, Expected], others: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The log terms of a run's joint density and their expected counts; Q is the inner product.

    :param expected: of the sites of a connected run, at the same parameters.
    :param others: the log densities that count beside them.
    """
    terms = []
    for each in expected.values():
        initial, transition, observation = each.data.chain
        gamma = each.data.weigh(each.expectations.smoothed_probs)
        moved = each.data.weigh(each.expectations.expected_transitions)
        terms.append((initial, each.starts()))
        terms.append((transition, moved.unsqueeze(-3) if moved.dim() == gamma.dim() else moved))
        terms.append((observation, gamma))
    terms += [(value, torch.ones_like(value)) for value in others]
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
