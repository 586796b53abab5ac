"""What EM reads of one run of the model: the problem that it poses, and its losses."""

from __future__ import annotations

import torch

from pyro_regimes.emissions.base import Pooled
from pyro_regimes.infer.em.e_step import read_log_probs, read_site, take_expectations
from pyro_regimes.infer.em.grouping import Groups, batch_shape
from pyro_regimes.infer.em.problem import Array, Problem, constant_of, log_prior
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.tracing import Run, constraint_of


def problem_of(
    plan: Plan,
    groups: Groups,
    run: Run,
    like: Problem | None,
    min_eigenvalue: float,
    may_move: bool,
) -> Problem:
    """The problem of a run.

    :param like: that of another chunk of the data, if densities are not needed.
    :param may_move: whether there is an optimiser.
    """
    with torch.set_grad_enabled(bool(plan.gradient)):
        sites = {
            name: read_site(site, None if like is None else like.sites[name])
            for name, site in run.sites.items()
        }
    constraints = {name: constraint_of(name) for name in plan.names}
    return Problem(
        plan=plan,
        groups=groups,
        sites=sites,
        constant=constant_of(plan, run),
        priors={name: take_expectations(read_site(site)) for name, site in run.priors.items()},
        latents=run.latents,
        others=sum(float(value) for value in run.others.values()),
        pseudo=_prior_statistics(plan, run),
        constraints={
            name: constraint
            for name, constraint in constraints.items()
            if plan.may_violate(name, constraint)
        },
        min_eigenvalue=min_eigenvalue,
        may_move=may_move,
    )


def _prior_statistics(plan: Plan, run: Run) -> dict[str, Pooled]:
    """What the conjugate priors of a run add to the statistics of each parameter."""
    found = {}
    for each in plan.assignments:
        if each.prior is not None and not each.prior.is_flat:
            shape = plan.shapes[each.name]
            latent = run.latents[each.prior.site]
            found[each.name] = each.prior.statistics(latent, shape, each.event_dim)
    for name, prior in plan.affine.priors.items():
        if prior.is_flat:
            continue
        found[name] = prior.own_statistics(run.latents[prior.site])
    return found


class OtherSites(ValueError):
    """The model observes other sites than before."""


def read_losses(plan: Plan, groups: Groups, run: Run, ranks: Ranks | None = None) -> Array:
    """The loss of each restart, from one forward pass.

    :raises OtherSites: if the run has no place in the groups.
    """
    if not groups.fits(run):
        first = {name: tuple(labels.shape) for name, labels in groups.sequences.items()}
        then = {name: tuple(batch_shape(site)) for name, site in run.sites.items()}
        raise OtherSites(
            "expected a model with the same observed RegimeHMM sites, of the same batch shapes, at "
            f"every step of a run, got {first} and then {then}"
        )
    total = groups.total(read_log_probs(run.sites))
    if ranks is not None:
        (total,) = ranks.add([total])
    if run.latents or plan.is_joint:
        others = sum(float(value) for value in run.others.values())
        params = {name: run.params[name].detach() for name in plan.names}
        total = total + log_prior(plan, groups, run.latents, others, params)
    losses: Array = -total.cpu().numpy()
    return losses
