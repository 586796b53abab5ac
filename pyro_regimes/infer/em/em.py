"""EM: the closed-form alternative to SVI, over the same model function and parameter store."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from functools import partial
from numbers import Integral
from typing import Any, Callable, NamedTuple

import numpy as np
import torch

from pyro_regimes.infer.callables import check_callables, check_callback
from pyro_regimes.infer.em import guard
from pyro_regimes.infer.em.ascent import Ascent, agree
from pyro_regimes.infer.em.checkpoint import Checkpoint
from pyro_regimes.infer.em.e_step import check_finite, read_log_probs
from pyro_regimes.infer.em.engines.chunk_kernel import NotServed
from pyro_regimes.infer.em.engines.finding import find_fused
from pyro_regimes.infer.em.engines.on_ranks import find_on_ranks
from pyro_regimes.infer.em.engines.relay import RelayEngine
from pyro_regimes.infer.em.engines.retrace import RetraceEngine
from pyro_regimes.infer.em.engines.stochastic import Schedule, default_schedule
from pyro_regimes.infer.em.engines.tensors import OutsideConstraint, TensorEngine
from pyro_regimes.infer.em.gradient import Optim
from pyro_regimes.infer.em.joining import check_settings
from pyro_regimes.infer.em.loop import Engine, Loop
from pyro_regimes.infer.em.on_chunks import ChunkCalls, OnChunks
from pyro_regimes.infer.em.on_chunks import check as check_on_chunk
from pyro_regimes.infer.em.problem import Array, Problem, TensorState, constant_of
from pyro_regimes.infer.em.ranks import ranks_of
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.em.result import EMResult
from pyro_regimes.infer.em.run_reading import read_losses
from pyro_regimes.infer.em.session import Call, Session, Snapshot
from pyro_regimes.infer.isolation import Alone
from pyro_regimes.infer.undisturbed import Undisturbed
from pyro_regimes.messages import shown
from pyro_regimes.reading.chunks import Chunks

__all__ = ["EM", "EMResult"]


class _Settings(NamedTuple):
    """The arguments of :meth:`EM.run`."""

    num_steps: int
    tol: float | None
    callback: Callable[[int, float], None] | None
    extrapolates: bool
    checkpoint: Checkpoint | None


class EM:
    r"""Expectation-maximisation for a Pyro model of a RegimeHMM or a SwitchingAutoregression.

    .. math::
        \theta' = \arg\max_\theta
            \sum_q p(q \mid x, \theta^\text{old}) \log p(x, q \mid \theta)

    (Baum et al. 1970; Dempster, Laird and Rubin 1977). It has the interface of
    :class:`pyro.infer.SVI`, takes the same model function, and uses the same parameter store::

        em = EM(model)
        loss = em.step(x)           # -log p(x) before the step
        result = em.run(x, num_steps=100, tol=1e-4)
        print(em.plan)              # how each parameter is updated

    Parameters are recognised by their role in the model, not by their names: a ``pyro.param`` that
    is an argument of an observed ``RegimeHMM`` or of its Gaussian ``observation_dist``, given as
    probabilities or logits, covariance, Cholesky factor, precision or scale. Expected statistics
    are pooled over all dims along which a parameter is broadcast: a ``(D, D)`` covariance is tied,
    a ``(K, 1)`` scale is spherical, and parameters with a leading dim of size R are R restarts in
    one batch. Locations that are affine in parameters are updated by weighted least squares, and
    coefficients of linear predictors by Newton's method (:mod:`~pyro_regimes.infer.em.newton`).

    With a ``guide`` that assigns a point to each latent site (``AutoDelta``), EM maximises the log
    joint. Conjugate priors keep the closed forms (:mod:`~pyro_regimes.emissions.conjugate`); the
    mode is that in the space of the latent site. With an ``optim``, parameters without a closed
    form are updated by gradient steps on the same objective (generalised EM). Without one, they
    raise an error.

    If a plate is subsampled, each step is a step of stochastic EM (:mod:`.engines.stochastic`),
    which maximises running averages of the minibatches' expected statistics. The loss is then an
    estimate from the minibatch, and :meth:`run` does not stop before ``num_steps``. The averages
    belong to one data set; :meth:`reset` clears them.

    :meth:`run` runs the model once, iterates on tensors, writes the parameters back, and runs the
    model again to verify the result. If it does not agree, the model is run at every step instead.

    A closed form never lowers the objective of any restart. (All restarts count as one if an
    optimiser updates parameters, arguments are affine, or priors depend on parameters.) If rounding
    or a fault of the model lowers it, the responsible parameters are rolled back and frozen until
    the next :meth:`run` or :meth:`reset`, or left to the optimiser, with a warning.

    :param model: a model function with ``pyro.param`` and observed ``pyro.sample`` statements.
    :param guide: takes the same arguments as the model, and assigns a point to each latent site.
    :param optim: a Pyro optimiser for parameters without a closed form.
    :param step_size: a function from n = 1, 2, ... to the weight of the n-th minibatch in
        stochastic EM. Default: :math:`n^{-0.6}`.
    :param min_eigenvalue: floor on the eigenvalues of covariances, and on variances, in squared
        units of the data. Starting values below it are raised to it.
    :raises ValueError: if ``min_eigenvalue`` is negative. The first step raises it if the model has
        a latent site without a point, a subsampled latent site, or no observed RegimeHMM, or if,
        without an ``optim``, a parameter has no closed form.
    """

    #: Whether a callback can read the parameter store, and so must find each step there.
    _shows_parameters = True
    #: Whether :meth:`run` adds up over the ranks of an initialised default process group.
    _joins_ranks = True

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
        self.model, self.guide, self.optim = model, guide, optim
        self.step_size = step_size or default_schedule
        self._session = Session(optim, 0.0, self._pyro)
        self.min_eigenvalue = min_eigenvalue

    @property
    def min_eigenvalue(self) -> float:
        """Floor on the eigenvalues of covariances."""
        return self._session.min_eigenvalue

    @min_eigenvalue.setter
    def min_eigenvalue(self, value: float) -> None:
        if not 0.0 <= _number(value) < math.inf:
            raise ValueError(f"expected min_eigenvalue of at least 0, got {shown(value)}")
        self._session.min_eigenvalue = float(value)

    @property
    def plan(self) -> Plan | None:
        """How each parameter is updated, as a printable object; None before the first step."""
        return self._session.plan

    def reset(self) -> None:
        """Clear all state except the parameter store.

        The state is the plan, the running averages of stochastic EM with the number of minibatches,
        the frozen parameters, and the warnings already given. It is cleared automatically when the
        parameter store has new parameters (after ``pyro.clear_param_store()``). The averages are
        also cleared when a subsampled plate changes its size. Call this method before fitting
        another data set of the same size from the current parameters.
        """
        self._session.reset()

    def _pyro(self) -> AbstractContextManager[Any]:
        """A context with exclusive use of Pyro's handlers and parameter store."""
        return Alone()

    def _warn(self, message: str) -> None:
        """Warn once per run about each kind of problem."""
        self._session.warn(message)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        if args and isinstance(args[0], Chunks):
            raise ValueError("expected data in memory, got Chunks, which EM.run alone takes")
        return Call(self.model, self.guide, args, kwargs)

    def _retrace(self, call: Call, snapshot: Snapshot) -> RetraceEngine:
        problem, _, gradients = snapshot
        return RetraceEngine(self._session, call, problem, gradients, self.step_size)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One EM iteration.

        :return: the loss :math:`-\\log p(x)` before the step, as in ``SVI.step``.
        """
        session, call = self._session, self._call(args, kwargs)
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, torch.no_grad():
            undisturbed.undo = session.mark()
            snapshot = session.read(call)
            problem, state, _ = snapshot
            ascent = Ascent(problem.plan.names, state.losses, session.frozen, self._warn)
            self._retrace(call, snapshot).improve(state, ascent)
            session.frozen = ascent.frozen
            return problem.loss(state.losses)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """:math:`-\\log p(x)` at the current parameters."""
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, torch.no_grad():
            run = self._session.run(self._call(args, kwargs))
            values = read_log_probs(run.sites).values()
            for site in run.sites.values():
                check_finite(site)
            return -run.log_priors() - sum(float(value.double().sum()) for value in values)

    def run(
        self,
        *args: Any,
        num_steps: int = 100,
        tol: float | None = 1e-4,
        callback: Callable[[int, float], None] | None = None,
        check: bool = True,
        acceleration: str | None = None,
        process_group: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
        **kwargs: Any,
    ) -> EMResult:
        """Iterate until a step of EM raises every restart's log-likelihood by less than ``tol``.

        If an optimiser moves parameters, the log-likelihood must change by less than ``tol`` in ten
        consecutive steps. Other arguments are passed to the model.

        If the first argument is a :class:`.Chunks`, the model is run on one chunk after the other,
        in each iteration anew, with the chunk in the place of that argument. The result is that of
        all data at once: expected statistics add up, also over pieces of one sequence, and so do
        the gradients of parameters that an optimiser moves. It needs the memory of two chunks.
        Transitions must be constant in time. So must distributions with an argument that EM sets
        in closed form, unless all rows of this process are one chunk.

        :param num_steps: the maximum number of steps.
        :param tol: in nats. None runs all ``num_steps``.
        :param callback: called after each step with its number, from 1, and the loss after it. The
            parameter store then holds the parameters of that step. The callback may read but not
            change them. To change parameters, call :meth:`run` or :meth:`step` again.
        :param check: whether to verify convergence by one gradient of the model's own objective
            (:mod:`.guard`). If the gradient does not confirm an optimum, a warning names the
            parameters, and the result is not reported as converged.
        :param acceleration: ``"squarem"`` extrapolates every other step (:mod:`.squarem`). EM then
            needs fewer steps, especially if regimes overlap, and the log-likelihood still never
            falls. It may converge to another local maximum than plain EM from the same start. If a
            closed form fails and an optimiser takes over, the run continues without acceleration.
        :param process_group: a ``torch.distributed`` group, each rank of which holds some of the
            sequences; None for the default group, where it is initialised. Pooled statistics and
            losses of all ranks are gathered in float64 and added in the order of the ranks, so
            that all have the same parameters after every step, and a run repeats to the bit.
            Priors count once. Every rank must call this method with the same model, settings and
            starting values. A rank may hold more sequences than another; a group of one rank is
            that rank alone. Ranks that hold consecutive rows of one sequence give
            :class:`.Chunks` with ``continues=True``, in the order of the ranks. Statistics of
            parameters with an ``optim`` add up as gradients; the check of convergence does not
            cover these. :meth:`step` and :meth:`evaluate_loss` are of this process alone.
        :param checkpoint: a file in which the state of the run is kept. If it is there, the run
            goes on from it, with the history of all steps, as if there had been no interruption;
            ``num_steps`` counts all of them. In a process group, the first rank reads and writes
            it. The file is replaced in one operation, and remains after the run.
        :param checkpoint_every: the number of steps after which it is written again; it is also
            written after the last step.
        :return: an :class:`EMResult`.
        :raises ValueError: if ``num_steps`` is negative, ``tol`` is not a positive number,
            ``callback`` is not a function, or ``acceleration`` is unknown; if acceleration is set
            and an optimiser updates parameters or data are subsampled; if the callback changes a
            parameter of the model; if data that are not masked are not finite; or if ranks differ
            in a parameter or its update, which it names, or cannot add up their statistics, as
            data are subsampled, a prior depends on parameters, or products of probabilities have
            a stationary start; or if ``checkpoint`` is given with an optimiser, acceleration or
            subsampled data, or is the file of another model or of other data.
        """
        _check_run(num_steps, tol, acceleration)
        check_callback(callback)
        if callback is not None:
            callback = torch.set_grad_enabled(torch.is_grad_enabled())(callback)
        session = self._session
        session.begin()
        joins = self._joins_ranks or process_group is not None
        ranks = ranks_of(process_group) if joins else None
        if ranks is not None:
            kind = args[0].continues if args and isinstance(args[0], Chunks) else None
            given = {"num_steps": num_steps, "tol": tol, "check": check, "continues": kind}
            check_settings(ranks, {**given, "acceleration": acceleration})
        kept = None
        if checkpoint is not None:
            _check_can_resume(self.optim, acceleration)
            kept = Checkpoint(checkpoint, checkpoint_every, ranks)
        settings = _Settings(int(num_steps), tol, callback, acceleration is not None, kept)
        if args and isinstance(args[0], Chunks):
            calls = ChunkCalls(self.model, self.guide, args[0], args[1:], kwargs)
            with session.on_ranks(ranks):
                return self._run_on_chunks(calls, settings, check)
        call = self._call(args, kwargs)
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, torch.no_grad(), session.on_ranks(ranks):
            undisturbed.undo = session.mark()
            snapshot = session.read(call)
            if acceleration is not None:
                _check_can_extrapolate(snapshot.problem.plan)
            if kept is not None:
                if snapshot.problem.plan.is_subsampled:
                    raise ValueError("expected checkpoint=None where data are subsampled")
                undisturbed.undo = session.mark()
                read = partial(session.read, call)
                snapshot = kept.restore(session, snapshot.state, read) or snapshot
            if snapshot.problem.plan.is_closed:
                loop = self._run_on_tensors(call, snapshot, undisturbed, settings)
            else:
                engine = self._retrace(call, snapshot)
                loop = self._run_retracing(engine, snapshot.state, undisturbed, settings)
            session.frozen = loop.ascent.frozen
            findings = partial(guard.check, session, call, loop)
            return self._checked(loop, tol if check else None, findings)

    def _iterate(
        self,
        loop: Loop,
        num_steps: int,
        tol: float | None,
        callback: Callable[[int, float], None] | None,
    ) -> None:
        """Run the loop."""
        loop.run(num_steps, tol, callback)

    def _run_on_tensors(
        self,
        call: Call,
        snapshot: Snapshot,
        undisturbed: Undisturbed,
        settings: _Settings,
    ) -> Loop:
        """Iterate on the tensors of one run of the model, then verify the result by another run."""
        session = self._session
        problem, start, _ = snapshot
        engine = self._engine(problem, start, settings.extrapolates)
        loop = self._run_engine(engine, start, undisturbed, settings)
        if loop.num_steps and not self._agrees(loop, call):
            session.write(start.params, start.leaves)
            again = session.read(call)  # it may have changed once, and not again
            engine = self._retrace(call, again)
            return self._run_retracing(engine, again.state, undisturbed, settings)
        if loop.ascent.blamed and problem.may_move:
            session.give_up(loop.ascent.blamed)
            again = session.read(call)
            engine = self._retrace(call, again)
            return self._run_retracing(engine, again.state, undisturbed, settings, loop)
        return loop

    def _run_on_chunks(self, calls: ChunkCalls, settings: _Settings, check: bool) -> EMResult:
        """Iterate on data in chunks, and run the model on each of them in every pass."""
        session, undisturbed = self._session, Undisturbed()
        with undisturbed, undisturbed, torch.no_grad():
            undisturbed.undo = session.mark()
            engines = OnChunks(session, calls)
            if settings.checkpoint is not None:
                undisturbed.undo = session.mark()
                read = partial(OnChunks, session, calls)
                engines = settings.checkpoint.restore(session, engines.first, read) or engines
            loop = None
            if settings.extrapolates:
                _check_can_extrapolate(engines.plan)
            if not engines.plan.gradient:
                loop = self._run_closed_on_chunks(engines, undisturbed, settings)
            if loop is None or (loop.ascent.blamed and loop.problem.may_move):
                if loop is not None:
                    session.give_up(loop.ascent.blamed)
                loop = self._run_retracing(
                    *engines.start_moving(), undisturbed, settings, loop
                )
            session.describe_engine(engines.description)
            session.frozen = loop.ascent.frozen
            findings = partial(check_on_chunk, session, calls, loop)
            return self._checked(loop, settings.tol if check else None, findings)

    def _run_closed_on_chunks(
        self, engines: OnChunks, undisturbed: Undisturbed, settings: _Settings
    ) -> Loop:
        """Iterate on chunks by closed forms alone."""
        engine, start = engines.start(settings.extrapolates)
        try:
            return self._run_engine(engine, start, undisturbed, settings)
        except NotServed as error:  # a chunk that is not like those before
            engine, start = engines.start_on_tensors(str(error))
            return self._run_engine(engine, start, undisturbed, settings)

    def _run_engine(
        self, engine: Engine, start: TensorState, undisturbed: Undisturbed, settings: _Settings
    ) -> Loop:
        """Iterate with an engine, and write the parameters back."""
        session = self._session
        num_steps, tol, callback, extrapolates, checkpoint = settings
        loop = Loop(engine, start, session.frozen, self._warn, extrapolates)
        if checkpoint is not None:
            checkpoint.attach(loop)

        def keep() -> None:
            if loop.num_steps:
                session.write(loop.now.params, loop.now.leaves)

        def written(number: int, loss: float) -> None:
            keep()
            assert callback is not None
            session.call_back(callback, number, loss)

        report = written if callback is not None and self._shows_parameters else callback
        undisturbed.undo = keep  # if an error or an interrupt ends the run
        try:
            self._iterate(loop, num_steps, tol, report)
        except OutsideConstraint as error:
            if self.optim is None:
                raise
            loop.ascent.blamed = [error.name]
        if isinstance(engine, RelayEngine):
            session.describe_engine(engine.description())
        keep()
        return loop

    def _engine(self, problem: Problem, start: TensorState, extrapolates: bool) -> Engine:
        """The fastest engine that can serve a closed problem."""
        ranks, of = problem.ranks, ""
        if ranks is not None:
            of = f", added up over {ranks.size} ranks"
        find = find_fused if ranks is None else find_on_ranks
        fused, tensors = find(problem, start, extrapolates), TensorEngine(problem)
        if isinstance(fused, str):
            described = f"tensor operations{of}; not the compiled one, as {fused}"
            self._session.describe_engine(described)
            return tensors
        engine = RelayEngine(fused, tensors, start, extrapolates)
        self._session.describe_engine(engine.description())
        return engine

    def _run_retracing(
        self,
        engine: RetraceEngine,
        start: TensorState,
        undisturbed: Undisturbed,
        settings: _Settings,
        before: Loop | None = None,
    ) -> Loop:
        """Run the model at every step. After an error, the last completed step is restored.

        :param start: the first state.
        :param before: an earlier loop that this one continues.
        """
        session, plan = self._session, engine.problem.plan
        session.describe_engine(f"the model is run at every step, as {plan.why_not_closed}")
        num_steps, tol, callback, extrapolates, checkpoint = settings
        extrapolates = extrapolates and not plan.gradient
        loop = Loop(engine, start, session.frozen, self._warn, extrapolates)
        if before is not None:
            loop.go_on_from(before)
        elif checkpoint is not None:
            checkpoint.attach(loop)

        def completed(number: int, loss: float) -> None:
            undisturbed.undo = session.mark()
            if callback is not None:
                session.call_back(callback, number, loss)

        undisturbed.undo = session.mark()
        self._iterate(loop, num_steps, tol, completed)
        return loop

    def _agrees(self, loop: Loop, call: Call) -> bool:
        """Whether another run of the model gives the losses that the loop has found."""
        plan, groups = loop.problem.plan, loop.problem.groups
        run = self._session.run_as_planned(plan, call)
        ranks, params = loop.problem.ranks, loop.now.params

        def same(one: Array, other: Array) -> bool:
            return bool((one == other).all() or agree(params, one, other).all())

        holds = plan.holds(run) and groups.fits(run)
        constant = np.array(loop.problem.constant)
        holds = holds and same(constant, np.array(constant_of(plan, run)))
        if not (holds if ranks is None else ranks.all(holds)):
            return False
        losses = read_losses(plan, groups, run, ranks)
        if not same(loop.losses[-1], losses):
            return False
        alike = agree(params, loop.losses[-1], losses, beyond_rounding=False)
        if not alike.all():
            loop.measured(losses, ~alike)
        return True

    def _checked(
        self, loop: Loop, tol: float | None, check: Callable[[float], list[guard.Finding]]
    ) -> EMResult:
        """The result, reported as converged only if the model's own gradient confirms it."""
        result = loop.result()
        if loop.converged and loop.now.unbounded:
            names = ", ".join(map(repr, loop.now.unbounded))
            return result._replace(
                converged=False,
                stop_reason=f"{result.stop_reason}, but {names} kept a value without a maximum",
            )
        if tol is None or not loop.converged:
            return result
        findings = check(tol)
        ranks = loop.problem.ranks
        if ranks is not None:
            findings = [each for found in ranks.objects(findings) for each in found]
        if not findings:
            return result
        if not all(each.is_told for each in findings):
            self._warn(guard.message(findings, list(loop.problem.plan.gradient)))
        return result._replace(
            converged=False,
            stop_reason=f"{result.stop_reason}, but the model's own objective is not at an optimum",
            unconfirmed=sorted({restart for each in findings for restart in each.restarts}),
        )


