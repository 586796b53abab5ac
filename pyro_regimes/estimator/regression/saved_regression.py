"""Saves and loads fitted regressions as JSON."""

from __future__ import annotations

import os
import reprlib
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from pyro_regimes.estimator.beginning import NUM_ROWS, implied_probs
from pyro_regimes.estimator.json_files import (
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
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression import settings
from pyro_regimes.estimator.regression.design import Design
from pyro_regimes.estimator.regression.errors import RegressionErrors
from pyro_regimes.estimator.regression.form import Form, RegressionParameters
from pyro_regimes.estimator.regression.responses import Response, response_of
from pyro_regimes.estimator.start_results import StartResults

NAME = "RegimeRegression"
VERSION = 1

_WRITERS = "RegimeRegression.save or pyro-regimes regress"

_SCALARS = {
    "log_likelihood_": float,
    "n_iter_": int,
    "converged_": bool,
    "n_samples_fit_": int,
    "n_missing_": int,
}

_ARRAYS = ("initial_probs_", "coef_", "transition_matrix_", "share_of_time_", "history_")

#: Arrays that are None in some models.
_OPTIONAL = ("transition_coefficients_", "scale_coefficients_")


def write_regression(path: str | os.PathLike[str], model: BaseEstimator) -> None:
    """Write a fitted model atomically.

    :raises OSError: if the file cannot be written.
    :raises ValueError: if no file can have this name, a parameter of the constructor is not valid,
        or a formula remembers what is no number or text.
    """
    form, design, errors = model._form, model._design, model._errors
    parameters = {name: _plain(value) for name, value in model.get_params(deep=False).items()}
    # Parameters that were set after the fit belong to the next fit.
    parameters |= {
        "formula": design.formula,
        "transition_formula": design.transition_formula,
        "scale_formula": design.scale_formula,
        "family": form.response.name,
        "link": _link(model),
        "transition_row": "entered" if form.enters else "left",
        "n_regimes": form.num_regimes,
    }
    settings.check(type(model)(**parameters))  # else the file could not be loaded
    fitted = {name: getattr(model, name).tolist() for name in _ARRAYS}
    fitted |= {name: kind(getattr(model, name)) for name, kind in _SCALARS.items()}
    for name in _OPTIONAL:
        value = getattr(model, name)
        fitted[name] = None if value is None else value.tolist()
    scale, start = form.response.scale, model._training_start
    fitted |= {
        "scale_": None if scale is None else getattr(model, f"{scale}_").tolist(),
        "training_start_": None if start is None else with_none(start),
        "regime_names_": list(model.regime_names_),
        "starts_": model.starts_.to_plain(),
        "errors": None if errors is None else _plain_errors(errors),
        "design": design.state(),
        "form": {n: _plain(each) for n, each in form._asdict().items() if n != "response"},
    }
    content = {
        "format": format_of(NAME),
        "version": VERSION,
        "parameters": parameters,
        "fitted": fitted,
    }
    write_json(path, content)


def read_regression(
    path: str | os.PathLike[str], kind: type[BaseEstimator], trust_formula: bool
) -> BaseEstimator:
    """Read a model of class ``kind`` from a file that :func:`write_regression` wrote.

    :param trust_formula: whether a formula may have any code.
    :raises ValueError: if the file is not JSON, has another format or version, is incomplete,
        holds invalid values, or a formula that is not trusted.
    :raises OSError: if the file cannot be read.
    """
    content = read_json(path, NAME, VERSION, _WRITERS)
    with complete(path, NAME):
        model = kind(**content["parameters"])
        settings.check(model)
        fitted = content["fitted"]
        model._design = design = _design(model, fitted["design"], trust_formula)
        response = response_of(model.family, model.link)
        model._form = form = _form(fitted["form"], design, response)
        for name, scalar in _SCALARS.items():
            setattr(model, name, scalar_of(name, fitted[name], scalar))
        number, width, num_steps = form.num_regimes, len(design.columns.names), model.n_iter_
        shapes = {
            "initial_probs_": (number,),
            "coef_": (number, width),
            "transition_matrix_": (number, number),
            "share_of_time_": (number,),
            "history_": (num_steps + 1,),
        }
        for name, shape in shapes.items():
            setattr(model, name, array_of(name, fitted[name], shape))
        if response.scale is not None:
            setattr(model, f"{response.scale}_", array_of("scale_", fitted["scale_"], (number,)))
        for name, columns, shape in zip(
            _OPTIONAL, (design.transition_columns, design.scale_columns), [(number,) * 2, (number,)]
        ):
            if columns is None:
                setattr(model, name, None)
            else:
                shape = (*shape, len(columns.names))
                setattr(model, name, array_of(name, fitted[name], shape))
        start = fitted["training_start_"]
        if start is not None:
            start = array_of("training_start_", start, (min(NUM_ROWS, len(start)), 1))
        model._training_start = start
        model.coef_names_ = list(design.columns.names)
        model.regime_names_ = names_of("regime_names_", fitted["regime_names_"], number)
        model.starts_ = StartResults.from_plain(fitted["starts_"])
        model._errors = errors = _errors(fitted["errors"], model)
        model.covariance_ = None if errors is None else errors.covariance
        _check_values(model)
    return model


def _link(model: BaseEstimator) -> str | None:
    """That of the fit; None where it is the usual one, and the model says None."""
    used = model._form.response
    is_usual = model.link is None and used.link == used.links[0]
    return None if is_usual else str(used.link)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else plain(value)


def _plain_errors(errors: RegressionErrors) -> dict[str, Any]:
    values = {
        name: None if value is None else with_none(value)
        for name, value in errors.values._asdict().items()
    }
    return {
        "values": values,
        "covariance": with_none(errors.covariance),
        "notes": list(errors.notes),
        "method": errors.method,
    }


def _errors(value: Any, model: BaseEstimator) -> RegressionErrors | None:
    if value is None:
        return None
    every = model._parameters()
    of: dict[str, Any] = {
        name: None if each is None else array_of(name, value["values"][name], each.shape)
        for name, each in every._asdict().items()
    }
    size = model.coef_.size
    covariance = array_of("covariance", value["covariance"], (size, size))
    notes = names_of("notes", value["notes"], len(value["notes"]))
    return RegressionErrors(
        RegressionParameters(**of), covariance, notes, scalar_of("method", value["method"], str)
    )


def _design(model: BaseEstimator, state: Any, trust_formula: bool) -> Design:
    design = settings.design(model)
    design.restore(state, trust_formula)
    return design


def _form(value: dict[str, Any], design: Design, response: Response) -> Form:
    flags = value["switching"]
    if not isinstance(flags, list) or not all(type(flag) is bool for flag in flags):
        raise ValueError(f"switching is no list of flags: {reprlib.repr(flags)}")
    switching = np.array(flags, dtype=np.bool_)
    if len(switching) != len(design.columns.names):
        raise ValueError(f"switching has {len(switching)} flags, not one for each column")
    own, moves, spread = int(switching.sum()), design.transition_columns, design.scale_columns
    return Form(
        response=response,
        num_regimes=scalar_of("num_regimes", value["num_regimes"], int),
        switching=switching,
        switching_variance=scalar_of("switching_variance", value["switching_variance"], bool),
        initial=scalar_of("initial", value["initial"], str),
        enters=scalar_of("enters", value["enters"], bool),
        unit=scalar_of("unit", value["unit"], float),
        own=_factor("own", value["own"], own),
        common=_factor("common", value["common"], len(switching) - own),
        moves=None if moves is None else _factor("moves", value["moves"], len(moves.names)),
        spread=None if spread is None else _factor("spread", value["spread"], len(spread.names)),
    )


def _factor(name: str, value: Any, size: int) -> Array:
    """The triangle of a factorisation, which has an inverse."""
    if not size and shape_of(value) == (0,):
        return np.zeros((0, 0))
    factor = array_of(name, value, (size, size))
    if not (np.isfinite(factor).all() and np.diagonal(factor).all()):
        raise ValueError(f"{name} has no inverse: {reprlib.repr(value)}")
    return factor


def _check_values(model: BaseEstimator) -> None:
    for name in (*_ARRAYS, "log_likelihood_"):
        if not np.isfinite(getattr(model, name)).all():
            raise ValueError(f"{name} is not finite")
    for name in ("initial_probs_", "transition_matrix_", "share_of_time_"):
        check_probs(name, getattr(model, name))
    for name in _OPTIONAL:
        value = getattr(model, name)
        if value is not None and not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite")
    scale = model._form.response.scale
    if scale is not None and not (getattr(model, f"{scale}_") > 0).all():
        raise ValueError(f"{scale}_ is not positive")
    if not 0 < model._form.unit < np.inf:
        raise ValueError("unit is not positive")
    if model._form.initial == "stationary":
        implied = implied_probs(
            "stationary", model.transition_matrix_, "transition_matrix_", "set initial='free'"
        )
        check_initial(model.initial_probs_, implied, "stationary")
