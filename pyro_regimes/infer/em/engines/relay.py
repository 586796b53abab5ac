"""The fused engine for the restarts that it can serve, and tensors for the others.

A restart begins in the fused engine. At the first step that is not ordinary it goes over to the
tensors, from the state that it has reached, and stays there; the other restarts go on as they were.
Each restart takes the steps that it would take alone, by the engine that it would have alone.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from pyro_regimes.infer.em import loop
from pyro_regimes.infer.em.ascent import Ascent, fallen, keep_held
from pyro_regimes.infer.em.engines.fused_gaussian import FusedEngine
from pyro_regimes.infer.em.engines.gaussian_steps import Parameters
from pyro_regimes.infer.em.engines.tensors import TensorEngine
from pyro_regimes.infer.em.problem import (
    Array,
    Flags,
    Params,
    Problem,
    State,
    TensorState,
    complete,
)


class RelayState:
    """All restarts at one step; tensors are made of the kernel's arrays when somebody asks.

    :param arrays: the parameters of all restarts, of which the fused engine's count.
    :param beyond: the same, where that engine's next step is ordinary one step on.
    :param is_ordinary: where it is, ``(R,)``.
    :param rest: the state of the other restarts.
    :param is_fused: which are the fused engine's, ``(R,)``.
    """

    def __init__(
        self,
        fused: FusedEngine,
        arrays: Parameters,
        beyond: Parameters,
        is_ordinary: Flags,
        losses: Array,
        rest: TensorState,
        is_fused: Flags,
    ) -> None:
        self._fused, self._is_fused = fused, is_fused
        self.arrays, self.beyond, self.is_ordinary = arrays, beyond, is_ordinary
        self.losses, self.rest = losses, rest

    @cached_property
    def _tensors(self) -> tuple[Params, Params]:
        written, rest = self._fused.write(self.arrays), (self.rest.params, self.rest.leaves)
        if self._is_fused.all():
            return written
        problem, others = self._fused.problem, ~self._is_fused
        params, leaves = (
            _chosen(problem, others, other, own) for other, own in zip(rest, written, strict=True)
        )
        return params, leaves

    @property
    def params(self) -> Params:
        """The problem's tensors."""
        return self._tensors[0]

    @property
    def leaves(self) -> Params:
        """What the store holds of those that are positive definite."""
        return self._tensors[1]

    @property
    def unbounded(self) -> list[str]:
        """Parameters that had no maximum in the step that led here; an ordinary one has."""
        return self.rest.unbounded

    @property
    def idle(self) -> list[str]:
        """Parameters of which that step found a part without any data."""
        return self.rest.idle

    def with_losses(self, losses: Array) -> RelayState:
        """The same with losses as another computation has found them."""
        return RelayState(
            self._fused,
            self.arrays,
            self.beyond,
            self.is_ordinary,
            losses,
            self.rest,
            self._is_fused,
        )


class RelayEngine:
    """Ordinary steps by the fused engine, all others on tensors.

    :param start: a state of the problem, which restarts without any step keep.
    """

    def __init__(self, fused: FusedEngine, tensors: TensorEngine, start: TensorState) -> None:
        self.problem: Problem = fused.problem
        self._fused, self._tensors, self._start = fused, tensors, start
        #: Restarts for which the fused engine has made a step.
        self.has_stepped = np.zeros(len(start.losses), dtype=np.bool_)
        #: Restarts that have gone over to the tensors.
        self.has_moved = np.zeros(len(start.losses), dtype=np.bool_)

    def advance(self, now: State, ascent: Ascent) -> State | loop.HandOver:
        """One step of all restarts, or some that go over to the tensors."""
        fused = ascent.free & ~self.has_moved
        if not isinstance(now, RelayState):
            now = self._begin(fused & ~ascent.is_partly_held)
        moving = fused & (ascent.is_partly_held | ~now.is_ordinary)
        if moving.any():
            return self._hand_over(now, moving, ascent)
        arrays, beyond, is_ordinary, losses = now.arrays, now.beyond, now.is_ordinary, now.losses
        if fused.any():
            arrays = beyond if fused.all() else beyond.where(fused, arrays)
            step = self._fused.step(arrays, fused)
            losses = np.where(fused, -step.log_likelihood, losses)
            moving = fused & ~step.is_sound | fallen(self._start.params, now.losses, losses)
            if moving.any():
                return self._hand_over(now, moving, ascent)
            beyond, is_ordinary = step.after, step.is_ordinary
            self.has_stepped = self.has_stepped | fused
        rest = now.rest
        if (ascent.free & self.has_moved).any():
            rest = ascent.step(self._tensors, rest, ~self.has_moved)
            losses = np.where(self.has_moved, rest.losses, losses)
        else:
            ascent.num_e_steps += 1
        return self._state(arrays, beyond, is_ordinary, losses, rest)

    def _state(
        self,
        arrays: Parameters,
        beyond: Parameters,
        is_ordinary: Flags,
        losses: Array,
        rest: TensorState,
    ) -> RelayState:
        is_fused = self.has_stepped & ~self.has_moved
        return RelayState(self._fused, arrays, beyond, is_ordinary, losses, rest, is_fused)

    def _begin(self, fused: Flags) -> RelayState:
        """The start."""
        arrays = self._fused.read(self._start.params)
        beyond, is_ordinary = arrays, np.zeros_like(fused)
        if fused.any():
            step = self._fused.step(arrays, fused)
            beyond, is_ordinary = step.after, step.is_ordinary
        return self._state(arrays, beyond, is_ordinary, self._start.losses, self._start)

    def _hand_over(self, now: RelayState, moving: Flags, ascent: Ascent) -> loop.HandOver:
        """Let some restarts go over to the tensors."""
        rest = now.rest
        if (moving & self.has_stepped).any():
            rest = complete(self.problem, self._start, now)
            ascent.num_e_steps += 1
        self.has_moved = self.has_moved | moving

        def state(rest: TensorState) -> RelayState:
            losses = np.where(moving, rest.losses, now.losses)
            return self._state(now.arrays, now.beyond, now.is_ordinary, losses, rest)

        def replaced(which: Flags, other: State) -> RelayState:
            present = state(rest)
            params = _chosen(self.problem, which, other.params, present.params)
            leaves = _chosen(self.problem, which, other.leaves, present.leaves)
            wanted = TensorState(params, leaves, {}, present.losses, [], [])
            return state(complete(self.problem, self._start, wanted))

        return loop.HandOver(state(rest), moving, self._tensors, replaced)

    def description(self) -> str:
        """What has made the iterations, for the plan."""
        compiled = "compiled iterations of a plain Gaussian model"
        if not self.has_moved.any():
            return compiled
        why = "not ordinary (a floor, a state without data, or a covariance near singularity)"
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
    """The values of some restarts, and others elsewhere."""
    return {
        name: keep_held(problem.groups, {name: which}, name, there[name], value)
        for name, value in elsewhere.items()
    }
