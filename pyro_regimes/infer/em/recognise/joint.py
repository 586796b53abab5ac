"""Finds the parameters that may be maximised together, see :class:`.Joint`."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.infer.em.recognise.plan import Assignment
from pyro_regimes.infer.tracing import Run, Slot


def find_joint(each: Assignment, assignments: list[Assignment], run: Run) -> Assignment:
    """An assignment with the names of the parameters that are maximised together with it.

    They hold the other argument in every block that it serves, and serve no block beside these.
    """
    joint = each.argument.joint
    if joint is None or each.prior is not None:
        return each
    partners = {
        (own.site, name)
        for own in _slots_of(each, run)
        if own.argument.joint is not None
        for name in own.argument.joint.other
    }
    others = [
        other
        for other in assignments
        if any((use.site, use.argument) in partners for use in other.uses)
    ]
    if not others or any(other.prior is not None for other in others):
        return each
    sites = {use.site for one in (each, *others) for use in one.uses}
    pairs = []
    for own in (slot for site in sites for slot in run.chains[site].slots.values()):
        if own.argument.joint is None or own.argument.kind != each.argument.kind:
            continue
        slots = run.chains[own.site].slots
        names = [name for name in own.argument.joint.other if name in slots]
        if not names:
            return each
        its = slots[names[0]]
        labels, first = torch.full(its.lead, -1, device="cpu"), 0
        for other in others:
            cells = _cells(other, its)
            labels = torch.where(cells >= 0, cells + first, labels)
            first += other.num_cells
        both = torch.broadcast_tensors(_cells(each, own), labels)
        pairs.append(torch.stack([part.flatten() for part in both], -1))
    known = torch.cat(pairs).unique(dim=0)
    mine, theirs = known.unbind(-1)
    if bool((theirs[mine >= 0] < 0).any()):  # a constant, or a parameter that an optimiser moves
        return each
    known = known[theirs >= 0]
    mine, theirs = known.unbind(-1)
    if bool((mine < 0).any()) or len(theirs.unique()) < len(theirs):
        return each
    if joint.one_to_one and len(mine.unique()) < len(mine):
        return each
    return each._replace(joint=tuple(other.name for other in others))


def _slots_of(each: Assignment, run: Run) -> list[Slot]:
    """The arguments that hold a parameter."""
    return [run.chains[use.site].slots[use.argument] for use in each.uses]


def _cells(each: Assignment, slot: Slot) -> Tensor:
    """The cell of a parameter in each block of an argument, or -1."""
    for use in each.uses:
        if (use.site, use.argument) == (slot.site, slot.name):
            return use.cells.reshape(slot.lead)
    return torch.full(slot.lead, -1, device="cpu")
