"""Matches a parameter with the arguments that depend on it, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Argument
from pyro_regimes.emissions.links import Link
from pyro_regimes.infer.em.recognise import identity
from pyro_regimes.infer.em.recognise.dependence import Reached, is_of_sequences, slot_in
from pyro_regimes.infer.em.recognise.plan import Assignment, Use
from pyro_regimes.infer.em.recognise.points import TWO_KINDS
from pyro_regimes.infer.em.recognise.priors import find_prior
from pyro_regimes.infer.tracing import Run, Slot


def recognise(
    name: str, argument: Argument, runs: list[Run], reached: Reached
) -> Assignment | str:
    """The assignment of a parameter that holds one kind of argument, or why it has none.

    :param reached: the parameters that each argument depends on.
    """
    here = runs[0]
    uses: list[Use] = []
    if not argument.links:
        return f"an argument without a closed form, {argument.name}"
    link, num_cells = argument.links[0], 0
    for slot in here.slots:
        if name not in reached[slot.site, slot.name]:
            continue
        if slot.argument.kind != argument.kind:
            return f"{TWO_KINDS}, {uses[0].site}.{uses[0].argument} and {slot.label}"
        found = _match(slot, name, runs)
        if isinstance(found, str):
            return found
        cells, held = found
        if uses and held is not link:
            return f"used as {link.name} in one place and as {held.name} in {slot.label}"
        link = held
        num_cells = here.params[name].numel() // max(
            1, here.params[name].shape[here.params[name].dim() - slot.event_dim :].numel()
        )
        whole = torch.equal(cells, torch.arange(num_cells, device="cpu"))
        uses.append(Use(slot.site, slot.name, cells, whole))
    for slot in (here.chains[use.site].slots[use.argument] for use in uses):
        if here.is_subsampled and is_of_sequences(here, slot):
            return (
                f"{slot.label} holds a value for each sequence of a subsampled plate (perhaps only "
                "as another argument of the distribution does)"
            )
    prior = find_prior(name, argument, link, runs)
    if isinstance(prior, str):
        return prior
    return Assignment(name, argument, uses, num_cells, link, _is_shared(uses, num_cells), prior)


def _match(slot: Slot, name: str, runs: list[Run]) -> tuple[Tensor, Link] | str:
    """The cell that each block of an argument equals, and the link; or the reason for no match."""
    reason = f"{slot.label} is a function of it that is not the identity, broadcast or selected"
    seen = [(slot_in(run, slot), run.params[name]) for run in runs]
    are_views = all(identity.viewed(there.value) is parameter for there, parameter in seen)
    for link in slot.argument.links:
        is_whole = are_views and all(identity.is_whole(*each, link) for each in seen)
        if is_whole and identity.is_valid(slot):
            return torch.arange(slot.lead.numel(), device="cpu"), link
        cells = identity.find_cells(*seen[1], link)
        if cells is None:
            continue
        is_view = link.is_identity and identity.is_same_view(*map(list, zip(*seen, strict=True)))
        if not all(identity.agrees(*each, cells, link) for each in seen):
            reason = f"{slot.label} is not equal to it at every admissible value"
        elif not is_view and not all(
            identity.same_derivative(*each, cells, link) for each in seen
        ):
            reason = f"{slot.label} has a derivative in it that is not that of the identity"
        else:
            return cells, link
    there = runs[1]
    is_finite = bool(there.params[name].isfinite().all())
    if is_finite and bool((slot_in(there, slot).value == -torch.inf).any()):
        reason += (
            ": it holds -inf where the parameter does not. Give the parameter a start of -inf "
            "there, in place of a mask in the model: EM keeps a probability of 0"
        )
    return reason


def _is_shared(uses: list[Use], num_cells: int) -> bool:
    """Whether some cell is used for several blocks."""
    if not uses or len(uses) == 1 and uses[0].whole:
        return False
    cells = torch.cat([use.cells[use.cells >= 0] for use in uses])
    return bool((torch.bincount(cells, minlength=num_cells) > 1).any())
