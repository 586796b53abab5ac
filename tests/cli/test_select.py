"""``pyro-regimes select``."""

from __future__ import annotations

import csv

import pytest

from pyro_regimes import select
from pyro_regimes.datasets import load_sector_returns
from tests.cli.running import call, write_csv


def test_select_prints_the_table_and_writes_its_files(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "deep" / "o"
    printed, _ = call(
        capsys, monkeypatch, "select", "--num-rows", "200", "--max-regimes", "2", "--n-init", "2",
        "--emission", "gaussian", "--emission", "student_t", "--covariance-type", "diag",
        "--folds", "2", "--bootstrap", "2", "--max-iter", "20", "--out", folder,
    )  # fmt: skip
    assert all(text in printed for text in ("student_t, diag", "p-value", "Wrote selection.csv"))
    assert (folder / "selection.png").read_bytes().startswith(b"\x89PNG")
    with open(folder / "selection.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    returns = load_sector_returns().last(200).to_frame()
    expected = select(
        returns, (1, 2), ("gaussian", "student_t"), "diag", n_init=2, folds=2, bootstrap=2,
        max_iter=20, random_state=0,
    )  # fmt: skip
    assert [row["emission"] for row in rows] == ["gaussian", "gaussian", "student_t", "student_t"]
    frame = expected.to_frame()
    for name in ("bic", "held_out", "p_value"):
        found = [float(row[name]) if row[name] else None for row in rows]
        assert [pytest.approx(x, rel=1e-9) if x == x else None for x in frame[name]] == found


def test_select_writes_nothing_without_out(tmp_path, capsys, monkeypatch):
    path = write_csv(tmp_path / "returns.csv")
    monkeypatch.chdir(tmp_path)
    printed, _ = call(
        capsys, monkeypatch, "select", path, "--max-regimes", "2", "--n-init", "1", "--folds", "0"
    )
    assert "gaussian, full" in printed and "held-out" not in printed
    assert [each.name for each in tmp_path.iterdir()] == ["returns.csv"]


def test_likelihoods_that_do_not_compare_are_refused(tmp_path, capsys, monkeypatch):
    path = write_csv(tmp_path / "returns.csv")
    _, told = call(
        capsys, monkeypatch, "select", path, "--emission", "gaussian", "--emission", "poisson",
        code=2,
    )  # fmt: skip
    assert "expected emissions with comparable likelihoods" in told
