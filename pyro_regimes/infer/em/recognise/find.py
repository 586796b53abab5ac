"""Which parameters of a model EM may set, and how they were broadcast.

A parameter may be set in closed form where every argument of an observed RegimeHMM that depends on
it *is* it, up to broadcasting and selection (:mod:`.identity` decides), and where it is used for
nothing else. Both are asked at the current point and at two others far from it, since ``tanh(loc)``
looks like ``loc`` at 0, and ``loc.clamp(-10, 10)`` at every point inside.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

import pyro
import torch
from torch import Tensor

from pyro_regimes.emissions.links import LINKS, Link
from pyro_regimes.emissions.roles import Role
from pyro_regimes.emissions.update import Update
from pyro_regimes.infer.em.recognise import identity
from pyro_regimes.infer.em.recognise.affine import Affine, find_affine
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan, Use
from pyro_regimes.infer.em.recognise.priors import Prior, find_prior
from pyro_regimes.infer.tracing import Argument, Run, Site, constraint_of

#: Runs the model at given values of its parameters, or at those of the store.
Reader = Callable[[Optional[dict[str, Tensor]]], Run]

_HIDDEN = "changes with the parameters, but has no derivative in them (a detach()?)"

_RANDOM = (
    "changes from one run of the model to the next (random numbers of its own?); EM needs the same "
    "function at every call: give the data as arguments, or subsample by a pyro.plate"
)

_TWO_ROLES = "used in arguments that have different updates"


def find_parameters(read: Reader, may_move: bool = False) -> Plan:
    """Trace the model at three points and decide about every parameter.

    :param read: runs the model, at given values of its parameters.
    :param may_move: whether parameters without a closed form may be left to an optimiser.
    :raises ValueError: naming every parameter that has no closed form here, with the reason.
    """
    with torch.enable_grad():
        current = read(None)
        if not current.params:
            raise ValueError("expected the model to read at least one pyro.param, got none")
        _check_starts(current)
        roles, refused = _assign_roles(current)
        runs = [current]
        for draw in (0, 1):
            runs.append(_run_elsewhere(read, current.params, roles, draw))
        assignments = []
        for name in current.params:
            if name in refused or name not in roles:
                continue
            found = _recognise(name, roles[name], runs)
            if isinstance(found, str):
                refused[name] = found
            else:
                assignments.append(found)
        candidates = [
            name
            for name, reason in refused.items()
            if roles.get(name) is Role.LOCATION and not reason.startswith(_TWO_ROLES)
        ]
        if candidates:  # a point nearby, where what saturates has not done so
            runs.append(_run_elsewhere(read, current.params, roles, 2, (True,)))
        affine = _find_affine(candidates, runs, refused)
        priors = {each.name: each.prior for each in assignments} | affine.priors
        for name, reason in _other_uses(runs, priors).items():
            refused.setdefault(name, reason)
        closed = [name for name in affine.names if name not in refused]
        if closed != affine.names:
            affine = _find_affine(closed, runs, refused)
        assignments = [each for each in assignments if each.name not in refused]
        covered = {(use.site, use.argument) for use in affine.uses}
        hidden = _find_hidden_dependence(runs, assignments, refused, covered)
        if hidden and _differs(current, read(None)):
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
        [name for name in current.params if name not in roles and name not in refused],
        sorted(assignments, key=lambda each: each.role is not Role.LOCATION),
        affine,
        refused,
        current.is_subsampled,
        bool(refused or affine.names or current.is_subsampled or depends),
    )


def _check_starts(run: Run) -> None:
    """Refuse a start outside its constraint, of which Pyro makes NaN."""
    outside = [name for name, value in run.params.items() if bool(value.isnan().any())]
    if outside:
        constraints = {name: str(constraint_of(name)) for name in outside}
        raise ValueError(
            "expected parameters that are numbers, got NaN, which is what a start outside the "
            f"constraint becomes, in {constraints}"
        )


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
    """The location parameters, of the candidates, that are affine; they are refused no longer."""
    reasons: dict[str, str] = {}
    found = find_affine(candidates, runs, reasons)
    priors = {}
    here = runs[0]
    if here.is_subsampled:
        for argument in _arguments(here):
            if Role.of(argument.name) is Role.LOCATION and _is_of_sequences(here, argument):
                why = f"{argument.label} holds a value for each sequence of a subsampled plate"
                reached = _gradients(argument.value, here.params)
                reasons |= {name: why for name in found[0] if name in reached}
    for name in found[0]:
        prior = find_prior(name, Role.LOCATION, LINKS[Role.LOCATION][0], 1, runs)
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


def _arguments(run: Run) -> list[Argument]:
    return [argument for site in run.sites.values() for argument in site.arguments.values()]


def _gradients(output: Tensor, params: dict[str, Tensor], cotangent: Tensor | None = None) -> dict:
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


def _assign_roles(run: Run) -> tuple[dict[str, Role], dict[str, str]]:
    """What each parameter is for, by the arguments that depend on it; and those with two roles."""
    labels: dict[str, dict[Role, list[str]]] = {}
    for argument in _arguments(run):
        for name in _gradients(argument.value, run.params):
            role = Role.of(argument.name)
            labels.setdefault(name, {}).setdefault(role, []).append(argument.label)
    refused = {}
    for name, found in labels.items():
        if len(found) > 1:
            used = " and ".join(label for several in found.values() for label in several)
            refused[name] = f"{_TWO_ROLES}, {used}"
    return {name: next(iter(found)) for name, found in labels.items()}, refused


def _run_elsewhere(
    read: Reader,
    params: dict[str, Tensor],
    roles: dict[str, Role],
    draw: int,
    mildness: tuple[bool, ...] = (False, True),
) -> Run:
    """Run the model at a random admissible point, as far away as the model can be evaluated."""
    failure: Exception | None = None
    for mild in mildness:
        values = {
            name: identity.random_value(
                value, roles.get(name), constraint_of(name), seed=1_000 * draw + index, mild=mild
            ).requires_grad_()
            for index, (name, value) in enumerate(params.items())
        }
        try:
            return read(values)
        except (ValueError, RuntimeError) as error:
            if _is_out_of_memory(error):
                raise
            failure = error
    raise ValueError(
        f"expected a model that runs at any admissible value of its parameters {list(params)}, "
        f"got at a random one: {failure}"
    ) from failure


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error says nothing about the model; torch has no class of it for the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _recognise(name: str, role: Role, runs: list[Run]) -> Assignment | str:
    """The assignment of a parameter, or why it has none."""
    here = runs[0]
    uses: list[Use] = []
    link, update, num_cells = LINKS[role][0], None, 0
    for argument in _arguments(here):
        everywhere = ((run, run_argument(run, argument)) for run in runs)
        if not any(name in _gradients(there.value, run.params) for run, there in everywhere):
            continue
        found = _match(argument, name, role, runs)
        if isinstance(found, str):
            return found
        cells, held = found
        if uses and held is not link:
            return f"used as {link.name} in one place and as {held.name} in {argument.label}"
        own = _update_of(here.sites[argument.site], argument.name)
        if uses and own is not update and not role.is_chain:
            return "used in arguments of different families"
        link, update = held, own
        num_cells = here.params[name].numel() // max(
            1, here.params[name].shape[here.params[name].dim() - argument.event_dim :].numel()
        )
        whole = torch.equal(cells, torch.arange(num_cells, device="cpu"))
        uses.append(Use(argument.site, argument.name, cells, whole))
    event_dim = 1 if update is None else update.event_dim
    reached = [here.sites[use.site].arguments[use.argument] for use in uses]
    if here.is_subsampled and any(_is_of_sequences(here, argument) for argument in reached):
        return "holds a value for each sequence of a subsampled plate"
    prior = find_prior(name, role, link, event_dim, runs)
    if isinstance(prior, str):
        return prior
    return Assignment(
        name, role, update, uses, num_cells, link, event_dim, _is_shared(uses, num_cells), prior
    )


def _match(
    argument: Argument, name: str, role: Role, runs: list[Run]
) -> tuple[Tensor, Link] | str:
    """The cell that each block of an argument is, and what the parameter holds; or why not."""
    reason = f"{argument.label} is a function of it other than itself, broadcast or selected"
    for link in LINKS[role]:
        far = run_argument(runs[1], argument)
        cells = identity.find_cells(far, runs[1].params[name], role, link)
        if cells is None:
            continue
        seen = [(run_argument(run, argument), run.params[name]) for run in runs]
        if not all(identity.agrees(*each, role, cells, link) for each in seen):
            reason = f"{argument.label} is not equal to it at every admissible value"
        elif not all(identity.same_derivative(*each, role, cells, link) for each in seen):
            reason = f"{argument.label} has another derivative in it than itself would have"
        else:
            return cells, link
    return reason


def _is_shared(uses: list[Use], num_cells: int) -> bool:
    """Whether some cell serves several blocks; others may serve none."""
    if not uses:
        return False
    cells = torch.cat([use.cells[use.cells >= 0] for use in uses])
    return bool((torch.bincount(cells, minlength=num_cells) > 1).any())


def _is_of_sequences(run: Run, argument: Argument) -> bool:
    """Whether an argument differs between sequences."""
    site = run.sites[argument.site]
    role = Role.of(argument.name)
    tail = 0 if role is Role.INITIAL else 2
    if not role.is_chain and argument.event_dim == 0:
        tail += len(site.hmm.observation_dist.event_shape)
    batch = argument.lead[: max(0, len(argument.lead) - tail)]
    return batch.numel() > 1


def run_argument(run: Run, argument: Argument) -> Argument:
    """The same argument in another run.

    :raises ValueError: if that run has no such argument.
    """
    site = run.sites.get(argument.site)
    found = None if site is None else site.arguments.get(argument.name)
    if found is None or found.value.shape != argument.value.shape:
        raise ValueError(
            f"expected a model whose sites do not depend on parameter values, got {argument.label} "
            f"of shape {tuple(argument.value.shape)} at one point and not at another"
        )
    return found


def _update_of(site: Site, name: str) -> Update | None:
    if site.family is None:
        return None
    return next((update for update in site.family.UPDATES if update.argument == name), None)


def _other_uses(runs: list[Run], priors: dict[str, Prior | None]) -> dict[str, str]:
    """Parameters that reach the objective in any way but through a recognised argument."""
    refused: dict[str, str] = {}
    for run in runs:
        for latent in run.latents.values():
            for name in _gradients(latent.log_prob, run.params):
                prior = priors.get(name)
                if prior is None or prior.site != latent.name:
                    refused.setdefault(name, f"used in the prior of site {latent.name}")
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
            for name in _gradients(value, run.params):
                refused.setdefault(name, f"used in {route}")
        _refuse_direct_reads(run, routes, refused)
    return refused


def _refuse_direct_reads(run: Run, routes: dict[str, Tensor], refused: dict[str, str]) -> None:
    """Find tensors of the store that the model read past ``pyro.param``, as a module does."""
    leaves = dict(pyro.get_param_store().named_parameters())
    leaves = {name: leaves[name] for name in run.params if leaves[name].requires_grad}
    outputs = list(routes.values()) + [argument.value for argument in _arguments(run)]
    for output in outputs:
        if leaves:
            for name in _gradients(output, leaves):
                refused.setdefault(name, "read by a module of its own, not through pyro.param")


def _find_hidden_dependence(
    runs: list[Run],
    assignments: list[Assignment],
    refused: dict[str, str],
    covered: set[tuple[str, str]],
) -> dict[str, str]:
    """What moves with the parameters where autograd sees no dependence, and so cannot be served.

    :param covered: arguments that are affine in parameters, of which this has been asked.
    """
    found: dict[str, str] = {}
    known: dict[tuple[str, str], Tensor] = {}
    for each in assignments:
        for use in each.uses:
            free = known.setdefault((use.site, use.argument), use.cells < 0)
            known[use.site, use.argument] = free & (use.cells < 0)
    for argument in _arguments(runs[0]):
        if (argument.site, argument.name) in covered:
            continue
        if any(name in refused for name in _gradients(argument.value, runs[0].params)):
            continue
        everything = torch.ones(argument.lead.numel(), dtype=torch.bool, device="cpu")
        constant = known.get((argument.site, argument.name), everything)
        values = [
            identity.blocks(run_argument(run, argument).value.detach(), argument.event_dim)[
                constant.to(argument.value.device)
            ]
            for run in runs
        ]
        if any(not torch.equal(values[0], value) for value in values[1:]):
            found[argument.label] = _HIDDEN
    if not refused and not found:  # else these may change, and the reason is told already
        first, *others = (_surroundings(run) for run in runs)
        for label, value in first.items():
            if any(label not in other or not _same(value, other[label]) for other in others):
                found[label] = _HIDDEN
    return found


def _differs(one: Run, other: Run) -> bool:
    """Whether two runs at the same parameters show different things."""
    first, second = (_surroundings(run) for run in (one, other))
    if any(label not in second or not _same(first[label], second[label]) for label in first):
        return True
    pairs = ((each.value, run_argument(other, each).value) for each in _arguments(one))
    return not all(_same(*pair) for pair in pairs)


def _surroundings(run: Run) -> dict[str, Any]:
    """What else the objective depends on, and EM takes for constant."""
    found: dict[str, Any] = {f"{name}.log_prob": value for name, value in run.others.items()}
    for name, site in run.sites.items():
        found[f"{name}.value"] = site.value
        found[f"{name}.lengths"] = site.hmm.lengths
        found[f"{name}.scale"] = site.scale
        found[f"{name}.mask"] = site.mask
        found[f"{name}.observation_dist.mask"] = site.observation_mask
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two tensors, or two plain values, are equal; NaN equals itself."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other or bool(one == other)
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
