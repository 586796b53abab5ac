"""The fused engine for the restarts that it supports, and the tensor engine for the others.

A restart begins in the fused engine. At its first step that is not ordinary it changes to the
tensor engine, with its current state, and stays there. The other restarts are not affected: each
restart has the steps and the engine that it would have alone.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import numpy as np

from pyro_regimes.infer.em import loop
from pyro_regimes.infer.em.ascent import Ascent, fallen, keep_held, rounding
from pyro_regimes.infer.em.engines.chain_steps import Parameters, Step
from pyro_regimes.infer.em.engines.fused import FusedEngine
from pyro_regimes.infer.em.engines.tensors import TensorEngine
from pyro_regimes.infer.em.problem import (
    Array,
    Flags,
    Params,
    Problem,
    State,
    TensorState,
)
from pyro_regimes.infer.em.squarem import next_bounds
from pyro_regimes.kernels import ops


class RelayState:
    """All restarts after one step; converted to tensors on demand.

    :param arrays: parameters of all restarts; only those of the fused engine are used.
    :param beyond: the next step of the fused engine.
    :param rest: the state of the restarts on the tensor engine.
    :param has_stepped: restarts for which the fused engine has made a step, ``(R,)``.
    :param has_moved: restarts that have changed to the tensor engine, ``(R,)``.
    """

    def __init__(
        self,
        fused: FusedEngine,
        arrays: Parameters,
        beyond: Step,
        losses: Array,
        rest: TensorState,
        has_stepped: Flags,
        has_moved: Flags,
    ) -> None:
        self._fused, self._has_stepped, self._has_moved = fused, has_stepped, has_moved
        self.arrays, self.beyond, self.losses, self.rest = arrays, beyond, losses, rest
        self._made: tuple[Params, Params] | None = None

    @property
    def _tensors(self) -> tuple[Params, Params]:
        # Not functools.cached_property: until Python 3.12 all instances share one lock, and a
        # process that is forked while a thread holds it would wait for it forever.
        if self._made is None:
            self._made = self._make_tensors()
        return self._made

    def _make_tensors(self) -> tuple[Params, Params]:
        written, rest = self._fused.write(self.arrays), (self.rest.params, self.rest.leaves)
        others = self._has_moved | ~self._has_stepped
        if not others.any():
            return written
        problem = self._fused.problem
        params, leaves = (
            _chosen(problem, others, other, own) for other, own in zip(rest, written, strict=True)
        )
        return params, leaves

    @property
    def params(self) -> Params:
        """The parameters as tensors."""
        return self._tensors[0]

    @property
    def leaves(self) -> Params:
        """The stored tensors of positive definite parameters."""
        return self._tensors[1]

    @property
    def unbounded(self) -> list[str]:
        """Parameters without a maximum in the last step; an ordinary step has none."""
        return self.rest.unbounded

    @property
    def idle(self) -> list[str]:
        """Parameters with cells without data in the last step."""
        return self.rest.idle

    def with_losses(self, losses: Array) -> RelayState:
        """A copy with losses from another computation."""
        other = copy(self)
        other.losses = losses
        return other


class _Parts(NamedTuple):
    """The restarts of each engine, ``(R,)``, cached."""

    free: Flags  #: restarts that are not frozen; the cache is valid for this and ``has_moved``
    has_moved: Flags
    fused: Flags
    some_fused: bool
    all_fused: bool
    some_moved: bool


class _Memory(NamedTuple):
    """What an extrapolation needs of the steps before it."""

    before: Parameters | None  #: the fused engine's arrays before the last step
    armed: Flags  #: restarts whose last step was one of EM, ``(R,)``
    bounds: Array  #: as in :func:`.squarem.next_bounds`, ``(R,)``


class RelayEngine:
    """Makes ordinary steps with the fused engine, and all others with the tensor engine.

    :param start: the first state.
    :param extrapolates: whether every other step is extrapolated (:mod:`.squarem`).
    """

    def __init__(
        self,
        fused: FusedEngine,
        tensors: TensorEngine,
        start: TensorState,
        extrapolates: bool = False,
    ) -> None:
        self.problem: Problem = fused.problem
        self._fused, self._tensors, self._start = fused, tensors, start
        nowhere: Flags = np.zeros(len(start.losses), dtype=np.bool_)
        #: Restarts for which the fused engine has made a step.
        self.has_stepped = nowhere
        #: Restarts that have changed to the tensor engine.
        self.has_moved = nowhere
        self._has_begun = False
        self._rounding = rounding(start.params)
        self._extrapolates = extrapolates
        self._memory = _Memory(None, nowhere, np.full(len(nowhere), np.inf))
        self._parts = _Parts(nowhere, nowhere, nowhere, False, False, False)

    def advance(self, now: State, ascent: Ascent) -> State | loop.HandOver:
        """One step of all restarts, or the hand-over of some to the tensor engine."""
        parts = self._parts_of(ascent)
        fused = parts.fused
        if not isinstance(now, RelayState):
            now = self._begin(fused & ~ascent.is_partly_held)
        if not now.beyond.is_whole and (fused & ~now.beyond.is_ordinary).any():
            return self._hand_over(now, fused & ~now.beyond.is_ordinary, ascent)
        arrays, beyond, losses = now.arrays, now.beyond, now.losses
        if parts.some_fused:
            arrays, beyond, memory = self._step(now, parts, ascent)
            losses = -beyond.log_likelihood
            if not parts.all_fused:
                losses = np.where(fused, losses, now.losses)
            if not (losses <= now.losses).all():
                moving = fallen(self._rounding, now.losses, losses)
                if moving.any():
                    return self._hand_over(now, moving, ascent)
            self._memory = memory
            if not self._has_begun:  # later steps never add restarts
                self.has_stepped, self._has_begun = fused, True
        rest = now.rest
        if parts.some_moved:
            extrapolated = ascent.extrapolated & ~self.has_moved
            rest = ascent.step(self._tensors, rest, ~self.has_moved)
            ascent.extrapolated = ascent.extrapolated | extrapolated
            losses = np.where(self.has_moved, rest.losses, losses)
        else:
            ascent.num_e_steps += 1
        return self._state(arrays, beyond, losses, rest)

    def _step(
        self, now: RelayState, parts: _Parts, ascent: Ascent
    ) -> tuple[Parameters, Step, _Memory]:
        """One step of the fused engine: its arrays, the step beyond, and the new memory."""
        fused, after = parts.fused, now.beyond.after
        if not parts.all_fused:
            after = after.where(fused, now.arrays)
        if not self._extrapolates:
            return after, self._fused.step(after, fused), self._memory
        before, armed, bounds = self._memory
        considered = fused & armed
        ascent.extrapolated = np.zeros_like(fused)
        if before is None or not considered.any():
            memory = _Memory(now.arrays, fused, bounds)
            return after, self._fused.step(after, fused), memory
        arrays, lengths = self._fused.extrapolate(before, now.arrays, after, bounds, considered)
        beyond, extrapolated = self._fused.step(arrays, fused), lengths > 1
        better = (beyond.log_likelihood >= -now.losses) & beyond.is_ordinary
        worse = extrapolated & ~better
        if worse.any():
            ascent.num_e_steps += 1
            arrays = after.where(worse, arrays)
            beyond = self._fused.step_again(beyond, arrays, worse)
        ascent.extrapolated = extrapolated & ~worse
        bounds = next_bounds(bounds, lengths, worse)
        return arrays, beyond, _Memory(now.arrays, fused & ~extrapolated, bounds)

    def _state(
        self,
        arrays: Parameters,
        beyond: Step,
        losses: Array,
        rest: TensorState,
    ) -> RelayState:
        return RelayState(
            self._fused,
            arrays,
            beyond,
            losses,
            rest,
            self.has_stepped,
            self.has_moved,
        )

    def _parts_of(self, ascent: Ascent) -> _Parts:
        """The restarts of each engine; most steps do not change them."""
        parts = self._parts
        if parts.free is not ascent.free or parts.has_moved is not self.has_moved:
            free, moved = ascent.free, self.has_moved
            fused = free & ~moved
            self._parts = _Parts(
                free, moved, fused, bool(fused.any()), bool(fused.all()), bool((free & moved).any())
            )
        return self._parts

    def _begin(self, fused: Flags) -> RelayState:
        """The state at the start."""
        arrays = self._fused.start
        ops.rest_threads()
        if fused.any():
            beyond = self._fused.step(arrays, fused)
        else:
            beyond = Step(self._start.losses, arrays, fused, False)
        return self._state(arrays, beyond, self._start.losses, self._start)

    def _hand_over(self, now: RelayState, moving: Flags, ascent: Ascent) -> loop.HandOver:
        """Hand some restarts over to the tensor engine."""
        rest = now.rest
        # A start on chunks has no expectations: only the compiled engine has read them.
        if (moving & self.has_stepped).any() or not rest.expected:
            rest = self._tensors.complete(self._start, now)
            ascent.num_e_steps += 1
        self.has_moved = self.has_moved | moving

        def state(rest: TensorState) -> RelayState:
            losses = np.where(moving, rest.losses, now.losses)
            return self._state(now.arrays, now.beyond, losses, rest)

        def replaced(which: Flags, other: State) -> RelayState:
            present = state(rest)
            params = _chosen(self.problem, which, other.params, present.params)
            leaves = _chosen(self.problem, which, other.leaves, present.leaves)
            wanted = TensorState(params, leaves, {}, present.losses, [], [])
            return state(self._tensors.complete(self._start, wanted))

        return loop.HandOver(state(rest), moving, self._tensors, replaced)

    def description(self) -> str:
        """Which engines have made the iterations, for ``em.plan``."""
        compiled = f"compiled iterations of {self._fused.what}"
        if self._extrapolates:
            compiled += ", every other one extrapolated"
        if not self.has_moved.any():
            return compiled
        why = f"not ordinary ({self._fused.troubles})"
        if len(self.has_moved) == 1:
            return f"{compiled}, then tensor operations, as a step was {why}"
        return (
            f"{compiled} (restarts: {self.has_stepped.sum()}), and tensor operations (restarts: "
            f"{self.has_moved.sum()}) from where a step was {why}"
        )

    def is_free(self, now: State, ascent: Ascent) -> Flags:
        """Restarts in which some closed form is not frozen."""
        return ascent.free

    def is_level(self, losses: list[Array], tol: float) -> Flags:
        """Which restarts rose by less than ``tol``."""
        return loop.rose_by_less(losses, tol)


def _chosen(problem: Problem, which: Flags, there: Params, elsewhere: Params) -> Params:
    """The values of some restarts from ``there``, and of the others from ``elsewhere``."""
    return {
        name: keep_held(problem.groups, {name: which}, name, there[name], value)
        for name, value in elsewhere.items()
    }
