"""The data of one run of a model, and the state of its parameters in each step."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_regimes.emissions.base import Arguments, Pooled
from pyro_regimes.infer.em.e_step import Expected, SiteData, take_expectations
from pyro_regimes.infer.em.filling import fill_affine, fill_arguments, fill_products
from pyro_regimes.infer.em.grouping import Groups
from pyro_regimes.infer.em.m_step import Maximised
from pyro_regimes.infer.em.piece_steps import expect_on_ranks
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.tracing import Latent, Run

Params = dict[str, Tensor]
Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Problem(NamedTuple):
    """The data of one run of the model, which do not change between steps."""

    plan: Plan
    groups: Groups
    sites: dict[str, SiteData]
    #: Gaussian priors that depend on parameters, as sites of one state (:mod:`.one_state`)
    priors: dict[str, Expected]
    constant: float  #: minus the log-probability of the sites that depend on no parameter
    latents: dict[str, Latent]
    others: float  #: the log-probability of other sites, if the plan is joint
    pseudo: dict[str, Pooled]  #: terms that priors add to expected statistics
    #: constraints of the parameters whose maximiser may violate them
    constraints: dict[str, Constraint]
    min_eigenvalue: float
    may_move: bool  #: whether there is an optimiser for parameters without a closed form
    ranks: Ranks | None = None  #: among which the sequences are split
    is_piece: bool = False  #: whether these data are one piece of a sequence, split among the ranks

    def loss(self, losses: Array) -> float:
        """The total loss of all restarts."""
        return float(losses.sum()) + self.constant

    def log_prior(self, params: Params) -> Tensor:
        """The log density of sites without a hidden path, for each restart: ``(R,)``, float64."""
        return log_prior(self.plan, self.groups, self.latents, self.others, params)


def log_prior(
    plan: Plan, groups: Groups, latents: dict[str, Latent], others: float, params: Params
) -> Tensor:
    """Priors at the parameters; for a joint plan also all other sites."""
    device = next(iter(groups.sequences.values())).device
    total = torch.zeros(groups.num_restarts, dtype=torch.float64, device=device)
    owned = set()
    for each in plan.assignments:
        if each.prior is not None:
            owned.add(each.prior.site)
            latent = latents[each.prior.site]
            cells = each.prior.log_density(latent, params[each.name], each.num_cells)
            total.index_add_(0, groups.cells[each.name], cells.detach())
    if plan.is_joint:
        total[0] += others
        for name, prior in plan.affine.priors.items():
            owned.add(prior.site)
            latent = latents[prior.site]
            total[0] += prior.log_density(latent, params[name], 1).sum().detach()
        for site, latent in latents.items():
            if site not in owned:
                total[0] += latent.log_prob.detach().double()
    return total


def constant_of(plan: Plan, run: Run) -> float:
    """Minus the log density of sites that depend on no parameter; for a joint plan 0."""
    if plan.is_joint:
        return 0.0
    owned = {each.prior.site for each in plan.assignments if each.prior is not None}
    free = [float(latent.log_prob) for name, latent in run.latents.items() if name not in owned]
    return -sum(free) - sum(float(value) for value in run.others.values())


class State(Protocol):
    """Parameters with their losses."""

    @property
    def params(self) -> Params:
        """The parameters that are set in closed form."""

    @property
    def leaves(self) -> Params:
        """The stored tensors of the positive definite parameters."""

    @property
    def losses(self) -> Array:
        """Minus the log-likelihood of each restart, ``(R,)``."""

    @property
    def unbounded(self) -> list[str]:
        """Parameters that had no maximum in the last step."""

    @property
    def idle(self) -> list[str]:
        """Parameters of which a part had no data in the last step."""

    def with_losses(self, losses: Array) -> State:
        """The same with losses as another computation has found them."""


class TensorState(NamedTuple):
    """A state with the expectations at it."""

    params: Params
    leaves: Params
    expected: dict[str, Expected]
    losses: Array
    unbounded: list[str]
    idle: list[str]

    def with_losses(self, losses: Array) -> TensorState:
        """The same with losses as another computation has found them."""
        return self._replace(losses=losses)


def evaluate(
    problem: Problem,
    params: Params,
    leaves: Params,
    arguments: dict[str, Arguments] | None = None,
    found: Maximised | None = None,
) -> TensorState:
    """The E-step of every site.

    :param arguments: None for those at which the sites were read.
    :param found: by the M-step before.
    """
    names = [] if found is None else [*found.unbounded, *found.idle]
    flags = [] if found is None else [*found.unbounded.values(), *found.idle.values()]
    if problem.is_piece and problem.ranks is not None:
        expected = expect_on_ranks(problem.sites, arguments, problem.ranks)
    else:
        expected = {
            name: take_expectations(data, None if arguments is None else arguments[name])
            for name, data in problem.sites.items()
        }
    values = {
        name: each.data.weigh(each.expectations.log_likelihood) for name, each in expected.items()
    }
    total = problem.groups.total(values)
    if problem.ranks is not None:
        (total,) = problem.ranks.add([total])
    if problem.latents or problem.plan.is_joint:
        total = total + problem.log_prior(params)
    if flags:
        total = torch.cat([total, torch.stack(flags).to(total)])
    # The only synchronisation with the device in an iteration.
    numbers = total.cpu().numpy()
    losses, there = -numbers[: len(numbers) - len(flags)], numbers[len(numbers) - len(flags) :]
    raised = [name if flag else None for name, flag in zip(names, there, strict=True)]
    count = 0 if found is None else len(found.unbounded)
    unbounded, idle = ([name for name in part if name] for part in (raised[:count], raised[count:]))
    return TensorState(params, leaves, expected, losses, unbounded, idle)


def arguments_at(
    problem: Problem, params: Params, now: dict[str, Arguments], before: Params
) -> dict[str, Arguments]:
    """The arguments of all sites for given parameters.

    :param now: the arguments for the parameters ``before``.
    """
    arguments = {name: dict(each) for name, each in now.items()}
    for each in problem.plan.assignments:
        fill_arguments(each, params[each.name], before[each.name], arguments, problem.sites)
    fill_products(problem.plan, params, arguments, problem.sites)
    fill_affine(problem.plan.affine, params, before, arguments)
    return arguments


def complete(problem: Problem, start: TensorState, state: State) -> TensorState:
    """Add the expectations to a state, which an engine may not have kept.

    :param start: any state of the same problem.
    """
    if isinstance(state, TensorState) and state.expected:
        return state
    now = {name: each.arguments for name, each in start.expected.items()}
    arguments = arguments_at(problem, state.params, now, start.params)
    return evaluate(problem, state.params, state.leaves, arguments)
