"""Fits of all starts, in one batch where memory allows, by EM or by SVI."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes import progress
from pyro_regimes.estimator.convergence import Flags, to_numpy
from pyro_regimes.estimator.gradient_ascent import Callback, GradientAscent
from pyro_regimes.estimator.isolated_em import IsolatedEM
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.pyro_model import (
    argument_names,
    from_arguments,
    pyro_model,
    regime_hmm,
    stationary_initial,
    to_arguments,
)
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.start_results import StartResults, best_start
from pyro_regimes.estimator.stickiness import sticky_guide
from pyro_regimes.infer import EMResult
from pyro_regimes.infer.em.engines.relay import RelayEngine
from pyro_regimes.infer.em.loop import Engine, Loop
from pyro_regimes.infer.em.problem import Problem, TensorState

#: Memory in bytes that the starts of a fit may always use, in addition to the data.
_SMALL = 2**27

#: Upper limit beyond that, in multiples of the data. Copies of the data take four more.
_MOST_MEMORY = 6.0

#: Memory that EM needs for each start, in arrays of shape ``(N, T, K)``.
_ARRAYS = 5.5


class FittedStarts(NamedTuple):
    """The outcome of every start."""

    parameters: Parameters  #: with the R starts in front
    history: Array  #: ``(steps + 1, R)``: the log-likelihood before each step, and the final one
    converged: Flags  #: ``(R,)``
    degenerate: Flags  #: ``(R,)``: not finite, or collapsed onto a few points
    collapsed: Flags  #: ``(R, K)``: which regimes of it are
    num_steps: npt.NDArray[np.int64]  #: ``(R,)``: steps of each start until EM froze it
    is_compiled: bool = False  #: whether the compiled engine made all steps of all starts

    @classmethod
    def join(cls, parts: list[FittedStarts]) -> FittedStarts:
        """All starts of several batches; those of a shorter history stay as they are."""
        longest = max(len(each.history) for each in parts)
        histories = [
            np.concatenate([each.history, each.history[-1:].repeat(longest - len(each.history), 0)])
            for each in parts
        ]
        return cls(
            Parameters.concatenate([each.parameters for each in parts]),
            np.concatenate(histories, axis=1),
            np.concatenate([each.converged for each in parts]),
            np.concatenate([each.degenerate for each in parts]),
            np.concatenate([each.collapsed for each in parts]),
            np.concatenate([each.num_steps for each in parts]),
            all(each.is_compiled for each in parts),
        )

    def select(self, starts: slice) -> FittedStarts:
        """Some of the starts, with the history of their own steps."""
        num_steps = self.num_steps[starts]
        return FittedStarts(
            self.parameters.select(starts),
            self.history[: num_steps.max() + 1, starts],
            self.converged[starts],
            self.degenerate[starts],
            self.collapsed[starts],
            num_steps,
            self.is_compiled,
        )

    def results(self, offset: float) -> StartResults:
        """How each start ended.

        :param offset: the log-likelihood of these data less that of those in the user's units.
        """
        best = self.best()
        final = np.where(np.isfinite(self.history[-1]), self.history[-1] - offset, -np.inf)
        return StartResults(final, self.num_steps, self.converged, self.degenerate, best)

    def best(self) -> int:
        """The start with the highest final log-likelihood; degenerate ones only if all are.

        The likelihood of a collapsed regime grows without bound, so it is not comparable.

        :raises ValueError: if no start has a finite log-likelihood.
        """
        return best_start(self.history[-1], self.degenerate)


def fit_starts(
    starts: Parameters,
    spec: Spec,
    x: Tensor,
    lengths: Tensor | None,
    *,
    inference: str,
    max_iter: int,
    tol: float | None,
    min_eigenvalue: float,
    least: float,
    acceleration: str | None = None,
    fixed: Collection[str] = (),
    initial: str = "free",
    stickiness: float = 0.0,
    beside: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    packed: bool = False,
) -> FittedStarts:
    """Run all starts, in a private parameter store.

    They run in one batch, unless EM would use more than ten times the memory of the data. Then they
    run in several batches, one after the other, with the same result.

    :param starts: parameters with R starts in front.
    :param x: ``(T, D)``, of about unit variance; or ``(R, T, D)``, the sequence of each start, with
        its padding. These are always one batch.
    :param lengths: of the sequences in it, ``(N,)``; None for one. ``(R,)`` of those of the starts.
    :param packed: whether x ``(R, T, D)`` has N sequences of these lengths for each start instead.
    :param min_eigenvalue: the user's floor of the variances.
    :param least: the largest variance that cannot be told from 0. A regime counts as collapsed
        there, unless ``min_eigenvalue`` is larger. The larger of the two is the floor of the fit,
        so that one start may collapse without stopping the others.
    :param acceleration: of EM, as in :meth:`.EM.run`.
    :param fixed: names of fitted attributes that keep the values of the starts.
    :param initial: as in :func:`.pyro_model`.
    :param stickiness: of the prior of the transition matrix (:mod:`.stickiness`), whose log density
        is part of the history.
    :param beside: further arguments of its function, by name.
    :param callback: called after each step with its number, from 1, and the loss of all starts. If
        there are several batches, numbering continues from one to the next, and the loss is the
        mean loss of the batch times the number of starts.
    """
    num_starts, num_states = starts.initial_probs.shape
    at_once = num_starts if x.dim() > 2 else starts_at_once(x, num_states)
    if inference == "em" and num_starts > at_once:
        fit = partial(
            fit_starts, spec=spec, x=x, lengths=lengths, inference=inference, max_iter=max_iter,
            tol=tol, min_eigenvalue=min_eigenvalue, least=least, acceleration=acceleration,
            fixed=fixed, initial=initial, stickiness=stickiness, beside=beside,
        )  # fmt: skip
        return _fit_in_batches(fit, starts, at_once, callback)
    data_dims = 1 if beside and "weights" in beside else 0
    arguments = partial(
        to_arguments, spec=spec, data_dims=data_dims, dtype=x.dtype, device=x.device
    )
    floor, constant = max(min_eigenvalue, least), argument_names(fixed, spec)
    is_unbounded = is_compiled = False
    callback = _on_bar(callback, max_iter)
    if inference == "em":
        held = arguments(starts)
        model = pyro_model(
            held, spec, fixed=constant, initial=initial, stickiness=stickiness, packed=packed
        )
        guide = sticky_guide(held["transition_probs"]) if stickiness else None
        em = FitEM(model, guide, min_eigenvalue=floor)
        result = em.run(
            x, lengths, num_steps=max_iter, tol=tol, callback=callback, acceleration=acceleration,
            **beside or {},
        )  # fmt: skip
        losses = result.restart_history.reshape(-1, num_starts)
        held |= em.values()
        is_unbounded, is_compiled = em.is_unbounded, em.is_compiled
        num_steps, converged = _steps_of_em(result, to_numpy(losses), tol)
    else:
        raised = spec.raised(starts.emission, 2 * floor)
        inside = starts._replace(
            emission={n: starts.emission[n] if n in fixed else raised[n] for n in raised}
        )
        ascent = GradientAscent(
            arguments(inside), spec, x, lengths, floor, constant, initial, stickiness, beside
        )
        losses, converged = ascent.run(max_iter, tol, callback)
        num_steps, held = np.full(num_starts, len(losses) - 1), ascent.values()
    parameters = from_arguments(held, starts, spec)
    if initial == "stationary":
        matrices = torch.from_numpy(parameters.transition_matrix)
        probs = stationary_initial(matrices.unsqueeze(-3)).numpy()
        parameters = parameters._replace(initial_probs=probs)
    history = -to_numpy(losses)
    finite = np.isfinite(history[-1])
    flags = spec.collapsed(parameters.emission, least, x.dtype).reshape(num_starts, -1)
    flags = np.broadcast_to(flags, (num_starts, num_states))
    if is_unbounded:
        flags = flags | _hold_equal_rows(parameters, spec, x, lengths, beside or {}, packed)
    # Covariances that a user gives bound the likelihood.
    may_collapse = min_eigenvalue <= least and spec.spread not in fixed
    collapsed = flags.any(-1) & may_collapse
    degenerate = ~finite | collapsed
    return FittedStarts(
        parameters, history, converged, degenerate, flags, num_steps, is_compiled
    )


def _hold_equal_rows(
    parameters: Parameters,
    spec: Spec,
    x: Tensor,
    lengths: Tensor | None,
    beside: Mapping[str, Any],
    packed: bool,
) -> Flags:
    """Which regimes have only rows that leave the likelihood without a bound, ``(R, K)``.

    EM does not change their parameters any more, so that these do not tell.
    """
    others = {name: value for name, value in beside.items() if name != "weights"}
    own, packing, flags = x, lengths, []
    for start in range(len(parameters.initial_probs)):
        if x.dim() > 2:
            own = x[start]
            if lengths is not None and not packed:
                own, packing = own[: lengths[start]], None
        each = to_arguments(parameters.select(start), spec, dtype=x.dtype, device=x.device)
        hmm = regime_hmm(each, spec, packed_lengths=packing, **others)
        held = to_numpy(hmm.smoothed_probs(own)) > 0.5  # (T, K)
        data = to_numpy(own)
        flags.append([rows.any() and spec.are_equal(data[rows]) for rows in held.T])
    return np.array(flags, dtype=np.bool_)


def _steps_of_em(
    result: EMResult, losses: Array, tol: float | None
) -> tuple[npt.NDArray[np.int64], Flags]:
    """How many steps each start has made before it was frozen, and whether it has converged.

    A start that EM froze because a step lowered its likelihood has converged, too, if the check of
    convergence confirms it.
    """
    num_steps = np.full(losses.shape[1], result.num_steps)
    converged = np.zeros(losses.shape[1], dtype=np.bool_)
    if tol is None:
        return num_steps, converged
    for start, at in enumerate(result.converged_at):
        if at is None:  # up to the first step of those that have changed nothing
            changes = np.flatnonzero(losses[1:, start] != losses[:-1, start])
            last = changes[-1] + 2 if len(changes) else 1
            at, converged[start] = min(last, result.num_steps), last <= result.num_steps
        else:
            converged[start] = True
        num_steps[start] = at
    converged[result.unconfirmed] = False
    return num_steps, converged


def starts_at_once(x: Tensor, num_states: int) -> int:
    """The number of starts that EM runs in one batch."""
    one_start = _ARRAYS * x.numel() / x.shape[-1] * num_states * x.element_size()
    most = max(_SMALL, _MOST_MEMORY * x.numel() * x.element_size())
    return max(1, int(most / one_start))


def _fit_in_batches(
    fit: Callable[..., FittedStarts], starts: Parameters, size: int, callback: Callback | None
) -> FittedStarts:
    """Run at most ``size`` starts at a time."""
    num_starts, steps_before = len(starts.initial_probs), 0
    fitted = []
    for first in range(0, num_starts, size):
        batch = starts.select(slice(first, first + size))
        report = None
        if callback is not None:
            share = len(batch.initial_probs) / num_starts
            report = partial(_report, callback, steps_before, share)
        fitted.append(fit(batch, callback=report))
        steps_before += len(fitted[-1].history) - 1
    return FittedStarts.join(fitted)


def _on_bar(callback: Callback | None, max_iter: int) -> Callback | None:
    """The callback, which also moves the bar that is shown."""
    tell = progress.teller()
    if tell is None:
        return callback

    def report(step: int, loss: float) -> None:
        tell(step, max_iter)
        if callback is not None:
            callback(step, loss)

    return report


def _report(
    callback: Callback, steps_before: int, share: float, step: int, loss: float
) -> None:
    callback(steps_before + step, loss / share)


class FitEM(IsolatedEM):
    """EM without warnings of convergence; :class:`.RegimeModel` issues its own."""

    is_unbounded = False  #: whether a parameter of some start had no maximum
    is_compiled = False  #: whether the compiled engine made all steps of all starts
    _ran: Engine | None = None

    def _engine(self, problem: Problem, start: TensorState, extrapolates: bool) -> Engine:
        self._ran = super()._engine(problem, start, extrapolates)
        return self._ran

    def _run_on_tensors(self, *args: Any) -> Loop:
        loop = super()._run_on_tensors(*args)
        # Not kept: its buffers would stay until the collector of cycles runs.
        engine, self._ran = self._ran, None
        if isinstance(engine, RelayEngine) and not engine.has_moved.any():
            self.is_compiled = self.plan is not None and self.plan.engine == engine.description()
        return loop

    def _warn(self, message: str) -> None:
        self.is_unbounded |= "has no maximum" in message
        # Rounding may stop a start with nearly singular covariances before its maximum. EM freezes
        # it there. A start that the check does not confirm counts as not converged. A parameter
        # without a maximum is that of a collapsed regime.
        known = ("lowered the log-likelihood", "check of convergence", "has no maximum")
        if not any(part in message for part in known):
            super()._warn(message)
