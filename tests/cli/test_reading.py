"""The options of reading a file."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cli.running import fit_in_process, write_months


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
