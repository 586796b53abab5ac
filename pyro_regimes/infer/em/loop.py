"""The iterations of EM: from parameters to better ones, on tensors, restart by restart."""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_regimes.emissions.base import Arguments, Pooled
from pyro_regimes.infer.em.e_step import Expected, SiteData, take_expectations
from pyro_regimes.infer.em.engines.fused_gaussian import Fused
from pyro_regimes.infer.em.grouping import Groups
from pyro_regimes.infer.em.m_step import (
    Expectation,
    Maximised,
    as_stored,
    fill_affine,
    fill_arguments,
    maximise,
)
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.tracing import Latent, Run

Params = dict[str, Tensor]
Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Held = dict[str, Flags]  # by parameter, the restarts in which it is frozen


class EMResult(NamedTuple):
    """How a run of EM went."""

    history: list[float]  #: the loss before each step, and the final one
    converged: bool  #: whether every restart rose by less than ``tol`` in the last step
    stop_reason: str  #: in words
    num_steps: int  #: steps made
    num_e_steps: int  #: E-steps made: one more, and another one after each fall that was undone
    restart_history: Tensor  #: ``(num_steps + 1, R)``: the same of each independent restart
    idle: list[str]  #: parameters of which a part had no data in the last step, and kept its value
    #: restarts of which the model's own objective does not confirm that they have converged
    unconfirmed: list[int]


class Problem(NamedTuple):
    """What one run of the model showed, and no step changes."""

    plan: Plan
    groups: Groups
    sites: dict[str, SiteData]
    constant: float  #: minus the log-probability of what no parameter reaches
    latents: dict[str, Latent]
    others: float  #: the log-probability of other sites, where the plan is joint
    pseudo: dict[str, Pooled]  #: what priors add to expected statistics
    #: of the parameters whose maximiser may lie outside
    constraints: dict[str, Constraint]
    min_eigenvalue: float
    fused: Fused | None  #: one kernel for all of it
    may_move: bool  #: whether there is an optimiser for what has no closed form

    def loss(self, losses: Array) -> float:
        """The whole loss, of all restarts."""
        return float(losses.sum()) + self.constant

    def log_prior(self, params: Params) -> Tensor:
        """The log density of what has no hidden path, restart by restart: ``(R,)``, float64."""
        return log_prior(self.plan, self.groups, self.latents, self.others, params)


def log_prior(
    plan: Plan, groups: Groups, latents: dict[str, Latent], others: float, params: Params
) -> Tensor:
    """Priors at the parameters; of a joint plan all else too, which else is a constant."""
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
    """Minus the log density of what no parameter of a plan reaches, unless that is joint."""
    if plan.is_joint:
        return 0.0
    owned = {each.prior.site for each in plan.assignments if each.prior is not None}
    free = [float(latent.log_prob) for name, latent in run.latents.items() if name not in owned]
    return -sum(free) - sum(float(value) for value in run.others.values())


class State(NamedTuple):
    """Parameters, and what is expected at them."""

    params: Params
    leaves: Params  #: what the store holds of those that are positive definite
    expected: dict[str, Expected]
    losses: Array  #: minus the log-likelihood of each restart, ``(R,)``
    unbounded: list[str]  #: parameters that had no maximum in the step that led here
    idle: list[str]  #: parameters of which it found a part without any data


def evaluate(
    problem: Problem,
    params: Params,
    leaves: Params,
    arguments: dict[str, Arguments],
    found: Maximised | None = None,
) -> State:
    """The E-step of every site.

    :param found: by the M-step before.
    """
    names = [] if found is None else [*found.unbounded, *found.idle]
    flags = [] if found is None else [*found.unbounded.values(), *found.idle.values()]
    expected = {
        name: take_expectations(data, arguments[name]) for name, data in problem.sites.items()
    }
    values = {
        name: each.data.weigh(each.expectations.log_likelihood) for name, each in expected.items()
    }
    total = problem.groups.total(values)
    if problem.latents or problem.plan.is_joint:
        total = total + problem.log_prior(params)
    if flags:
        total = torch.cat([total, torch.stack(flags).to(total)])
    # The one look at numbers in an iteration: elsewhere than on the CPU it waits for them.
    numbers = total.cpu().numpy()
    losses, there = -numbers[: len(numbers) - len(flags)], numbers[len(numbers) - len(flags) :]
    raised = [name if flag else None for name, flag in zip(names, there, strict=True)]
    count = 0 if found is None else len(found.unbounded)
    unbounded, idle = ([name for name in part if name] for part in (raised[:count], raised[count:]))
    return State(params, leaves, expected, losses, unbounded, idle)


