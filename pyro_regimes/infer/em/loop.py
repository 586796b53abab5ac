"""The EM loop: steps, stopping, history. Where expectations come from is an engine's matter."""

from __future__ import annotations

from typing import Any, Callable, Protocol

import numpy as np
import torch

from pyro_regimes.infer.em.ascent import Ascent, Held, agrees
from pyro_regimes.infer.em.problem import Array, Flags, Problem, State, TensorState, complete
from pyro_regimes.infer.em.result import EMResult


class Engine(Protocol):
    """Makes the steps of one problem."""

    @property
    def problem(self) -> Problem:
        """What no step changes."""

    def advance(self, now: Any, ascent: Ascent) -> State | None:
        """The state one step on; None for a step that this engine cannot make."""

    def is_free(self, now: Any, ascent: Ascent) -> Flags:
        """Restarts in which something still moves, ``(R,)``."""

    def is_level(self, losses: list[Array], tol: float) -> Flags:
        """Which restarts have come to rest, ``(R,)``."""


def rose_by_less(losses: list[Array], tol: float) -> Flags:
    """Which restarts the last step has raised by less than ``tol``.

    A fall beyond rounding has been undone.
    """
    with np.errstate(invalid="ignore"):  # of restarts whose likelihood is not finite
        level: Flags = losses[-2] - losses[-1] < tol
    return level


class Loop:
    """A run of EM.

    :param engines: the first makes steps until it cannot; then the next one takes over.
    :param start: the first state.
    :param frozen: parameters that an earlier run has frozen.
    :param warn: is told of trouble.
    """

    def __init__(
        self,
        engines: list[Engine],
        start: TensorState,
        frozen: Held,
        warn: Callable[[str], None],
    ) -> None:
        self._engines = list(engines)
        self.start = start
        self.now: State = start  #: the last state that was reached, also after an error
        self.losses = [start.losses]
        self.converged = False
        self.stop_reason = "num_steps reached"
        self._frozen, self._warn = frozen, warn
        self.ascent = Ascent(self.problem.plan.names, start.losses, frozen, warn)

    @property
    def engine(self) -> Engine:
        """The one at work."""
        return self._engines[0]

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
        self.measured(self.now.losses)

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
            if after is None:
                self._change_engine()
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

    def _change_engine(self) -> None:
        """Let the next engine go on from the last state, where it confirms its losses."""
        del self._engines[0]
        if self.now is self.start:
            return
        state = complete(self.problem, self.start, self.now)
        self.ascent.num_e_steps += 1
        if agrees(state.params, self.losses[-1], state.losses):
            self.now = state
            self.measured(state.losses)
        else:  # the engine computes what the model does not
            self.now = self.start
            del self.losses[1:]
            self.ascent = Ascent(
                self.problem.plan.names, self.start.losses, self._frozen, self._warn
            )

    def measured(self, losses: Array) -> None:
        """Put the last losses as another computation has found them.

        Both have rounding errors. An earlier loss that is lower for no other reason follows.
        """
        self.losses[-1] = losses
        self.now = self.now.with_losses(losses)
        for index in range(self.num_steps - 1, -1, -1):
            low = self.losses[index] < self.losses[index + 1]
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
