"""What the ranks of a run must have in common, compared before its first step."""

from __future__ import annotations

from pyro_regimes.infer.em.grouping import Groups
from pyro_regimes.infer.em.problem import Problem
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.tracing import Run

_REMEDY = (
    "use the same model on every rank, start it from the same values (the same seed, or a "
    "broadcast), and do not give every sequence a parameter of its own"
)


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


def groups_of_all(ranks: Ranks, own: Groups) -> Groups:
    """The restarts, of which a rank without sequences knows nothing.

    :raises ValueError: if ranks find other restarts.
    """
    count = sum(labels.numel() for labels in own.sequences.values())
    cells = {name: labels.tolist() for name, labels in own.cells.items()}
    found = [each[1:] for each in ranks.objects((count, own.num_restarts, cells)) if each[0]]
    if not found:
        raise ValueError("expected a sequence on some rank, got none on any")
    if any(each != found[0] for each in found):
        raise ValueError(
            "expected every rank to find the same restarts, got "
            f"{[number for number, _ in found]}: sequences of one restart must share a parameter "
            "on every rank"
        )
    number, labels = found[0]
    known = {name: own.cells[name].new_tensor(each) for name, each in labels.items()}
    return own._replace(num_restarts=number, cells=known)
