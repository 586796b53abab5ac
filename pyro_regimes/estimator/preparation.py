"""Data as a fit needs them, with the emission and the settings for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator

from pyro_regimes.estimator import missing, validation
from pyro_regimes.estimator.given import Given, for_series
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.spec import Spec


class Prepared(NamedTuple):
    """What a fit needs beside the data."""

    filled: Array  #: the data without missing entries, of :func:`.missing.filled`
    spec: Spec
    settings: validation.Settings  #: with given values in the shapes of the data
    doubt: Warning | None  #: about the data, for the user


def prepare(
    model: BaseEstimator,
    data: Array,
    settings: validation.Settings,
    spec_of: Callable[[Array], Spec] | None = None,
) -> Prepared:
    """Check whether the model can be fitted to data, and prepare the fit.

    :param model: with the settings, and with the names of the columns.
    :param data: ``(T, D)``, of all sequences; NaN where entries are missing.
    :param settings: those of the model.
    :param spec_of: a function of the filled data; None makes the emission of the settings for them.
    :raises ValueError: if a column has no observed entry, or the data do not suit the model.
    """
    names = getattr(model, "feature_names_in_", None)
    missing.check_columns(data, names)
    filled = missing.filled(data)
    if spec_of is None:
        spec = model._spec().for_columns(names, data.shape[1])
        spec = spec.for_data(filled, settings.given.values)
    else:
        spec = spec_of(filled)
    given, doubt = _check_fittable(model, data, filled, spec, settings.given)
    return Prepared(filled, spec, settings._replace(given=given), doubt)


def _check_fittable(
    model: BaseEstimator, X: Array, data: Array, spec: Spec, given: Given
) -> tuple[Given, Warning | None]:
    """Raise for data that do not suit the given values, or whose likelihood has no maximum.

    :param X: the data, with missing entries.
    :param data: those without them, of :func:`.missing.filled`.
    :return: the given values in the shapes of the data, and a warning for the user or None.
    :raises ValueError: if there are too few observations, or if their covariance is singular, the
        covariances are not fixed and ``min_eigenvalue`` is 0.
    """
    for name in ("order_by", "init_params"):
        if isinstance(getattr(model, name), type(model)):
            _check_same_columns(name, getattr(model, name), model, data.shape[1])
    names = getattr(model, "feature_names_in_", None)
    spec.check_support(data, names)
    if isinstance(model.order_by, type(model)):
        try:
            model.order_by._fitted_spec().check_support(data, names)
        except ValueError as error:
            raise ValueError(
                "expected X that suits the model in order_by, by whose probabilities the regimes "
                f"are sorted: {error}"
            ) from error
    given = for_series(given, spec, model.n_regimes, data.shape[1])
    least = max(2, model.n_regimes)
    if len(data) < least:
        samples = "1 sample" if len(data) == 1 else f"{len(data)} samples"
        raise ValueError(
            f"expected X to have at least {least} observations for n_regimes={model.n_regimes}, "
            f"got {samples}"
        )
    distinct = validation.num_distinct(data, model.n_regimes)
    if distinct < model.n_regimes and spec.needs_distinct:
        raise ValueError(
            f"expected X to have at least n_regimes={model.n_regimes} distinct observations, got "
            f"{distinct}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(np.square(data - data.mean(0)).sum())
    if not finite:
        raise ValueError(
            f"expected X to have a finite variance, got values up to {abs(data).max()}"
        )
    if model.min_eigenvalue > 0 or spec.spread in given.fixed:  # none becomes singular
        return given, None
    dtype, whole = validation.torch_dtype(model.dtype), missing.complete_rows(X)
    doubt = spec.check_data(data, names, dtype)
    if doubt is None and whole is not None:  # a filled entry hides how a column depends on others
        doubt = spec.check_data(whole, names, dtype)
    return given, None if doubt is None else UserWarning(doubt)


def _check_same_columns(
    name: str, other: BaseEstimator, model: BaseEstimator, num_series: int
) -> None:
    if num_series != other.n_features_in_:
        raise ValueError(
            f"expected X to have the {other.n_features_in_} series of the model in {name}, got "
            f"{num_series}"
        )
    own, others = (getattr(each, "feature_names_in_", None) for each in (model, other))
    if own is not None and others is not None and list(own) != list(others):
        raise ValueError(
            f"expected X to have the columns of the model in {name}, in their order, "
            f"{list(map(str, others))}, got {list(map(str, own))}"
        )
