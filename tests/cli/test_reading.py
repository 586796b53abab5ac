"""The options of reading a file."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cli.running import call, fit_in_process, write_csv, write_months


def test_columns_are_separated_by_commas_that_are_not_quoted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = str(write_months(tmp_path / "months.csv"))
    columns = ["--columns", '"a, b",re [31md', "--columns", "FX [EUR] :smile:"]
    out, _ = fit_in_process(capsys, monkeypatch, path, "--sort", *columns)
    lines = [line.rsplit(maxsplit=2)[0].strip() for line in out.splitlines() if line.strip()]
    first = lines.index("annualised mean, average")
    assert lines[first + 1 : first + 4] == ["a, b", "re [31md", "FX [EUR] :smile:"]


def test_fit_reads_standard_input(tmp_path):
    path = write_months(tmp_path / "months.csv")
    quick = ["--n-regimes", "2", "--n-init", "1", "--max-iter", "3", "--covariance-type", "diag"]
    with open(path) as file:
        done = subprocess.run(
            [sys.executable, "-m", "pyro_regimes", "fit", "-", "--sort", *quick],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=file,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert "note: the rows are monthly" in done.stderr
    assert (tmp_path / "regimes" / "states.csv").exists()


def test_missing_cells_are_missing_values(tmp_path, monkeypatch, capsys):
    """They are counted by column, in the file and in the summary; --drop-missing drops rows."""
    monkeypatch.chdir(tmp_path)
    lines = write_csv(tmp_path / "returns.csv").read_text().splitlines()
    header, rows = lines[0], [line.split(",") for line in lines[1:]]
    for row in rows[::7]:
        row[1] = ""
    rows[10][1] = rows[10][2] = "n/a"
    path = tmp_path / "gaps.csv"
    path.write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    count = len(rows[::7])
    out, err = fit_in_process(capsys, monkeypatch, str(path))
    told, printed = " ".join(err.split()), " ".join(out.split())
    assert f"{count + 2} cells are missing values, in {count + 1} of {len(rows)} rows" in told
    assert f"{count + 1} in 'left' (first on line 2), 1 in 'right' (first on line 12)" in told
    assert "--drop-missing" in told
    size = 2 * len(rows)
    assert f"missing: {count + 2} of {size} values" in printed
    assert f"(left {count + 1}, right 1); 1 of {len(rows)} rows have no value" in printed
    states = (tmp_path / "regimes" / "states.csv").read_text().splitlines()
    assert len(states) == len(rows) + 1
    out, err = fit_in_process(capsys, monkeypatch, str(path), "--drop-missing")
    assert f"dropped {count + 1} of {len(rows)} rows" in " ".join(err.split())
    assert "missing:" not in out
    model = str(tmp_path / "regimes" / "model.json")
    for command in (["today", model], ["predict", model, "--out", "new"], ["forecast", model]):
        call(capsys, monkeypatch, *command[:2], str(path), *command[2:])
