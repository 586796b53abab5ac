"""Which models EM can fit to data in chunks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.infer.em.problem import Problem
from pyro_regimes.infer.tracing import Site, Slot


def check_problem(problem: Problem) -> None:
    """Check that sums over chunks are all that the steps of a model need.

    :raises ValueError: if data are subsampled, a prior depends on parameters, or a site has lags.
    """
    check_sites({name: data.site for name, data in problem.sites.items()})
    without = problem.plan._replace(gradient={})
    if not without.is_closed:
        raise ValueError(
            "expected a model whose expected statistics add up where data come in chunks, got one "
            f"in which {without.why_not_closed}; use all data at once"
        )


def check_sites(sites: dict[str, Site], others: Iterable[str] = ()) -> None:
    """Check that all that a model observes comes in chunks.

    :param others: names of sites of other distributions.
    :raises ValueError: naming a site that does not.
    """
    others = [*others, *(name for name, s in sites.items() if not isinstance(s.hmm, RegimeHMM))]
    if others:
        raise ValueError(
            "expected a model that observes RegimeHMM sites alone where data come in chunks, got "
            f"the site {others[0]!r} of another distribution"
        )


def check_chunk(number: int, problem: Problem, first: Problem, continues: bool) -> None:
    """Check that a chunk can be added to the first one.

    :param number: of the chunk, from 1.
    :param continues: whether the chunks are pieces of one sequence.
    :raises ValueError: if it cannot.
    """
    if problem.groups.num_restarts != first.groups.num_restarts:
        raise ValueError(
            f"expected the same restarts in every chunk, got {problem.groups.num_restarts} in "
            f"chunk {number} and {first.groups.num_restarts} in the first one"
        )
    for name, data in problem.sites.items():
        _check_site(data.site, first.plan.updated(name), number, continues)
        if continues and data.batch_shape != first.sites[name].batch_shape:
            raise ValueError(
                f"expected pieces of the same sequences in every chunk, got batch shape "
                f"{tuple(data.batch_shape)} in chunk {number} and "
                f"{tuple(first.sites[name].batch_shape)} in the first one, at site {name!r}"
            )
        _check_constants(data.site, first.sites[name].site, first.plan.updated(name), number)


def check_moved(number: int, problem: Problem, known: dict[str, Tensor]) -> None:
    """Check that arguments that an optimiser moves are the same in all chunks of a pass.

    They need not be at sites of which EM sets no argument of the distribution, as their gradients
    are those of each chunk.

    :param known: those of the first chunk, which are noted there.
    :raises ValueError: if they are not.
    """
    for name, data in problem.sites.items():
        updated, family = problem.plan.updated(name), data.site.family
        if family is None or updated.isdisjoint(each.name for each in family.arguments):
            continue
        for slot in data.site.slots.values():
            if slot.name in updated or slot.argument not in family.arguments:
                continue
            if slot.value.requires_grad:
                value = slot.value.detach()
                _check_same(slot, known.setdefault(slot.label, value), number, "sets others")


def varies(site: Site, updated: frozenset[str]) -> bool:
    """Whether a distribution of which EM sets an argument varies in time."""
    arguments = () if site.family is None else site.family.arguments
    return site.varies and not updated.isdisjoint(each.name for each in arguments)


def check_one_piece(problem: Problem) -> None:
    """Check that EM can be made on the tensors of one piece of a sequence.

    :raises ValueError: if it cannot.
    """
    if problem.plan.gradient:
        raise ValueError(
            "expected a closed form for every parameter where data are pieces of a sequence and "
            f"distributions vary in time, got one in which {problem.plan.why_not_closed}"
        )
    for data in problem.sites.values():
        _check_chain(data.site, 1, True)


def _check_site(site: Site, updated: frozenset[str], number: int, continues: bool) -> None:
    if varies(site, updated):
        raise ValueError(
            "expected observation_dist constant in time where data come in several chunks, got "
            f"others at site {site.name!r} in chunk {number}; use all data at once, or split one "
            "sequence among ranks with one chunk on each"
        )
    _check_chain(site, number, continues)


def _check_chain(site: Site, number: int, continues: bool) -> None:
    hmm = site.hmm
    if hmm.transition_logits.shape[-3] != 1:
        raise ValueError(
            "expected transitions constant in time where data come in chunks, got others at site "
            f"{site.name!r} in chunk {number}"
        )
    if not continues:
        return
    for name in ("lengths", "packed_lengths", "gaps"):
        if getattr(hmm, name) is not None:
            raise ValueError(
                f"expected no {name} at site {site.name!r} where chunks are pieces of one "
                "sequence; Chunks(..., continues=False) is for chunks of whole sequences"
            )


def _check_constants(site: Site, first: Site, updated: frozenset[str], number: int) -> None:
    """Check that arguments that EM does not set are the same in all chunks."""
    for name, slot in site.slots.items():
        if name not in updated and not slot.value.requires_grad:
            _check_same(slot, first.slots[name].value, number, "does not set it")


def _check_same(slot: Slot, known: Tensor, number: int, why: str) -> None:
    if known.shape != slot.value.shape or not torch.equal(known, slot.value):
        raise ValueError(
            f"expected {slot.label} to be the same in every chunk, as EM {why}, got "
            f"other values in chunk {number} than in the first one"
        )
