"""EM: the closed-form alternative to SVI, over the same model function and parameter store."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any, Callable

import numpy as np
import torch

from pyro_regimes.infer.callables import check_callables
from pyro_regimes.infer.em import guard
from pyro_regimes.infer.em.ascent import Ascent, agree
from pyro_regimes.infer.em.e_step import read_log_probs
from pyro_regimes.infer.em.engines import fused_gaussian
from pyro_regimes.infer.em.engines.relay import RelayEngine
from pyro_regimes.infer.em.engines.retrace import RetraceEngine
from pyro_regimes.infer.em.engines.stochastic import Schedule, default_schedule
from pyro_regimes.infer.em.engines.tensors import OutsideConstraint, TensorEngine
from pyro_regimes.infer.em.gradient import Optim
from pyro_regimes.infer.em.loop import Engine, Loop
from pyro_regimes.infer.em.problem import Problem, TensorState, constant_of
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.em.result import EMResult
from pyro_regimes.infer.em.session import Call, Session, Snapshot, read_losses
from pyro_regimes.infer.isolation import Alone
from pyro_regimes.infer.undisturbed import Undisturbed

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
    scale spherical, and parameters with a leading dim of size R are R restarts in one batch.
    Locations that are affine in parameters are solved for by weighted least squares.

    With a ``guide`` that puts points at latent sites (``AutoDelta``), EM maximises the log joint:
    conjugate priors join the closed forms (:mod:`~pyro_regimes.emissions.conjugate`), in the space
    of the site that carries them. With an ``optim``, a parameter without a closed form is moved by
    gradient steps on the same objective (generalised EM); without one it is refused by name.

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
        self._session = Session(optim, min_eigenvalue, self._pyro)

    @property
    def plan(self) -> Plan | None:
        """How each parameter is updated; None before the first step. Prints readably."""
        return self._session.plan

    def reset(self) -> None:
        """Forget everything but the parameter store.

        That is the plan, the running averages of stochastic EM, its number of minibatches, the
        frozen parameters and the warnings given. It happens by itself where the store holds other
        parameters than before (after ``pyro.clear_param_store()``); the averages are forgotten
        where a subsampled plate has another size. A new data set of the same size, with the
        parameters of the last one as its start, needs a call.
        """
        self._session.reset()

    def _pyro(self) -> AbstractContextManager[Any]:
        """Alone with Pyro's handlers and the parameter store."""
        return Alone()

    def _warn(self, message: str) -> None:
        """Tell the user once of each kind of trouble."""
        self._session.warn(message)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return Call(self.model, self.guide, args, kwargs)

    def _retrace(self, call: Call, snapshot: Snapshot) -> RetraceEngine:
        return RetraceEngine(self._session, call, snapshot, self.step_size)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One EM iteration.

        :return: the loss :math:`-\\log p(x)` before it, as ``SVI.step``.
        """
        session, call = self._session, self._call(args, kwargs)
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, self._pyro(), torch.no_grad():
            undisturbed.undo = session.mark()
            snapshot = session.read(call)
            problem, state, _ = snapshot
            ascent = Ascent(problem.plan.names, state.losses, session.frozen, self._warn)
            self._retrace(call, snapshot).improve(state, ascent)
            session.frozen = ascent.frozen
            return problem.loss(state.losses)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """:math:`-\\log p(x)` at the current parameters, which stay as they are."""
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, torch.no_grad():
            run = self._session.run(self._call(args, kwargs))
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
        if callback is not None:
            callback = torch.set_grad_enabled(torch.is_grad_enabled())(callback)
        session, call = self._session, self._call(args, kwargs)
        session.begin()
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, torch.no_grad():
            with self._pyro():
                undisturbed.undo = session.mark()
                snapshot = session.read(call)
            settings = int(num_steps), tol, callback
            if snapshot.problem.plan.is_closed:
                loop = self._run_on_tensors(call, snapshot, undisturbed, *settings)
            else:
                loop = self._run_retracing(call, snapshot, undisturbed, *settings)
            session.frozen = loop.ascent.frozen
            return self._checked(loop, tol if check else None, call)

    def _run_on_tensors(
        self,
        call: Call,
        snapshot: Snapshot,
        undisturbed: Undisturbed,
        num_steps: int,
        tol: float | None,
        callback: Callable[[int, float], None] | None,
    ) -> Loop:
        """Iterate on what one run of the model has shown; then see that it agrees."""
        session = self._session
        problem, start, _ = snapshot
        engine = self._engine(problem, start)
        loop = Loop(engine, start, session.frozen, self._warn)

        def keep() -> None:
            if loop.num_steps:
                session.write(loop.now.params, loop.now.leaves)

        def shown(number: int, loss: float) -> None:
            keep()
            assert callback is not None
            callback(number, loss)

        undisturbed.undo = keep  # where an error, or the user, ends it
        try:
            loop.run(num_steps, tol, callback and shown)
        except OutsideConstraint as error:
            if self.optim is None:
                raise
            loop.ascent.blamed = [error.name]
        if isinstance(engine, RelayEngine):
            session.describe_engine(engine.description())
        keep()
        if loop.num_steps and not self._agrees(loop, call):
            session.write(start.params, start.leaves)
            return self._run_retracing(call, snapshot, undisturbed, num_steps, tol, callback)
        if loop.ascent.blamed and problem.may_move:
            session.give_up(loop.ascent.blamed)
            again = session.read(call)
            return self._run_retracing(call, again, undisturbed, num_steps, tol, callback, loop)
        return loop

    def _engine(self, problem: Problem, start: TensorState) -> Engine:
        """The fastest engine that can serve a closed problem."""
        fused, tensors = fused_gaussian.find(problem, start), TensorEngine(problem)
        if isinstance(fused, str):
            self._session.describe_engine(f"tensor operations; not the compiled one, as {fused}")
            return tensors
        engine = RelayEngine(fused, tensors, start)
        self._session.describe_engine(engine.description())
        return engine

    def _run_retracing(
        self,
        call: Call,
        snapshot: Snapshot,
        undisturbed: Undisturbed,
        num_steps: int,
        tol: float | None,
        callback: Callable[[int, float], None] | None,
        before: Loop | None = None,
    ) -> Loop:
        """Run the model at every step; an error comes back to the last one that was completed.

        :param before: a run whose last state is the first one here.
        """
        session = self._session
        session.describe_engine(
            f"the model is run at every step, as {snapshot.problem.plan.why_not_closed}"
        )
        loop = Loop(self._retrace(call, snapshot), snapshot.state, session.frozen, self._warn)
        if before is not None:
            loop.go_on_from(before)

        def completed(number: int, loss: float) -> None:
            undisturbed.undo = session.mark()
            if callback is not None:
                callback(number, loss)

        undisturbed.undo = session.mark()
        loop.run(num_steps, tol, completed)
        return loop

    def _agrees(self, loop: Loop, call: Call) -> bool:
        """Whether the model, run again, says what the tensors said."""
        plan, groups = loop.problem.plan, loop.problem.groups
        run = self._session.run_as_planned(plan, call)
        if not (plan.holds(run) and groups.fits(run)):
            return False
        losses = read_losses(plan, groups, run)
        constants = np.array(loop.problem.constant), np.array(constant_of(plan, run))
        params = loop.now.params
        for one, other in ((loop.losses[-1], losses), constants):
            if not agree(params, one, other).all():
                return False
        alike = agree(params, loop.losses[-1], losses, beyond_rounding=False)
        if not alike.all():
            loop.measured(losses, ~alike)
        return True

    def _checked(self, loop: Loop, tol: float | None, call: Call) -> EMResult:
        """The result, which counts as converged only if the model's own objective confirms it."""
        result = loop.result()
        if loop.converged and loop.now.unbounded:
            names = ", ".join(map(repr, loop.now.unbounded))
            return result._replace(
                converged=False,
                stop_reason=f"{result.stop_reason}, but {names} kept a value without a maximum",
            )
        if tol is None or not loop.converged:
            return result
        with self._pyro():
            findings = guard.check(call, loop, tol)
        if not findings:
            return result
        self._warn(guard.message(findings, list(loop.problem.plan.gradient)))
        return result._replace(
            converged=False,
            stop_reason=f"{result.stop_reason}, but the model's own objective is not at an optimum",
            unconfirmed=sorted({restart for each in findings for restart in each.restarts}),
        )
