"""``pyro-regimes fit``, run as a user runs it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from pyro_regimes import RegimeModel, datasets
from pyro_regimes.cli.options import Emission
from pyro_regimes.estimator.spec import EMISSIONS
from tests import seeds
from tests.cli.running import SMALL, call, fit_in_process, run, write_csv, write_months


@pytest.mark.slow
def test_fit_prints_regimes_and_writes_its_files(tmp_path):
    done = run(
        "fit",
        *SMALL,
        "--n-init",
        "2",
        "--max-iter",
        "8",
        "--out",
        tmp_path / "deep" / "o",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "annualised volatility" in done.stdout and "Turbulent" in done.stdout
    assert "did not converge in 8 iterations. Increase max_iter" in done.stderr
    assert "--max-iter" in done.stderr
    folder = tmp_path / "deep" / "o"
    assert (folder / "regimes.png").read_bytes().startswith(b"\x89PNG")
    with open(folder / "states.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    returns = datasets.load_sector_returns().last(300)
    assert [row["date"] for row in rows] == [str(day) for day in returns.dates]
    model = RegimeModel.load(folder / "model.json")
    for kind in ("filtered", "smoothed"):
        names = [f"{kind}_Calm", f"{kind}_Turbulent"]
        probs = np.array([[float(row[name]) for name in names] for row in rows])
        expected = model.predict_proba(returns.to_frame(), kind)
        np.testing.assert_allclose(probs, expected, rtol=1e-12)
    names = [model.regime_names_[state] for state in model.predict(returns.to_frame())]
    assert [row["viterbi"] for row in rows] == names
    assert list(model.feature_names_in_) == list(returns.names)


@pytest.mark.slow
def test_fit_reads_returns_and_prices(tmp_path):
    for name, scale, flags in [("returns.csv", 1.0, []), ("prices.csv", 100.0, ["--prices"])]:
        path = write_csv(tmp_path / name, scale)
        before = path.read_bytes()
        done = run(
            "fit",
            path,
            *flags,
            "--n-regimes",
            "2",
            "--n-init",
            "1",
            "--covariance-type",
            "diag",
            "--order-by",
            "volatility",
            "--out",
            tmp_path / name[:3],
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "Calm" in done.stdout and "left" in done.stdout
        assert path.read_bytes() == before


def means_of(printed: str) -> np.ndarray:
    lines = printed.splitlines()
    (first,) = [i for i, line in enumerate(lines) if line.startswith("annualised mean")]
    return np.array([[float(cell) for cell in lines[first].split()[-2:]]])


def test_fit_annualises_by_the_frequency_and_prints_names_as_they_are(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    path = str(write_months(tmp_path / "months.csv"))
    out, err = fit_in_process(capsys, monkeypatch, path, "--sort")
    assert "note: the rows are monthly: 12 periods a year (--periods-per-year)" in err
    assert "FX [EUR] :smile: " in out and "re [31md" in out and "\x1b" not in out + err
    chosen, told = fit_in_process(
        capsys, monkeypatch, path, "--sort", "--periods-per-year", "1200"
    )
    assert "periods a year" not in told
    np.testing.assert_allclose(means_of(chosen), 100 * means_of(out), rtol=0, atol=0.6)


@pytest.mark.slow
def test_files_are_written_before_anything_that_may_fail_is_printed(tmp_path):
    """To a terminal that lacks the letters of a name, and to a pipe that is closed."""
    rows = [f"2020-01-{i:02d},{i * 7919 % 13 - 6}.{i},{i * 31 % 17 - 8}.{i}" for i in range(1, 32)]
    text = "\n".join(["date,上证,[eur]", *rows])
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    program = f"{sys.executable} -m pyro_regimes fit x.csv --n-regimes 2 --n-init 1 --out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "cp1252"}
    for out, rest in (("[page]", "| cat"), ("closed", "| true")):
        done = subprocess.run(
            ["bash", "-c", f"{program} '{out}' {rest}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert sorted(each.name for each in (tmp_path / out).iterdir()) == [
            "model.json", "regimes.png", "states.csv",
        ]  # fmt: skip
        assert "Traceback" not in done.stderr
        if rest == "| cat":
            assert "\\u4e0a\\u8bc1" in done.stdout and "[eur]" in done.stdout
            assert done.stdout.rstrip().endswith("to [page]")


def test_fit_takes_an_emission(tmp_path, monkeypatch, capsys):
    """Counts are fitted as such, and the commands that read the model know it."""
    monkeypatch.chdir(tmp_path)
    rng = seeds.rng(2)
    counts = rng.poisson(np.where(np.arange(120) // 20 % 2, 9.0, 2.0))
    days = np.arange("2020-01-01", "2020-04-30", dtype="datetime64[D]")
    lines = [f"{day},{count}" for day, count in zip(days, counts)]
    (tmp_path / "counts.csv").write_text("\n".join(["date,claims", *lines]) + "\n")
    small = ["counts.csv", "--n-regimes", "2", "--n-init", "2", "--emission"]
    out, err = call(capsys, monkeypatch, "fit", *small, "poisson", "--out", "o")
    assert "2 regimes of 1 series, Poisson" in out and "Regime 2" in out
    assert "standard deviation" in out and "annualised" not in out and "level" not in err
    model = RegimeModel.load(tmp_path / "o" / "model.json")
    assert model.emission_ == "poisson" and model.rates_.shape == (2, 1)
    told, err = call(capsys, monkeypatch, "today", "o/model.json", "counts.csv")
    assert "standard deviation, average" in told and "annualised" not in told + err
    _, err = call(capsys, monkeypatch, "fit", *small, "gamma", "--out", "o", code=2)
    assert "expected X to hold positive numbers, got 0" in err
    text = "\n".join(["date,a", *(f"{day},{each}" for day, each in zip(days, rng.randn(120)))])
    small[0] = "returns.csv"
    (tmp_path / small[0]).write_text(text + "\n")
    out, _ = call(capsys, monkeypatch, "fit", *small, "student_t", "--out", "o")
    assert "Student-t with full scale matrices" in out and "degrees of freedom" in out


def test_every_emission_of_the_estimator_is_an_option():
    assert {each.value for each in Emission} == set(EMISSIONS)
