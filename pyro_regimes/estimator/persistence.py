"""Saves and loads fitted models as JSON, which cannot contain code.

Numbers are written by ``repr``, the shortest text that reads back to the same float64. So a loaded
model equals the saved one to the last bit.
"""

from __future__ import annotations

import json
import numbers
import os
import reprlib
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from pyro_regimes.estimator.beginning import implied_probs
from pyro_regimes.estimator.given import Given, for_series, read_given
from pyro_regimes.estimator.mask import check_masked, read_mask
from pyro_regimes.estimator.parameters import CHAIN_ATTRIBUTES, Array
from pyro_regimes.estimator.spec import Spec, has_components
from pyro_regimes.estimator.start_results import StartResults
from pyro_regimes.estimator.validation import check_parameters
from pyro_regimes.files import file_name, replacing

FORMAT = "pyro_regimes.RegimeModel"
VERSION = 2

_SCALARS = {
    "log_likelihood_": float,
    "n_iter_": int,
    "converged_": bool,
    "periods_per_year_": float,
}
_ROUNDING = 1e-4  # error of the sum of probabilities in float32

_MOST_LETTERS = 500  # of an error in a file

_Shape = tuple[int, ...]


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
        name: _plain(value)
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
    fitted["training_start_"] = None if start is None else _with_none(start)
    fitted["n_missing_"] = model.n_missing_.tolist()
    fitted["n_missing_rows_"] = model.n_missing_rows_
    fitted["n_updates_"] = model.n_updates_
    fitted["starts_"] = None if model.starts_ is None else model.starts_.to_plain()
    names = getattr(model, "feature_names_in_", None)
    fitted["feature_names_in_"] = None if names is None else list(names)
    content = {"format": FORMAT, "version": VERSION, "parameters": parameters, "fitted": fitted}
    if isinstance(model.emission_, dict):  # whose keys may be numbers
        parameters["emission"] = [
            [key if isinstance(key, str) else int(key), family]
            for key, family in model.emission_.items()
        ]
    text = json.dumps(content, indent=1, allow_nan=False)

    with replacing(file_name("path", path)) as (temporary,):
        temporary.write_text(text + "\n", encoding="utf-8")


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


