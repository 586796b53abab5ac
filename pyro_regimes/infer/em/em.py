"""EM: the closed-form alternative to SVI, over the same model function and parameter store."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from contextlib import AbstractContextManager
from numbers import Integral
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pyro
import torch
from torch.distributions.constraints import positive_definite

from pyro_regimes.emissions.base import blocks
from pyro_regimes.infer.callables import check_callables
from pyro_regimes.infer.em import guard
from pyro_regimes.infer.em import loop as climb
from pyro_regimes.infer.em.e_step import SiteStatistics, read_log_probs, read_site
from pyro_regimes.infer.em.engines.fused_gaussian import find
from pyro_regimes.infer.em.engines.retrace import (
    Reading,
    ReadingClimb,
    pseudo_statistics,
    read_losses,
    write,
)
from pyro_regimes.infer.em.engines.stochastic import Schedule, average, default_schedule
from pyro_regimes.infer.em.gradient import Optim, find_gradients
from pyro_regimes.infer.em.grouping import Groups, find_groups
from pyro_regimes.infer.em.guard import Call
from pyro_regimes.infer.em.loop import (
    Climb,
    EMResult,
    Held,
    OutsideConstraint,
    Params,
    Problem,
    State,
)
from pyro_regimes.infer.em.recognise.find import find_parameters
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.handing import SameSubsamples
from pyro_regimes.infer.isolation import Alone
from pyro_regimes.infer.tracing import (
    Run,
    constraint_of,
    run_model,
    write_parameter,
)
from pyro_regimes.infer.undisturbed import Undisturbed, check_leaves, explained

__all__ = ["EM", "EMResult"]

#: Files of torch and contextlib that stand between a caller and a decorated function.
_DECORATORS = (torch.utils._contextlib.__file__, contextlib.__file__)


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
    scale spherical, and parameters with a leading dim of size R are R restarts in one batch.
    Locations that are affine in parameters are solved for by weighted least squares.

    With a ``guide`` that puts points at latent sites (``AutoDelta``), EM maximises the log joint:
    conjugate priors join the closed forms (:mod:`.recognise.priors`), in the space of the site that
    carries them. With an ``optim``, a parameter without a closed form is moved by gradient steps on
    the same objective (generalised EM); without one it is refused by name.

    Where a plate is subsampled, each step is one of stochastic EM (:mod:`.engines.stochastic`):
    running averages of the minibatches' expected statistics are maximised. The loss is then the
    minibatch's estimate, and :meth:`run` makes all its steps. The averages belong to one data set:
    :meth:`reset` forgets them.

    :meth:`run` reads the model once, iterates on tensors, writes the parameters back and reads the
    model again, to see that it agrees; a model that does not is read anew at every step.

    No closed form lowers the objective of any restart. (Where an optimiser moves parameters,
    locations are affine, or priors depend on parameters, all restarts count as one.) Should
    rounding or a fault of the model lower it, the responsible parameters are rolled back and
    frozen until :meth:`reset` is called, or left to the optimiser, and a warning says so.

    :param model: a function of ``pyro.param`` and observed ``pyro.sample`` statements.
    :param guide: called as the model; a point at each of its latent sites.
    :param optim: a Pyro optimiser, for what has no closed form.
    :param step_size: of stochastic EM, the weight of the n-th minibatch, n = 1, 2, ...; None for
        :math:`n^{-0.6}`.
    :param min_eigenvalue: floor on the eigenvalues of covariances (on variances), in squared units
        of the data; the start is raised to it.
    :raises ValueError: if ``min_eigenvalue`` is negative; from the first step on, if the model has
        a latent site without a point or a subsampled one, no observed RegimeHMM, or, without an
        ``optim``, a parameter without a closed form.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        optim: Optim | None = None,
        min_eigenvalue: float = 0.0,
        *,
        step_size: Schedule | None = None,
    ) -> None:
        check_callables(model, guide, optim, step_size)
        number = isinstance(min_eigenvalue, (int, float, np.number))
        if not number or not 0.0 <= min_eigenvalue < math.inf:
            raise ValueError(f"expected min_eigenvalue of at least 0, got {min_eigenvalue!r}")
        self.model, self.guide, self.optim = model, guide, optim
        self.min_eigenvalue = min_eigenvalue
        self.step_size = step_size or default_schedule
        self._averages: dict[str, SiteStatistics] = {}
        self._num_batches = 0
        self._plan: Plan | None = None
        self._groups: Groups | None = None
        self._plate_sizes: dict[str, int] = {}
        self._leaves: Params = {}
        self._frozen: Held = {}
        self._warned: set[str] = set()

    @property
    def plan(self) -> Plan | None:
        """How each parameter is updated; None before the first step. Prints readably."""
        return self._plan

    def reset(self) -> None:
        """Forget everything but the parameter store.

        That is the plan, the running averages of stochastic EM, its number of minibatches, the
        frozen parameters and the warnings given. It happens by itself where the store holds other
        parameters than before (after ``pyro.clear_param_store()``); the averages are forgotten
        where a subsampled plate has another size. A new data set of the same size, with the
        parameters of the last one as its start, needs a call.
        """
        self._plan, self._groups, self._warned = None, None, set()
        self._plate_sizes, self._leaves, self._frozen = {}, {}, {}
        self._forget_averages()

    def _forget_averages(self) -> None:
        self._averages, self._num_batches = {}, 0

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One EM iteration.

        :return: the loss :math:`-\\log p(x)` before it, as ``SVI.step``.
        """
        call = Undisturbed()
        with call, call, self._pyro(), torch.no_grad():
            call.undo = self._mark()
            reading = self._read(args, kwargs)
            way = ReadingClimb(self, reading, args, kwargs)
            way.move()
            self._frozen = way.frozen
            return reading.problem.loss(reading.state.losses)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """:math:`-\\log p(x)` at the current parameters, which stay as they are."""
        call = Undisturbed()
        with call, call, self._pyro(), torch.no_grad():
            run = self._run(args, kwargs)
            values = read_log_probs(run.sites).values()
            return -run.log_priors() - sum(float(value.double().sum()) for value in values)

    def run(
        self,
        *args: Any,
        num_steps: int = 100,
        tol: float | None = 1e-4,
        callback: Callable[[int, float], None] | None = None,
        check: bool = True,
        **kwargs: Any,
    ) -> EMResult:
        """Iterate until the log-likelihood of every restart rises by less than ``tol``.

        Where an optimiser moves parameters, it must change by less in ten steps in a row.

        :param num_steps: the most steps.
        :param tol: in nats; None never stops early.
        :param callback: called after each step with its number, from 1, and the loss after it; the
            parameter store then holds the parameters of that step.
        :param check: whether to differentiate the model's own objective once, where the run has
            converged, and to see that it confirms an optimum (:mod:`.guard`). If it does
            not, a warning names the parameters, and the result does not count as converged.
        :return: an :class:`EMResult`; other arguments go to the model.
        :raises ValueError: if ``num_steps`` is negative or ``tol`` not a positive number.
        """
        if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 0:
            raise ValueError(
                f"expected num_steps to be an integer of at least 0, got {num_steps!r}"
            )
        if tol is not None and not (isinstance(tol, (int, float, np.number)) and tol > 0):
            raise ValueError(f"expected tol to be positive or None, got {tol!r}")
        num_steps = int(num_steps)
        self._frozen, self._warned = {}, set()
        if callback is not None:
            callback = torch.set_grad_enabled(torch.is_grad_enabled())(callback)
        call = Undisturbed()
        with call, call, torch.no_grad():
            with self._pyro():
                call.undo = self._mark()
                reading = self._read(args, kwargs)
                problem, start, _ = reading
                if not problem.plan.is_closed:
                    way: Climb = ReadingClimb(self, reading, args, kwargs)
                    self._run_reading(way, num_steps, tol, callback, call)
                    return self._checked(way, tol if check else None, args, kwargs)
                if not problem.constraints:
                    fused = find(problem.plan, problem.groups, problem.sites, self.min_eigenvalue)
                    problem = problem._replace(fused=fused)
            way = Climb(problem, start, self._warn, self._frozen)

            def keep() -> None:
                if way.num_steps:
                    with self._pyro():
                        write(way.now.params, way.now.leaves)

            def shown(number: int, loss: float) -> None:
                keep()
                assert callback is not None
                callback(number, loss)

            call.undo = keep  # where an error, or the user, ends it
            try:
                way.run(num_steps, tol, callback and shown)
            except OutsideConstraint as error:
                if self.optim is None:
                    raise
                way.blamed = [error.name]
            keep()
            agrees = not way.num_steps or self._agrees(way, args, kwargs)
            if not agrees or way.blamed and problem.may_move:
                way = self._go_on_reading(way if agrees else None, reading, args, kwargs)
                with self._pyro():
                    self._run_reading(way, num_steps, tol, callback, call)
            self._frozen = way.frozen
            return self._checked(way, tol if check else None, args, kwargs)

    def _run_reading(
        self,
        way: Climb,
        num_steps: int,
        tol: float | None,
        callback: Callable[[int, float], None] | None,
        call: Undisturbed,
    ) -> None:
        """Run the model at every step, and come back to the last one that was completed."""

        def completed(number: int, loss: float) -> None:
            call.undo = self._mark()
            if callback is not None:
                callback(number, loss)

        call.undo = self._mark()
        way.run(num_steps, tol, completed)
        self._frozen = way.frozen

    def _pyro(self) -> AbstractContextManager[Any]:
        """Alone with Pyro's handlers and the parameter store."""
        return Alone()

    def _mark(self) -> Callable[[], None]:
        """What comes back to the parameters, and to what EM knows of them, as they are now."""
        known = dict(vars(self))
        with self._pyro():
            leaves = dict(pyro.get_param_store().named_parameters())
            check_leaves(leaves)
            names = self._leaves or leaves
            held = [leaf for name, leaf in leaves.items() if name in names]
        kept = [(leaf, leaf.detach().clone()) for leaf in held]

        def undo() -> None:
            with torch.no_grad():
                for leaf, value in kept:
                    leaf.copy_(value)
            vars(self).update(known)

        return undo

    def _run(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: Params | None = None,
        connected: bool = False,
    ) -> Run:
        try:
            return run_model(
                self.model, args, kwargs, values, guide=self.guide, connected=connected
            )
        except RuntimeError as error:
            clearer = explained(error)
            if clearer is error:
                raise
            raise clearer from error

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reading:
        """Run the model, make or check the plan, and take expectations."""
        leaves = dict(pyro.get_param_store().named_parameters())
        if any(leaves.get(name) is not leaf for name, leaf in self._leaves.items()):
            self.reset()  # what it knows is of other parameters
        plan = self._plan or self._new_plan(args, kwargs)
        run = self._run_as_planned(plan, args, kwargs)
        self._check_averages(run)
        if not plan.holds(run) or run.is_subsampled and not plan.is_subsampled:
            plan = self._new_plan(args, kwargs)
            run = self._run_as_planned(plan, args, kwargs)
        leaves = dict(pyro.get_param_store().named_parameters())
        self._leaves = {name: leaves[name] for name in run.params}
        if self._groups is None or not self._groups.fits(run):
            self._groups = find_groups(plan, run)
        with torch.set_grad_enabled(bool(plan.gradient)):
            sites = {name: read_site(site) for name, site in run.sites.items()}
        constraints = {name: constraint_of(name) for name in plan.affine.names}
        for each in plan.assignments:
            constraints[each.name] = constraint_of(each.name)
        problem = Problem(
            plan,
            self._groups,
            sites,
            climb.constant_of(plan, run),
            run.latents,
            sum(float(value) for value in run.others.values()),
            pseudo_statistics(plan, run),
            {
                name: constraint
                for name, constraint in constraints.items()
                if plan.may_violate(name, constraint)
            },
            self.min_eigenvalue,
            None,
            self.optim is not None,
        )
        params = {name: run.params[name].detach() for name in plan.names}
        arguments = {name: data.arguments for name, data in problem.sites.items()}
        leaves = {
            name: self._leaves[name].detach().clone()
            for name, constraint in constraints.items()
            if constraint is positive_definite
        }
        state = climb.evaluate(problem, params, leaves, arguments)
        gradients = {}
        if plan.gradient:
            gradients = find_gradients(run, state.expected, list(plan.gradient))
        return Reading(problem, state, gradients)

    def _run_as_planned(
        self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Run:
        connected = plan.needs_graph
        with torch.set_grad_enabled(connected):
            return self._run(args, kwargs, connected=connected)

    def _new_plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        self._frozen = {}
        return self._make_plan(args, kwargs)

    def _make_plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        def read(values: Params | None) -> Run:
            with SameSubsamples():  # every run of a subsampled model is to see the same data
                return self._run(args, kwargs, values)

        read(None)  # which makes the parameters and the guide
        self._plan = find_parameters(read, self.optim is not None)
        self._groups, self._averages, self._num_batches = None, {}, 0
        if self.min_eigenvalue > 0:
            self._raise_to_floor(self._plan, read(None).params)
        return self._plan

    def _check_averages(self, run: Run) -> None:
        """Forget those of another data set.

        :raises ValueError: if a run has other sites than they are of.
        """
        known = self._plate_sizes
        if any(known.get(name, size) != size for name, size in run.plate_sizes.items()):
            self._forget_averages()
        self._plate_sizes = known | run.plate_sizes if run.is_subsampled else known
        if self._averages and set(run.sites) != set(self._averages):
            raise ValueError(
                "expected a model with subsampled plates to observe the same sites at every step, "
                f"got {sorted(self._averages)} and then {sorted(run.sites)}: running averages are "
                "kept by site. Vectorise the plate, or name its sites by their place in the "
                "minibatch"
            )

    def _average(self, problem: Problem, now: State) -> None:
        """A step of stochastic EM: nothing says whether the whole data's likelihood rises."""
        self._num_batches += 1
        share = float(self.step_size(self._num_batches))
        if not 0 < share <= 1:
            raise ValueError(
                f"expected step_size to lie above 0 and up to 1, got {share} for batch "
                f"{self._num_batches}"
            )
        expected = {
            name: average(each, problem.plan.updated(name), self._averages.get(name), share)
            for name, each in now.expected.items()
        }
        self._averages = {name: each.averages for name, each in expected.items()}
        nothing = {name: np.zeros(len(now.losses), dtype=np.bool_) for name in problem.plan.names}
        found = climb.step(problem, now, nothing, dict(expected))
        write(found.values, found.leaves)

    def _give_up(self, names: list[str]) -> None:
        """Leave parameters to the optimiser whose closed form is no step upwards."""
        assert self._plan is not None
        reason = "its closed form lowered the objective, or left its constraint"
        self._plan = self._plan.without(names, reason)
        self._groups = None

    def _go_on_reading(
        self,
        way: Climb | None,
        start: Reading,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> ReadingClimb:
        """From where a climb on tensors has come; or from the start, where the model differs."""
        with self._pyro():
            if way is None:
                write(start.state.params, start.state.leaves)
                return ReadingClimb(self, start, args, kwargs)
            self._give_up(way.blamed)
            more = ReadingClimb(self, self._read(args, kwargs), args, kwargs)
            more.losses, more.num_e_steps = way.losses, way.num_e_steps + 1
            if not way.problem.plan.is_joint:  # what was told restart by restart is so no longer
                more.losses = [np.array([way.problem.loss(each)]) for each in way.losses]
            more.measured(more.now.losses)
            return more

    def _agrees(self, way: Climb, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the model, read again, says what the tensors said."""
        with self._pyro():
            plan, groups = way.problem.plan, way.problem.groups
            run = self._run_as_planned(plan, args, kwargs)
            if not (plan.holds(run) and groups.fits(run)):
                return False
            losses = read_losses(plan, groups, run)
            constant = climb.constant_of(plan, run)
        params = way.now.params
        if not climb.agrees(params, way.losses[-1], losses):
            return False
        if not climb.agrees(params, np.array(way.problem.constant), np.array(constant)):
            return False
        if not climb.agrees(params, way.losses[-1], losses, beyond_rounding=False):
            way.measured(losses)
        return True

    def _checked(
        self, way: Climb, tol: float | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> EMResult:
        """The result, which counts as converged only if the model's own objective confirms it."""
        result = way.result()
        if way.converged and way.now.unbounded:
            names = ", ".join(map(repr, way.now.unbounded))
            return result._replace(
                converged=False,
                stop_reason=f"{result.stop_reason}, but {names} kept a value without a maximum",
            )
        if tol is None or not way.converged:
            return result
        with self._pyro():
            findings = guard.check(Call(self.model, self.guide, args, kwargs), way, tol)
        if not findings:
            return result
        self._warn(guard.message(findings, list(way.problem.plan.gradient)))
        return result._replace(
            converged=False,
            stop_reason=f"{result.stop_reason}, but the model's own objective is not at an optimum",
            unconfirmed=sorted({restart for each in findings for restart in each.restarts}),
        )

    def _raise_to_floor(self, plan: Plan, params: Params) -> None:
        """Move covariances below the floor to it: EM is monotone from a feasible start only."""
        for each in plan.assignments:
            if self.min_eigenvalue > 0:
                value = params[each.name]
                cells = each.link.forward(blocks(value, each.event_dim))
                feasible = each.argument.feasible(cells, self.min_eigenvalue)
                raised = each.link.inverse(feasible).reshape(value.shape)
                if feasible is not cells and not torch.equal(raised, value):
                    write_parameter(each.name, raised)

    def _warn(self, message: str) -> None:
        """Tell the user once of each kind of trouble."""
        kind = message[:40]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=_levels_to_the_caller())


def _levels_to_the_caller() -> int:
    """The ``stacklevel`` at which a warning of the caller points at a line outside the package."""
    package = str(Path(__file__).parents[2]) + os.sep
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(package) or frame.f_code.co_filename in _DECORATORS
    ):
        frame, level = frame.f_back, level + 1
    return level
