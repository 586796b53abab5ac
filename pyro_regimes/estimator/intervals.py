"""Confidence intervals of the parameters of a fitted model."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.stats import norm

from pyro_regimes.caller import levels_to_the_caller
from pyro_regimes.estimator.bootstrap import bootstrap
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.interval_table import ConfidenceIntervals
from pyro_regimes.estimator.parameter_errors import Held, ParameterErrors
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.quantities import Quantities, interval
from pyro_regimes.estimator.validation import Settings
from pyro_regimes.messages import shown

METHODS = ("observed", "sandwich", "bootstrap")

#: The gain in nats of a Newton step that says that the data are not those of the fit.
_GAIN = 0.1


def check_level(level: Any) -> float:
    """:raises ValueError: if it is no share between 0 and 1."""
    try:
        found = float(level)
    except (TypeError, ValueError):
        found = np.nan
    if isinstance(level, bool) or not 0 < found < 1:
        raise ValueError(f"expected level to be a number between 0 and 1, got {shown(level)}")
    return found


def asymptotic(
    errors: ParameterErrors, quantities: Quantities, level: float, method: str
) -> ConfidenceIntervals:
    """Intervals by the delta method, symmetric on the scale of each number."""
    estimates = quantities.of(errors.chart.estimates)
    covariance = errors.delta(quantities.of, is_centered=True)
    deviations = np.sqrt(np.maximum(covariance.diagonal(), 0))
    deviations[quantities.on_bound(errors.standard_errors, deviations == 0)] = np.nan
    scales = [label.scale for label in quantities.labels]
    ends = interval(estimates, deviations, scales, float(norm.ppf((1 + level) / 2)))
    return ConfidenceIntervals(_names(quantities), estimates, deviations, *ends, level, method)


def by_bootstrap(
    hmm: FittedHMM,
    held: Held,
    settings: Settings,
    quantities: Quantities,
    data: Array,
    sizes: list[int],
    level: float,
    num_sets: int,
    rng: np.random.RandomState,
) -> ConfidenceIntervals:
    """Percentile intervals of refits; the standard error is the deviation of the refits."""
    found = bootstrap(hmm, held, settings, data, sizes, num_sets, rng)
    sound = ~found.degenerate
    lost, early = int((~sound).sum()), int((~found.converged & sound).sum())
    if num_sets - lost < 2:
        raise ValueError(
            f"expected at least two fits to simulated data without a collapsed regime, got "
            f"{num_sets - lost} of {num_sets}; set min_eigenvalue, or use method='observed'"
        )
    if lost or early:
        warnings.warn(
            f"Of {num_sets} fits to simulated data {lost} were left out, as a regime collapsed, "
            f"and {early} had not converged after {settings.max_iter} iterations.",
            stacklevel=levels_to_the_caller(),
        )
    numbers = np.flatnonzero(sound)
    values = np.stack([quantities.of(found.parameters.select(int(i))) for i in numbers])
    tails = (1 - level) / 2, (1 + level) / 2
    with np.errstate(invalid="ignore"):
        lower, upper = np.quantile(values, tails, axis=0)
        deviations = values.std(0, ddof=1)
    estimates = quantities.of(hmm.parameters)
    return ConfidenceIntervals(
        _names(quantities), estimates, deviations, lower, upper, level, "bootstrap"
    )


def _names(quantities: Quantities) -> list[tuple[str, str, str]]:
    """What each number is, without the scale of its interval."""
    return [(label.property, label.of, label.regime) for label in quantities.labels]


def warn_of(errors: ParameterErrors) -> None:
    """Warn if the data are not those of the fit, or it has stopped too early."""
    if abs(errors.free.gain) > _GAIN:
        warnings.warn(
            "The parameters are not those of the highest likelihood of X: a Newton step would gain "
            f"{errors.free.gain:.3g} nats. Give the rows of the fit, or fit with a smaller tol.",
            stacklevel=levels_to_the_caller(),
        )
