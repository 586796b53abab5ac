"""Fits of one model to many data sets in one batch: bootstrap replicates, or folds of the data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from pyro_regimes.estimator import missing, problems
from pyro_regimes.estimator.all_starts import FittedStarts, fit_starts, starts_at_once
from pyro_regimes.estimator.annotations import Annotations
from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.fitting import starts_of_data, units_and_floor
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.sampling import draw
from pyro_regimes.estimator.sequences import pack
from pyro_regimes.estimator.spacing import Steps
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.stickiness import log_prior
from pyro_regimes.estimator.units import Units
from pyro_regimes.estimator.validation import Settings
from pyro_regimes.infer.isolation import plain_torch


class Replicates(NamedTuple):
    """The best start of each of B data sets, in the units of the data."""

    parameters: Parameters  #: with the B data sets in front, after ``regularization``
    log_likelihood: Array  #: ``(B,)``, before ``regularization``; not finite where no start's is
    converged: Flags  #: ``(B,)``
    degenerate: Flags  #: ``(B,)``: not finite, or collapsed in every start


def fit_replicates(
    replicates: Array,
    sizes: list[int],
    spec: Spec,
    settings: Settings,
    reference: Array,
    *,
    rngs: Sequence[np.random.RandomState] | None = None,
    starts: Parameters | None = None,
    fixed: Collection[str] = (),
    gaps: Steps | None = None,
) -> Replicates:
    """Fit a model to each of several data sets by EM, all in one batch.

    The result of a data set does not depend on the others: of Gaussian emissions to the bit, of
    those that torch computes elementwise up to its rounding, which depends on the place of a number
    in a tensor. All are fitted in the units of the reference data. The regimes keep the order of
    the starts. If memory is short, there are several batches, with the same result.

    :param replicates: ``(B, T, D)``, NaN where entries are missing.
    :param sizes: the number of rows of each sequence, the same in every data set.
    :param settings: of a model without given parameters, with ``inference="em"``.
    :param reference: data ``(n, D)`` like the others, without missing entries, of which the units
        and the least variances are taken.
    :param rngs: generators of the starts, one for each data set, which has ``n_init`` starts of its
        own, as in :meth:`.RegimeModel.fit`.
    :param starts: those of every data set instead, R in front, in the units of the data.
    :param fixed: names of fitted attributes that keep the values of the starts.
    :param gaps: the steps from the row before to each row, ``(T,)``, the same in every data set.
    """
    annotations = Annotations(gaps=gaps)
    with plain_torch(settings.device):
        units, floor = units_and_floor(reference, spec, settings)
        least = spec.collapsed_variance(units.scale(reference), settings.dtype)
        if starts is None:
            assert rngs is not None
            every = _own_starts(replicates, units, spec, settings, rngs)
        else:
            scaled = starts._replace(emission=spec.scale(starts.emission, units))
            every = Parameters.concatenate([scaled] * len(replicates))
        per_data = len(every.initial_probs) // len(replicates)
        x, lengths = pack(
            units.scale(replicates), sizes, dtype=settings.dtype, device=settings.device
        )
        fit = partial(
            fit_starts, spec=spec, lengths=lengths, packed=True, inference="em",
            acceleration=settings.acceleration, max_iter=settings.max_iter, tol=settings.tol,
            min_eigenvalue=floor, least=least, initial=settings.initial,
            stickiness=settings.stickiness, fixed=fixed,
            beside=annotations.of_model(settings.dtype, settings.device),
        )  # fmt: skip
        at_once = max(1, starts_at_once(x[0], settings.n_regimes) // per_data)
        parts = []
        for first in range(0, len(x), at_once):
            some = slice(first * per_data, (first + at_once) * per_data)
            data = x[first : first + at_once].repeat_interleave(per_data, 0)
            parts.append(fit(every.select(some), x=data))
        found = FittedStarts.join(parts)
        best = _best(found, per_data)
        parameters = _finished(found, best, spec, settings, units, floor, reference)
        jacobians = np.array([units.log_jacobian_of(data) for data in replicates])
    priors = np.array(
        [log_prior(matrix, settings.stickiness) for matrix in parameters.transition_matrix]
    )
    return Replicates(
        parameters,
        found.history[-1, best] - jacobians - priors,
        found.converged[best],
        found.degenerate[best],
    )


def simulate(
    parameters: Parameters, spec: Spec, data: Array, sizes: list[int], rng: np.random.RandomState
) -> Array:
    """Draw data of these parameters in the place of others: a replicate ``(T, D)``.

    :param data: ``(T, D)``. Its missing entries are missing in the replicate, too.
    :param sizes: the number of rows of each sequence.
    """
    drawn = [draw(parameters, spec, size, rng)[0] for size in sizes]
    return np.where(np.isnan(data), np.nan, np.concatenate(drawn))


def _own_starts(
    replicates: Array,
    units: Units,
    spec: Spec,
    settings: Settings,
    rngs: Sequence[np.random.RandomState],
) -> Parameters:
    number = 1 if settings.n_regimes == 1 else settings.n_init
    made = [
        starts_of_data(missing.filled(data), units, number, spec, settings, rng)
        for data, rng in zip(replicates, rngs, strict=True)
    ]
    return Parameters.concatenate(made)


def _best(found: FittedStarts, per_data: int) -> list[int]:
    """The place of the best start of each data set; the first one where none has a likelihood."""
    places = []
    for first in range(0, len(found.converged), per_data):
        some = slice(first, first + per_data)
        own = found.select(some)
        places.append(first + (own.best() if np.isfinite(own.history[-1]).any() else 0))
    return places


def _finished(
    found: FittedStarts,
    best: list[int],
    spec: Spec,
    settings: Settings,
    units: Units,
    floor: float,
    reference: Array,
) -> Parameters:
    """The parameters of the best starts in the units of the data, with regularization."""
    relative = settings.regularization_scale == "relative"
    made = []
    for place in best:
        fitted = found.parameters.select(place)
        emission = spec.unscale(fitted.emission, units)
        is_without = settings.min_eigenvalue > 0 and not floor
        if is_without and spec.is_below(emission, settings.min_eigenvalue).any():
            raise problems.floor_out_of_reach(reference, settings.min_eigenvalue)
        emission = spec.regularized(emission, settings.regularization, relative)
        made.append(fitted._replace(emission=emission))
    return Parameters.stack(made)
