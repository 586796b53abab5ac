"""Finds what the objective depends on, by autograd and by runs at other points.

A parameter may be set in closed form only if everything that depends on it is known.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from pyro_regimes.emissions.base import blocks
from pyro_regimes.infer.em.recognise import identity
from pyro_regimes.infer.em.recognise.plan import Assignment
from pyro_regimes.infer.em.recognise.priors import Prior
from pyro_regimes.infer.tracing import Run, Slot, num_own_dims

#: Names of nodes in autograd's graph that join tensors.
_JOINS = ("StackBackward0", "CatBackward0")

_HIDDEN = "changes with the parameters, but has no derivative in them (a detach()?)"


def slot_in(run: Run, slot: Slot) -> Slot:
    """The same argument in another run.

    :raises ValueError: if that run has no such argument.
    """
    site = run.chains.get(slot.site)
    found = None if site is None else site.slots.get(slot.name)
    if found is None or found.value.shape != slot.value.shape:
        raise ValueError(
            f"expected a model whose sites do not depend on parameter values, got {slot.label} "
            f"of shape {tuple(slot.value.shape)} at one point and not at another"
        )
    return found


def is_of_sequences(run: Run, slot: Slot) -> bool:
    """Whether an argument differs between sequences."""
    if slot.site in run.priors:
        return False
    tail = num_own_dims(slot.argument, run.sites[slot.site])
    return slot.lead[: max(0, len(slot.lead) - tail)].numel() > 1


def depends(value: Tensor, leaf: Tensor) -> bool:
    """Whether a tensor depends on another one, as far as autograd sees."""
    if not value.requires_grad:
        return False
    (found,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
    return found is not None


def gradients_of(
    output: Tensor, params: dict[str, Tensor], cotangent: Tensor | None = None
) -> dict[str, Tensor]:
    """The vector-Jacobian products in every parameter that the output depends on."""
    if not output.requires_grad:
        return {}
    cotangent = torch.ones_like(output) if cotangent is None else cotangent
    found = torch.autograd.grad(
        output, list(params.values()), cotangent, retain_graph=True, allow_unused=True
    )
    return {
        name: gradient
        for name, gradient in zip(params, found, strict=True)
        if gradient is not None
    }


#: Names of parameters, by site and argument.
Reached = dict[tuple[str, str], set[str]]


def reached_in(run: Run, like: Run | None = None) -> Reached:
    """The parameters that each argument depends on in a run.

    :param like: a run whose arguments these are; None for the same.
    """
    slots = (run if like is None else like).slots
    return {(slot.site, slot.name): _reached(slot_in(run, slot).value, run) for slot in slots}


def _reached(value: Tensor, run: Run) -> set[str]:
    name = _viewed_parameter(value, run)
    if name is not None:
        return {name}
    return set(gradients_of(value, run.params)) - _beside(value, run)


def _beside(value: Tensor, run: Run) -> set[str]:
    """Parameters of tensors that were stacked beside those of which a value is a view.

    Autograd gives them a derivative of 0, and not none. A Beta, for one, keeps both of its
    concentrations in one tensor.
    """
    joined, waiting = [], [identity.below_views(value.grad_fn)]
    while waiting:
        node = waiting.pop()
        if node is not None and node.name() in _JOINS:
            edges = [GradientEdge(*edge) for edge in node.next_functions if edge[0] is not None]
            joined += edges
            waiting += [identity.below_views(edge.node) for edge in edges]
    if not joined:
        return set()
    found = torch.autograd.grad(
        value, joined, torch.ones_like(value), retain_graph=True, allow_unused=True
    )
    seen: set[Any] = set()
    unseen: set[Any] = set()
    for edge, gradient in zip(joined, found, strict=True):
        is_seen = gradient is not None and bool((gradient != 0).any())
        below = identity.below_views(edge.node)
        if not is_seen:
            unseen.add(edge.node)
        elif below is None or below.name() not in _JOINS:  # else its own parts tell
            seen.add(edge.node)
    within, beside = _leaves(seen), _leaves(unseen)
    return {
        name
        for name, parameter in run.params.items()
        if id(parameter) in beside and id(parameter) not in within
    }


def _leaves(nodes: set[Any]) -> set[int]:
    """The leaves that autograd reaches from some nodes, by their identity."""
    found, waiting, known = set(), list(nodes), set(nodes)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        for following, _ in node.next_functions:
            if following is not None and following not in known:
                known.add(following)
                waiting.append(following)
    return found


def _viewed_parameter(value: Tensor, run: Run) -> str | None:
    """The parameter of which a tensor is a view, and on which alone it depends therefore."""
    leaf = identity.viewed(value)
    if leaf is None:
        return None
    return next((name for name, parameter in run.params.items() if parameter is leaf), None)


def other_uses(
    runs: list[Run], priors: dict[str, Prior | None], set_at: dict[str, set[str]]
) -> dict[str, str]:
    """Parameters that reach the objective in any way but through a recognised argument.

    :param set_at: the parameters that are recognised arguments of each prior.
    """
    refused: dict[str, str] = {}
    for run in runs:
        own: dict[str, str] = {}  # of parameters that are a site's value: the least telling reason
        for latent in run.latents.values():
            of_value = gradients_of(latent.value, run.params)
            for name in gradients_of(latent.log_prob, run.params):
                prior = priors.get(name)
                if name in set_at.get(latent.name, ()) and name not in of_value:
                    continue
                if prior is None or prior.site != latent.name:
                    reasons = own if name in of_value else refused
                    reasons.setdefault(name, f"used in the prior of site {latent.name}")
        routes = {f"the log density of site {name}": value for name, value in run.others.items()}
        for site in run.sites.values():
            routes[f"the observed value of site {site.name}"] = site.value
            if isinstance(site.scale, Tensor):
                routes[f"the scale of site {site.name}"] = site.scale
            if site.family is None:
                kind = type(site.base).__name__
                label = f"the observation distribution of site {site.name}, {kind}, which has no"
                routes[f"{label} closed form here"] = site.densities()
        for route, value in routes.items():
            for name in gradients_of(value, run.params):
                refused.setdefault(name, f"used in {route}")
        for name, reason in own.items():
            refused.setdefault(name, reason)
        _refuse_direct_reads(run, routes, refused)
    return refused


def _refuse_direct_reads(run: Run, routes: dict[str, Tensor], refused: dict[str, str]) -> None:
    """Find tensors of the store that the model reads directly, not through ``pyro.param``."""
    leaves = dict(pyro.get_param_store().named_parameters())
    leaves = {name: leaves[name] for name in run.params if leaves[name].requires_grad}
    outputs = list(routes.values()) + [slot.value for slot in run.slots]
    outputs = [
        output
        for output in outputs
        if output.requires_grad and _viewed_parameter(output, run) is None
    ]
    if not leaves or not outputs:
        return
    cotangents = [torch.ones_like(output) for output in outputs]
    found = torch.autograd.grad(
        outputs, list(leaves.values()), cotangents, retain_graph=True, allow_unused=True
    )
    for name, gradient in zip(leaves, found, strict=True):
        if gradient is not None:
            refused.setdefault(name, "read directly by a module, not through pyro.param")


def find_hidden_dependence(
    runs: list[Run],
    assignments: list[Assignment],
    refused: dict[str, str],
    covered: set[tuple[str, str]],
    reached: Reached,
) -> dict[str, str]:
    """Find quantities that change with the parameters although autograd sees no dependence.

    :param covered: arguments that are affine in parameters, of which this has been asked.
    :param reached: the parameters that each argument depends on in the first run.
    """
    found: dict[str, str] = {}
    known: dict[tuple[str, str], Tensor] = {}
    covered = covered | {
        (use.site, use.argument) for each in assignments for use in each.uses if use.whole
    }
    for each in assignments:
        for use in each.uses:
            if use.whole:
                continue
            free = known.setdefault((use.site, use.argument), use.cells < 0)
            known[use.site, use.argument] = free & (use.cells < 0)
    for slot in runs[0].slots:
        if (slot.site, slot.name) in covered:
            continue
        if any(name in refused for name in reached[slot.site, slot.name]):
            continue
        everything = torch.ones(slot.lead.numel(), dtype=torch.bool, device="cpu")
        constant = known.get((slot.site, slot.name), everything)
        if not constant.any():
            continue
        values = [
            # Of logits, all but one of a row may be -inf: it is a constant, whatever the one is.
            slot.argument.canonical(
                blocks(slot_in(run, slot).value.detach(), slot.event_dim)[
                    constant.to(slot.value.device)
                ]
            )
            for run in runs
        ]
        if any(not torch.equal(values[0], value) for value in values[1:]):
            found[slot.label] = _HIDDEN
    if not refused and not found:  # else these may change, and the reason is told already
        first, *others = (_surroundings(run) for run in runs)
        for label, value in first.items():
            if any(label not in other or not _same(value, other[label]) for other in others):
                found[label] = _HIDDEN
    return found


def differs(one: Run, other: Run) -> bool:
    """Whether two runs at the same parameters differ."""
    first, second = (_surroundings(run) for run in (one, other))
    if any(label not in second or not _same(first[label], second[label]) for label in first):
        return True
    pairs = ((each.value, slot_in(other, each).value) for each in one.slots)
    return not all(_same(*pair) for pair in pairs)


def _surroundings(run: Run) -> dict[str, Any]:
    """Other quantities in the objective, which EM assumes to be constant."""
    found: dict[str, Any] = {f"{name}.log_prob": value for name, value in run.others.items()}
    for name, site in run.sites.items():
        found[f"{name}.value"] = site.value
        found[f"{name}.lengths"] = site.hmm.lengths
        found[f"{name}.packed_lengths"] = site.hmm.packed_lengths
        found[f"{name}.allowed_states"] = site.hmm.allowed_states
        found[f"{name}.gaps"] = site.hmm.gaps
        found[f"{name}.scale"] = site.scale
        found[f"{name}.mask"] = site.mask
        found[f"{name}.observation_dist.mask"] = site.observation_mask
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two tensors, or two plain values, are equal; NaN equals itself."""
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
