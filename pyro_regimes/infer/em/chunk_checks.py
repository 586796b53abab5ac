"""Which models EM can fit to data in chunks."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.infer.em.problem import Problem
from pyro_regimes.infer.tracing import Site


def check_problem(problem: Problem) -> None:
    """Check that statistics of chunks are all that the steps of a model need.

    :raises ValueError: if an optimiser or least squares set parameters, or a site has lags.
    """
    check_sites({name: data.site for name, data in problem.sites.items()})
    plan = problem.plan
    if not plan.is_closed:
        raise ValueError(
            "expected a closed form for every parameter where data come in chunks, got a model in "
            f"which {plan.why_not_closed}; subsample a plate, or use all data at once"
        )
    if plan.affine.names:
        raise ValueError(
            "expected arguments that are parameters where data come in chunks, got some that are "
            f"affine functions of {plan.affine.names}; use all data at once"
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
        _check_site(data.site, number, continues)
        if continues and data.batch_shape != first.sites[name].batch_shape:
            raise ValueError(
                f"expected pieces of the same sequences in every chunk, got batch shape "
                f"{tuple(data.batch_shape)} in chunk {number} and "
                f"{tuple(first.sites[name].batch_shape)} in the first one, at site {name!r}"
            )
        _check_constants(data.site, first.sites[name].site, first.plan.updated(name), number)


def _check_site(site: Site, number: int, continues: bool) -> None:
    hmm = site.hmm
    if site.varies or hmm.transition_logits.shape[-3] != 1:
        what = "observation_dist" if site.varies else "transitions"
        raise ValueError(
            f"expected {what} constant in time where data come in chunks, got others at site "
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
        if name in updated:
            continue
        known, value = first.slots[name].value, slot.value
        if known.shape != value.shape or not torch.equal(known, value):
            raise ValueError(
                f"expected {slot.label} to be the same in every chunk, as EM does not set it, got "
                f"other values in chunk {number} than in the first one"
            )
