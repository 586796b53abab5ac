"""Saves and loads fitted models as JSON, which cannot contain code."""

from __future__ import annotations

import os
import reprlib
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from pyro_regimes.estimator.beginning import implied_probs
from pyro_regimes.estimator.given import Given, for_series, read_given
from pyro_regimes.estimator.json_files import (
    Shape,
    array_of,
    check_initial,
    check_probs,
    complete,
    format_of,
    names_of,
    plain,
    read_json,
    scalar_of,
    shape_of,
    with_none,
    write_json,
)
from pyro_regimes.estimator.mask import check_masked, read_mask
from pyro_regimes.estimator.parameters import CHAIN_ATTRIBUTES, Array
from pyro_regimes.estimator.spec import Spec, has_components
from pyro_regimes.estimator.start_results import StartResults
from pyro_regimes.estimator.validation import check_parameters

NAME = "RegimeModel"
VERSION = 2

_SCALARS = {
    "log_likelihood_": float,
    "n_iter_": int,
    "converged_": bool,
    "periods_per_year_": float,
}
_WRITERS = "RegimeModel.save or pyro-regimes fit"


def _arrays(spec: Spec) -> tuple[str, ...]:
    """The attributes that are arrays, in the order of the file."""
    emission = (f"{name}_" for name in spec.attributes)
    return ("initial_probs_", "transition_matrix_", *emission, "share_of_time_", "history_")


def write_model(path: str | os.PathLike[str], model: BaseEstimator, spec: Spec) -> None:
    """Write a fitted model atomically: a file already at ``path`` is replaced in one operation.

    :raises OSError: if the file cannot be written.
    :raises ValueError: if no file can have this name, or a parameter of the constructor is not
        valid.
    """
    parameters = {
        name: plain(value)
        for name, value in model.get_params(deep=False).items()
        if name not in ("init_params", "fixed", "transition_mask")
    }
    if isinstance(model.order_by, BaseEstimator):
        parameters["order_by"] = "volatility"
    # Parameters that were set after the fit belong to the next fit.
    n_regimes = len(model.initial_probs_)
    parameters |= {"n_regimes": n_regimes, "covariance_type": model.covariance_type_}
    mask = model.transition_mask_
    parameters |= {"transition_mask": None if mask is None else mask.tolist()}
    parameters |= {"initial": model.initial_, "emission": model.emission_}
    if not has_components(model.emission_):
        parameters["n_components"] = None
    loaded = type(model)(**parameters)
    check_parameters(loaded)  # else the file could not be loaded
    given = _given(model, loaded, spec)
    values = {name: value.tolist() for name, value in given.values.items()}
    parameters |= {"init_params": values or None, "fixed": sorted(given.fixed)}
    fitted = {name: getattr(model, name).tolist() for name in _arrays(spec)}
    fitted |= {name: kind(getattr(model, name)) for name, kind in _SCALARS.items()}
    if not model.n_samples_fit_:
        fitted["log_likelihood_"] = None  # NaN is no JSON
    fitted["n_samples_fit_"] = model.n_samples_fit_
    fitted["fixed_"] = list(model.fixed_)
    fitted["regime_names_"] = list(model.regime_names_)
    start = model.training_start_
    fitted["training_start_"] = None if start is None else with_none(start)
    fitted["n_missing_"] = model.n_missing_.tolist()
    fitted["n_missing_rows_"] = model.n_missing_rows_
    fitted["n_updates_"] = model.n_updates_
    fitted["starts_"] = None if model.starts_ is None else model.starts_.to_plain()
    names = getattr(model, "feature_names_in_", None)
    fitted["feature_names_in_"] = None if names is None else list(names)
    content = {
        "format": format_of(NAME),
        "version": VERSION,
        "parameters": parameters,
        "fitted": fitted,
    }
    if isinstance(model.emission_, dict):  # whose keys may be numbers
        parameters["emission"] = [
            [key if isinstance(key, str) else int(key), family]
            for key, family in model.emission_.items()
        ]
    write_json(path, content)


def _given(model: BaseEstimator, loaded: BaseEstimator, spec: Spec) -> Given:
    """``init_params`` and ``fixed``, or nothing if they do not suit the fit that is saved.

    :param loaded: a model with the parameters of the file, to which these are added.
    """
    loaded.set_params(init_params=model.init_params, fixed=model.fixed)
    try:
        if (model.covariance_type, model.emission) == (model.covariance_type_, model.emission_):
            given = read_given(loaded, spec)
            return for_series(given, spec, loaded.n_regimes, model.n_features_in_)
    except ValueError:
        pass
    return Given({}, frozenset())


