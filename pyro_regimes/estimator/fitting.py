"""Maximum-likelihood fits from many starts in one batch, by EM or by SVI."""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyro_regimes.estimator import problems
from pyro_regimes.estimator.convergence import Flags, to_numpy
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.gradient_ascent import Callback, GradientAscent
from pyro_regimes.estimator.isolated_em import IsolatedEM
from pyro_regimes.estimator.naming import reordered, sort_regimes
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.pyro_model import from_arguments, pyro_model, to_arguments
from pyro_regimes.estimator.sequences import pad
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.starts import make_starts
from pyro_regimes.estimator.units import Units
from pyro_regimes.estimator.validation import Settings
from pyro_regimes.infer import EMResult

#: Memory in bytes that the starts of a fit may always use, in addition to the data.
_SMALL = 2**27

#: Upper limit beyond that, in multiples of the data. Copies of the data take four more.
_MOST_MEMORY = 6.0

#: Memory that EM needs for each start, in arrays of shape ``(N, T, K)``.
_ARRAYS = 5.5


class FittedRegimes(NamedTuple):
    """The best start, in the units of the data, with its regimes in order."""

    parameters: Parameters
    regime_names: list[str]
    history: Array  #: log-likelihood before each iteration, and the final one
    converged: bool
    log_likelihood: float  #: of the parameters
    smoothed_probs: Array  #: ``(T, K)``, of the parameters
    problems: list[Warning]  #: what a user has to know of the fit


def fit_regimes(
    data: Array,
    sizes: list[int],
    spec: Spec,
    settings: Settings,
    rng: np.random.RandomState,
    callback: Callback | None,
    row_name: Callable[[int], str] = str,
) -> FittedRegimes:
    """Fit regimes to data.

    The data are centered and scaled first, so that Adam's learning rate suits any data and float32
    suffices.

    :param data: ``(T, D)``, of all sequences.
    :param sizes: the number of rows of each sequence.
    :param callback: as that of :meth:`.RegimeModel.fit`.
    :param row_name: the name of a row for messages, from its number.
    :raises ValueError: if no start has a finite log-likelihood, or the floor of the best one cannot
        be computed.
    """
    units, min_eigenvalue = _units_and_floor(data, spec, settings)
    z, offset = units.scale(data), units.log_jacobian(len(data))
    least = spec.collapsed_variance(z, settings.dtype)
    num_starts = settings.n_init if settings.n_regimes > 1 else 1  # else all starts are equal
    starts = _starts(data, units, num_starts, spec, settings, rng)

    def report(step: int, loss: float) -> None:
        mean = -loss / num_starts - offset
        if settings.verbose:
            print(f"step {step}: log-likelihood {mean:.4f} (mean of the starts)")
        if callback is not None:
            callback(step, mean)

    fit = fit_starts(
        starts,
        spec,
        *pad(z, sizes, dtype=settings.dtype, device=settings.device),
        inference=settings.inference,
        acceleration=settings.acceleration,
        max_iter=settings.max_iter,
        tol=settings.tol,
        min_eigenvalue=min_eigenvalue,
        least=least,
        callback=report if settings.verbose or callback is not None else None,
    )
    best = fit.best()
    fitted = fit.parameters.select(best)
    least_variances = spec.least_variances(fitted.emission)
    emission = spec.unscale(fitted.emission, units)
    at_floor = _is_at_floor(least_variances, min_eigenvalue)
    if settings.min_eigenvalue > 0 and not min_eigenvalue:
        at_floor = spec.is_below(emission, settings.min_eigenvalue)
        if at_floor.any():
            raise problems.floor_out_of_reach(data, settings.min_eigenvalue)
    emission = spec.regularized(
        emission, settings.regularization, settings.regularization_scale == "relative"
    )
    parameters = fitted._replace(emission=emission)
    hmm = FittedHMM(parameters, spec, settings.dtype, settings.device)
    weights = hmm.posterior(data, sizes, "smoothed")[1].sum(0)
    order, names, doubt = sort_regimes(parameters, spec, settings.order_by, weights)
    ordered = reordered(parameters, spec, order)
    # Again, as sums in another order end in other digits, and the score is to be the same.
    log_likelihood, smoothed_probs = hmm._replace(parameters=ordered).posterior(
        data, sizes, "smoothed"
    )

    def flags(of_regimes: Flags) -> Flags:
        return np.broadcast_to(of_regimes, len(order))[order]

    history, converged = fit.history[:, best], bool(fit.converged[best])
    if settings.inference == "em":
        history = history[: fit.num_steps[best] + 1]
    found = []
    if fit.degenerate[best]:
        collapsed = flags(least_variances < 2 * least)
        found.append(problems.of_collapse(names, collapsed, smoothed_probs, row_name))
    elif not converged and settings.max_iter > 0 and settings.tol is not None:
        found.append(problems.of_convergence(len(fit.history) - 1))
    lost = problems.of_regularization(
        settings.regularization, float(history[-1]) - offset, log_likelihood
    )
    if lost is not None and not fit.degenerate[best]:
        found.append(lost)
    if doubt is not None:
        found.append(UserWarning(doubt))
    if at_floor.any():
        held = [name for name, is_held in zip(names, flags(at_floor), strict=True) if is_held]
        found.append(problems.of_floor(held, settings.min_eigenvalue))
    return FittedRegimes(
        ordered,
        names,
        history - offset,
        converged,
        log_likelihood,
        smoothed_probs,
        found,
    )


