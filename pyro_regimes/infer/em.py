"""EM: the closed-form alternative to SVI, over the same model function and parameter store."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import numpy as np
import torch

from pyro_regimes.infer import climb
from pyro_regimes.infer.climb import Climb, EMResult, Params, Problem, State
from pyro_regimes.infer.e_step import read_log_probs, read_site
from pyro_regimes.infer.fused import find
from pyro_regimes.infer.grouping import Groups, find_groups
from pyro_regimes.infer.identity import blocks
from pyro_regimes.infer.m_step import Maximised
from pyro_regimes.infer.parameters import Plan, find_parameters
from pyro_regimes.infer.tracing import (
    PYRO_LOCK,
    Run,
    constraint_of,
    run_model,
    write_parameter,
)

__all__ = ["EM", "EMResult"]


class EM:
    r"""Expectation-maximisation for a Pyro model that observes a :class:`.RegimeHMM`.

    .. math::
        \theta' = \arg\max_\theta
            \sum_q p(q \mid x, \theta^\text{old}) \log p(x, q \mid \theta)

    (Baum et al. 1970; Dempster, Laird and Rubin 1977). It is used as :class:`pyro.infer.SVI` is,
    on the same model function, and reads and writes the same parameter store::

        em = EM(model)
        loss = em.step(x)           # -log p(x) before the step
        result = em.run(x, num_steps=100, tol=1e-4)
        print(em.plan)              # which parameter is set how

    Parameters are found in the model, whatever their names: a ``pyro.param`` that is an argument
    of an observed ``RegimeHMM`` or of its Gaussian ``observation_dist``, as probabilities or
    logits, covariance, Cholesky factor, precision or scale. Expected statistics are pooled over
    everything along which it was broadcast, so that a ``(D, D)`` covariance is tied, a ``(K, 1)``
    scale spherical, and parameters with a leading dim of size R are R restarts in one batch. A
    parameter that is used in any other way has no closed form here, and is refused by name.

    :meth:`run` reads the model once, iterates on tensors, writes the parameters back and reads the
    model again, to see that it agrees; a model that does not is read anew at every step.

    No step lowers :math:`\log p(x)`, of any restart. Should rounding or a fault of the model lower
    that of one, its parameters are put back, it is held there, and a warning says so.

    :param model: a function of ``pyro.param`` and observed ``pyro.sample`` statements.
    :param min_eigenvalue: floor on the eigenvalues of covariances (on variances), in squared units
        of the data; the start is raised to it.
    :raises ValueError: if ``min_eigenvalue`` is negative; from the first step on, if the model has
        a latent or subsampled site, no observed RegimeHMM, or a parameter without a closed form.
    """

    def __init__(self, model: Callable[..., Any], *, min_eigenvalue: float = 0.0) -> None:
        if not callable(model):
            raise ValueError(f"expected model to be a function, got {type(model).__name__}")
        if not 0.0 <= min_eigenvalue < math.inf:
            raise ValueError(f"expected min_eigenvalue of at least 0, got {min_eigenvalue!r}")
        self.model = model
        self.min_eigenvalue = min_eigenvalue
        self._plan: Plan | None = None
        self._groups: Groups | None = None
        self._warned: set[str] = set()

    @property
    def plan(self) -> Plan | None:
        """How each parameter is updated; None before the first step. Prints readably."""
        return self._plan

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One EM iteration.

        :return: the loss :math:`-\\log p(x)` before it, as ``SVI.step``.
        """
        with self._pyro(), torch.no_grad():
            problem, now = self._read(args, kwargs)
            held = ~np.isfinite(now.losses)
            if not held.all():
                found = climb.step(problem, now)
                for name, there in found.unbounded.items():
                    if there:
                        self._warn(climb.unbounded_message(name))
                _write(climb.choose(problem.groups, now.params, found.values, held))
                after = _losses(problem.groups, run_model(self.model, args, kwargs))
                fallen = climb.fallen(now, after)
                if fallen.any():
                    self._warn(climb.fall_message(fallen, after - now.losses))
                    held = held | fallen
                    _write(climb.choose(problem.groups, now.params, found.values, held))
            return problem.loss(now.losses)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """:math:`-\\log p(x)` at the current parameters, which stay as they are."""
        with self._pyro(), torch.no_grad():
            run = run_model(self.model, args, kwargs)
            values = read_log_probs(run.sites).values()
            return _constant(run) - sum(float(value.double().sum()) for value in values)

    def run(
        self,
        *args: Any,
        num_steps: int = 100,
        tol: float | None = 1e-4,
        callback: Callable[[int, float], None] | None = None,
        **kwargs: Any,
    ) -> EMResult:
        """Iterate until the log-likelihood of every restart rises by less than ``tol``.

        :param num_steps: at most so many steps.
        :param tol: in nats; None never stops early.
        :param callback: called after each step with its number, from 1, and the loss after it; the
            parameter store then holds the parameters of that step.
        :return: an :class:`EMResult`; other arguments go to the model.
        :raises ValueError: if ``num_steps`` is negative or ``tol`` not a positive number.
        """
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
            raise ValueError(
                f"expected num_steps to be an integer of at least 0, got {num_steps!r}"
            )
        if tol is not None and not tol > 0:
            raise ValueError(f"expected tol to be positive or None, got {tol!r}")
        with torch.no_grad():
            with self._pyro():
                problem, start = self._read(args, kwargs)
                if not problem.constraints:
                    fused = find(problem.plan, problem.groups, problem.sites, self.min_eigenvalue)
                    problem = problem._replace(fused=fused)
            way = Climb(problem, start, self._warn)

            def shown(number: int, loss: float) -> None:
                with self._pyro():
                    _write(way.now.params)
                assert callback is not None
                callback(number, loss)

            try:
                way.run(num_steps, tol, callback and shown)
            finally:  # also where an error, or the user, ended it
                if way.num_steps:
                    with self._pyro():
                        _write(way.now.params)
            if way.num_steps and not self._agrees(way, args, kwargs):
                with self._pyro():
                    _write(start.params)
                    problem = problem._replace(fused=None)
                    way = _ReadingClimb(problem, start, self._warn, self, args, kwargs)
                    way.run(num_steps, tol, callback)
            return way.result()

    @contextmanager
    def _pyro(self) -> Iterator[None]:
        """Alone with Pyro's handlers and the parameter store."""
        with PYRO_LOCK:
            yield

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Problem, State]:
        """Run the model, make or check the plan, and take expectations."""
        run = run_model(self.model, args, kwargs)
        if self._plan is None or not self._plan.holds(run):
            self._plan = find_parameters(self.model, args, kwargs)
            self._groups = None
            if self._raise_to_floor(self._plan, run.params):
                run = run_model(self.model, args, kwargs)
        if self._groups is None or not self._groups.fits(run):
            self._groups = find_groups(self._plan, run)
        sites = {name: read_site(site) for name, site in run.sites.items()}
        problem = Problem(
            self._plan,
            self._groups,
            sites,
            _constant(run),
            {
                each.name: constraint_of(each.name)
                for each in self._plan.assignments
                if each.may_violate(constraint_of(each.name))
            },
            self.min_eigenvalue,
            None,
        )
        params = {each.name: run.params[each.name] for each in self._plan.assignments}
        arguments = {name: data.arguments for name, data in problem.sites.items()}
        return problem, climb.evaluate(problem, params, arguments)

    def _agrees(self, way: Climb, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the model, read again, says what the tensors said."""
        with self._pyro():
            run = run_model(self.model, args, kwargs)
            plan, groups = way.problem.plan, way.problem.groups
            if not (plan.holds(run) and groups.fits(run)):
                return False
            losses = np.append(_losses(groups, run), _constant(run))
        expected = np.append(way.losses[-1], way.problem.constant)
        # To the store and back a parameter loses some digits.
        precision = max(torch.finfo(value.dtype).eps for value in way.now.params.values())
        bound = precision**0.5 * (1 + abs(expected))
        with np.errstate(invalid="ignore"):
            return bool(((losses == expected) | (abs(losses - expected) <= bound)).all())

    def _raise_to_floor(self, plan: Plan, params: Params) -> bool:
        """Move covariances below the floor to it: EM is monotone from a feasible start only."""
        moved = False
        for each in plan.assignments:
            if self.min_eigenvalue > 0 and each.update is not None:
                value = params[each.name]
                cells = each.link.forward(blocks(value, each.update.event_dim))
                raised = each.link.inverse(each.update.feasible(cells, self.min_eigenvalue))
                raised = raised.reshape(value.shape)
                if not torch.equal(raised, value):
                    write_parameter(each.name, raised)
                    moved = True
        return moved

    def _warn(self, message: str) -> None:
        """Tell the user once of each kind of trouble."""
        kind = message[:40]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=4)


class _ReadingClimb(Climb):
    """A run that reads the model anew at every step: it is not the same function at every call."""

    def __init__(
        self,
        problem: Problem,
        start: State,
        warn: Callable[[str], None],
        em: EM,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__(problem, start, warn)
        self._em, self._args, self._kwargs = em, args, kwargs

    def at(self, params: Params, found: Maximised) -> State:
        _write(params)
        self.problem, state = self._em._read(self._args, self._kwargs)
        return state._replace(unbounded=[name for name, there in found.unbounded.items() if there])


def _constant(run: Run) -> float:
    return -sum(float(value) for value in run.others.values())


def _losses(groups: Groups, run: Run) -> climb.Array:
    """The loss of each restart, by one forward pass."""
    losses: climb.Array = -groups.total(read_log_probs(run.sites)).cpu().numpy()
    return losses


def _write(params: Params) -> None:
    for name, value in params.items():
        write_parameter(name, value)
