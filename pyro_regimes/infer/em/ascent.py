"""Guarantees that no closed-form update lowers the objective of any restart."""

from __future__ import annotations

from typing import Any, Callable, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.infer.em.grouping import Groups
from pyro_regimes.infer.em.m_step import Maximised
from pyro_regimes.infer.em.problem import Array, Flags, Params, Problem, TensorState
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.em.squarem import Squarem

Held = dict[str, Flags]  # by parameter, the restarts in which it is frozen

S = TypeVar("S", bound=TensorState)


def nothing_held(plan: Plan, num_restarts: int) -> Held:
    """No parameter frozen in any restart."""
    return {name: np.zeros(num_restarts, dtype=np.bool_) for name in plan.names}


class Stepping(Protocol[S]):
    """The interface of an engine whose steps can be undone."""

    @property
    def problem(self) -> Problem:
        """The data and the plan, which no step changes."""

    def maximise(self, now: S, held: Held) -> Maximised:
        """The M-step, in which frozen parameters keep their values."""

    def at(self, now: S, params: Params, leaves: Params, found: Maximised) -> S:
        """The state at new parameters: those found, or the old ones in some restarts."""


def rounding(params: Params) -> float:
    """The rounding error of a loss, relative to 1 + its absolute value.

    The density of a covariance with condition number 1e4 loses about four digits.
    """
    return max(64 * _eps(params), 1e-12)


def _eps(params: Params) -> float:
    """The machine epsilon of the least precise parameter."""
    return max((torch.finfo(value.dtype).eps for value in params.values()), default=0.0)


def fallen(share: float, before: Array, after: Array) -> Flags:
    """Restarts whose loss rose by more than its rounding error, ``(R,)``.

    :param share: of the parameters, as :func:`rounding` returns it.
    """
    bound = before + share * (1 + abs(before))
    return np.isfinite(before) & ~(after <= bound)


def agree(params: Params, one: Array, other: Array, beyond_rounding: bool = True) -> Flags:
    """Where two computations of losses agree.

    :param beyond_rounding: whether the loss of digits counts as agreement that two ways of
        computing a covariance near singularity have.
    """
    share = max(_eps(params), 2.0**-52) ** 0.5 if beyond_rounding else rounding(params)
    bound = share * (1 + abs(one))
    with np.errstate(invalid="ignore"):
        alike: Flags = np.asarray((one == other) | (abs(one - other) <= bound))
    return alike


def keep_held(groups: Groups, held: Held, name: str, old: Tensor, new: Tensor) -> Tensor:
    """The new value, except in restarts where the parameter is frozen."""
    return groups.choose(name, held[name], old, new)


def _choose(groups: Groups, old: Params, new: Params, held: Held) -> Params:
    """The new values, except in restarts where their parameters are frozen."""
    if not any(flags.any() for flags in held.values()):
        return new
    return {name: keep_held(groups, held, name, old[name], each) for name, each in new.items()}


