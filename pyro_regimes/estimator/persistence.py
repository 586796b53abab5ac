"""Saves and loads fitted models as JSON, which cannot contain code.

Numbers are written by ``repr``, the shortest text that reads back to the same float64. So a loaded
model equals the saved one to the last bit.
"""

from __future__ import annotations

import json
import numbers
import os
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.validation import check_parameters
from pyro_regimes.files import file_name, replacing

FORMAT = "pyro_regimes.RegimeModel"
VERSION = 2

_SCALARS = {"log_likelihood_": float, "n_iter_": int, "converged_": bool, "n_samples_fit_": int}
_ROUNDING = 1e-4  # error of the sum of probabilities in float32


def _arrays(spec: Spec) -> tuple[str, ...]:
    """The attributes that are arrays, in the order of the file."""
    emission = (f"{name}_" for name in spec.attributes)
    return ("initial_probs_", "transition_matrix_", *emission, "share_of_time_", "history_")


def write_model(path: str | os.PathLike[str], model: BaseEstimator, spec: Spec) -> None:
    """Write a fitted model atomically: a file already at ``path`` is replaced in one operation.

    :raises OSError: if the file cannot be written.
    :raises ValueError: if no file can have this name.
    """
    parameters = {name: _plain(value) for name, value in model.get_params(deep=False).items()}
    # Parameters that were set after the fit belong to the next fit.
    n_regimes = len(model.initial_probs_)
    parameters |= {"n_regimes": n_regimes, "covariance_type": model.covariance_type_}
    fitted = {name: getattr(model, name).tolist() for name in _arrays(spec)}
    fitted |= {name: kind(getattr(model, name)) for name, kind in _SCALARS.items()}
    fitted["regime_names_"] = list(model.regime_names_)
    start = model.training_start_
    fitted["training_start_"] = None if start is None else start.tolist()
    names = getattr(model, "feature_names_in_", None)
    fitted["feature_names_in_"] = None if names is None else list(names)
    content = {"format": FORMAT, "version": VERSION, "parameters": parameters, "fitted": fitted}
    text = json.dumps(content, indent=1, allow_nan=False)

    with replacing(file_name("path", path)) as (temporary,):
        temporary.write_text(text + "\n", encoding="utf-8")


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
    if isinstance(value, BaseEstimator):  # in order_by
        return "volatility"
    return str(value).removeprefix("torch.")


def read_model(path: str | os.PathLike[str], kind: type[BaseEstimator]) -> BaseEstimator:
    """Read a model of class ``kind`` from a file that :func:`write_model` wrote.

    :raises ValueError: if the file is not JSON, has another format or version, is incomplete, or
        holds invalid values.
    :raises OSError: if the file cannot be read.
    """
    content = _read(path)
    try:
        model = kind(**content["parameters"])
        check_parameters(model)
        spec, fitted = model._spec(model.covariance_type), content["fitted"]
        for name in _arrays(spec):
            setattr(model, name, np.array(fitted[name], dtype=np.float64))
        for name, scalar in _SCALARS.items():
            if type(fitted[name]) is not scalar:
                raise ValueError(f"{name} is not of type {scalar.__name__}: {fitted[name]!r}")
            setattr(model, name, fitted[name])
        model.covariance_type_ = model.covariance_type
        model.n_features_in_ = _num_series(model, spec)
        model.training_start_ = _training_start(fitted["training_start_"], model.n_features_in_)
        _check_shapes(model, spec)
        _check_values(model, spec)
        names = _names("regime_names_", fitted["regime_names_"], model.n_regimes)
        model.regime_names_ = names
        if fitted["feature_names_in_"] is not None:
            names = _names("feature_names_in_", fitted["feature_names_in_"], model.n_features_in_)
            model.feature_names_in_ = np.array(names, dtype=object)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(
            f"expected {path} to hold a complete RegimeModel, got {error!r}; save the model again"
        ) from error
    return model


def _names(name: str, value: Any, number: int) -> list[str]:
    whole = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not whole or len(value) != number:
        raise ValueError(f"{name} is not a list of {number} names: {value!r}")
    return list(value)


def _training_start(value: Any, num_series: int) -> Array | None:
    if value is None:
        return None
    start = np.array(value, dtype=np.float64)
    if start.ndim != 2 or not len(start) or start.shape[1] != num_series:
        raise ValueError(f"training_start_ has shape {start.shape}, not (rows, {num_series})")
    if not np.isfinite(start).all():
        raise ValueError("training_start_ is not finite")
    return start


def _num_series(model: BaseEstimator, spec: Spec) -> int:
    """The last dim of the first array of the emission; means or rates are ``(K, D)``."""
    name = f"{spec.attributes[0]}_"
    first = getattr(model, name)
    if first.ndim != 2 or not first.shape[-1]:
        raise ValueError(f"{name} has shape {first.shape}, not (K, D)")
    return int(first.shape[-1])


def _check_shapes(model: BaseEstimator, spec: Spec) -> None:
    if model.n_samples_fit_ < 1:
        raise ValueError(f"n_samples_fit_ is not positive: {model.n_samples_fit_}")
    if model.n_iter_ < 0:
        raise ValueError(f"n_iter_ is negative: {model.n_iter_}")
    states = model.n_regimes
    emission = spec.shapes(states, model.n_features_in_)
    shapes = {
        "initial_probs_": (states,),
        "transition_matrix_": (states, states),
        **{f"{name}_": shape for name, shape in emission.items()},
        "share_of_time_": (states,),
        "history_": (model.n_iter_ + 1,),
    }
    for name, shape in shapes.items():
        if getattr(model, name).shape != shape:
            raise ValueError(f"{name} has shape {getattr(model, name).shape}, not {shape}")


def _check_values(model: BaseEstimator, spec: Spec) -> None:
    for name in (*_arrays(spec), "log_likelihood_"):
        if not np.isfinite(getattr(model, name)).all():
            raise ValueError(f"{name} is not finite")
    for name in ("initial_probs_", "transition_matrix_", "share_of_time_"):
        probs = getattr(model, name)
        if (probs < 0).any() or (np.abs(probs.sum(-1) - 1) > _ROUNDING).any():
            raise ValueError(f"{name} does not hold probabilities: {probs.tolist()}")
    spec.check_values({name: getattr(model, f"{name}_") for name in spec.attributes})


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = file_name("path", path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8
        raise ValueError(f"expected {path} to be a saved RegimeModel, got: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        came = repr(content.get("format")) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected {path} to have the format {FORMAT!r}, got {came}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"expected {path} to have version {VERSION} of {FORMAT}, got {content.get('version')!r}"
        )
    return content
