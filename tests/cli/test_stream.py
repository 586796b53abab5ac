"""``pyro-regimes fit --stream``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_regimes import RegimeModel
from tests import seeds
from tests.cli.running import call

FIT = ["--n-regimes", "2", "--n-init", "2", "--tol", "1e-9", "--max-iter", "2000", "--seed", "0"]


def write(folder) -> pd.DataFrame:
    wild = np.arange(1200) // 60 % 2
    draws = seeds.rng(0).normal(size=(1200, 2)) * (1 + 2 * wild)[:, None]
    frame = pd.DataFrame(draws, columns=["x", "y"])
    frame.to_parquet(folder / "big.parquet")
    np.save(folder / "big.npy", draws)
    return frame


@pytest.mark.parametrize("name", ["big.parquet", "big.npy"])
def test_the_fit_is_that_in_memory(name, tmp_path, monkeypatch, capsys):
    frame = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    printed, _ = call(capsys, monkeypatch, "fit", name, "--stream", *FIT, "--out", "out")
    model = RegimeModel.load(tmp_path / "out" / "model.json")
    settings = {"n_init": 2, "tol": 1e-9, "max_iter": 2000, "random_state": 0}
    expected = RegimeModel(2, **settings).fit(frame)
    assert model.log_likelihood_ == pytest.approx(expected.log_likelihood_, rel=1e-10)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.json"]
    if name.endswith("parquet"):
        assert list(model.feature_names_in_) == ["x", "y"]
    assert "annualised volatility" in printed and "Wrote model.json to out" in printed


def test_columns(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = ["big.parquet", "--stream", "--columns", "y", *FIT, "--out", "out"]
    call(capsys, monkeypatch, "fit", *given)
    assert list(RegimeModel.load("out/model.json").feature_names_in_) == ["y"]


def test_a_year_has_rows_by_the_index(tmp_path, monkeypatch, capsys):
    frame = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    frame.index = pd.date_range("1200-01-31", periods=len(frame), freq="ME", unit="s")
    frame.to_parquet("monthly.PARQUET")
    given = ["--stream", *FIT, "--out", "out"]
    told = call(capsys, monkeypatch, "fit", "monthly.PARQUET", *given)[1]
    assert "the rows are monthly: 12 periods a year (--periods-per-year)" in told
    assert RegimeModel.load("out/model.json").periods_per_year_ == 12
    told = call(capsys, monkeypatch, "fit", "big.parquet", *given)[1]
    assert "252 periods a year (--periods-per-year)" in told
    told = call(capsys, monkeypatch, "fit", "big.parquet", *given, "--periods-per-year", "9")[1]
    assert "periods a year" not in told


def test_what_is_refused(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    (tmp_path / "big.csv").write_text("x\n1\n")
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["big.csv"], "a .parquet or .npy file together with --stream, got big.csv"),
        ([], "got no file"),
        (["big.parquet", "--prices"], "expected --prices without --stream"),
        (["big.parquet", "--num-rows", "9"], "expected --num-rows without --stream"),
        (["big.parquet", "--no-dayfirst"], "expected --dayfirst without --stream"),
        (["big.npy", "--columns", "x"], "--columns together with a .parquet file"),
    ):
        given = [*arguments, "--stream", *FIT, "--out", "out"]
        _, told = call(capsys, monkeypatch, "fit", *given, code=2)
        assert message in told
    assert not (tmp_path / "out").exists()
