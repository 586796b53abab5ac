"""Saved and loaded regressions compute the same numbers to the bit."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pyro_regimes import RegimeRegression
from tests.estimator.regression.cases import table

DATA = table(3)
DATA["day"] = pd.date_range("2020-01-01", periods=len(DATA))
SETTINGS = {"n_init": 2, "random_state": 0, "max_iter": 60, "tol": 1e-6}

FORMULAS = [
    ("y ~ x", None),
    ("y ~ 0 + C(group) + center(z)", "~ bs(x, df=4)"),
    ("np.exp(y / 4) ~ poly(x, 2) + C(group, contr.sum) + scale(z):group", None),
    ("y ~ lag(y) + cr(x, df=3, constraints='center') + np.sqrt(x**2 + 1)", "~ z"),
    ("y ~ {x > 0} + C(flag)", "~ C(group)"),
]


def same(one: RegimeRegression, other: RegimeRegression, data=DATA) -> None:
    part = data.iloc[7:40]  # has other levels, knots and means than the training data
    for each in (data, part):
        np.testing.assert_array_equal(one.predict(each), other.predict(each))
        for kind in ("smoothed", "filtered", "predicted"):
            np.testing.assert_array_equal(
                one.predict_proba(each, kind=kind), other.predict_proba(each, kind=kind)
            )
        assert one.score(each) == other.score(each)
        matrices = one.transition_matrices(each)
        np.testing.assert_array_equal(matrices, other.transition_matrices(each))
    assert str(one.summary(0.9)) == str(other.summary(0.9))
    np.testing.assert_array_equal(one.covariance_, other.covariance_)
    if "lag(" in one.formula:
        return
    ahead = part.drop(columns="y")
    np.testing.assert_array_equal(
        one.forecast(data, ahead).quantile(0.3), other.forecast(data, ahead).quantile(0.3)
    )


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return DATA.assign(flag=DATA.x > DATA.z)


@pytest.mark.filterwarnings("ignore:The coefficients of some transition", "ignore:EM did not")
@pytest.mark.filterwarnings("ignore:A regime", "ignore:The best start")
@pytest.mark.parametrize(("formula", "moves"), FORMULAS)
def test_formulas(tmp_path, data, formula, moves):
    model = RegimeRegression(formula, transition_formula=moves, **SETTINGS).fit(data)
    model.save(tmp_path / "model.json")
    loaded = RegimeRegression.load(tmp_path / "model.json")
    same(model, loaded, data)
    assert {n for n in vars(model) if n.endswith("_")} == {n for n in vars(loaded)
                                                           if n.endswith("_")}  # fmt: skip
    assert loaded.get_params() == model.get_params()
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "model.json").read_text()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["again.json", "model.json"]
    if "group" in formula:
        with pytest.raises(ValueError, match="categories of the training data, got {'d'}"):
            loaded.predict(data.assign(group="d"))


def test_arrays_and_terms_that_do_not_switch(tmp_path):
    settings = {"switching": ["x"], "switching_variance": False, "errors": None}
    model = RegimeRegression(**settings, **SETTINGS, fit_intercept=False)
    X, y, Z = DATA[["x", "z"]], DATA.y.where(DATA.index % 9 > 0), DATA[["z"]].to_numpy()
    model.fit(X, y, Z=Z).save(tmp_path / "model.json")
    loaded = RegimeRegression.load(str(tmp_path / "model.json"))
    np.testing.assert_array_equal(
        loaded.predict_proba(X, y, Z=Z), model.predict_proba(X, y, Z=Z)
    )
    assert loaded.covariance_ is None and str(loaded.summary()) == str(model.summary())
    with pytest.raises(ValueError, match="columns"):
        loaded.predict(X[["z", "x"]], y, Z=Z)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.json"
    RegimeRegression("y ~ C(group) + x", **SETTINGS).fit(DATA).save(path)
    return path


def test_what_is_set_after_the_fit_belongs_to_the_next_one(tmp_path, saved):
    model = RegimeRegression.load(saved)
    model.set_params(formula="y ~ z", n_regimes=5, random_state=np.random.RandomState(1))
    model.save(tmp_path / "model.json")
    loaded = RegimeRegression.load(tmp_path / "model.json")
    assert loaded.formula == "y ~ C(group) + x" and loaded.n_regimes == 2
    assert loaded.random_state is None
    model.set_params(n_init=0)
    with pytest.raises(ValueError, match="n_init"):
        model.save(tmp_path / "model.json")
    assert RegimeRegression.load(tmp_path / "model.json").n_regimes == 2


def changed(path, tmp_path, change) -> str:
    content = json.loads(path.read_text())
    change(content)
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(content))
    return str(file)


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ C(group) + x.map(print)", "y ~ C(group) + I(__import__('os').getcwd())",
        "y ~ C(group) + np.fromfile('f')", "y ~ C(group) + {(lambda v: v)(x)}",
        "y ~ C(group) + {[v for v in x]}", "y ~ C(group) + np.linalg.norm(x)",
        "y ~ C(group) + I(x.__class__)", "y.to_csv('f') ~ C(group) + x",
    ],
)  # fmt: skip
def test_a_formula_with_other_code_is_not_run(saved, tmp_path, formula, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def set_formula(content):
        content["parameters"]["formula"] = formula

    with pytest.raises(ValueError, match="set trust_formula=True"):
        RegimeRegression.load(changed(saved, tmp_path, set_formula))
    assert [each.name for each in tmp_path.iterdir()] == ["changed.json"]


def test_a_formula_with_other_code_that_is_trusted(tmp_path):
    model = RegimeRegression("y ~ x.clip(-1, 1) + {day.dt.month}", **SETTINGS).fit(DATA)
    model.save(tmp_path / "model.json")
    with pytest.raises(ValueError, match="may run any code"):
        RegimeRegression.load(tmp_path / "model.json")
    same(model, RegimeRegression.load(tmp_path / "model.json", trust_formula=True))


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("version",), 9, "to have version 1"),
        (("format",), "pyro_regimes.RegimeModel", "to have the format"),
        (("fitted", "coef_"), [[1.0]], "coef_ has shape"),
        (("fitted", "scale_"), [-1.0, 1.0], "sigma_ is not positive"),
        (("fitted", "initial_probs_"), [0.1, 0.9], "stationary distribution"),
        (("fitted", "transition_matrix_"), [[1, 1], [0, 1]], "does not hold probabilities"),
        (("fitted", "form", "own"), [[0.0] * 4] * 4, "own has no inverse"),
        (("fitted", "form", "switching"), [True], "1 flags"),
        (("fitted", "n_iter_"), 2.0, "n_iter_ is not of type int"),
        (("fitted", "design", "covariates", "columns"), ["x"], "has the columns"),
        (("fitted", "design", "row"), {}, "complete RegimeRegression"),
        (("parameters", "n_init"), 0, "n_init"),
        (("parameters", "formula"), "y ~ z", "complete RegimeRegression"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(saved, tmp_path, place, value, told):
    def change(content):
        *way, last = place
        for name in way:
            content = content[name]
        content[last] = value

    with pytest.raises(ValueError, match=told):
        RegimeRegression.load(changed(saved, tmp_path, change))


def test_only_what_is_fitted_can_be_saved(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        RegimeRegression("y ~ x").save(tmp_path / "model.json")
    with pytest.raises(ValueError, match="a file that is no JSON"):
        (tmp_path / "model.json").write_text("{")
        RegimeRegression.load(tmp_path / "model.json")