def read_model(path: str | os.PathLike[str], kind: type[BaseEstimator]) -> BaseEstimator:
    """Read a model of class ``kind`` from a file that :func:`write_model` wrote.

    :raises ValueError: if the file is not JSON, has another format or version, is incomplete, or
        holds invalid values.
    :raises OSError: if the file cannot be read.
    """
    content = read_json(path, NAME, VERSION, _WRITERS)
    with complete(path, NAME):
        parameters = content["parameters"]
        emission = parameters.get("emission", "gaussian")
        if isinstance(emission, list):
            parameters["emission"] = {key: family for key, family in emission}
        model = kind(**parameters | {"fixed": tuple(parameters.get("fixed", ()))})
        check_parameters(model)
        fitted = content["fitted"]
        shapes = {name: shape_of(fitted[f"{name}_"]) for name in model._spec().attributes}
        spec, model.n_features_in_ = model._spec().with_shapes(shapes)
        own_names = fitted["feature_names_in_"]
        spec = spec.for_columns(
            None if own_names is None else np.array(own_names, object), model.n_features_in_
        )
        if fitted["n_samples_fit_"] == 0 and fitted["log_likelihood_"] is None:
            fitted["log_likelihood_"] = float("nan")
        for name, scalar in _SCALARS.items():
            setattr(model, name, scalar_of(name, fitted[name], scalar))
        model.n_samples_fit_ = _count("n_samples_fit_", fitted["n_samples_fit_"])
        if model.n_iter_ < 0:
            raise ValueError(f"n_iter_ is negative: {model.n_iter_}")
        model.covariance_type_, model.initial_ = model.covariance_type, model.initial
        model.transition_mask_ = read_mask(model.transition_mask, model.n_regimes)
        model.emission_ = model.emission
        for name, shape in _shapes(model, spec).items():
            setattr(model, name, array_of(name, fitted[name], shape))
        model.training_start_ = _training_start(fitted["training_start_"], model.n_features_in_)
        model.n_missing_, model.n_missing_rows_ = _missing(
            fitted.get("n_missing_"), fitted.get("n_missing_rows_"), model.n_features_in_
        )
        model.n_updates_ = _number_of_updates(fitted.get("n_updates_", 0))
        starts = fitted.get("starts_")  # which older files do not have
        model.starts_ = None if starts is None else StartResults.from_plain(starts)
        _check_values(model, spec)
        model.fixed_ = _fixed(fitted["fixed_"], spec)
        names = names_of("regime_names_", fitted["regime_names_"], model.n_regimes)
        model.regime_names_ = names
        if own_names is not None:
            names = names_of("feature_names_in_", own_names, model.n_features_in_)
            model.feature_names_in_ = np.array(names, dtype=object)
    return model


def _number_of_updates(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"n_updates_ is not a count: {reprlib.repr(value)}")
    return value


def _count(name: str, value: Any) -> float:
    """A number of rows; weights may make it no integer."""
    if type(value) not in (int, float) or not np.isfinite(value):
        raise ValueError(f"{name} is not a number: {reprlib.repr(value)}")
    if value < 0:
        raise ValueError(f"{name} is negative: {value}")
    count: float = value
    return count


def _fixed(value: Any, spec: Spec) -> list[str]:
    names = sorted({*CHAIN_ATTRIBUTES, *spec.attributes} & {*value})
    if value != names:
        raise ValueError(f"fixed_ is not a sorted list of names of parameters: {value!r}")
    return names


def _training_start(value: Any, num_series: int) -> Array | None:
    if value is None:
        return None
    rows = len(value) if isinstance(value, list) else 0
    start = array_of("training_start_", value, (max(rows, 1), num_series))  # None becomes NaN
    if np.isinf(start).any():
        raise ValueError("training_start_ is not finite")
    return start


def _is_count(number: Any) -> bool:
    """Whether it is a number of rows, each by its weight."""
    return type(number) in (int, float) and 0 <= number < np.inf


def _missing(counts: Any, num_empty: Any, num_series: int) -> tuple[npt.NDArray[Any], float]:
    """The numbers of missing values, and of rows without any; none in an older file."""
    if counts is None and num_empty is None:
        return np.zeros(num_series, np.int64), 0
    numbers = [*counts, num_empty]
    if len(counts) != num_series or not all(map(_is_count, numbers)):
        raise ValueError(f"n_missing_ and n_missing_rows_ are not counts: {numbers}")
    return np.array(counts), num_empty


def _shapes(model: BaseEstimator, spec: Spec) -> dict[str, Shape]:
    """The shape of each array, in the order of :func:`_arrays`."""
    states = model.n_regimes
    emission = spec.shapes(states, model.n_features_in_)
    return {
        "initial_probs_": (states,),
        "transition_matrix_": (states, states),
        **{f"{name}_": emission[name] for name in spec.attributes},
        "share_of_time_": (states,),
        "history_": (model.n_iter_ + 1 if model.n_samples_fit_ else 0,),
    }


def _check_values(model: BaseEstimator, spec: Spec) -> None:
    for name in (*_arrays(spec), "log_likelihood_"):
        if name == "log_likelihood_" and not model.n_samples_fit_:
            continue
        if not np.isfinite(getattr(model, name)).all():
            raise ValueError(f"{name} is not finite")
    for name in ("initial_probs_", "transition_matrix_", "share_of_time_"):
        check_probs(name, getattr(model, name))
    check_masked("transition_matrix_", model.transition_matrix_, model.transition_mask_)
    if model.initial_ != "free":
        implied = implied_probs(
            model.initial_, model.transition_matrix_, "transition_matrix_", "set initial='free'"
        )
        check_initial(model.initial_probs_, implied, model.initial_)
    spec.check_values({name: getattr(model, f"{name}_") for name in spec.attributes})
