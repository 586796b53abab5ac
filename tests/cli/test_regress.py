"""``pyro-regimes regress``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from pyro_regimes import RegimeRegression
from tests import seeds
from tests.cli.running import call
from tests.estimator.regression.cases import table

DATA = table().set_index(pandas.date_range("2020-01-01", periods=240, name="date"))
QUICK = ["--n-init", "2"]


def write(path: Path, data: pandas.DataFrame = DATA) -> Path:
    data.to_csv(path)
    return path


def test_regress_says_what_the_estimator_does(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    printed, _ = call(
        capsys, monkeypatch, "regress", write(tmp_path / "data.csv"), *QUICK, "--out", out,
        "--formula", "y ~ x + C(group)", "--switching", "1,x", "--one-variance",
        "--transition-formula", "~ z", "--transition-row", "entered", "--errors", "sandwich",
    )  # fmt: skip
    model = RegimeRegression(
        "y ~ x + C(group)", switching=["1", "x"], switching_variance=False, n_init=2,
        transition_formula="~ z", transition_row="entered", errors="sandwich", random_state=0,
    ).fit(DATA)  # fmt: skip
    assert str(model.summary()) in printed
    estimates = pandas.read_csv(out / "coefficients.csv")
    frame = model.coefficients_.to_frame()
    assert list(zip(estimates["of"], estimates["term"], strict=True)) == list(frame.index)
    np.testing.assert_allclose(estimates.iloc[:, 2:], frame, rtol=1e-9)
    states = pandas.read_csv(out / "states.csv", index_col="date")
    assert list(states.index) == [str(day.date()) for day in DATA.index]
    path = model.predict(DATA)
    assert list(states["viterbi"]) == [model.regime_names_[k] for k in path]
    np.testing.assert_allclose(
        states[["smoothed_Regime 1", "smoothed_Regime 2"]], model.predict_proba(DATA), rtol=1e-9
    )


def test_families_scales_and_several_sequences(tmp_path, capsys, monkeypatch):
    rng = seeds.rng(1760)
    counts = DATA.assign(
        y=rng.poisson(np.where(np.arange(240) // 20 % 2, 6.0, 1.0)),
        who=np.repeat(["b", "a"], 120),
    )
    mixed = counts.iloc[np.arange(240).reshape(2, 120).T.ravel()]  # a row of each in turn
    mixed.index = np.repeat(DATA.index[:120], 2)
    mixed.index.name = "date"
    out = tmp_path / "out"
    printed, _ = call(
        capsys, monkeypatch, "regress", write(tmp_path / "data.csv", mixed), *QUICK, "--out", out,
        "--formula", "y ~ x", "--family", "poisson", "--link", "log", "--by", "who",
    )  # fmt: skip
    model = RegimeRegression("y ~ x", family="poisson", n_init=2, random_state=0)
    model.fit(counts.reset_index(drop=True), lengths=[120, 120])
    assert str(model.summary()) in printed
    states = pandas.read_csv(out / "states.csv")
    assert list(states.columns[:3]) == ["who", "date", "viterbi"]
    assert list(states["who"]) == ["b"] * 120 + ["a"] * 120
    assert list(states["date"]) == 2 * [str(day.date()) for day in DATA.index[:120]]
    probs = model.predict_proba(counts.reset_index(drop=True), lengths=[120, 120])
    np.testing.assert_allclose(states["smoothed_Regime 1"], probs[:, 0], rtol=1e-9)
    loaded = RegimeRegression.load(out / "model.json")
    np.testing.assert_array_equal(loaded.coef_, model.coef_)
    printed, _ = call(
        capsys, monkeypatch, "regress", write(tmp_path / "data.csv"), *QUICK, "--out", out,
        "--formula", "y ~ x", "--scale-formula", "~ z",
    )  # fmt: skip
    assert printed.count("log sigma: z") == 2


@pytest.mark.parametrize(
    ("by", "change", "message"),
    [
        ("whom", {}, "--by to name a column, got 'whom'"),
        ("group", {"group": DATA.group.where(DATA.z > -1.5)}, "column 'group' of every row"),
    ],
)
def test_names_of_sequences_are_checked(tmp_path, capsys, monkeypatch, by, change, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.csv", DATA.assign(**change))
    _, told = call(
        capsys, monkeypatch, "regress", "data.csv", "--formula", "y ~ x", "--by", by, code=2
    )
    assert message in " ".join(told.split())


def test_terms_with_commas(tmp_path, capsys, monkeypatch):
    printed, _ = call(
        capsys, monkeypatch, "regress", write(tmp_path / "data.csv"), *QUICK, "--out",
        tmp_path / "out", "--formula", "y ~ bs(x, df=4)", "--switching", "1, bs(x, df=4)",
    )  # fmt: skip
    assert printed.count("bs(x, df=4)[4]") == 2


@pytest.mark.parametrize(
    "data, formula, message",
    [
        (DATA.assign(x=DATA.x.where(DATA.z > -1)), "y ~ x", "got NaN in 'x' in "),
        (DATA, "y ~ w", "none named 'w' among ['y', 'x', 'z', 'group']"),
        (DATA.astype({"x": object}).replace({"x": {DATA.x.iloc[3]: "high"}}), "y ~ x",
         "line 5, column 'x': expected a number as in most rows, got 'high'"),
    ],
)  # fmt: skip
def test_refused(tmp_path, capsys, monkeypatch, data, formula, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.csv", data)
    _, told = call(
        capsys, monkeypatch, "regress", "data.csv", "--formula", formula, *QUICK, code=2
    )
    assert message in " ".join(told.split())