def _units_and_floor(data: Array, spec: Spec, settings: Settings) -> tuple[Units, float]:
    """The units of the fit, and ``min_eigenvalue`` in them.

    A floor of eigenvalues stays one only if all series have the same unit. Where a variance as low
    as the floor would be lost in rounding then, the series have units of their own, and the fit has
    no floor.
    """
    units = spec.units(data, equal=settings.min_eigenvalue > 0)
    floor = settings.min_eigenvalue / float(units.unit[0]) ** 2
    if floor == 0 or floor >= spec.collapsed_variance(units.scale(data), settings.dtype):
        return units, floor
    return spec.units(data), 0.0


def _starts(
    data: Array,
    units: Units,
    num_starts: int,
    spec: Spec,
    settings: Settings,
    rng: np.random.RandomState,
) -> Parameters:
    """Starts of the data in ``units``, made in units of each series, so that all count."""
    own = spec.units(data)
    z = own.scale(data)
    floor = max(
        spec.collapsed_variance(z, settings.dtype),
        settings.min_eigenvalue / float(own.unit.max()) ** 2,
    )
    starts = make_starts(z, settings.n_regimes, num_starts, spec, floor, rng)
    if (own.unit == units.unit).all():
        return starts
    return starts._replace(emission=spec.scale(spec.unscale(starts.emission, own), units))


def _is_at_floor(variances: Array, floor: float) -> Flags:
    return variances <= floor * (1 + 1e-6) if floor > 0 else np.zeros(len(variances), np.bool_)


class FittedStarts(NamedTuple):
    """The outcome of every start."""

    parameters: Parameters  #: with the R starts in front
    history: Array  #: ``(steps + 1, R)``: the log-likelihood before each step, and the final one
    converged: Flags  #: ``(R,)``
    degenerate: Flags  #: ``(R,)``: not finite, or collapsed onto a few points
    num_steps: npt.NDArray[np.int64]  #: ``(R,)``: steps of each start until EM froze it

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
            np.concatenate([each.num_steps for each in parts]),
        )

    def best(self) -> int:
        """The start with the highest final log-likelihood; degenerate ones only if all are.

        The likelihood of a collapsed regime grows without bound, so it is not comparable.

        :raises ValueError: if no start has a finite log-likelihood.
        """
        final = self.history[-1]
        if not np.isfinite(final).any():
            raise ValueError(
                "expected X to have a finite log-likelihood, got none from any of "
                f"{len(final)} starts; look for outliers in X, or set min_eigenvalue"
            )
        sound = np.isfinite(final) & (~self.degenerate | self.degenerate.all())
        if not sound.any():
            sound = np.isfinite(final)
        return int(np.where(sound, final, -np.inf).argmax())


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
    callback: Callback | None = None,
) -> FittedStarts:
    """Run all starts, in a private parameter store.

    They run in one batch, unless EM would use more than ten times the memory of the data. Then they
    run in several batches, one after the other, with the same result.

    :param starts: parameters with R starts in front.
    :param x: ``(T, D)``, or ``(N, T, D)`` with ``lengths`` ``(N,)``, of about unit variance.
    :param min_eigenvalue: the user's floor of the variances.
    :param least: the largest variance that cannot be told from 0. A regime counts as collapsed
        there, unless ``min_eigenvalue`` is larger. The larger of the two is the floor of the fit,
        so that one start may collapse without stopping the others.
    :param acceleration: of EM, as in :meth:`.EM.run`.
    :param callback: called after each step with its number, from 1, and the loss of all starts. If
        there are several batches, numbering continues from one to the next, and the loss is the
        mean loss of the batch times the number of starts.
    """
    num_starts, num_states = starts.initial_probs.shape
    at_once = _starts_at_once(x, num_states)
    if inference == "em" and num_starts > at_once:
        fit = partial(
            fit_starts, spec=spec, x=x, lengths=lengths, inference=inference, max_iter=max_iter,
            tol=tol, min_eigenvalue=min_eigenvalue, least=least, acceleration=acceleration,
        )  # fmt: skip
        return _fit_in_batches(fit, starts, at_once, callback)
    arguments = partial(
        to_arguments, spec=spec, data_dims=x.dim() - 2, dtype=x.dtype, device=x.device
    )
    floor = max(min_eigenvalue, least)
    if inference == "em":
        em = _FitEM(pyro_model(arguments(starts), spec), min_eigenvalue=floor)
        result = em.run(
            x, lengths, num_steps=max_iter, tol=tol, callback=callback, acceleration=acceleration
        )
        losses, held = result.restart_history.reshape(-1, num_starts), em.values()
        num_steps, converged = _steps_of_em(result, to_numpy(losses), tol)
    else:
        inside = starts._replace(emission=spec.raised(starts.emission, 2 * floor))
        ascent = GradientAscent(arguments(inside), spec, x, lengths, floor)
        losses, converged = ascent.run(max_iter, tol, callback)
        num_steps, held = np.full(num_starts, len(losses) - 1), ascent.values()
    parameters = from_arguments(held, starts, spec)
    history = -to_numpy(losses)
    finite = np.isfinite(history[-1])
    variance = spec.least_variances(parameters.emission).reshape(num_starts, -1).min(-1)
    collapsed = (variance < 2 * least) & (min_eigenvalue < least)
    return FittedStarts(parameters, history, converged, ~finite | collapsed, num_steps)


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


def _starts_at_once(x: Tensor, num_states: int) -> int:
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


def _report(
    callback: Callback, steps_before: int, share: float, step: int, loss: float
) -> None:
    callback(steps_before + step, loss / share)


class _FitEM(IsolatedEM):
    """EM without warnings of convergence; :class:`.RegimeModel` issues its own."""

    def _warn(self, message: str) -> None:
        # Rounding may stop a start with nearly singular covariances before its maximum. EM freezes
        # it there. A start that the check does not confirm counts as not converged.
        if "lowered the log-likelihood" not in message and "check of convergence" not in message:
            super()._warn(message)
