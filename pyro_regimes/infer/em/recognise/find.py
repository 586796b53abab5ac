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
from pyro_regimes.infer.em.recognise.affine import Affine
from pyro_regimes.infer.em.recognise.dependence import (
    Reached,
    differs,
    find_hidden_dependence,
    other_uses,
    reached_in,
)
from pyro_regimes.infer.em.recognise.joint import find_joint
from pyro_regimes.infer.em.recognise.linear import (
    affine_with_priors,
    predictors_with_priors,
    with_intercepts,
)
from pyro_regimes.infer.em.recognise.log_linear import find_log_linear
from pyro_regimes.infer.em.recognise.matching import recognise
from pyro_regimes.infer.em.recognise.multiples import find_multiples
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan
from pyro_regimes.infer.em.recognise.points import Reader, run_at_three_points, run_elsewhere
from pyro_regimes.infer.em.recognise.powers import Products
from pyro_regimes.infer.em.recognise.stationary import with_stationary
from pyro_regimes.infer.trace_checks import check_arguments
from pyro_regimes.infer.tracing import Run, constraint_of

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
        _check_starts(current)
        current, runs, held, refused, stationary = run_at_three_points(current, read)
        reached_here = reached_in(current)
        assignments = _assign(held, runs, _reached_in_any(runs, reached_here), refused)
        candidates, of_shares, of_sizes, of_predictors = (
            _candidates(which, held, current, reached_here, refused)
            for which in (_is_quadratic, _is_log_linear, _is_scaled, _is_predicted)
        )
        if candidates or of_shares or of_sizes:
            # A point nearby, where saturating functions are not flat.
            nearby = run_elsewhere(read, current.params, held, 2, (True,))
            runs.append(with_stationary(nearby, stationary))
        more, products = find_log_linear(of_shares, runs, refused)
        sizes = find_multiples(of_sizes, runs, refused) if of_sizes else []
        of_predictors = [name for name in of_predictors if name in refused]
        predicted = predictors_with_priors(of_predictors, runs, read, held, refused)
        predicted, sizes = with_intercepts(predicted, sizes, runs, read, held)
        assignments += [*more, *sizes]
        affine = affine_with_priors(candidates, runs, refused).beside(predicted)
        priors = {each.name: each.prior for each in assignments} | affine.priors
        for name, reason in other_uses(runs, priors, _set_at(assignments, current)).items():
            refused.setdefault(name, reason)
        if any(each.name in refused for each in more):
            products, assignments = _without_refused(more, assignments, runs, refused)
        lost = [name for name in affine.names if name in refused]
        if lost:
            affine = affine.without(lost)
        assignments = [each for each in assignments if each.name not in refused]
        assignments = [find_joint(each, assignments, current) for each in assignments]
        covered = {(use.site, use.argument) for use in affine.uses}
        hidden = find_hidden_dependence(runs, assignments, refused, covered, reached_here)
        if hidden and differs(current, read(None)):
            hidden = dict.fromkeys(hidden, _RANDOM)
    refused |= hidden
    _check_refused(refused, list(current.params), may_move)
    _check_some(assignments, affine, refused, current)
    depends = any(prior is not None and not prior.is_constant for prior in priors.values())
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


def _reached_in_any(runs: list[Run], reached_here: Reached) -> Reached:
    """The parameters that each argument depends on in some run."""
    elsewhere = [reached_in(run, runs[0]) for run in runs[1:]]
    return {
        slot: names.union(*(each[slot] for each in elsewhere))
        for slot, names in reached_here.items()
    }


def _assign(
    held: dict[str, list[Argument]], runs: list[Run], reached: Reached, refused: dict[str, str]
) -> list[Assignment]:
    """The assignments of parameters that equal arguments; the others are added to ``refused``."""
    assignments = []
    for name in runs[0].params:
        if name in refused or name not in held:
            continue
        found = recognise(name, held[name][0], runs, reached)
        if isinstance(found, str):
            refused[name] = found
        else:
            assignments.append(found)
    return assignments


def _candidates(
    which: Callable[[Argument], bool],
    held: dict[str, list[Argument]],
    current: Run,
    reached: Reached,
    refused: dict[str, str],
) -> list[str]:
    """The refused parameters whose arguments are all of one kind."""
    found = [name for name in refused if name in held and all(map(which, held[name]))]
    if which not in (_is_quadratic, _is_predicted):
        return found
    of_priors = [slot for slot in current.slots if slot.site in current.priors]
    hyper = {name for slot in of_priors for name in reached[slot.site, slot.name]}
    return [name for name in found if name not in hyper]


def _without_refused(
    factors: list[Assignment],
    assignments: list[Assignment],
    runs: list[Run],
    refused: dict[str, str],
) -> tuple[tuple[Products, ...], list[Assignment]]:
    """Find products of probabilities again, without the factors that have another use."""
    kept = [each.name for each in factors if each.name not in refused]
    again = dict.fromkeys(kept, _BESIDE)
    found, products = find_log_linear(kept, runs, again)
    refused |= again
    return products, [each for each in assignments if each.name not in kept] + found


def _set_at(assignments: list[Assignment], current: Run) -> dict[str, set[str]]:
    """The parameters that are recognised arguments of each site, if some priors have them."""
    found: dict[str, set[str]] = {}
    for each in assignments if current.priors else ():
        for use in each.uses:
            found.setdefault(use.site, set()).add(each.name)
    return found


def _is_quadratic(argument: Argument) -> bool:
    return argument.is_quadratic


def _is_predicted(argument: Argument) -> bool:
    return bool(argument.predictors)


def _is_scaled(argument: Argument) -> bool:
    return argument.scaling is not None


def _is_log_linear(argument: Argument) -> bool:
    return argument.is_log_linear


def _check_starts(run: Run) -> None:
    """Check the arguments, and that no start is outside its constraint, which Pyro makes NaN."""
    if not run.params:
        raise ValueError("expected the model to read at least one pyro.param, got none")
    outside = [name for name, value in run.params.items() if _has_nan(value)]
    if outside:
        constraints = {name: str(constraint_of(name)) for name in outside}
        raise ValueError(
            "expected parameters without NaN, got NaN (from a start outside its constraint?) in "
            f"{constraints}"
        )
    check_arguments({slot.label: slot.value for slot in run.slots})


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


def _check_some(
    assignments: list[Assignment], affine: Affine, refused: dict[str, str], run: Run
) -> None:
    """:raises ValueError: if the objective depends on no parameter."""
    if not (assignments or affine.names or refused):
        raise ValueError(
            "expected at least one parameter that an observed RegimeHMM depends on, got only "
            f"{list(run.params)}, on which none does"
        )


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
