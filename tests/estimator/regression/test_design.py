"""What RegimeRegression refuses, and how it says so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_regimes import RegimeRegression
from tests.estimator.regression.cases import T, table

DATA = table()
DATED = DATA.set_index(pd.date_range("2020-01-01", periods=T))


def missing(data: pd.DataFrame, **places) -> pd.DataFrame:
    data = data.copy()
    for name, rows in places.items():
        data.loc[data.index[rows], name] = None
    return data


@pytest.mark.parametrize(
    "settings, data, said",
    [
        ({"formula": "y ~ x"}, missing(DATA, x=[3, 7]), r"'x' in 2 of 240 rows \(3, 7\)"),
        ({"formula": "y ~ x"}, missing(DATED, x=[1]), r"'x' in 1 of 240 rows \(2020-01-02\)"),
        ({"formula": "y ~ x + group"}, missing(DATA, group=[5]), r"'group' in 1 of 240 rows"),
        ({"formula": "y ~ x", "transition_formula": "~ z"}, missing(DATA, z=[0]), "'z' in 1 of"),
        ({"formula": "y ~ lag(log(x))"}, DATA, r"NaN or infinity in 'lag\(log\(x\)\)' in "),
        ({"formula": "y ~ x", "transition_formula": "~ lag(z)"}, DATA, r"in 'lag\(z\)' in 1 of"),
        ({"formula": "y ~ log(x)"}, DATA, r"NaN or infinity in 'log\(x\)' in "),
        ({"formula": "y ~ x + I(2 * x)"}, DATA, r"linearly independent, got 'I\(2 \* x\)' as a"),
        ({"formula": "y ~ w"}, DATA, "none named 'w' among"),
        ({"formula": "~ x"}, DATA, "formula with a response"),
        ({"formula": "y ~ x +"}, DATA, "to be a formula such as 'y ~ 1 . x', got 'y ~ x .'"),
        ({"formula": "y ~ x | z"}, DATA, "several parts"),
        ({"formula": "group ~ x"}, DATA, "one number as the response, got the columns"),
        ({"formula": "y ~ x", "transition_formula": "y ~ z"}, DATA, "without a response"),
        ({"formula": "y ~ x", "transition_formula": "~ z", "initial": "stationary"}, DATA,
         "'free' or 'uniform' where transitions depend on covariates"),
        ({"formula": "y ~ x", "switching": ["w"]}, DATA, r"terms of the formula, .*got \['w'\]"),
        ({"formula": "y ~ x", "switching": "x"}, DATA, "a list of terms, got 'x'"),
        ({"formula": "y ~ x", "transition_row": "next"}, DATA, "'left', 'entered', got 'next'"),
        ({"formula": "y ~ x"}, DATA.to_numpy(), "a DataFrame .* got ndarray"),
        ({"formula": "y ~ x"}, DATA.iloc[:3], "more rows with a response"),
        ({"formula": "y ~ x"}, DATED.iloc[::-1], "in order of time"),
        ({"formula": "y ~ x"}, DATA.assign(y=np.inf), "finite response"),
        ({"formula": "y ~ x", "n_regimes": 0}, DATA, "n_regimes to be at least 1"),
        ({"transition_formula": "~ z"}, DATA, "transition_formula=None where formula is None"),
        ({}, DATA[["x"]], "expected y, the response"),
    ],
)  # fmt: skip
def test_refused(settings, data, said):
    with pytest.raises(ValueError, match=said):
        RegimeRegression(n_init=1, **settings).fit(data)


def test_arguments_of_the_other_form_are_refused():
    with pytest.raises(ValueError, match="y=None where the model has a formula"):
        RegimeRegression("y ~ x").fit(DATA, DATA.y)
    with pytest.raises(ValueError, match="Z=None where the model has a formula"):
        RegimeRegression("y ~ x").fit(DATA, Z=DATA.z)
    ones = np.column_stack([DATA.x, np.ones(T)])
    with pytest.raises(ValueError, match="independent, got 'x2'"):
        RegimeRegression().fit(ones, DATA.y)
    with pytest.raises(ValueError, match="y with 240 rows, got 3"):
        RegimeRegression().fit(DATA[["x"]], DATA.y[:3])


def test_other_data_have_the_columns_of_the_fit():
    model = RegimeRegression(n_init=1, random_state=0).fit(DATA[["x"]], DATA.y, Z=DATA[["z"]])
    with pytest.raises(ValueError, match="Z, .* as in the fit; give it"):
        model.predict(DATA[["x"]], DATA.y)
    with pytest.raises(ValueError, match=r"columns \['x'\], got \['z'\]"):
        model.predict(DATA[["z"]], DATA.y, Z=DATA[["z"]])
    with pytest.raises(ValueError, match="X with the 1 columns of the fit, got 2"):
        model.predict(DATA[["x", "z"]], DATA.y, Z=DATA[["z"]])
    with pytest.raises(ValueError, match="'z' in 1 of 240 rows"):
        model.predict(DATA[["x"]], DATA.y, Z=missing(DATA, z=[4])[["z"]])


def test_a_column_of_objects_that_are_numbers_is_one_of_numbers():
    data = DATA.assign(x=DATA.x.astype(object))
    model = RegimeRegression("y ~ x", n_init=1, random_state=0, errors=None).fit(data)
    assert model.coef_names_ == ["Intercept", "x"]
