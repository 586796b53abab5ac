"""The EM loop: steps, stopping, history. Where expectations come from is an engine's matter."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Protocol

import numpy as np
import torch

from pyro_regimes.infer.em.ascent import Ascent, Held, agree
from pyro_regimes.infer.em.problem import Array, Flags, Problem, State, TensorState
from pyro_regimes.infer.em.result import EMResult


class Engine(Protocol):
    """Makes the steps of one problem."""

    @property
    def problem(self) -> Problem:
        """What no step changes."""

    def advance(self, now: Any, ascent: Ascent) -> State | HandOver:
        """The state one step on; or, before it, what other computations have found of this one."""

    def is_free(self, now: Any, ascent: Ascent) -> Flags:
        """Restarts in which something still moves, ``(R,)``."""

    def is_level(self, losses: list[Array], tol: float) -> Flags:
        """Which restarts have come to rest, ``(R,)``."""


class HandOver(NamedTuple):
    """Some restarts go on in another way from the state that they have reached."""

    state: State  #: the same one, with their losses as they are computed from here on
    which: Flags  #: the restarts, ``(R,)``
    engine: Engine  #: makes their steps from here on
    #: ``(which, other)``: ``state`` with some of these restarts as they are in another one
    replaced: Callable[[Flags, State], State]


def rose_by_less(losses: list[Array], tol: float) -> Flags:
    """Which restarts the last step has raised by less than ``tol``.

    A fall beyond rounding has been undone.
    """
    with np.errstate(invalid="ignore"):  # of restarts whose likelihood is not finite
        level: Flags = losses[-2] - losses[-1] < tol
    return level


class Loop:
    """A run of EM.

    :param start: the first state.
    :param frozen: parameters that an earlier run has frozen.
    :param warn: is told of trouble.
    """

    def __init__(
        self,
        engine: Engine,
        start: TensorState,
        frozen: Held,
        warn: Callable[[str], None],
    ) -> None:
        self.engine = engine
        self.start = start
        self.now: State = start  #: the last state that was reached, also after an error
        self.losses = [start.losses]
        self.converged = False
        self.stop_reason = "num_steps reached"
        self._warn = warn
        self.ascent = Ascent(self.problem.plan.names, start.losses, frozen, warn)

    @property
    def problem(self) -> Problem:
        """What no step changes."""
        return self.engine.problem

    @property
    def num_steps(self) -> int:
        """Steps made."""
        return len(self.losses) - 1

    def go_on_from(self, other: Loop) -> None:
        """Take over the history of a run whose last state is the first one here."""
        if other.problem.plan.is_joint or not self.problem.plan.is_joint:
            self.losses = list(other.losses)
        else:  # all restarts count as one from here, and nothing is apart from them
            self.losses = [np.array([other.problem.loss(each)]) for each in other.losses]
        self.ascent.num_e_steps = other.ascent.num_e_steps + 1
        self.measured(self.now.losses, np.ones(len(self.now.losses), dtype=np.bool_))

    def run(
        self,
        num_steps: int,
        tol: float | None,
        callback: Callable[[int, float], None] | None,
    ) -> None:
        """Iterate until there are ``num_steps`` steps, or the losses have come to rest."""
        while self.num_steps < num_steps and not self.converged:
            if not self.engine.is_free(self.now, self.ascent).any():
                if self.ascent.settled.any():  # the others were frozen after it
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
            if self.ascent.blamed and self.problem.may_move:
                break  # an optimiser can take them on

    def _settle(self, tol: float) -> None:
        """Freeze restarts that have converged: none depends on how long the others take."""
        free = self.engine.is_free(self.now, self.ascent)
        level = free & self.engine.is_level(self.losses, tol)
        self.ascent.settle(level)
        if level.any() and not (free & ~level).any():
            self._converge(tol)

    def _converge(self, tol: float | None) -> None:
        self.converged = True
        self.stop_reason = f"log-likelihood rose by less than {tol:g}"

    def _confirm(self, handed: HandOver, tol: float | None) -> None:
        """Let some restarts go on in another way, which confirms their losses."""
        losses = handed.state.losses
        alike = agree(handed.state.params, self.losses[-1], losses)
        self.now = handed.state
        self.measured(losses, handed.which & alike)
        doubtful = handed.which & ~alike
        if doubtful.any():  # the engine has computed what the model does not
            self._repeat(handed, doubtful, tol)

    def _repeat(self, handed: HandOver, which: Flags, tol: float | None) -> None:
        """Make all steps of some restarts again, as they go on from here."""
        others = {name: flags | ~which for name, flags in self.ascent.held.items()}
        again = Loop(handed.engine, self.start, others, self._warn)
        again.run(self.num_steps, tol, None)
        for index, losses in enumerate(self.losses):
            new = again.losses[min(index, again.num_steps)]
            self.losses[index] = np.where(which, new, losses)
        self.ascent.follow(again.ascent, which)
        self.now = handed.replaced(which, again.now).with_losses(self.losses[-1])

    def measured(self, losses: Array, which: Flags) -> None:
        """Put the last losses of some restarts as another computation has found them.

        Both have rounding errors. An earlier loss that is lower for no other reason follows.
        """
        self.losses[-1] = np.where(which, losses, self.losses[-1])
        self.now = self.now.with_losses(self.losses[-1])
        for index in range(self.num_steps - 1, -1, -1):
            low = which & (self.losses[index] < self.losses[index + 1])
            if not low.any():
                break
            self.losses[index] = np.where(low, self.losses[index + 1], self.losses[index])

    def result(self) -> EMResult:
        """How it went."""
        losses = np.stack(self.losses)
        return EMResult(
            history=(losses.sum(-1) + self.problem.constant).tolist(),
            converged=self.converged,
            stop_reason=self.stop_reason,
            num_steps=self.num_steps,
            num_e_steps=self.ascent.num_e_steps,
            restart_history=torch.from_numpy(losses),
            idle=self.now.idle,
            unconfirmed=[],
        )
