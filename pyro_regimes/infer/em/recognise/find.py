"""Finds the parameters of a model that EM can set, and how they were broadcast.

A parameter may be set in closed form if every argument of an observed RegimeHMM that depends on it
*equals* it, up to broadcasting and selection (see :mod:`.identity`), and if it has no other use.
Both conditions are tested at the current point and at two points far from it, since ``tanh(loc)``
equals ``loc`` to first order at 0, and ``loc.clamp(-10, 10)`` equals it at every point inside.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Argument
from pyro_regimes.emissions.links import Link
from pyro_regimes.infer.em.recognise import identity
from pyro_regimes.infer.em.recognise.affine import Affine
from pyro_regimes.infer.em.recognise.dependence import (
    Reached,
    differs,
    find_hidden_dependence,
    gradients_of,
    is_of_sequences,
    other_uses,
    reached_in,
    slot_in,
)
from pyro_regimes.infer.em.recognise.joint import find_joint
from pyro_regimes.infer.em.recognise.locations import find_affine
from pyro_regimes.infer.em.recognise.log_linear import find_log_linear
from pyro_regimes.infer.em.recognise.multiples import find_multiples
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan, Use
from pyro_regimes.infer.em.recognise.points import (
    TWO_KINDS,
    Reader,
    run_at_three_points,
    run_elsewhere,
)
from pyro_regimes.infer.em.recognise.predicted import find_predicted, is_real
from pyro_regimes.infer.em.recognise.priors import find_affine_prior, find_prior
from pyro_regimes.infer.em.recognise.stationary import with_stationary
from pyro_regimes.infer.trace_checks import check_arguments
from pyro_regimes.infer.tracing import Run, Slot, constraint_of

_RANDOM = (
    "changes from one run of the model to the next (is it random?); EM needs the same "
    "function at every call: pass the data as arguments, or subsample by a pyro.plate"
)

_BESIDE = "used beside a parameter that has no closed form"


def find_parameters(current: Run, read: Reader, may_move: bool = False) -> Plan:
    """Trace the model at two more points and plan the update of every parameter.

    :param current: a run at the stored parameters, recorded by autograd.
    :param read: runs the model, at given values of its parameters.
    :param may_move: whether parameters without a closed form may be left to an optimiser.
    :raises ValueError: naming every parameter that has no closed form here, with the reason.
    """
    with torch.enable_grad():
        if not current.params:
            raise ValueError("expected the model to read at least one pyro.param, got none")
        _check_starts(current)
        check_arguments({slot.label: slot.value for slot in current.slots})
        current, runs, held, refused, stationary = run_at_three_points(current, read)
        reached_here = reached_in(current)
        elsewhere = [reached_in(run, current) for run in runs[1:]]
        reached = {
            slot: names.union(*(each[slot] for each in elsewhere))
            for slot, names in reached_here.items()
        }
        assignments = []
        for name in current.params:
            if name in refused or name not in held:
                continue
            found = _recognise(name, held[name][0], runs, reached)
            if isinstance(found, str):
                refused[name] = found
            else:
                assignments.append(found)
        candidates, of_shares, of_sizes, of_predictors = (
            [name for name in refused if name in held and all(map(which, held[name]))]
            for which in (_is_quadratic, _is_log_linear, _is_scaled, _is_predicted)
        )
        if current.priors:
            of_priors = [slot for slot in current.slots if slot.site in current.priors]
            hyper = {name for slot in of_priors for name in reached_here[slot.site, slot.name]}
            candidates = [name for name in candidates if name not in hyper]
            of_predictors = [name for name in of_predictors if name not in hyper]
        if candidates or of_shares or of_sizes:
            # A point nearby, where saturating functions are not flat.
            nearby = run_elsewhere(read, current.params, held, 2, (True,))
            runs.append(with_stationary(nearby, stationary))
        more, products = find_log_linear(of_shares, runs, refused)
        assignments += more
        sizes = find_multiples(of_sizes, runs, refused) if of_sizes else []
        of_predictors = [name for name in of_predictors if name in refused]
        predicted = _find_predicted(of_predictors, runs, read, held, refused)
        predicted, sizes = _with_intercepts(predicted, sizes, runs, read, held)
        assignments += sizes
        affine = _find_affine(candidates, runs, refused).beside(predicted)
        priors = {each.name: each.prior for each in assignments} | affine.priors
        set_at: dict[str, set[str]] = {}
        for each in assignments if current.priors else ():
            for use in each.uses:
                set_at.setdefault(use.site, set()).add(each.name)
        for name, reason in other_uses(runs, priors, set_at).items():
            refused.setdefault(name, reason)
        lost = [each.name for each in more if each.name in refused]
        if lost:
            kept = [each.name for each in more if each.name not in lost]
            again = dict.fromkeys(kept, _BESIDE)
            more, products = find_log_linear(kept, runs, again)
            refused |= again
            assignments = [each for each in assignments if each.name not in kept] + more
        closed = [name for name in affine.names if name not in refused]
        if closed != affine.names:
            affine = affine.without([name for name in affine.names if name not in closed])
        assignments = [each for each in assignments if each.name not in refused]
        assignments = [find_joint(each, assignments, current) for each in assignments]
        covered = {(use.site, use.argument) for use in affine.uses}
        hidden = find_hidden_dependence(runs, assignments, refused, covered, reached_here)
        if hidden and differs(current, read(None)):
            hidden = dict.fromkeys(hidden, _RANDOM)
    refused |= hidden
    _check_refused(refused, list(current.params), may_move)
    if not (assignments or affine.names or refused):
        raise ValueError(
            "expected at least one parameter that an observed RegimeHMM depends on, got only "
            f"{list(current.params)}, on which none does"
        )
    found_priors = [prior for prior in priors.values() if prior is not None]
    depends = not all(prior.is_constant for prior in found_priors)
    return Plan(
        assignments,
        {name: value.shape for name, value in current.params.items()},
        [name for name in current.params if name not in held and name not in refused],
        _in_order(assignments, current),
        affine,
        refused,
        list(current.sites),
        current.is_subsampled,
        bool(refused or affine.names or current.is_subsampled or depends),
        tuple(stationary),
        products,
        tuple(name for name in [*current.plain, *current.latents] if name in current.chains),
    )


def _is_quadratic(argument: Argument) -> bool:
    return argument.is_quadratic


def _is_predicted(argument: Argument) -> bool:
    return bool(argument.predictors)


def _is_scaled(argument: Argument) -> bool:
    return argument.scaling is not None


def _is_log_linear(argument: Argument) -> bool:
    return argument.is_log_linear


def _check_starts(run: Run) -> None:
    """Check that no start is outside its constraint, which Pyro converts to NaN."""
    outside = [name for name, value in run.params.items() if _has_nan(value)]
    if outside:
        constraints = {name: str(constraint_of(name)) for name in outside}
        raise ValueError(
            "expected parameters without NaN, got NaN (from a start outside its constraint?) in "
            f"{constraints}"
        )


def _has_nan(value: Tensor) -> bool:
    value = value.detach()
    return math.isnan(value.sum().item()) and bool(value.isnan().any())


def _check_refused(refused: dict[str, str], names: list[str], may_move: bool) -> None:
    reasons = "".join(f"\n  {name}: {reason}" for name, reason in refused.items())
    if not may_move and refused:
        raise ValueError(
            f"expected parameters that EM can set in closed form, or an optim, got{reasons}"
        )
    others = {name: reason for name, reason in refused.items() if name not in names}
    if others:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in others.items())
        raise ValueError(f"expected an objective that autograd can differentiate, got{reasons}")


def _find_affine(candidates: list[str], runs: list[Run], refused: dict[str, str]) -> Affine:
    """Find the candidates in which locations are affine, and remove them from ``refused``."""
    reasons: dict[str, str] = {}
    found = find_affine(candidates, runs, reasons)
    priors = {}
    here = runs[0]
    if here.is_subsampled:
        for slot in here.slots:
            if slot.argument.is_quadratic and is_of_sequences(here, slot):
                why = f"{slot.label} holds a value for each sequence of a subsampled plate"
                reached = gradients_of(slot.value, here.params)
                reasons |= {name: why for name in found[0] if name in reached}
    for name in found[0]:
        prior = find_affine_prior(name, runs)
        if isinstance(prior, str):
            reasons[name] = prior
        elif prior is not None:
            priors[name] = prior
    names = [name for name in found[0] if name not in reasons]
    if names != found[0]:
        found = find_affine(names, runs, reasons)
    names, uses = found
    for name in names:
        refused.pop(name, None)
    refused |= reasons  # which say more than that it is no argument itself
    shapes = [here.params[name].shape for name in names]
    return Affine(names, shapes, uses, priors)


def _find_predicted(
    candidates: list[str],
    runs: list[Run],
    read: Reader,
    held: dict[str, list[Argument]],
    refused: dict[str, str],
) -> Affine:
    """The same of linear predictors, whose coefficients are any real numbers."""
    priors = {}
    candidates = [name for name in candidates if is_real(constraint_of(name))]
    for name in list(candidates):
        prior = find_affine_prior(name, runs)
        if isinstance(prior, str):
            refused[name] = f"{refused[name]}, and {prior}"
            candidates.remove(name)
        elif prior is not None:
            priors[name] = prior
    names, uses = find_predicted(candidates, runs[0], read, held, refused)
    for name in names:
        refused.pop(name, None)
    shapes = [runs[0].params[name].shape for name in names]
    priors = {name: prior for name, prior in priors.items() if name in names}
    return Affine(names, shapes, uses, priors, frozenset(names))


def _with_intercepts(
    predicted: Affine,
    sizes: list[Assignment],
    runs: list[Run],
    read: Reader,
    held: dict[str, list[Argument]],
) -> tuple[Affine, list[Assignment]]:
    """Linear predictors with the logarithms of factors beside them, which are intercepts.

    Solved for together they need fewer steps than in turn.
    """
    covered = {(use.site, use.argument) for use in predicted.uses}
    beside = {
        each.name
        for each in sizes
        if each.link.name.startswith("log of")
        and each.prior is None
        and any((use.site, use.argument) in covered for use in each.uses)
    }
    if not beside:
        return predicted, sizes
    names = [*predicted.names, *sorted(beside)]
    found = _find_predicted(names, runs, read, held, dict.fromkeys(names, ""))
    if len(found.names) < len(names):
        return predicted, sizes
    return found, [each for each in sizes if each.name not in beside]


def _in_order(assignments: list[Assignment], run: Run) -> list[Assignment]:
    """The order of updates: parameters of a prior come after what has this prior."""
    place, depth = _place(run), {each.name: 0 for each in assignments}
    if not run.priors:
        return sorted(assignments, key=place)
    owners = {each.prior.site: each.name for each in assignments if each.prior is not None}
    for _ in assignments:
        for each in assignments:
            below = [owners[use.site] for use in each.uses if use.site in owners]
            below = [name for name in below if name != each.name]
            depth[each.name] = max([depth[each.name], *(1 + depth[name] for name in below)])
    return sorted(assignments, key=lambda each: (depth[each.name], place(each)))


def _place(run: Run) -> Callable[[Assignment], int]:
    """The place in the order of updates; a family defines that of its arguments (ECM)."""
    places: dict[Argument, int] = {}
    for site in run.sites.values():
        if site.family is not None:
            places |= {argument: place for place, argument in enumerate(site.family.arguments)}
    return lambda each: places.get(each.argument, 1)


def _recognise(
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
