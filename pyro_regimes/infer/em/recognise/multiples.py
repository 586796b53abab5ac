r"""Finds spreads that are products of a parameter and of anything else.

A parameter is a factor of a size s of a block if :math:`\partial \log s / \partial \log h = 1` for
its cell h behind a link, at every admissible value, and if nothing else about the block depends on
it. The rest of the product is a constant (an annualised volatility), another such parameter (a
scale for each regime times a common base), or what an optimiser moves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.base import blocks
from pyro_regimes.emissions.links import Link
from pyro_regimes.infer.em.recognise.dependence import (
    depends,
    gradients_of,
    is_of_sequences,
    slot_in,
)
from pyro_regimes.infer.em.recognise.factors import SizeUse
from pyro_regimes.infer.em.recognise.jacobian import differentiate
from pyro_regimes.infer.em.recognise.matrices import (
    NO_FACTOR,
    find_matrices,
    holds_matrices,
    scaling_of,
)
from pyro_regimes.infer.em.recognise.plan import Assignment
from pyro_regimes.infer.em.recognise.priors import find_prior
from pyro_regimes.infer.tracing import Run, Slot

#: The most derivatives, sizes of an argument in entries of a parameter.
_MOST = 2**22


class _Found(NamedTuple):
    """The sizes of which a parameter is a factor, by site and argument."""

    link: Link
    labels: dict[tuple[str, str], Tensor]


def find_multiples(
    candidates: list[str], runs: list[Run], refused: dict[str, str]
) -> list[Assignment]:
    """The parameters, of the candidates, that are factors of spreads.

    They are removed from ``refused``; the reason of others says more after it.

    :param runs: at the current point and at random ones.
    """
    found: dict[str, _Found] = {}
    assignments = []
    for name in candidates:
        if holds_matrices(name, runs[0]):
            matrices = find_matrices(name, runs)
            if isinstance(matrices, str):
                refused[name] = f"{refused[name]}, and {matrices}"
            else:
                refused.pop(name)
                assignments.append(matrices)
            continue
        each = _find(name, runs)
        if isinstance(each, str):
            refused[name] = f"{refused[name]}, and {each}"
        else:
            found[name] = each
    for slot in runs[0].slots:
        names = [name for name, each in found.items() if (slot.site, slot.name) in each.labels]
        if names and not _has_the_values(slot, {name: found[name] for name in names}, runs):
            for name in names:
                refused[name] = (
                    f"{slot.label} changes with it in a way that contradicts its derivative"
                )
                del found[name]
    for name, each in found.items():
        assigned = _assign(name, each, runs)
        if isinstance(assigned, str):
            refused[name] = assigned
        else:
            refused.pop(name)
            assignments.append(assigned)
    return assignments


def _log_sizes(slot: Slot) -> Tensor:
    """``(blocks, m)``, float64."""
    return scaling_of(slot).sizes(blocks(slot.value, slot.event_dim)).double().log()


def _find(name: str, runs: list[Run]) -> _Found | str:
    """The sizes of which a parameter is a factor, and its link."""
    links: list[Link] = []
    labels: dict[tuple[str, str], Tensor] = {}
    for slot in runs[0].slots:
        if not any(depends(slot_in(run, slot).value, run.params[name]) for run in runs):
            continue
        if runs[0].is_subsampled and is_of_sequences(runs[0], slot):
            return f"{slot.label} holds a value for each sequence of a subsampled plate"
        if any(_moves_shape(slot_in(run, slot), run.params[name], run) for run in runs):
            return f"{slot.label} {NO_FACTOR}"
        derivatives = _derivatives(slot, name, runs)
        if isinstance(derivatives, str):
            return derivatives
        kinds = links or scaling_of(slot).argument.links
        links, own = [], None
        for link in kinds:
            own = _label(derivatives, link, name, runs)
            if own is not None:
                links = [link]
                break
        if own is None:
            return f"{slot.label} {NO_FACTOR}"
        labels[slot.site, slot.name] = own
    return _Found(links[0], labels)


def _moves_shape(slot: Slot, leaf: Tensor, run: Run) -> bool:
    """Whether more of the blocks than their sizes depends on a parameter."""
    shape = scaling_of(slot).shape
    if shape is None:
        return False
    rest = shape(blocks(slot.value, slot.event_dim))
    generator = torch.Generator().manual_seed(4)
    cotangent = torch.randn(rest.shape, generator=generator, dtype=torch.float64, device="cpu")
    if not rest.requires_grad:
        return False
    (found,) = torch.autograd.grad(
        rest, leaf, cotangent.to(rest), retain_graph=True, allow_unused=True
    )
    if found is None:
        return False
    tolerance = torch.finfo(leaf.dtype).eps ** 0.4 * rest.shape[-1]
    return not bool(((found * leaf).abs() <= tolerance).all())


def _derivatives(slot: Slot, name: str, runs: list[Run]) -> list[Tensor] | str:
    """The derivatives of the log sizes in each run, ``(restarts, sizes, parameter's entries)``."""
    leaf = runs[0].params[name]
    heads = [1]
    if leaf.dim() and slot.value.dim() and leaf.shape[0] == slot.value.shape[0] > 1:
        heads.insert(0, leaf.shape[0])
    for restarts in heads:
        if leaf.numel() * slot.value.numel() // restarts > _MOST:
            return f"{slot.label} depends on {leaf.numel()} entries, too many for a closed form"
        found = [
            differentiate(_log_sizes(slot_in(run, slot)), run.params[name], restarts)
            for run in runs
        ]
        kept = [each for each in found if each is not None and bool(each.isfinite().all())]
        if len(kept) == len(runs):
            return kept
    return f"{slot.label} has no finite derivative in it"


def _label(
    derivatives: list[Tensor], link: Link, name: str, runs: list[Run]
) -> Tensor | None:
    """The cell that is a factor of each size, behind a link; None if that is not so."""
    first: Tensor | None = None
    for derivative, run in zip(derivatives, runs, strict=True):
        leaf = run.params[name].detach().double().requires_grad_()
        held = link.forward(leaf).log()
        (slope,) = torch.autograd.grad(held.sum(), leaf)
        restarts = len(derivative)
        power = derivative / slope.reshape(restarts, 1, -1)
        precision = torch.finfo(run.params[name].dtype).eps ** 0.4
        is_factor = (power - 1).abs() <= precision
        if not bool((is_factor | (power.abs() <= precision)).all()):
            return None
        if first is not None and not torch.equal(first, is_factor):
            return None
        first = is_factor
    if first is None or not bool(first.any()) or bool((first.sum(-1) > 1).any()):
        return None
    offset = first.shape[-1] * torch.arange(len(first), device=first.device).unsqueeze(-1)
    own = torch.where(first.any(-1), first.long().argmax(-1) + offset, -1)
    return own.flatten().cpu()


def _has_the_values(slot: Slot, found: dict[str, _Found], runs: list[Run]) -> bool:
    """Whether nothing but the parameters changes the sizes, if all that do are known."""
    others = set()
    for run in runs:
        others |= set(gradients_of(slot_in(run, slot).value, run.params)) - set(found)
    if others:
        return True
    constants, shapes = [], []
    for run in runs:
        there = slot_in(run, slot)
        log = _log_sizes(there).detach().flatten()
        for name, each in found.items():
            held = each.link.forward(run.params[name].detach().double().flatten()).log()
            own = each.labels[slot.site, slot.name].to(held.device)
            log = log - torch.where(own >= 0, held[own.clamp(min=0)], 0.0)
        constants.append(log)
        shape = scaling_of(there).shape
        if shape is not None:
            shapes.append(shape(blocks(there.value.detach(), there.event_dim)))
    tolerance = torch.finfo(slot.value.dtype).eps ** 0.5
    return all(
        bool(((one - each).abs() <= tolerance * (1 + one.abs())).all())
        for given in (constants, shapes)
        for one in given[:1]
        for each in given[1:]
    )


def _assign(name: str, found: _Found, runs: list[Run]) -> Assignment | str:
    """The assignment of a parameter."""
    here = runs[0]
    num_cells = here.params[name].numel()
    uses: list[SizeUse] = []
    for (site, label), own in found.labels.items():
        slot = here.chains[site].slots[label]
        labels = own.reshape(slot.lead.numel(), -1)
        block = torch.arange(len(labels), device="cpu").unsqueeze(-1).expand(labels.shape)
        pairs = torch.stack([block[labels >= 0], labels[labels >= 0]], -1).unique(dim=0)
        uses.append(SizeUse(site, label, labels.amax(-1), pairs, labels, scaling_of(slot)))
    argument = uses[0].scaling.argument
    prior = find_prior(name, argument, found.link, runs)
    if isinstance(prior, str):
        return prior
    turns = _turns(uses, num_cells, runs)
    return Assignment(name, argument, uses, num_cells, found.link, False, prior, (), turns)


def _turns(uses: list[SizeUse], num_cells: int, runs: list[Run]) -> tuple[Tensor, ...]:
    """Masks of cells that are maximised in turn, as they meet in a block of correlated series."""
    meets = [use for use in uses if not _is_separable(use, runs)]
    if not meets:
        return ()
    place = torch.full((num_cells,), -1, device="cpu")
    for use in meets:
        for index in reversed(range(use.labels.shape[1])):
            own = use.labels[:, index]
            place[own[own >= 0]] = index
    for use in meets:  # two cells of a block may not have one place
        at = torch.where(use.labels >= 0, place[use.labels.clamp(min=0)], -1)
        alike = (at.unsqueeze(-1) == at.unsqueeze(-2)) & (at >= 0).unsqueeze(-1)
        differ = use.labels.unsqueeze(-1) != use.labels.unsqueeze(-2)
        if bool((alike & differ).any()):
            place = torch.arange(num_cells, device="cpu")
            break
    places = place.unique()
    return tuple(place == each for each in places) if len(places) > 1 else ()


def _is_separable(use: SizeUse, runs: list[Run]) -> bool:
    """Whether no two cells meet in a block, or only in one whose series are not correlated."""
    least = use.labels.amin(-1)
    if bool((use.labels == least.unsqueeze(-1)).all()):
        return True
    for run in runs:
        slot = run.chains[use.site].slots[use.argument]
        matrices = blocks(slot.value.detach(), slot.event_dim)
        if bool((matrices.tril(-1) != 0).any() or (matrices.triu(1) != 0).any()):
            return False
    return True