def _check_run(num_steps: Any, tol: Any, acceleration: Any) -> None:
    """:raises ValueError: naming an argument of :meth:`EM.run` that is not valid."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 0:
        raise ValueError(
            f"expected num_steps to be an integer of at least 0, got {shown(num_steps)}"
        )
    if tol is not None and not _number(tol) > 0:
        raise ValueError(f"expected tol to be positive or None, got {shown(tol)}")
    if acceleration not in (None, "squarem"):
        raise ValueError(f"expected acceleration to be None or 'squarem', got {acceleration!r}")


def _number(value: Any) -> float:
    """A real number as a float; NaN for what is none, or too large."""
    if not isinstance(value, (int, float, np.number)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _check_can_resume(optim: Optim | None, acceleration: str | None) -> None:
    """Refuse checkpoints of runs whose state is more than parameters.

    :raises ValueError: if there is an optimiser, or steps are extrapolated.
    """
    given = {"an optim": optim is not None, "acceleration": acceleration is not None}
    for name, there in given.items():
        if there:
            raise ValueError(
                f"expected no {name.removeprefix('an ')} with checkpoint, as the file holds "
                f"parameters alone, got {name}"
            )


def _check_can_extrapolate(plan: Plan) -> None:
    """Refuse acceleration of steps that are not EM's alone.

    :raises ValueError: if an optimiser moves parameters, or data are subsampled.
    """
    if plan.gradient or plan.is_subsampled:
        why = f"an optimiser moves {list(plan.gradient)}" if plan.gradient else plan.why_not_closed
        raise ValueError(
            "expected acceleration=None, as squarem extrapolates steps that are the same function "
            f"of the parameters at every call, got 'squarem' where {why}"
        )