class OutsideConstraint(ValueError):
    """A maximiser lies outside its parameter's constraint."""

    def __init__(self, name: str, constraint: Constraint) -> None:
        super().__init__(name, constraint)
        self.name = name

    def __str__(self) -> str:
        name, constraint = self.args
        return (
            f"expected parameter {name!r} to have its maximum within its constraint {constraint}, "
            "got one outside, where EM's closed form does not hold; it was left as it is. An optim "
            "can move it"
        )


def step(
    problem: Problem, now: State, held: Held, expected: dict[str, Expectation] | None = None
) -> Maximised:
    """The M-step.

    :param held: what keeps its value; what comes after it is maximised given that.
    :param expected: in place of those of the state.
    :raises OutsideConstraint: if a maximiser does not meet its parameter's constraint.
    """
    found = maximise(
        problem.plan,
        expected or dict(now.expected),
        now.params,
        now.leaves,
        problem.min_eigenvalue,
        problem.pseudo,
        partial(keep_held, problem.groups, held),
    )
    for name, constraint in problem.constraints.items():
        if not constraint.check(found.values[name]).all():
            raise OutsideConstraint(name, constraint)
    return found


def choose(groups: Groups, old: Params, new: Params, held: Held) -> Params:
    """The new values, but the old ones of parameters in restarts where they are held."""
    if not any(flags.any() for flags in held.values()):
        return new
    return {name: keep_held(groups, held, name, old[name], each) for name, each in new.items()}


def keep_held(groups: Groups, held: Held, name: str, old: Tensor, new: Tensor) -> Tensor:
    """A new value, but the old one in restarts where its parameter is held."""
    if not held[name].any():
        return new
    labels = groups.cells[name]
    keep = torch.from_numpy(held[name]).to(labels.device)[labels].unsqueeze(-1)
    before, after = (part.reshape(len(labels), -1) for part in (old, new))
    return torch.where(keep, before, after).reshape(new.shape)


def rounding(params: Params) -> float:
    """By how much a loss may be off, in units of 1 + itself.

    Densities of a covariance of condition 1e4 lose some four digits of their last ones.
    """
    return max(64 * _eps(params), 1e-12)


def _eps(params: Params) -> float:
    """Of the least precise parameter."""
    return max((torch.finfo(value.dtype).eps for value in params.values()), default=0.0)


def fallen(now: State, losses: Array) -> Flags:
    """Restarts whose loss rose by more than rounding, ``(R,)``."""
    bound = now.losses + rounding(now.params) * (1 + abs(now.losses))
    return np.isfinite(now.losses) & ~(losses <= bound)


def agrees(params: Params, one: Array, other: Array, beyond_rounding: bool = True) -> bool:
    """Whether two computations of losses agree.

    :param beyond_rounding: whether the loss of digits counts as agreement that two ways of
        computing a covariance near singularity have.
    """
    share = max(_eps(params), 2.0**-52) ** 0.5 if beyond_rounding else rounding(params)
    bound = share * (1 + abs(one))
    with np.errstate(invalid="ignore"):
        return bool(((one == other) | (abs(one - other) <= bound)).all())


