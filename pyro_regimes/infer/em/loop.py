"""The EM loop: steps, stopping rule and history. Engines make the steps."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Protocol

import numpy as np
import torch

from pyro_regimes.infer.em.ascent import Ascent, Held, agree
from pyro_regimes.infer.em.problem import Array, Flags, Problem, State, TensorState
from pyro_regimes.infer.em.result import EMResult


class Engine(Protocol):
    """The interface of an engine, which makes the steps of one problem."""

    @property
    def problem(self) -> Problem:
        """The data and the plan, which no step changes."""

    def advance(self, now: Any, ascent: Ascent) -> State | HandOver:
        """The state after one step; or a hand-over of restarts, before the step is made."""

    def is_free(self, now: Any, ascent: Ascent) -> Flags:
        """Restarts with a parameter that can still change, ``(R,)``."""

    def is_level(self, losses: list[Array], tol: float) -> Flags:
        """Restarts that have converged, ``(R,)``."""


class HandOver(NamedTuple):
    """A change of engine for some restarts, which continue from their current state."""

    state: State  #: the current state, with their losses computed by the other engine
    which: Flags  #: the restarts, ``(R,)``
    engine: Engine  #: the engine that makes their next steps
    #: ``(which, other)``: ``state``, with some restarts taken from another state
    replaced: Callable[[Flags, State], State]


def rose_by_less(losses: list[Array], tol: float) -> Flags:
    """Restarts whose log-likelihood rose by less than ``tol`` in the last step, ``(R,)``.

    Falls beyond rounding have been undone before.
    """
    with np.errstate(invalid="ignore"):  # of restarts whose likelihood is not finite
        level: Flags = losses[-2] - losses[-1] < tol
    return level


class Loop:
    """A run of EM.

    :param start: the first state.
    :param frozen: parameters that an earlier run has frozen.
    :param warn: a function that warns the user.
    :param extrapolates: whether every other step is extrapolated (:mod:`.squarem`).
    """

    def __init__(
        self,
        engine: Engine,
        start: TensorState,
        frozen: Held,
        warn: Callable[[str], None],
        extrapolates: bool = False,
    ) -> None:
        self.engine = engine
        self.start = start
        self.now: State = start  #: the last completed state, also after an error
        self.losses = [start.losses]
        self.earlier: list[Array] = []  #: losses before those, of a run that this one continues
        #: called after each step with False, and at the end with True
        self.checkpoint: Callable[[Loop, bool], None] | None = None
        self.converged = False
        self.stop_reason = "num_steps reached"
        self._warn, self._extrapolates = warn, extrapolates
        names = self.problem.plan.names
        self.ascent = Ascent(names, start.losses, frozen, warn, extrapolates)

    @property
    def problem(self) -> Problem:
        """The data and the plan, which no step changes."""
        return self.engine.problem

    @property
    def num_steps(self) -> int:
        """The number of steps made."""
        return len(self.all_losses) - 1

    @property
    def all_losses(self) -> list[Array]:
        """Those of the steps before this run included."""
        return self.earlier + self.losses

    def resume(self, losses: Array, settled_at: Any, num_e_steps: int) -> None:
        """Continue a run of which the first state here is the last one."""
        *self.earlier, last = losses
        self.losses = [last]
        self.now = self.now.with_losses(last)
        self.ascent.num_e_steps = num_e_steps
        self.ascent.resume(settled_at)

    def go_on_from(self, other: Loop) -> None:
        """Continue the history of another run, whose last state is the first one here."""
        self.earlier = other.earlier
        if other.problem.plan.is_joint or not self.problem.plan.is_joint:
            self.losses = list(other.losses)
        else:  # from here on all restarts count as one
            self.losses = [np.array([other.problem.loss(each)]) for each in other.losses]
        self.ascent.num_e_steps = other.ascent.num_e_steps + 1
        self.measured(self.now.losses, np.ones(len(self.now.losses), dtype=np.bool_))

    def run(
        self,
        num_steps: int,
        tol: float | None,
        callback: Callable[[int, float], None] | None,
    ) -> None:
        """Iterate for ``num_steps`` steps, or until all restarts have converged."""
        while self.num_steps < num_steps and not self.converged:
            if not self.engine.is_free(self.now, self.ascent).any():
                if self.ascent.settled.any():  # the others have been frozen since
                    self._converge(tol)
                    break
                self.stop_reason = "no ascent possible"
                if any(flags.any() for flags in self.ascent.frozen.values()):
                    self.stop_reason += ": all parameters are frozen"
                break
            after = self.engine.advance(self.now, self.ascent)
            if isinstance(after, HandOver):
                self._confirm(after, tol)
                continue
            self.now = after
            self.losses.append(after.losses)
            if callback is not None:
                callback(self.num_steps, self.problem.loss(after.losses))
            if tol is not None:
                self._settle(tol)
            if self.checkpoint is not None:
                self.checkpoint(self, False)
            if self.ascent.blamed and self.problem.may_move:
                break  # the optimiser takes them over
        if self.checkpoint is not None:
            self.checkpoint(self, True)

    def _settle(self, tol: float) -> None:
        """Freeze restarts that have converged, so that they do not depend on the others."""
        # An extrapolated step may be level far from a maximum: EM's next one is to confirm it.
        free = self.engine.is_free(self.now, self.ascent)
        level = free & ~self.ascent.extrapolated & self.engine.is_level(self.all_losses, tol)
        if self.problem.ranks is not None:
            level = self.problem.ranks.as_first(level)
        self.ascent.settle(level, self.num_steps)
        if level.any() and not (free & ~level).any():
            self._converge(tol)

    def _converge(self, tol: float | None) -> None:
        self.converged = True
        self.stop_reason = f"log-likelihood rose by less than {tol:g}"

    def _confirm(self, handed: HandOver, tol: float | None) -> None:
        """Change the engine of some restarts, if it confirms their losses."""
        losses = handed.state.losses
        alike = agree(handed.state.params, self.losses[-1], losses)
        self.now = handed.state
        self.measured(losses, handed.which & alike)
        doubtful = handed.which & ~alike
        if doubtful.any():  # the first engine was wrong about the model
            self._repeat(handed, doubtful, tol)

    def _repeat(self, handed: HandOver, which: Flags, tol: float | None) -> None:
        """Repeat all steps of some restarts with their new engine."""
        others = {name: flags | ~which for name, flags in self.ascent.held.items()}
        again = Loop(handed.engine, self.start, others, self._warn, self._extrapolates)
        again.earlier = self.earlier
        again.run(self.num_steps, tol, None)
        for index, losses in enumerate(self.losses):
            new = again.losses[min(index, len(again.losses) - 1)]
            self.losses[index] = np.where(which, new, losses)
        self.ascent.follow(again.ascent, which)
        self.now = handed.replaced(which, again.now).with_losses(self.losses[-1])

    def measured(self, losses: Array, which: Flags) -> None:
        """Replace the last losses of some restarts by those of another computation.

        Both have rounding errors. Earlier losses that are lower for that reason are raised to it.
        """
        self.losses[-1] = np.where(which, losses, self.losses[-1])
        self.now = self.now.with_losses(self.losses[-1])
        for index in range(len(self.losses) - 2, -1, -1):
            low = which & (self.losses[index] < self.losses[index + 1])
            if not low.any():
                break
            self.losses[index] = np.where(low, self.losses[index + 1], self.losses[index])

    def result(self) -> EMResult:
        """The result of the run."""
        losses = np.stack(self.all_losses)
        return EMResult(
            history=(losses.sum(-1) + self.problem.constant).tolist(),
            converged=self.converged,
            stop_reason=self.stop_reason,
            num_steps=self.num_steps,
            num_e_steps=self.ascent.num_e_steps,
            restart_history=torch.from_numpy(losses),
            idle=self.now.idle,
            unconfirmed=[],
            converged_at=[int(at) if at >= 0 else None for at in self.ascent.settled_at],
        )
