"""Fitted models as JSON text: nothing in such a file can run.

Numbers are written by ``repr``, the shortest text that reads back to the same float64, so that a
loaded model is the saved one to the last bit.
"""

from __future__ import annotations

import json
import numbers
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from pyro_regimes.estimator.spec import full_covariances
from pyro_regimes.estimator.validation import check_parameters

FORMAT = "pyro_regimes.RegimeModel"
VERSION = 1

_ARRAYS = ("initial_probs_", "transition_matrix_", "means_", "covariances_", "share_of_time_")
_SCALARS = {"log_likelihood_": float, "n_iter_": int, "converged_": bool}
_ROUNDING = 1e-4  # of probabilities that float32 sums to one


def write_model(path: str | os.PathLike[str], model: BaseEstimator) -> None:
    """Write all of a fitted model or nothing: a file already at ``path`` is replaced in one move.

    :raises OSError: if the file cannot be written.
    """
    parameters = {name: _plain(value) for name, value in model.get_params(deep=False).items()}
    # What was set after the fit is of the next one.
    parameters |= {"n_regimes": len(model.means_), "covariance_type": model.covariance_type_}
    fitted = {name: getattr(model, name).tolist() for name in (*_ARRAYS, "history_")}
    fitted |= {name: kind(getattr(model, name)) for name, kind in _SCALARS.items()}
    fitted["regime_names_"] = list(model.regime_names_)
    names = getattr(model, "feature_names_in_", None)
    fitted["feature_names_in_"] = None if names is None else list(names)
    content = {"format": FORMAT, "version": VERSION, "parameters": parameters, "fitted": fitted}
    text = json.dumps(content, indent=1, allow_nan=False)

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    """A constructor's parameter as JSON has it; dtypes and devices by name, no generator."""
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
    """A model of class ``kind`` from a file that :func:`write_model` wrote.

    :raises ValueError: if the file is not JSON, of another format or version, incomplete, or holds
        what no fit has.
    :raises OSError: if the file cannot be read.
    """
    content = _read(path)
    try:
        model = kind(**content["parameters"])
        check_parameters(model)
        fitted = content["fitted"]
        for name in (*_ARRAYS, "history_"):
            setattr(model, name, np.array(fitted[name], dtype=np.float64))
        for name, scalar in _SCALARS.items():
            if type(fitted[name]) is not scalar:
                raise ValueError(f"{name} that is no {scalar.__name__}: {fitted[name]!r}")
            setattr(model, name, fitted[name])
        model.covariance_type_ = model.covariance_type
        _check_shapes(model)
        _check_values(model)
        states, model.n_features_in_ = model.means_.shape
        model.regime_names_ = _names("regime_names_", fitted["regime_names_"], states)
        if fitted["feature_names_in_"] is not None:
            names = _names("feature_names_in_", fitted["feature_names_in_"], model.n_features_in_)
            model.feature_names_in_ = np.array(names, dtype=object)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"expected {path} to hold a whole RegimeModel, got {error!r}") from error
    return model


def _names(name: str, value: Any, number: int) -> list[str]:
    whole = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not whole or len(value) != number:
        raise ValueError(f"{name} that are not {number} names: {value!r}")
    return list(value)


def _check_shapes(model: BaseEstimator) -> None:
    if model.n_iter_ < 0:
        raise ValueError(f"n_iter_ below zero: {model.n_iter_}")
    states = model.n_regimes
    if model.means_.ndim != 2 or not model.means_.shape[-1]:
        raise ValueError(f"means_ of shape {model.means_.shape}")
    series = model.means_.shape[-1]
    shapes = {
        "initial_probs_": (states,),
        "transition_matrix_": (states, states),
        "means_": (states, series),
        "covariances_": {
            "full": (states, series, series),
            "diag": (states, series),
            "spherical": (states,),
            "tied": (series, series),
        }[model.covariance_type],
        "share_of_time_": (states,),
        "history_": (model.n_iter_ + 1,),
    }
    for name, shape in shapes.items():
        if getattr(model, name).shape != shape:
            raise ValueError(f"{name} of shape {getattr(model, name).shape}, not {shape}")


def _check_values(model: BaseEstimator) -> None:
    for name in (*_ARRAYS, "history_", "log_likelihood_"):
        if not np.isfinite(getattr(model, name)).all():
            raise ValueError(f"{name} that is not finite")
    for name in ("initial_probs_", "transition_matrix_", "share_of_time_"):
        probs = getattr(model, name)
        if (probs < 0).any() or (np.abs(probs.sum(-1) - 1) > _ROUNDING).any():
            raise ValueError(f"{name} that are not probabilities: {probs.tolist()}")
    full = full_covariances(model.covariances_, model.covariance_type, model.means_.shape)
    deviations = np.sqrt(np.maximum(np.diagonal(full, axis1=-2, axis2=-1), 0))
    scale = deviations[:, :, None] * deviations[:, None]
    try:
        np.linalg.cholesky(full)  # which reads one triangle only
        regular = (np.abs(full - full.swapaxes(-1, -2)) <= 1e-6 * scale).all()
    except np.linalg.LinAlgError:
        regular = False
    if not regular:
        raise ValueError("covariances_ that are not symmetric and positive definite")


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8
        raise ValueError(f"expected {path} to be a saved RegimeModel, got: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        came = repr(content.get("format")) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected {path} to have the format {FORMAT!r}, got {came}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"expected {path} to have version {VERSION} of {FORMAT}, got {content.get('version')!r}"
        )
    return content
