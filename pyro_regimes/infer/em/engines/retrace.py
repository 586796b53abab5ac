"""EM that runs the model again at every step.

It is used if an optimiser updates parameters, if a prior depends on parameters, if data are
subsampled, or if the model is not the same function at every call.
"""

from __future__ import annotations

import numpy as np
import torch

from pyro_regimes.infer.em import loop
from pyro_regimes.infer.em.ascent import Ascent, Held, nothing_held
from pyro_regimes.infer.em.engines.stochastic import Schedule, average, default_schedule
from pyro_regimes.infer.em.engines.tensors import OutsideConstraint, maximise_within
from pyro_regimes.infer.em.gradient import move
from pyro_regimes.infer.em.m_step import Maximised, names_of
from pyro_regimes.infer.em.problem import Array, Flags, Params, Problem, TensorState
from pyro_regimes.infer.em.run_reading import OtherSites, read_losses
from pyro_regimes.infer.em.session import Call, Session

#: Steps in a row that must be level where an optimiser moves parameters.
_STEADY = 10


class RetraceEngine:
    """Steps of closed forms and of the optimiser, each on a new run of the model.

    :param problem: of the first run.
    :param gradients: there, with respect to the unconstrained tensors that the optimiser moves.
    :param schedule: of stochastic EM, where data are subsampled.
    """

    def __init__(
        self,
        session: Session,
        call: Call,
        problem: Problem,
        gradients: Params,
        schedule: Schedule = default_schedule,
    ) -> None:
        self.problem = problem
        self._session, self._call, self._schedule = session, call, schedule
        self._gradients = gradients
        self._found: Maximised | None = None

    def maximise(self, now: TensorState, held: Held) -> Maximised:
        """The M-step."""
        self._found = maximise_within(self.problem, now, held, dict(now.expected))
        return self._found

    def at(
        self, now: TensorState, params: Params, leaves: Params, found: Maximised
    ) -> TensorState:
        """The losses alone, by one forward pass of the model; infinite where it cannot be run."""
        ranks, plan, run = self.problem.ranks, self.problem.plan, None
        try:
            with self._session.alone():
                self._session.write(params, leaves)
                run = self._session.run(self._call, chains=plan.chains)
                losses = read_losses(plan, self.problem.groups, run, ranks)
        except OtherSites:
            raise
        except (torch.linalg.LinAlgError, ValueError):
            if all(torch.equal(value, now.params[name]) for name, value in params.items()):
                raise  # it is not the step that does it
            losses = np.full_like(now.losses, np.inf)
            if ranks is not None and run is None:  # the others must not wait for its losses
                ranks.add([torch.from_numpy(-losses)])
        return now._replace(
            params=params, leaves=leaves, losses=losses, unbounded=names_of(found.unbounded)
        )

    def improve(self, now: TensorState, ascent: Ascent) -> None:
        """The closed forms, which must not lower the objective; then the optimiser."""
        session, self._found = self._session, None
        try:
            if self.problem.plan.is_subsampled:
                self._average(now)
            elif ascent.free.any():
                ascent.step(self, now)
        except OutsideConstraint as error:
            if session.optim is None:
                raise
            ascent.blamed = [error.name]
        if ascent.blamed and session.optim is not None:
            session.give_up(ascent.blamed)
            ascent.blamed = []
        if self._gradients:
            assert session.optim is not None
            with session.alone():
                move(session.optim, self._gradients)

    def _average(self, now: TensorState) -> None:
        """A step of stochastic EM: nothing says whether the whole data's likelihood rises."""
        session, plan = self._session, self.problem.plan
        number = session.averages.num_batches + 1
        share = float(self._schedule(number))
        if not 0 < share <= 1:
            raise ValueError(
                f"expected step_size to lie above 0 and up to 1, got {share} for batch {number}"
            )
        expected = {
            name: average(each, plan.updated(name), session.averages.sites.get(name), share)
            for name, each in now.expected.items()
        }
        sites = {name: each.averages for name, each in expected.items()}
        session.averages = session.averages._replace(sites=sites, num_batches=number)
        nothing = nothing_held(plan, len(now.losses))
        found = maximise_within(self.problem, now, nothing, dict(expected))
        session.write(found.values, found.leaves)
        self._found = found
        for name in names_of(found.unbounded):
            session.warn(f"EM: parameter {name!r} has no maximum, as {plan.why_unbounded(name)}")

    def advance(self, now: TensorState, ascent: Ascent) -> TensorState:
        """One step, and what the model says after it."""
        self.improve(now, ascent)
        after = self._read()
        ascent.restrict(self.problem.plan.names, len(after.losses))
        if self._found is None:
            return after
        return after._replace(
            unbounded=names_of(self._found.unbounded), idle=names_of(self._found.idle)
        )

    def _read(self) -> TensorState:
        """The E-step at the parameters in the store, and the gradients there."""
        snapshot = self._session.read(self._call, is_start=False)
        _check_same(self.problem, snapshot.problem)
        self.problem, after, self._gradients = snapshot
        return after

    def is_free(self, now: TensorState, ascent: Ascent) -> Flags:
        """Restarts in which a closed form is not frozen, or the optimiser moves something."""
        moved = np.isfinite(now.losses) & ~ascent.settled & bool(self._gradients)
        return ascent.free | moved

    def is_level(self, losses: list[Array], tol: float) -> Flags:
        """Which restarts have come to rest: never those of minibatches."""
        nowhere = np.zeros(len(losses[-1]), dtype=np.bool_)
        if self.problem.plan.is_subsampled:
            return nowhere
        if not self._gradients:
            return loop.rose_by_less(losses, tol)
        # A step of the optimiser may go down, and momentum may turn within one step.
        recent = np.stack(losses[-_STEADY - 1 :])
        if len(recent) <= _STEADY:
            return nowhere
        return np.logical_and.reduce(abs(np.diff(recent, axis=0)) < tol, axis=0)


def _check_same(one: Problem, other: Problem) -> None:
    """Refuse a model that becomes another within a run: its losses have no common measure."""
    first, then = (
        {name: tuple(data.batch_shape) for name, data in problem.sites.items()}
        for problem in (one, other)
    )
    if first != then:
        raise ValueError(
            "expected a model with the same observed RegimeHMM sites, of the same batch shapes, at "
            f"every step of a run, got {first} and then {then}"
        )
