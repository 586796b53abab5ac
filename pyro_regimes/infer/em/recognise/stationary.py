"""Finds sites whose chain starts from its stationary distribution.

There the initial distribution is a function of the transition matrix, so both are one block of the
chain (:mod:`pyro_regimes.chain.stationary`), with one slot.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pyro_regimes import chain
from pyro_regimes.infer.em.recognise import identity
from pyro_regimes.infer.tracing import Run, Site, Slot
from pyro_regimes.kernels import ops


def find_stationary(run: Run, names: Collection[str]) -> list[str]:
    """The sites, among some, whose initial distribution is the stationary one.

    The values agree, and so do the vector-Jacobian products in all parameters.

    :param run: recorded by autograd.
    """
    return [name for name in names if _is_stationary(run.sites[name], run)]


def with_stationary(run: Run, names: Collection[str]) -> Run:
    """The run with one slot for the chain of each of these sites."""
    if not names:
        return run
    return run._replace(
        sites={
            name: _as_one(site) if name in names else site for name, site in run.sites.items()
        }
    )


def with_stationary_as_planned(run: Run, names: Collection[str]) -> Run:
    """As :func:`with_stationary`, for those of the sites whose values are still stationary."""
    return with_stationary(
        run, [name for name in names if name in run.sites and _values_agree(run.sites[name])]
    )


def is_one_block(site: Site) -> bool:
    """Whether the chain of a site has one slot."""
    return _slots(site)[0] is None


def _as_one(site: Site) -> Site:
    initial, transition = _slots(site)
    block = chain.STATIONARY_OF.get(transition.argument)
    if block is None:  # it is one already
        return site
    slots = {
        name: slot if slot is not transition else slot._replace(argument=block)
        for name, slot in site.slots.items()
        if slot is not initial
    }
    return site._replace(slots=slots)


def _slots(site: Site) -> tuple[Slot | None, Slot]:
    """The slots of the initial and the transition probabilities."""
    kinds = {"initial_probs", "initial_logits"}
    initial = next((slot for name, slot in site.slots.items() if name in kinds), None)
    kinds = {"transition_probs", "transition_logits"}
    return initial, next(slot for name, slot in site.slots.items() if name in kinds)


def _both(site: Site) -> tuple[Tensor, Tensor] | None:
    """The initial probabilities and the stationary ones; None if these are not defined."""
    initial, transition = _slots(site)
    if initial is None:
        return None
    own = initial.argument.canonical(initial.value)
    matrix = transition.argument.canonical(transition.value)
    if matrix.dim() > 2:
        if matrix.shape[-3] != 1:
            return None
        matrix = matrix.squeeze(-3)
    if own.shape != matrix.shape[:-1] or not bool(matrix.detach().isfinite().all()):
        return None
    try:
        return own, ops.stationary_probs(matrix)
    except ValueError:  # there are several
        return None


def _values_agree(site: Site) -> bool:
    both = _both(site)
    return both is not None and _close(both[0].detach(), both[1].detach())


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = torch.finfo(one.dtype).eps ** 0.6
    return bool(((one - other).abs() <= tolerance * other.abs().amax()).all())


def _is_stationary(site: Site, run: Run) -> bool:
    initial, transition = _slots(site)
    if initial is None or not (initial.value.requires_grad and transition.value.requires_grad):
        return False
    if identity.viewed(initial.value) is not None:  # it is a parameter of its own
        return False
    both = _both(site)
    if both is None:
        return False
    own, stationary = both
    matrix = transition.argument.canonical(transition.value)
    if not (own.requires_grad and stationary.requires_grad):  # a single state has one law
        return False
    if not _close(own.detach(), stationary.detach()):
        return False
    generator = torch.Generator().manual_seed(2)
    params = list(run.params.values())
    cotangents = [
        torch.randn(each.shape, generator=generator, dtype=torch.float64, device="cpu")
        for each in (own, matrix)
    ]
    found = [
        torch.autograd.grad(
            each, params, cotangent.to(each), retain_graph=True, materialize_grads=True
        )
        for each, cotangent in zip((*both, matrix), (cotangents[0], *cotangents), strict=True)
    ]
    for one, other, of_matrix in zip(*found, strict=True):
        if one.dim():  # along a row its sum is fixed
            one, other = (each - each.mean(-1, keepdim=True) for each in (one, other))
        # A law that does not depend on a parameter of the matrix has rounding for a derivative.
        least = torch.finfo(other.dtype).eps ** 0.5 * of_matrix.abs().amax()
        size = other.abs().amax().maximum(least)
        known = one.isfinite() & other.isfinite()
        # At a random point far away the derivatives of two ways to compute it have few digits.
        tolerance = max(1e-3, torch.finfo(other.dtype).eps ** 0.25)
        if not bool(((one - other).abs()[known] <= tolerance * size).all()):
            return False
    return True
