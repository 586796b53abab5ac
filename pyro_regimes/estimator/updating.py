"""What :meth:`.RegimeModel.partial_fit` accepts, and the model after it."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.estimator import missing, validation
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.fitting import units_and_floor
from pyro_regimes.estimator.inputs import as_tables, date_index, last_date
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.running_means import Running, Updated, begin, update
from pyro_regimes.estimator.units import Units
from pyro_regimes.estimator.validation import Settings
from pyro_regimes.infer.isolation import plain_torch
from pyro_regimes.messages import shown


def check_settings(model: BaseEstimator) -> None:
    """Check that the settings allow a step on running averages.

    :raises ValueError: if a setting of the constructor does not.
    """
    settings = validation.read_settings(model)
    for name, value, served in (
        ("inference", settings.inference, "em"),
        ("stickiness", settings.stickiness, 0.0),
        ("fixed", sorted(settings.given.fixed), []),
    ):
        if value != served:
            raise ValueError(
                f"expected {name}={served!r} for partial_fit, got {value!r}; call fit with all rows"
            )


def _check_same_settings(model: BaseEstimator) -> None:
    """Check that the settings are those of the model that is to be updated.

    :raises ValueError: if they have changed since the fit.
    """
    for name, fitted in (
        ("n_regimes", len(model.regime_names_)),
        ("covariance_type", model.covariance_type_),
        ("emission", model.emission_),
        ("initial", model.initial_),
    ):
        if getattr(model, name) != fitted:
            raise ValueError(
                f"expected {name}={fitted!r} as in the fit that partial_fit is to update, got "
                f"{getattr(model, name)!r}; set it back, or call fit"
            )


def read_half_life(half_life: Any) -> float | None:
    """:raises ValueError: if it is no positive number of rows, or None."""
    if half_life is None:
        return None
    is_number = isinstance(half_life, Real) and not isinstance(half_life, bool)
    if not is_number or not 0 < float(half_life) < np.inf:
        raise ValueError(
            f"expected half_life to be a positive number of rows or None, got {shown(half_life)}"
        )
    return float(half_life)


def check_first(continues: Any) -> None:
    """:raises ValueError: if the first rows are to continue a sequence."""
    if _choice(continues):
        raise ValueError(
            "expected continues=None or continues=False for the first rows, got True: there is "
            "nothing before them"
        )


def _continues(continues: Any, running: Running, sizes: list[int]) -> bool:
    """Whether a block continues the sequence before it; None if it does where that is possible.

    :raises ValueError: if it must, and cannot.
    """
    possible = running.last is not None and len(sizes) == 1
    if _choice(continues) and not possible:
        came = "several sequences" + ("" if len(sizes) > 1 else " in the call before")
        raise ValueError(
            f"expected one sequence after one sequence where continues=True, got {came}; leave "
            "out continues, so that each begins anew"
        )
    return possible if continues is None else bool(continues)


def _choice(continues: Any) -> bool | None:
    if continues is not None and not isinstance(continues, (bool, np.bool_)):
        raise ValueError(f"expected continues to be True, False or None, got {shown(continues)}")
    return None if continues is None else bool(continues)


def _floor(units: Units, min_eigenvalue: float) -> float:
    """``min_eigenvalue`` in these units.

    :raises ValueError: if they differ between the series, so that it is no floor of eigenvalues.
    """
    if not min_eigenvalue:
        return 0.0
    if (units.unit != units.unit[0]).any():
        raise ValueError(
            f"expected min_eigenvalue=0 for partial_fit, got {min_eigenvalue:g}, which was 0 in "
            "the fit, or is lost in rounding beside the variances of some columns; change the "
            "units, or call fit"
        )
    return min_eigenvalue / float(units.unit[0]) ** 2


def _date(X: Any, before: Any | None) -> Any | None:
    """The date of the last row of X; None if it has none, or X is several tables.

    :param before: that of the row before the first; None if it is not known.
    :raises ValueError: if the rows do not follow it.
    """
    tables, _ = as_tables(X)
    index = date_index(tables[0]) if len(tables) == 1 else None
    if index is None:
        return None
    return last_date(index, before, "the call before", ", or set continues=False")


def statistics_of_fit(
    hmm: FittedHMM, settings: Settings, X: Any, data: Array, filled: Array, sizes: list[int]
) -> Running | None:
    """The averages that further rows update; None if the fit does not allow updates.

    :param X: the data as the user gave them.
    :param filled: the data without missing entries of :func:`.missing.filled`.
    """
    is_served = settings.inference == "em" and not settings.stickiness and not settings.given.fixed
    if not is_served or any(known is not None for known in hmm.annotations):
        return None
    units, _ = units_and_floor(filled, hmm.spec, settings)
    least = hmm.spec.collapsed_variance(units.scale(filled), torch.float64)
    return begin(hmm, units, least, data, sizes)._replace(date=_date(X, None))


def update_model(
    model: BaseEstimator,
    X: Any,
    y: Any,
    lengths: npt.ArrayLike | None,
    continues: Any,
    half_life: float | None,
) -> tuple[dict[str, Any], Warning | None]:
    """The attributes of a model after a block of rows, by name, and a warning or None.

    The arguments are those of :meth:`.RegimeModel.partial_fit`. The model does not change.

    :raises ValueError: if an argument or a setting is not valid, or the block has probability zero.
    """
    running = _averages_of(model)
    _check_same_settings(model)
    settings, hmm = validation.read_settings(model), model._hmm()
    data, sizes = validation.check_data(model, X, lengths, y)
    goes_on = _continues(continues, running, sizes)
    date = _date(X, running.date if goes_on else None)
    first_probs = _next_probs(running, hmm) if goes_on else None
    hmm.spec.check_support(data, getattr(model, "feature_names_in_", None))
    log_likelihood = hmm._replace(first_probs=first_probs).log_likelihood(data, sizes)
    if not np.isfinite(log_likelihood):
        raise ValueError(
            "expected rows that are possible in the fitted model, got X of probability zero; call "
            "fit with all rows"
        )
    if half_life is not None:
        num_rows = running.num_rows * 0.5 ** (len(data) / half_life)
        running = running._replace(num_rows=num_rows)
    floor = max(_floor(running.units, settings.min_eigenvalue), running.least)
    with plain_torch(settings.device):
        new = update(running, hmm, floor, data, sizes, goes_on)
    initial_probs, transition_matrix, emission = new.parameters
    emission = hmm.spec.regularized(
        emission, settings.regularization, settings.regularization_scale == "relative"
    )
    observed = missing.observed_rows(data)
    rows_before = model.n_samples_fit_ + model.n_missing_rows_
    shares = model.share_of_time_ * rows_before + new.smoothed
    changed = {
        "initial_probs_": initial_probs,
        "transition_matrix_": transition_matrix,
        **{f"{name}_": value for name, value in emission.items()},
        "share_of_time_": shares / (rows_before + len(data)),
        "log_likelihood_": model.log_likelihood_ + log_likelihood,
        "n_samples_fit_": model.n_samples_fit_ + int(observed.sum()),
        "n_missing_": model.n_missing_ + np.isnan(data).sum(0),
        "n_missing_rows_": model.n_missing_rows_ + int((~observed).sum()),
        "training_start_": model.training_start_ if goes_on else None,
        "n_updates_": model.n_updates_ + 1,
        "_running": new.running._replace(date=date),
    }
    return changed, _problem(new, model.regime_names_)


def _averages_of(model: BaseEstimator) -> Running:
    """:raises ValueError: if the model has none."""
    running: Running | None = vars(model).get("_running")
    if running is None:
        raise ValueError(
            "expected a model with running averages, got one from load or from_parameters, or "
            "fitted to Chunks, by SVI, or with stickiness, fixed parameters, states, weights or "
            "gaps; call fit with all rows, or store models by pickle, which keeps the averages"
        )
    return running


def _next_probs(running: Running, hmm: FittedHMM) -> Array:
    """Probabilities of the regimes at the row after the last one."""
    assert running.last is not None
    probs: Array = running.last @ hmm.parameters.transition_matrix
    return probs / probs.sum()


def _problem(new: Updated, names: list[str]) -> Warning | None:
    """The warning about parameters that the averages do not determine, or None."""
    if new.collapsed.any():
        listed = ", ".join(name for name, it in zip(names, new.collapsed, strict=True) if it)
        return ConvergenceWarning(
            f"The rows that count no longer vary in some direction in {listed}, so that the "
            "likelihood has no maximum. Use a longer half_life, fewer regimes, or min_eigenvalue."
        )
    if new.unbounded:
        listed = "; ".join(new.unbounded)
        return UserWarning(f"partial_fit leaves some parameters as they were: {listed}")
    return None
