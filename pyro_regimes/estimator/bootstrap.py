"""Parametric bootstrap: data sets drawn from a fitted model, and fits to them in one batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from pyro_regimes.estimator.all_starts import fit_starts
from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.fitting import units_and_floor
from pyro_regimes.estimator.missing import filled
from pyro_regimes.estimator.naming import reordered
from pyro_regimes.estimator.parameter_errors import Held
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.pyro_model import regime_hmm, to_arguments
from pyro_regimes.estimator.spacing import Steps
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.units import Units
from pyro_regimes.estimator.validation import Settings

#: Entries of ``(R, T, K)`` arrays that are fitted at once.
_AT_ONCE = 2**22


class Replicates(NamedTuple):
    """Fits to data sets that were drawn from a model."""

    parameters: Parameters  #: with the R fits in front, in the units of the data
    is_sound: Flags  #: ``(R,)``: finite, and without a collapsed regime
    converged: Flags  #: ``(R,)``


def draw_data(
    parameters: Parameters,
    spec: Spec,
    sizes: list[int],
    num_sets: int,
    rng: np.random.RandomState,
    gaps: Steps | None = None,
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Draw data sets with sequences of these sizes, all at once.

    :param gaps: the steps from the row before to each row, ``(T,)``.
    :return: observations ``(R, T, D)`` and states ``(R, T)``.
    """
    matrix = parameters.transition_matrix
    firsts = set(np.cumsum([0, *sizes[:-1]]).tolist())
    states = np.empty((num_sets, sum(sizes)), dtype=np.int64)
    for t in range(states.shape[1]):
        if t in firsts:
            rows = np.tile(parameters.initial_probs, (num_sets, 1))
        else:
            steps = 1 if gaps is None else int(gaps[t])
            rows = np.linalg.matrix_power(matrix, steps)[states[:, t - 1]]
        totals = rows.cumsum(-1)
        uniforms = rng.random_sample((num_sets, 1)) * totals[:, -1:]
        states[:, t] = np.minimum((uniforms >= totals).sum(-1), len(matrix) - 1)
    data = spec.draw(parameters.emission, states.ravel(), rng)
    return data.reshape(*states.shape, -1), states


def bootstrap(
    hmm: FittedHMM,
    held: Held,
    settings: Settings,
    data: Array,
    sizes: list[int],
    num_sets: int,
    rng: np.random.RandomState,
) -> Replicates:
    """Refit the model to data sets drawn from it, from its own parameters.

    Values that are missing in the data are missing in each set.

    :param data: those of the fit, ``(T, D)``.
    """
    num_at_once = max(1, _AT_ONCE // (len(data) * len(hmm.parameters.initial_probs)))
    parts = []
    for first in range(0, num_sets, num_at_once):
        number = min(num_at_once, num_sets - first)
        gaps = hmm.annotations.gaps
        drawn, _ = draw_data(hmm.parameters, hmm.spec, sizes, number, rng, gaps)
        drawn[:, np.isnan(data)] = np.nan
        parts.append(refit(hmm, held, settings, filled(data), drawn, sizes))
    return Replicates(
        Parameters.concatenate([each.parameters for each in parts]),
        np.concatenate([each.is_sound for each in parts]),
        np.concatenate([each.converged for each in parts]),
    )


def refit(
    hmm: FittedHMM,
    held: Held,
    settings: Settings,
    like: Array,
    sets: Array,
    sizes: list[int],
) -> Replicates:
    """Fit the model to several data sets in one batch, from the same parameters.

    The regimes of each fit have the order of the model's: that with the largest expected number of
    rows in which both agree.

    :param like: data without missing values ``(T, D)``, whose units are those of the fits.
    :param sets: ``(R, T, D)``.
    """
    spec, num_sets = hmm.spec, len(sets)
    units, floor = units_and_floor(like, spec, settings)
    scaled = hmm.parameters._replace(emission=spec.scale(hmm.parameters.emission, units))
    starts = Parameters.stack([scaled] * num_sets)
    x = torch.tensor(units.scale(sets), dtype=torch.float64, device=hmm.device)
    beside: dict[str, Any] = dict(hmm.annotations.of_distribution(hmm.device))
    if len(sizes) > 1:
        beside["packed_lengths"] = torch.tensor(sizes, device=hmm.device)
    fitted = fit_starts(
        starts,
        spec,
        x,
        None,
        inference="em",
        max_iter=max(settings.max_iter, 1),
        tol=settings.tol,
        min_eigenvalue=floor,
        least=spec.collapsed_variance(units.scale(like), torch.float64),
        acceleration=settings.acceleration,
        fixed=held.fixed,
        initial=held.initial,
        stickiness=held.stickiness,
        beside=beside,
    )
    before, after = (_smoothed(each, spec, x, beside) for each in (starts, fitted.parameters))
    agreement = np.einsum("rti,rtj->rij", np.nan_to_num(before), np.nan_to_num(after))
    found = [
        _finished(fitted.parameters.select(number), agreement[number], spec, units, settings)
        for number in range(num_sets)
    ]
    sound = np.isfinite(fitted.history[-1]) & ~fitted.degenerate
    return Replicates(Parameters.stack(found), sound, fitted.converged)


def _finished(
    fitted: Parameters, agreement: Array, spec: Spec, units: Units, settings: Settings
) -> Parameters:
    """One fit in the units of the data and in the order of the model."""
    emission = spec.regularized(
        spec.unscale(fitted.emission, units),
        settings.regularization,
        settings.regularization_scale == "relative",
    )
    order = linear_sum_assignment(agreement, maximize=True)[1]
    return reordered(fitted._replace(emission=emission), spec, order)


def _smoothed(
    parameters: Parameters, spec: Spec, x: torch.Tensor, beside: dict[str, Any]
) -> Array:
    """The smoothed probabilities of each model on its own data, ``(R, T, K)``."""
    arguments = to_arguments(parameters, spec, device=x.device)
    with torch.no_grad():
        probs = regime_hmm(arguments, spec, **beside).smoothed_probs(x)
    found: Array = probs.cpu().numpy()
    return found
