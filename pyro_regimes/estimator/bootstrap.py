"""Parametric bootstrap: fits to data sets that are drawn from a fitted model."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyro_regimes.estimator.agreement import expected_agreement
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.missing import filled
from pyro_regimes.estimator.naming import reordered
from pyro_regimes.estimator.parameter_errors import Held, by_name, check_weights
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.replicates import Replicates, fit_replicates, simulate
from pyro_regimes.estimator.spacing import Steps
from pyro_regimes.estimator.validation import Settings


def bootstrap(
    hmm: FittedHMM,
    held: Held,
    settings: Settings,
    data: Array,
    sizes: list[int],
    num_sets: int,
    rng: np.random.RandomState,
) -> Replicates:
    """Refit a model to data sets drawn from it, in one batch, from its own parameters.

    Values that are missing in the data are missing in each set. The regimes of each fit have the
    order of the model: the one in which both are expected to agree on most rows.

    :param data: those of the fit, ``(T, D)``.
    :raises ValueError: if sequences have weights, or states are known, which no draw has.
    """
    check_weights(hmm.annotations, "bootstrap")
    if hmm.annotations.allowed is not None:
        raise ValueError(
            "expected no states for method='bootstrap', got some; use method='observed'"
        )
    gaps = hmm.annotations.gaps
    sets = np.stack([_drawn(hmm, data, sizes, gaps, rng) for _ in range(num_sets)])
    settings = settings._replace(initial=held.initial, stickiness=held.stickiness)
    found = fit_replicates(
        sets,
        sizes,
        hmm.spec,
        settings,
        filled(data),
        starts=Parameters.stack([hmm.parameters]),
        fixed=held.fixed,
        gaps=gaps,
    )
    matched = []
    for number, own in enumerate(sets):
        fitted = _restored(found.parameters.select(number), hmm.parameters, held)
        agreement = expected_agreement(hmm, hmm._replace(parameters=fitted), own, sizes)
        order = linear_sum_assignment(agreement, maximize=True)[1]
        matched.append(reordered(fitted, hmm.spec, order))
    return found._replace(parameters=Parameters.stack(matched))


def _drawn(
    hmm: FittedHMM,
    data: Array,
    sizes: list[int],
    gaps: Steps | None,
    rng: np.random.RandomState,
) -> Array:
    """A data set like the data, ``(T, D)``; of steps in gaps there are no rows."""
    if gaps is None:
        return simulate(hmm.parameters, hmm.spec, data, sizes, rng)
    steps = np.asarray(gaps).copy()
    firsts = np.cumsum([0, *sizes[:-1]])
    steps[firsts] = 1
    rows = steps.cumsum() - 1
    lasts = np.cumsum(sizes) - 1
    whole = np.diff(rows[lasts], prepend=-1).tolist()
    every = simulate(hmm.parameters, hmm.spec, np.zeros((sum(whole), data.shape[1])), whole, rng)
    return np.where(np.isnan(data), np.nan, every[rows])


def _restored(fitted: Parameters, model: Parameters, held: Held) -> Parameters:
    """The parameters of a fit with the fixed ones exactly as they are in the model."""
    values = by_name(fitted) | {name: by_name(model)[name] for name in held.fixed}
    initial, matrix = values.pop("initial_probs"), values.pop("transition_matrix")
    return Parameters(initial, matrix, values)