class Climb:
    """A run of EM on tensors.

    :param start: its first state.
    :param warn: is told of trouble.
    :param frozen: parameters that an earlier run has frozen.
    """

    def __init__(
        self, problem: Problem, start: State, warn: Callable[[str], None], frozen: Held
    ) -> None:
        self.problem = problem
        self.now = start
        self.losses = [start.losses]
        self.num_e_steps = 1
        self.converged = False
        self.stop_reason = "num_steps reached"
        self.blamed: list[str] = []  # parameters whose closed form lowered the likelihood
        self._warn = warn
        self._hopeless = ~np.isfinite(start.losses)  # restarts that no step can help
        self.held: Held = {name: self._hopeless.copy() for name in problem.plan.names}
        known = {name: flags for name, flags in frozen.items() if len(flags) == len(start.losses)}
        self._hold({name: known.get(name, self._hopeless) for name in self.held})

    def run(
        self,
        num_steps: int,
        tol: float | None,
        callback: Callable[[int, float], None] | None,
    ) -> None:
        """Iterate; :attr:`now` is the last state that was reached, also after an error."""
        if callback is None:
            self._run_fused(num_steps, tol)
        for number in range(self.num_steps + 1, num_steps + 1):
            if self.converged:
                break
            if not self._free().any():
                self.stop_reason = "no ascent possible"
                if any(flags.any() for flags in self.frozen.values()):
                    self.stop_reason += ": all parameters are frozen"
                break
            before = self.now.losses
            self.advance()
            self.losses.append(self.now.losses)
            if callback is not None:
                callback(number, self.problem.loss(self.now.losses))
            free = self._free()
            rise = before[free] - self.now.losses[free]
            if tol is not None and rise.size and self._is_level(rise, tol):
                self._converge(tol)
            if self.blamed and self.problem.may_move:
                break  # an optimiser can take them on

    def _is_level(self, rise: Array, tol: float) -> bool:
        """Whether every restart has come to rest; a fall beyond rounding has been undone."""
        return bool((rise < tol).all())

    def advance(self) -> None:
        """One step, of which whatever lowers the likelihood is undone."""
        now = self.now
        found = step(self.problem, now, self.held)

        def attempt(held: Held) -> State:
            self.num_e_steps += 1
            groups = self.problem.groups
            params = choose(groups, now.params, found.values, held)
            return self.at(params, choose(groups, now.leaves, found.leaves, held), found)

        after = attempt(self.held)
        for name in after.unbounded:
            self._warn(unbounded_message(name))
        if fallen(now, after.losses).any():
            after = self.undo(now, after, attempt)
        self.now = after

    def undo(self, now: State, after: State, attempt: Callable[[Held], State]) -> State:
        """Find the parameters that lowered the likelihood, and make the step with them frozen."""
        down = fallen(now, after.losses)
        with np.errstate(invalid="ignore"):  # of restarts that are without hope
            change = after.losses - now.losses
        names = list(self.held)
        culprits = {name: np.zeros_like(down) for name in names}
        if len(names) > 1:
            for name in names:  # by itself, where the step fell
                alone = {other: self.held[other] | (down & (other != name)) for other in names}
                culprits[name] = fallen(now, attempt(alone).losses) & down & ~self.held[name]
        nobody = down & ~np.any([*culprits.values()], 0)
        self._hold({name: flags | nobody for name, flags in culprits.items()})
        after = attempt(self.held)
        again = fallen(now, after.losses)
        if again.any():
            self._hold({name: again for name in names})
            after = attempt(self.held)
        self.blamed = [name for name in names if culprits[name].any()]
        self._warn(fall_message(down, change, self.blamed))
        return after

    def _hold(self, more: Held) -> None:
        self.held = {name: flags | more[name] for name, flags in self.held.items()}

    @property
    def frozen(self) -> Held:
        """The parameters that are held since a step lowered the likelihood."""
        return {name: flags & ~self._hopeless for name, flags in self.held.items()}

    def _free(self) -> Flags:
        """Restarts in which something still moves, ``(R,)``."""
        every: Flags = np.all([*self.held.values()], 0)
        return ~every

    def _converge(self, tol: float) -> None:
        self.converged = True
        self.stop_reason = f"log-likelihood rose by less than {tol:g}"

    def _run_fused(self, num_steps: int, tol: float | None) -> None:
        """The ordinary steps of a plain Gaussian model, as many as there are from here."""
        fused = self.problem.fused
        if fused is None or num_steps < 1 or any(flags.any() for flags in self.held.values()):
            return
        parameters = fused.read(self.now.params)
        losses, after = fused.step(parameters)
        start, before = self.now, self.num_steps
        try:
            while after is not None and self.num_steps - before < num_steps and not self.converged:
                losses, beyond = fused.step(after)
                if losses is None or fallen(self.now, losses).any():
                    break  # of which :meth:`run` takes care
                rise = self.now.losses - losses
                self.losses.append(losses)
                self.num_e_steps += 1
                self.now = self.now._replace(losses=losses)
                parameters, after = after, beyond
                if tol is not None and self._is_level(rise, tol):
                    self._converge(tol)
        finally:  # also where the user ended it
            if self.num_steps > before:
                params, leaves = fused.write(parameters, self.now.params), {}
                for name in self.now.leaves:
                    params[name], leaves[name] = as_stored(params[name])
                self.now = self.now._replace(params=params, leaves=leaves)
        if self.num_steps > before and not self.converged and self.num_steps - before < num_steps:
            arguments = self._arguments_of(self.now.params)
            state = evaluate(self.problem, self.now.params, self.now.leaves, arguments)
            self.num_e_steps += 1
            if agrees(self.now.params, self.losses[-1], state.losses):
                self.now = state
                self.measured(state.losses)
            else:  # the kernel computes what the model does not
                self.now = start
                del self.losses[before + 1 :]

    def _arguments_of(self, params: Params) -> dict[str, Arguments]:
        """The arguments of all sites that hold these parameters."""
        arguments = {name: dict(each.arguments) for name, each in self.now.expected.items()}
        for each in self.problem.plan.assignments:
            fill_arguments(each, params[each.name], arguments, self.problem.sites)
        fill_affine(self.problem.plan.affine, params, self.now.params, arguments)
        return arguments

    def at(self, params: Params, leaves: Params, found: Maximised) -> State:
        """The state of parameters: those found, or of some restarts the ones before."""
        arguments = found.arguments if params is found.values else self._arguments_of(params)
        return evaluate(self.problem, params, leaves, arguments, found)

    def measured(self, losses: Array) -> None:
        """Tell the last losses as another computation has found them.

        Both have rounding errors. An earlier loss that is lower for no other reason follows.
        """
        self.losses[-1] = losses
        self.now = self.now._replace(losses=losses)
        for index in range(self.num_steps - 1, -1, -1):
            low = self.losses[index] < self.losses[index + 1]
            if not low.any():
                break
            self.losses[index] = np.where(low, self.losses[index + 1], self.losses[index])

    @property
    def num_steps(self) -> int:
        """Steps made."""
        return len(self.losses) - 1

    def result(self) -> EMResult:
        """How it went."""
        losses = np.stack(self.losses)
        history = (losses.sum(-1) + self.problem.constant).tolist()
        return EMResult(
            history,
            self.converged,
            self.stop_reason,
            self.num_steps,
            self.num_e_steps,
            torch.from_numpy(losses),
            self.now.idle,
            [],
        )


def unbounded_message(name: str) -> str:
    """What is said of a parameter that has no maximum."""
    return (
        f"EM: parameter {name!r} has no maximum, as a state has too little spread for a "
        "positive definite covariance; it keeps its value there. A positive min_eigenvalue "
        "bounds the likelihood"
    )


def fall_message(down: Flags, change: Array, blamed: list[str]) -> str:
    """What is said of restarts whose loss rose by ``change``."""
    whose = f"Parameters {blamed}" if blamed else "All parameters"
    return (
        f"EM: a step lowered the log-likelihood of restarts {down.nonzero()[0].tolist()} by up to "
        f"{change[down].max():.3g}. {whose} were rolled back and are frozen until the next "
        "run, or EM.reset(). Covariances that are nearly singular do this (see min_eigenvalue), "
        "and models that are not the same function at every call"
    )
