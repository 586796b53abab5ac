"""A maximum-likelihood fit from many starts: the best one, with its regimes sorted and named."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes import progress
from pyro_regimes.estimator import problems
from pyro_regimes.estimator.agreement import expected_agreement
from pyro_regimes.estimator.alignment import Known, align_starts, check_possible
from pyro_regimes.estimator.all_starts import FittedStarts, fit_starts
from pyro_regimes.estimator.annotations import Annotations
from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.gradient_ascent import Callback
from pyro_regimes.estimator.missing import observed_rows
from pyro_regimes.estimator.naming import reordered, sort_regimes
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.sequences import pack
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.start_results import StartResults
from pyro_regimes.estimator.starts import make_starts
from pyro_regimes.estimator.stickiness import log_normaliser, log_prior
from pyro_regimes.estimator.units import Units
from pyro_regimes.estimator.validation import Settings


class FittedRegimes(NamedTuple):
    """The best start, in the units of the data, with its regimes in order."""

    parameters: Parameters
    regime_names: list[str]
    fixed: list[str]  #: names of parameters that were not fitted, sorted
    history: Array  #: log-likelihood plus :func:`.log_prior` before each iteration, and at the end
    converged: bool
    log_likelihood: float  #: of the parameters
    share_of_time: Array  #: ``(K,)``, mean smoothed probability
    problems: list[Warning]  #: warnings about the fit
    last_probs: Array  #: ``(K,)``, probabilities of the regimes at the last row
    best: int  #: the number of the start that is kept
    order: npt.NDArray[np.int64]  #: ``(K,)``, the number that each regime had in that start
    starts: StartResults | None = None  #: how each start ended; None without a fit


class Problem(NamedTuple):
    """What the starts of a fit are computed from, and the starts."""

    data: Array  #: ``(T, D)``, of all sequences; NaN where entries are missing
    filled: Array  #: the same without missing entries, of :func:`.missing.filled`
    sizes: list[int]  #: the number of rows of each sequence
    spec: Spec
    settings: Settings
    known: Known
    units: Units
    min_eigenvalue: float  #: the floor in these units
    z: Array  #: the data in these units
    offset: float  #: log p(z) plus that of the prior's constant, less log p(x)
    least: float  #: the largest variance of z that cannot be told from 0
    starts: Parameters  #: of z, with the starts in front

    def scaled(self, parameters: Parameters) -> Parameters:
        """Parameters of x as those of z."""
        emission = self.spec.scale(parameters.emission, self.units)
        return parameters._replace(emission=emission)


def fit_regimes(
    data: Array,
    filled: Array,
    sizes: list[int],
    spec: Spec,
    settings: Settings,
    rng: np.random.RandomState,
    callback: Callback | None,
    row_name: Callable[[int], str] = str,
    annotations: Annotations = Annotations(),  # noqa: B008 (immutable)
) -> FittedRegimes:
    """Fit regimes to data.

    The data are centered and scaled first, so that Adam's learning rate suits any data and float32
    suffices.

    :param data: ``(T, D)``, of all sequences; NaN where entries are missing.
    :param filled: those without missing entries of :func:`.missing.filled`.
    :param sizes: the number of rows of each sequence.
    :param callback: as that of :meth:`.RegimeModel.fit`.
    :param row_name: the name of a row for messages, from its number.
    :param annotations: what is known of the rows and sequences. With known states, or a transition
        mask, the regimes keep their numbers.
    :raises ValueError: if no start has a finite log-likelihood, or the floor of the best one cannot
        be computed.
    """
    known = Known(annotations, settings.transition_mask, settings.given.values)
    check_possible(known, sizes, settings.n_regimes, row_name)
    problem = make_problem(data, filled, sizes, spec, settings, rng, known)
    num_starts, offset = len(problem.starts.initial_probs), problem.offset

    def report(step: int, loss: float) -> None:
        mean = -loss / num_starts - offset
        if settings.verbose:
            print(f"step {step}: log-likelihood {mean:.4f} (mean of the starts)")
        if callback is not None:
            callback(step, mean)

    shown = progress.nothing_else() if settings.verbose else progress.bar("fit, iterations")
    with shown:
        fit = fit_starts(
            problem.starts,
            spec,
            *pack(problem.z, sizes, dtype=settings.dtype, device=settings.device),
            **options(problem),
            least=problem.least,
            callback=report if settings.verbose or callback is not None else None,
        )
    return best_regimes(problem, fit, row_name)


def make_problem(
    data: Array,
    filled: Array,
    sizes: list[int],
    spec: Spec,
    settings: Settings,
    rng: np.random.RandomState,
    known: Known,
) -> Problem:
    """Scale the data, and make the starts; arguments as those of :func:`fit_regimes`."""
    given, annotations = settings.given, known.annotations
    units, min_eigenvalue = units_and_floor(filled, spec, settings)
    z, offset = units.scale(data), annotations.log_jacobian(units, data, sizes)
    least = spec.collapsed_variance(units.scale(filled), settings.dtype)
    # Else all starts are equal, or end in the same maximum.
    is_one = settings.n_regimes == 1 or given.is_complete(spec) or annotations.are_complete
    num_starts = 1 if is_one else settings.n_init
    starts = starts_of_data(filled, units, num_starts, spec, settings, rng)
    starts = align_starts(starts, spec, z, sizes, known, settings.dtype, settings.device)
    starts = given.into(starts, spec, units)
    offset += log_normaliser(starts.transition_matrix[0], settings.stickiness)
    return Problem(
        data, filled, sizes, spec, settings, known, units, min_eigenvalue, z, offset, least, starts
    )


def options(problem: Problem) -> dict[str, Any]:
    """The arguments of :func:`.fit_starts` that the settings and annotations give."""
    settings = problem.settings
    return {
        "inference": settings.inference,
        "acceleration": settings.acceleration,
        "max_iter": settings.max_iter,
        "tol": settings.tol,
        "min_eigenvalue": problem.min_eigenvalue,
        "fixed": settings.given.fixed,
        "initial": settings.initial,
        "stickiness": settings.stickiness,
        "beside": problem.known.annotations.of_model(settings.dtype, settings.device),
    }


def best_regimes(
    problem: Problem, fit: FittedStarts, row_name: Callable[[int], str] = str
) -> FittedRegimes:
    """The best of the fitted starts of a problem; errors as those of :func:`fit_regimes`."""
    data, filled, sizes, spec, settings, known = problem[:6]
    given, annotations = settings.given, known.annotations
    min_eigenvalue, offset, stickiness = (
        problem.min_eigenvalue, problem.offset, settings.stickiness,
    )  # fmt: skip
    best = fit.best()
    fitted = fit.parameters.select(best)
    least_variances = spec.least_variances(fitted.emission)
    emission = spec.unscale(fitted.emission, problem.units)
    at_floor = _is_at_floor(least_variances, min_eigenvalue)
    if settings.min_eigenvalue > 0 and not min_eigenvalue:
        at_floor = spec.is_below(emission, settings.min_eigenvalue)
        if at_floor.any():
            raise problems.floor_out_of_reach(filled, settings.min_eigenvalue)
    emission = spec.regularized(
        emission, settings.regularization, settings.regularization_scale == "relative"
    )
    parameters = given.restored(fitted._replace(emission=emission))
    hmm = FittedHMM(
        parameters, spec, settings.dtype, settings.device, annotations=annotations
    )
    found_order = sort_regimes(
        parameters,
        spec,
        settings.order_by,
        lambda: annotations.sum(
            observed_rows(data)[:, np.newaxis] * hmm.posterior(data, sizes, "smoothed")[1], sizes
        ),
        lambda reference: expected_agreement(reference, hmm, data, sizes),
    )
    if known.keeps_numbers:
        found_order = found_order.kept()
    order, names, doubt = found_order
    ordered = reordered(parameters, spec, order)
    # In the final order, as sums in another one end in other digits.
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
        collapsed = flags(fit.collapsed[best])
        has_covariances = spec.spread is not None
        found.append(
            problems.of_collapse(names, collapsed, smoothed_probs, row_name, has_covariances)
        )
    elif not converged and settings.max_iter > 0 and settings.tol is not None:
        found.append(problems.of_convergence(len(fit.history) - 1))
    before = float(history[-1]) - offset - log_prior(fitted.transition_matrix, stickiness)
    lost = problems.of_regularization(settings.regularization, before, log_likelihood)
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
        sorted(given.fixed),
        history - offset,
        converged,
        log_likelihood,
        annotations.sum(smoothed_probs, sizes) / annotations.num_rows(sizes),
        found,
        smoothed_probs[-1],
        best,
        order,
        fit.results(offset),
    )


def units_and_floor(data: Array, spec: Spec, settings: Settings) -> tuple[Units, float]:
    """The units of the fit, and ``min_eigenvalue`` in them.

    A floor of eigenvalues stays one only if all series have the same unit. Where a variance as low
    as the floor would be lost in rounding then, the series have units of their own, and the fit has
    no floor.
    """
    units = spec.units(data, equal=settings.min_eigenvalue > 0)
    if not settings.min_eigenvalue:
        return units, 0.0
    floor = settings.min_eigenvalue / float(units.unit[0]) ** 2
    if floor >= spec.collapsed_variance(units.scale(data), settings.dtype):
        return units, floor
    return spec.units(data), 0.0


def starts_of_data(
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
    floor = spec.collapsed_variance(z, settings.dtype)
    if settings.min_eigenvalue:
        floor = max(floor, settings.min_eigenvalue / float(own.unit.max()) ** 2)
    means = settings.given.values.get("means") if spec.starts_from_means else None
    centers = None if means is None else own.scale(means)
    starts = make_starts(z, settings.n_regimes, num_starts, spec, floor, rng, centers)
    if not (own.unit == units.unit).all():
        starts = starts._replace(emission=spec.scale(spec.unscale(starts.emission, own), units))
    return starts


def _is_at_floor(variances: Array, floor: float) -> Flags:
    return variances <= floor * (1 + 1e-6) if floor > 0 else np.zeros(len(variances), np.bool_)
