"""What the ranks of a run must have in common, compared before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_regimes.distributions import stand_in
from pyro_regimes.infer.em.problem import Problem
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.tracing import Run

_REMEDY = (
    "use the same model on every rank, start it from the same values (the same seed, or a "
    "broadcast), and do not give every sequence a parameter of its own"
)


def check_settings(ranks: Ranks, settings: Mapping[str, Any]) -> None:
    """Check that a run has the same settings on all ranks, or one would wait for the others.

    :raises ValueError: on every rank, naming the setting.
    """
    described = {name: repr(value) for name, value in settings.items()}
    ranks.check_same(described, "call run with the same settings on every rank")


def join(ranks: Ranks, problem: Problem, run: Run) -> None:
    """Check that the ranks have the same plan, parameters and priors.

    :raises ValueError: on every rank, naming the first parameter that differs, or saying what
        cannot be split among ranks.
    """
    plan = problem.plan
    described = {}
    for each in plan.assignments:
        uses = [(use.site, use.argument) for use in each.uses]
        prior = None if each.prior is None else each.prior.family
        what = (each.argument.name, each.link.name, uses, each.num_cells, prior, each.joint)
        described[f"the update of parameter {each.name!r}"] = repr(what)
    for name in [*plan.affine.names, *plan.gradient]:
        described[f"the update of parameter {name!r}"] = repr(name in plan.gradient)
    for name, value in run.params.items():
        shown = (tuple(value.shape), value.dtype, value.detach().cpu().flatten().tolist())
        described[f"the starting value of parameter {name!r}"] = repr(shown)
    for name, latent in run.latents.items():
        described[f"the prior of {name!r}"] = repr(float(latent.log_prob.detach().sum()))
    described["the log density of sites other than RegimeHMM"] = repr(problem.others)
    described["the log density of what depends on no parameter"] = repr(problem.constant)
    described["min_eigenvalue"] = repr(problem.min_eigenvalue)
    described["the list of observed sites"] = repr(plan.sites)
    ranks.check_same(described, _REMEDY)
    refused = {
        "data are subsampled": plan.is_subsampled,
        "a prior depends on parameters": bool(problem.priors),
        "products of probabilities have a stationary start": bool(
            plan.stationary and plan.products
        ),
    }
    why = [reason for reason, holds in refused.items() if holds]
    if any(ranks.objects(bool(why))):
        raise ValueError(
            f"expected a model whose expected statistics add up over ranks, got one in which "
            f"{' and '.join(why) or 'they do not on another rank'}: run it in one process"
        )


def with_stand_ins(run: Run, known: dict[str, Tensor]) -> Run:
    """A run in which sites without sequences have one of weight 0, as no statistics are empty.

    :param known: the observations that stand for those of a site, the same in all runs.
    :raises ValueError: if the arguments of such a site have no sequences either.
    """
    sites = dict(run.sites)
    for name, site in run.sites.items():
        hmm, value = site.hmm, site.value
        if value.numel() or 0 in value.shape[-hmm.event_dim :]:
            continue
        if not hmm.batch_shape.numel():
            raise ValueError(
                f"expected sequences on every rank where arguments of site {name!r} have values "
                "for each sequence, such as covariates or lengths, got none on this rank: split "
                "the sequences so that each rank has at least one"
            )
        lead = value.shape[: value.dim() - hmm.event_dim]
        like = value.new_empty(torch.Size(size or 1 for size in lead) + value.shape[len(lead) :])
        if name not in known:
            known[name] = stand_in.some_value(hmm.observation_dist, like=like).clone()
        value = known[name].expand(like.shape)
        sites[name] = site._replace(value=value, scale=1.0, mask=False)
    return run._replace(sites=sites)


def check_pieces(ranks: Ranks, problem: Problem) -> None:
    """Check that the ranks have pieces of the same sequences.

    :raises ValueError: on every rank, naming a site of which they have others.
    """
    described = {
        f"the batch shape of site {name!r}": repr(tuple(data.batch_shape))
        for name, data in problem.sites.items()
    }
    remedy = "give every rank consecutive rows of all sequences, or use continues=False"
    ranks.check_same(described, remedy)


def check_groups(ranks: Ranks, problem: Problem) -> None:
    """Check that all ranks have the same restarts.

    :raises ValueError: if they find others, or there is no sequence on any rank.
    """
    own = problem.groups
    cells = {name: labels.tolist() for name, labels in own.cells.items()}
    weights = [data.weight for data in problem.sites.values()]
    counts = any(weight is None or bool((weight != 0).any()) for weight in weights)
    found = ranks.objects((own.num_restarts, cells, counts))
    if not any(each[-1] for each in found):
        raise ValueError("expected a sequence on some rank, got none on any")
    if any(each[:2] != found[0][:2] for each in found):
        raise ValueError(
            "expected every rank to find the same restarts, got "
            f"{[number for number, *_ in found]}: sequences of one restart must share a parameter "
            "on every rank"
        )
