"""One reading of a model, and a climb that reads the model at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyro
import torch

from pyro_regimes.emissions.base import Pooled
from pyro_regimes.infer.em import loop as climb
from pyro_regimes.infer.em.e_step import read_log_probs
from pyro_regimes.infer.em.gradient import move
from pyro_regimes.infer.em.grouping import Groups
from pyro_regimes.infer.em.loop import Climb, OutsideConstraint, Params, Problem, State
from pyro_regimes.infer.em.m_step import Maximised
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.tracing import Run, write_parameter

if TYPE_CHECKING:
    from pyro_regimes.infer.em.em import EM


#: Steps in a row that must be level where an optimiser moves parameters.
_STEADY = 10


class Reading(NamedTuple):
    """What one run of the model says."""

    problem: Problem
    state: State
    gradients: Params  #: in the unconstrained tensors that the optimiser moves


class ReadingClimb(Climb):
    """A climb that runs the model at every step: where an optimiser moves parameters too, where a
    prior depends on parameters, or where the model is not the same function at every call."""

    def __init__(
        self, em: EM, reading: Reading, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(reading.problem, reading.state, em._warn, em._frozen)
        self._em, self._args, self._kwargs = em, args, kwargs
        self._gradients = reading.gradients
        self._idle: list[str] = []
        self._unbounded: list[str] = []

    def at(self, params: Params, leaves: Params, found: Maximised) -> State:
        """The losses alone, by one forward pass of the model; infinite where it cannot be run."""
        try:
            write(params, leaves)
            run = self._em._run(self._args, self._kwargs)
            losses = read_losses(self.problem.plan, self.problem.groups, run)
        except (torch.linalg.LinAlgError, ValueError):
            before = self.now.params
            if all(torch.equal(value, before[name]) for name, value in params.items()):
                raise  # it is not the step that does it
            losses = np.full_like(self.now.losses, np.inf)
        unbounded = [name for name, there in found.unbounded.items() if there]
        self._idle = [name for name, there in found.idle.items() if there]
        self._unbounded = unbounded
        return self.now._replace(
            params=params, leaves=leaves, losses=losses, unbounded=unbounded, idle=self._idle
        )

    def move(self) -> None:
        """The closed forms, which must not lower the objective; then the optimiser."""
        try:
            if self.problem.plan.is_subsampled:
                self._em._average(self.problem, self.now)
            elif self.held and super()._free().any():
                super().advance()
        except OutsideConstraint as error:
            if self._em.optim is None:
                raise
            self.blamed = [error.name]
        if self.blamed and self._em.optim is not None:
            self._em._give_up(self.blamed)
            self.blamed = []
        if self._gradients:
            assert self._em.optim is not None
            move(self._em.optim, self._gradients)

    def advance(self) -> None:
        """One step, and what the model says after it."""
        self.move()
        reading = self._em._read(self._args, self._kwargs)
        _check_same(self.problem, reading.problem)
        self.problem, now, self._gradients = reading
        self.now = now._replace(idle=self._idle, unbounded=self._unbounded)
        nowhere = np.zeros(len(self.now.losses), dtype=np.bool_)
        self.held = {name: self.held.get(name, nowhere) for name in reading.problem.plan.names}

    def _free(self) -> climb.Flags:
        free = super()._free() if self.held else np.zeros(len(self.now.losses), dtype=np.bool_)
        return free | (np.isfinite(self.now.losses) & bool(self._gradients))

    def _is_level(self, rise: climb.Array, tol: float) -> bool:
        if self.problem.plan.is_subsampled:
            return False
        if not self._gradients:
            return super()._is_level(rise, tol)
        # A step of the optimiser may go down, and momentum may turn within one step.
        recent = np.stack(self.losses[-_STEADY - 1 :])
        return len(recent) > _STEADY and bool((abs(np.diff(recent, axis=0)) < tol).all())


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


def pseudo_statistics(plan: Plan, run: Run) -> dict[str, Pooled]:
    """What conjugate priors, as they are in a run, add to the statistics of each parameter."""
    found = {}
    for each in plan.assignments:
        if each.prior is not None:
            shape = plan.shapes[each.name]
            latent = run.latents[each.prior.site]
            found[each.name] = each.prior.statistics(latent, shape, each.event_dim)
    for name, prior in plan.affine.priors.items():
        latent = run.latents[prior.site]
        event_dim = 0 if prior.family == "Normal" else 1
        found[name] = prior.statistics(latent, latent.value.shape, event_dim)
    return found


def read_losses(plan: Plan, groups: Groups, run: Run) -> climb.Array:
    """The loss of each restart, by one forward pass."""
    total = groups.total(read_log_probs(run.sites))
    if run.latents or plan.is_joint:
        others = sum(float(value) for value in run.others.values())
        params = {name: run.params[name].detach() for name in plan.names}
        total = total + climb.log_prior(plan, groups, run.latents, others, params)
    losses: climb.Array = -total.cpu().numpy()
    return losses


def write(params: Params, leaves: Params) -> None:
    """Set parameters in the store, in place.

    :param leaves: of some of them, what the store is to hold, to the last digit.
    """
    held = dict(pyro.get_param_store().named_parameters())
    for name, value in params.items():
        if name in leaves:
            with torch.no_grad():
                held[name].copy_(leaves[name])
        else:
            write_parameter(name, value)