def _plain(value: Any) -> Any:
    """A constructor's parameter for JSON: dtypes and devices by name, a generator as None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, np.random.RandomState):
        return None
    return str(value).removeprefix("torch.")


def read_model(path: str | os.PathLike[str], kind: type[BaseEstimator]) -> BaseEstimator:
    """Read a model of class ``kind`` from a file that :func:`write_model` wrote.

    :raises ValueError: if the file is not JSON, has another format or version, is incomplete, or
        holds invalid values.
    :raises OSError: if the file cannot be read.
    """
    content = _read(path)
    try:
        parameters = content["parameters"]
        emission = parameters.get("emission", "gaussian")
        if isinstance(emission, list):
            parameters["emission"] = {key: family for key, family in emission}
        model = kind(**parameters | {"fixed": tuple(parameters.get("fixed", ()))})
        check_parameters(model)
        fitted = content["fitted"]
        shapes = {name: _shape(fitted[f"{name}_"]) for name in model._spec().attributes}
        spec, model.n_features_in_ = model._spec().with_shapes(shapes)
        own_names = fitted["feature_names_in_"]
        spec = spec.for_columns(
            None if own_names is None else np.array(own_names, object), model.n_features_in_
        )
        if fitted["n_samples_fit_"] == 0 and fitted["log_likelihood_"] is None:
            fitted["log_likelihood_"] = float("nan")
        for name, scalar in _SCALARS.items():
            if type(fitted[name]) is not scalar:
                came = reprlib.repr(fitted[name])
                raise ValueError(f"{name} is not of type {scalar.__name__}: {came}")
            setattr(model, name, fitted[name])
        model.n_samples_fit_ = _count("n_samples_fit_", fitted["n_samples_fit_"])
        if model.n_iter_ < 0:
            raise ValueError(f"n_iter_ is negative: {model.n_iter_}")
        model.covariance_type_, model.initial_ = model.covariance_type, model.initial
        model.transition_mask_ = read_mask(model.transition_mask, model.n_regimes)
        model.emission_ = model.emission
        for name, shape in _shapes(model, spec).items():
            setattr(model, name, _array(name, fitted[name], shape))
        model.training_start_ = _training_start(fitted["training_start_"], model.n_features_in_)
        model.n_missing_, model.n_missing_rows_ = _missing(
            fitted.get("n_missing_"), fitted.get("n_missing_rows_"), model.n_features_in_
        )
        model.n_updates_ = _number_of_updates(fitted.get("n_updates_", 0))
        starts = fitted.get("starts_")  # which older files do not have
        model.starts_ = None if starts is None else StartResults.from_plain(starts)
        _check_values(model, spec)
        model.fixed_ = _fixed(fitted["fixed_"], spec)
        names = _names("regime_names_", fitted["regime_names_"], model.n_regimes)
        model.regime_names_ = names
        if fitted["feature_names_in_"] is not None:
            names = _names("feature_names_in_", fitted["feature_names_in_"], model.n_features_in_)
            model.feature_names_in_ = np.array(names, dtype=object)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        came = f"{type(error).__name__}({str(error)[:_MOST_LETTERS]!r})"
        raise ValueError(
            f"expected {path} to hold a complete RegimeModel, got {came}; save the model again"
        ) from error
    return model


def _names(name: str, value: Any, number: int) -> list[str]:
    whole = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not whole or len(value) != number:
        raise ValueError(f"{name} is not a list of {number} names: {reprlib.repr(value)}")
    return list(value)


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
    start = _array("training_start_", value, (max(rows, 1), num_series))  # None becomes NaN
    if np.isinf(start).any():
        raise ValueError("training_start_ is not finite")
    return start


def _with_none(start: Array) -> list[list[float | None]]:
    """Missing entries are null in the file, as NaN is no JSON."""
    return [[None if np.isnan(each) else float(each) for each in row] for row in start]


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


def _num_series(fitted: dict[str, Any], spec: Spec) -> int:
    """The last dim of the first array of the emission; means or rates are ``(K, D)``."""
    name = f"{spec.attributes[0]}_"
    shape = _shape(fitted[name])
    if len(shape) != 2 or not shape[-1]:
        raise ValueError(f"{name} has shape {shape}, not (K, D)")
    return shape[-1]


def _shapes(model: BaseEstimator, spec: Spec) -> dict[str, _Shape]:
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


def _shape(value: Any) -> _Shape:
    """The lengths of nested lists, from the first of each."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _array(name: str, value: Any, shape: _Shape) -> Array:
    """An array of this shape; the lengths of the lists are checked before it is made."""
    found = _shape(value)
    if found != shape:
        raise ValueError(f"{name} has shape {found}, not {shape}")
    array = np.array(value, dtype=np.float64)  # refuses lists of different lengths
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, not {shape}")
    return array


def _check_values(model: BaseEstimator, spec: Spec) -> None:
    for name in (*_arrays(spec), "log_likelihood_"):
        if name == "log_likelihood_" and not model.n_samples_fit_:
            continue
        if not np.isfinite(getattr(model, name)).all():
            raise ValueError(f"{name} is not finite")
    for name in ("initial_probs_", "transition_matrix_", "share_of_time_"):
        probs = getattr(model, name)
        if (probs < 0).any() or (np.abs(probs.sum(-1) - 1) > _ROUNDING).any():
            raise ValueError(f"{name} does not hold probabilities: {reprlib.repr(probs.tolist())}")
    check_masked("transition_matrix_", model.transition_matrix_, model.transition_mask_)
    if model.initial_ != "free":
        implied = implied_probs(
            model.initial_, model.transition_matrix_, "transition_matrix_", "set initial='free'"
        )
        if (np.abs(model.initial_probs_ - implied) > _ROUNDING).any():
            raise ValueError(
                f"expected initial_probs_ to be {implied.tolist()}, the {model.initial_} "
                f"distribution, got {model.initial_probs_.tolist()}"
            )
    spec.check_values({name: getattr(model, f"{name}_") for name in spec.attributes})


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = file_name("path", path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8
        raise ValueError(
            f"expected {path} to be a saved RegimeModel, got a file that is no JSON ({error}); "
            "name one that RegimeModel.save or pyro-regimes fit wrote, such as model.json"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        came = repr(content.get("format")) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected {path} to have the format {FORMAT!r}, got {came}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"expected {path} to have version {VERSION} of {FORMAT}, got {content.get('version')!r}"
        )
    return content
