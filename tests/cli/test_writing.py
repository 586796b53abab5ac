"""Files that commands write: whole or not at all, and safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import SMALL, call, write_months

QUICK = [*SMALL, "--n-init", "1", "--max-iter", "999", "--covariance-type", "diag"]


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """A limit to the size of a file, beyond which a write fails as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("limit", [4_000, 60_000])  # within states.csv; within regimes.png
def test_a_full_disk_leaves_the_old_files_of_fit_whole(tmp_path, monkeypatch, capsys, limit):
    monkeypatch.chdir(tmp_path)
    call(capsys, monkeypatch, "fit", *QUICK)
    before = content(tmp_path / "regimes")
    assert len(before["states.csv"]) < 60_000 < len(before["regimes.png"])
    with disk_of(limit):
        _, err = call(capsys, monkeypatch, "fit", *QUICK, "--seed", "1", code=2)
    assert "File too large" in err
    assert content(tmp_path / "regimes") == before
    call(capsys, monkeypatch, "fit", *QUICK, "--order-by", "mean")
    after = content(tmp_path / "regimes")
    assert set(after) == set(before) and after["states.csv"] != before["states.csv"]


def test_a_full_disk_leaves_the_old_files_of_the_other_commands_whole(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    call(capsys, monkeypatch, "fit", *QUICK)
    steps = ["--em-steps", "2", "--svi-steps", "2", "--learning-rate", "0.01"]
    commands = [
        ("predict", "regimes/model.json", *SMALL[:2], "--out", "o"),
        ("forecast", "regimes/model.json", *SMALL[:2], "--steps", "40", "--out", "o"),
        ("compare", *SMALL, *steps, "--method", "EM", "--method", "AutoNormal", "--out", "o"),
    ]
    for command in commands:
        call(capsys, monkeypatch, *command)
    before = content(tmp_path / "o")
    assert set(before) == {"states.csv", "forecast.csv", "comparison.png", "posteriors.png"}
    for command in commands:
        with disk_of(1000):
            _, err = call(capsys, monkeypatch, *command, code=2)
        assert "File too large" in err
        assert content(tmp_path / "o") == before


def test_names_that_a_spreadsheet_would_run_are_quoted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_months(tmp_path / "months.csv")
    names = "Datum;=1+1;@SUM(A1);-x\n"
    path.write_text(names + path.read_text().split("\n", 1)[1])
    quick = ["--sort", "--n-regimes", "2", "--n-init", "1", "--max-iter", "999"]
    call(capsys, monkeypatch, "fit", "months.csv", *quick, "--covariance-type", "diag")
    saved = Path("regimes/model.json")
    written = json.loads(saved.read_text())
    written["fitted"]["regime_names_"] = ['=HYPERLINK("http://x","y")', "+1"]
    saved.write_text(json.dumps(written))
    call(capsys, monkeypatch, "predict", saved, "months.csv", "--sort")
    call(capsys, monkeypatch, "forecast", saved, "months.csv", "--sort", "--out", "prediction")
    dangerous = tuple("=+-@\t\r")
    signed = ("mean_", "lower_", "upper_", "value_at_risk_", "expected_shortfall_")
    for name in ("states.csv", "forecast.csv"):
        with open(tmp_path / "prediction" / name, newline="") as file:
            rows = list(csv.DictReader(file))
        assert not any(cell.startswith(dangerous) for cell in rows[0])
        for row in rows:
            for key, cell in row.items():
                is_negative = key.startswith(signed) and float(cell) < 0
                assert not cell.startswith(dangerous) or is_negative
        if name == "states.csv":
            assert {row["viterbi"] for row in rows} == {'\'=HYPERLINK("http://x","y")', "'+1"}
        else:  # numbers stay numbers
            cells = [cell for row in rows for key, cell in row.items() if key != "date"]
            assert [float(cell) for cell in cells]
            assert [np.datetime64(row["date"]) for row in rows]


@pytest.mark.parametrize("length", [235, 250, 300])
def test_long_names_of_files_work_or_are_named(tmp_path, monkeypatch, capsys, length):
    monkeypatch.chdir(tmp_path)
    name = "n" * length
    if length < 255:
        call(capsys, monkeypatch, "fit", *QUICK, "--out", name)
        assert set(content(tmp_path / name)) == {"states.csv", "model.json", "regimes.png"}
        (tmp_path / name).rename("regimes")
        Path("regimes/model.json").rename(name)
        call(capsys, monkeypatch, "today", name, *SMALL[:2])
        return
    _, err = call(capsys, monkeypatch, "fit", *QUICK, "--out", name, code=2)
    assert "expected --out to" in err and name in err and "too long" in err
    _, err = call(capsys, monkeypatch, "fit", name, code=2)
    assert "expected path to" in err and name in err and "too long" in err
    _, err = call(capsys, monkeypatch, "today", name, code=2)
    assert "expected path to" in err and name in err and "too long" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="modes of directories")
def test_a_directory_that_cannot_be_made_is_named_before_the_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for out in ("file", "file/below"):
        _, err = call(capsys, monkeypatch, "fit", *QUICK, "--out", out, code=2)
        assert "expected --out to" in err and f"'{out}'" in err
