"""The settings of a RegimeRegression: their checks, and what is made of them."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator

from pyro_regimes.estimator import validation
from pyro_regimes.estimator.regression.design import ArrayDesign, Design
from pyro_regimes.estimator.regression.form import Form
from pyro_regimes.estimator.regression.formulas import FormulaDesign
from pyro_regimes.estimator.regression.responses import response_of
from pyro_regimes.estimator.regression.rows import Rows, check_rank, columns_of_terms
from pyro_regimes.infer.uncertainty import METHODS
from pyro_regimes.messages import shown


def check(model: BaseEstimator) -> None:
    """:raises ValueError: if a parameter of the constructor is not valid."""
    validation.integer("n_regimes", model.n_regimes, 1)
    validation.integer("n_init", model.n_init, 1)
    validation.integer("max_iter", model.max_iter, 0)
    if model.tol is not None:
        validation.number("tol", model.tol, positive=True)
    for name in ("switching_variance", "fit_intercept", "verbose"):
        value = getattr(model, name)
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"expected {name} to be True or False, got {value!r}")
    response = response_of(model.family, model.link)
    if model.scale_formula is not None and response.name != "gaussian":
        raise ValueError(
            f"expected scale_formula=None with family={response.name!r}, got "
            f"{shown(model.scale_formula)}; only a gaussian response has such a scale"
        )
    validation.one_of("transition_row", model.transition_row, ("left", "entered"))
    if model.initial is not None:
        validation.one_of("initial", model.initial, ("stationary", "free", "uniform"))
    if model.errors is not None:
        validation.one_of("errors", model.errors, METHODS)
    if model.acceleration is not None:
        validation.one_of("acceleration", model.acceleration, ("squarem",))


def design(model: BaseEstimator) -> Design:
    """:raises ValueError: if a formula is not valid."""
    width = 2 if response_of(model.family, model.link).has_trials else 1
    if model.formula is not None:
        return FormulaDesign(
            model.formula, model.transition_formula, model.scale_formula, width=width
        )
    for name, remedy in (("transition_formula", "give Z to fit, or "), ("scale_formula", "give ")):
        if getattr(model, name) is not None:
            raise ValueError(
                f"expected {name}=None where formula is None, got {getattr(model, name)!r}; "
                f"{remedy}a formula"
            )
    return ArrayDesign(bool(model.fit_intercept), width)


def form(model: BaseEstimator, design: Design, rows: Rows) -> Form:
    """:raises ValueError: if the model cannot be fitted to these rows."""
    assert rows.y is not None
    response = response_of(model.family, model.link)
    response.check(rows.y, rows.trials)
    moves, initial = design.transition_columns, model.initial
    if initial is None:
        initial = "stationary" if moves is None else "free"
    if initial == "stationary" and moves is not None:
        raise ValueError(
            "expected initial='free' or 'uniform' where transitions depend on covariates, got "
            "'stationary', which such a chain has not; leave initial out"
        )
    known, width = rows.is_known, rows.X.shape[1]
    scales = 0 if response.scale is None else 1 if rows.W is None else rows.W.shape[1]
    if known.sum() <= width + scales:
        beside = f" and {response.scale}" if scales else ""
        raise ValueError(
            f"expected more rows with a response than the {width} columns{beside}, got "
            f"{known.sum()}"
        )
    check_rank(rows.X[known], design.columns, "X" if model.formula is None else "formula")
    if rows.W is not None and design.scale_columns is not None:
        check_rank(rows.W[known], design.scale_columns, "scale_formula")
    if rows.Z is not None and moves is not None:
        driving = rows.Z[1:] if model.transition_row == "entered" else rows.Z[:-1]
        name = "Z" if model.transition_formula is None else "transition_formula"
        check_rank(driving, moves, name)
    flags = columns_of_terms(design.columns, model.switching, "switching")
    return Form.of_rows(
        response, rows, int(model.n_regimes), flags, bool(model.switching_variance), initial,
        model.transition_row == "entered",
    )  # fmt: skip
