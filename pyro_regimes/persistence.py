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

from pyro_regimes.checks import check_parameters

FORMAT = "pyro_regimes.RegimeModel"
VERSION = 1

_ARRAYS = ("initial_probs_", "transition_matrix_", "means_", "covariances_", "share_of_time_")
_SCALARS = {"log_likelihood_": float, "n_iter_": int, "converged_": bool}


def write_model(path: str | os.PathLike[str], model: BaseEstimator) -> None:
    """Write all of a fitted model or nothing: a file already at ``path`` is replaced in one move.

    :raises OSError: if the file cannot be written.
    """
    parameters = {name: _plain(value) for name, value in model.get_params(deep=False).items()}
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

    :raises ValueError: if the file is not JSON, of another format or version, or incomplete.
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
            setattr(model, name, scalar(fitted[name]))
        model.regime_names_ = [str(name) for name in fitted["regime_names_"]]
        model.n_features_in_ = model.means_.shape[-1]
        if fitted["feature_names_in_"] is not None:
            model.feature_names_in_ = np.array(fitted["feature_names_in_"], dtype=object)
        _check_shapes(model)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"expected {path} to hold a whole RegimeModel, got {error!r}") from error
    return model


def _check_shapes(model: BaseEstimator) -> None:
    if model.means_.ndim != 2:
        raise ValueError(f"means_ of shape {model.means_.shape}")
    states, series = model.means_.shape
    covariances = {
        "full": (states, series, series),
        "diag": (states, series),
        "spherical": (states,),
        "tied": (series, series),
    }[model.covariance_type]
    shapes = ((states,), (states, states), (states, series), covariances, (states,))
    for name, shape in zip(_ARRAYS, shapes, strict=True):
        if getattr(model, name).shape != shape:
            raise ValueError(f"{name} of shape {getattr(model, name).shape}, not {shape}")
        if not np.isfinite(getattr(model, name)).all():
            raise ValueError(f"{name} that is not finite")
    if len(model.regime_names_) != states or len(getattr(model, "feature_names_in_", "")) not in {
        0,
        series,
    }:
        raise ValueError("names that do not fit means_")


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