class Ascent:
    """Makes steps, and freezes parameters whose update lowers the objective.

    :param names: names of the parameters with a closed form.
    :param losses: losses of the first state.
    :param frozen: parameters that an earlier run has frozen.
    :param warn: a function that warns the user.
    :param extrapolates: whether every other step is extrapolated (:mod:`.squarem`).
    """

    def __init__(
        self,
        names: list[str],
        losses: Array,
        frozen: Held,
        warn: Callable[[str], None],
        extrapolates: bool = False,
    ) -> None:
        self._warn = warn
        self._squarem = Squarem() if extrapolates else None
        self.hopeless = ~np.isfinite(losses)  #: restarts whose likelihood is not finite
        known = {name: flags for name, flags in frozen.items() if len(flags) == len(losses)}
        self.held: Held = {
            name: self.hopeless | known.get(name, self.hopeless) for name in names
        }
        #: The number of steps until a restart converged, or -1, ``(R,)``.
        self.settled_at = np.full(len(losses), -1)
        #: Restarts whose last step was extrapolated, ``(R,)``.
        self.extrapolated: Flags = np.zeros(len(losses), dtype=np.bool_)
        self.blamed: list[str] = []  # parameters whose closed form lowered the likelihood
        self.num_e_steps = 1  # that of the first state included
        self._refresh()

    @property
    def settled(self) -> Flags:
        """Restarts that have converged, ``(R,)``."""
        settled: Flags = self.settled_at >= 0
        return settled

    def _refresh(self) -> None:
        """Update everything derived from ``held`` and ``settled``, which rarely change."""
        settled = self.settled
        if settled.any():
            #: The restarts in which a parameter keeps its value: frozen, or converged.
            self.kept = {name: flags | settled for name, flags in self.held.items()}
        else:
            self.kept = self.held
        nowhere: Flags = np.zeros_like(self.hopeless)
        #: Restarts that have not converged and are not frozen altogether, ``(R,)``.
        self.free = nowhere
        #: Restarts with frozen parameters beside others that are free, ``(R,)``.
        self.is_partly_held = nowhere
        if self.held:
            held, kept = (np.stack([*flags.values()]) for flags in (self.held, self.kept))
            self.free = ~np.logical_and.reduce(kept)
            self.is_partly_held = np.logical_or.reduce(held) & ~np.logical_and.reduce(held)

    def resume(self, settled_at: Any) -> None:
        """Take over which restarts had converged, and after how many steps."""
        self.settled_at = settled_at
        self._refresh()

    def settle(self, level: Flags, num_steps: int) -> None:
        """Freeze restarts that have converged in this number of steps."""
        if level.any():
            self.settled_at = np.where(level, num_steps, self.settled_at)
            self._refresh()

    @property
    def frozen(self) -> Held:
        """The parameters that are frozen because a step lowered the likelihood."""
        return {name: flags & ~self.hopeless for name, flags in self.held.items()}

    def restrict(self, names: list[str], num_restarts: int) -> None:
        """Adapt to the parameters and restarts of a new run of the model."""
        nowhere = np.zeros(num_restarts, dtype=np.bool_)
        self.held = {name: self.held.get(name, nowhere) for name in names}
        if len(self.hopeless) != num_restarts:
            self.hopeless = self.extrapolated = nowhere
            self.settled_at = np.full(num_restarts, -1)
            self.held = dict.fromkeys(names, nowhere)
        self._refresh()

    def follow(self, other: Ascent, which: Flags) -> None:
        """Take over what another run has frozen and settled of some restarts."""
        self.num_e_steps += other.num_e_steps
        self.blamed = self.blamed or other.blamed
        self.settled_at = np.where(which, other.settled_at, self.settled_at)
        self.extrapolated = np.where(which, other.extrapolated, self.extrapolated)
        self.held = {
            name: np.where(which, other.held[name], flags) for name, flags in self.held.items()
        }
        self._refresh()

    def step(self, engine: Stepping[S], now: S, elsewhere: Flags | None = None) -> S:
        """One step, in which updates that lower the likelihood are rolled back.

        :param elsewhere: restarts that another engine updates, and that do not change here.
        """

        def with_others(held: Held) -> Held:
            if elsewhere is None:
                return held
            return {name: flags | elsewhere for name, flags in held.items()}

        found = engine.maximise(now, with_others(self.kept))
        groups = engine.problem.groups
        values, leaves = found.values, found.leaves

        def attempt(held: Held) -> S:
            self.num_e_steps += 1
            held = with_others(held)
            params = _choose(groups, now.params, values, held)
            return engine.at(now, params, _choose(groups, now.leaves, leaves, held), found)

        proposed = None
        if self._squarem is not None:
            free = self.free if elsewhere is None else self.free & ~elsewhere
            proposed = self._squarem.propose(engine.problem, now, found.values, free)
            values, leaves = proposed.replace(groups, found)
        after = attempt(self.kept)
        if self._squarem is not None and proposed is not None:
            worse = proposed.which & ~(after.losses <= now.losses)
            proposed = self._squarem.judge(proposed, worse)
            if worse.any():
                values, leaves = proposed.replace(groups, found)
                after = attempt(self.kept)
            self.extrapolated = proposed.which
        for name in after.unbounded:
            why = engine.problem.plan.why_unbounded(name)
            self._warn(f"EM: parameter {name!r} has no maximum, as {why}")
        if fallen(rounding(now.params), now.losses, after.losses).any():
            after = self._undo(now, after, attempt)
        return after

    def _undo(self, now: S, after: S, attempt: Callable[[Held], S]) -> S:
        """Find the parameters that lowered the likelihood, and repeat the step with them frozen."""

        share = rounding(now.params)

        def falls(state: S) -> Flags:
            return fallen(share, now.losses, state.losses)

        down = falls(after)
        with np.errstate(invalid="ignore"):  # of restarts whose likelihood is not finite
            change = after.losses - now.losses
        names = list(self.held)
        culprits = {name: np.zeros_like(down) for name in names}
        if len(names) > 1:
            for name in names:  # by itself, where the step fell
                alone = {other: self.kept[other] | (down & (other != name)) for other in names}
                culprits[name] = falls(attempt(alone)) & down & ~self.held[name]
        nobody = down & ~np.any([*culprits.values()], 0)
        self._hold({name: flags | nobody for name, flags in culprits.items()})
        after = attempt(self.kept)
        again = falls(after)
        if again.any():
            self._hold({name: again for name in names})
            after = attempt(self.kept)
        self.blamed = [name for name in names if culprits[name].any()]
        self._warn(_fall_message(down, change, self.blamed))
        return after

    def _hold(self, more: Held) -> None:
        self.held = {name: flags | more[name] for name, flags in self.held.items()}
        self._refresh()


def _fall_message(down: Flags, change: Array, blamed: list[str]) -> str:
    """The text of the warning about restarts whose loss rose by ``change``."""
    whose = f"Parameters {blamed}" if blamed else "All parameters"
    return (
        f"EM: a step lowered the log-likelihood of restarts {down.nonzero()[0].tolist()} by up to "
        f"{change[down].max():.3g}. {whose} were rolled back and are frozen until the next "
        "run, or EM.reset(). Causes are covariances that are nearly singular (see "
        "min_eigenvalue), models that are not the same function at every call, and registered "
        "families whose maximise is wrong"
    )
