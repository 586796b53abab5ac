"""EM on the tensors that one run of the model has shown."""

from __future__ import annotations

from functools import partial

from torch.distributions.constraints import Constraint

from pyro_regimes.infer.em import loop
from pyro_regimes.infer.em.ascent import Ascent, Held, keep_held
from pyro_regimes.infer.em.m_step import Maximised, maximise
from pyro_regimes.infer.em.pooling import Expectation
from pyro_regimes.infer.em.problem import (
    Array,
    Flags,
    Params,
    Problem,
    State,
    TensorState,
    arguments_at,
    complete,
    evaluate,
)


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


def maximise_within(
    problem: Problem, now: TensorState, held: Held, expected: dict[str, Expectation]
) -> Maximised:
    """The M-step.

    :param held: what keeps its value; what comes after it is maximised given that.
    :param expected: the expectations of the state, or averages in their place.
    :raises OutsideConstraint: if a maximiser does not meet its parameter's constraint.
    """
    found = maximise(
        problem.plan,
        {**expected, **problem.priors},
        now.params,
        now.leaves,
        problem.min_eigenvalue,
        problem.pseudo,
        problem.groups,
        partial(keep_held, problem.groups, held),
        problem.ranks,
    )
    for name, constraint in problem.constraints.items():
        if not constraint.check(found.values[name]).all():
            raise OutsideConstraint(name, constraint)
    return found


class TensorEngine:
    """Steps on the arguments of the model's distributions, without running the model."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def maximise(self, now: TensorState, held: Held) -> Maximised:
        """The M-step."""
        return maximise_within(self.problem, now, held, dict(now.expected))

    def at(
        self, now: TensorState, params: Params, leaves: Params, found: Maximised
    ) -> TensorState:
        """The E-step at new parameters."""
        if params is found.values:
            arguments = found.arguments
        else:
            held = {name: each.arguments for name, each in now.expected.items()}
            arguments = arguments_at(self.problem, params, held, now.params)
        return evaluate(self.problem, params, leaves, arguments, found)

    def complete(self, start: TensorState, state: State) -> TensorState:
        """Add the expectations to a state, which an engine may not have kept.

        :param start: any state of the same problem.
        """
        return complete(self.problem, start, state)

    def advance(self, now: TensorState, ascent: Ascent) -> TensorState:
        """One step, in which updates that lower the likelihood are rolled back."""
        return ascent.step(self, now)

    def is_free(self, now: TensorState, ascent: Ascent) -> Flags:
        """Restarts in which some closed form is not frozen."""
        return ascent.free

    def is_level(self, losses: list[Array], tol: float) -> Flags:
        """Which restarts rose by less than ``tol``."""
        return loop.rose_by_less(losses, tol)
