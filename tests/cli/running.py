"""The command in a process of its own, or in this one; and files to read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyro_regimes import cli
from tests import seeds

SMALL = ["--num-rows", "300", "--n-regimes", "2"]


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "pyro_regimes", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def write_csv(path: Path, scale: float = 1.0) -> Path:
    rng = np.random.default_rng(seeds.seed(0))
    days = np.arange("2020-01-01", "2020-07-01", dtype="datetime64[D]")
    returns = rng.normal(
        scale=np.where(np.arange(len(days)) < 90, 0.5, 3.0)[:, None], size=(len(days), 2)
    )
    values = 100 * np.cumprod(1 + returns / 100, axis=0) if scale == 100.0 else returns
    lines = [f"{day},{a!r},{b!r}" for day, (a, b) in zip(days, values.tolist(), strict=True)]
    path.write_text("\n".join(["date,left,right", *lines]) + "\n")
    return path


def write_months(path: Path) -> Path:
    rng = np.random.default_rng(seeds.seed(1))
    scale = np.where(np.arange(120) % 60 < 30, 1.0, 4.0)[:, None]
    values = rng.normal(size=(120, 3)) * scale
    days = [f"28.{month:02d}.{year}" for year in range(2010, 2020) for month in range(1, 13)]
    lines = [";".join([day, *map("{:.3f}".format, row)]) for day, row in zip(days, values)]
    names = "Datum;FX [EUR] :smile:;re\x1b[31md;a, b\n"
    path.write_text(names + "\n".join(reversed(lines)) + "\n")
    return path


def call(capsys, monkeypatch, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; check its exit code; return what it prints."""
    monkeypatch.setattr(sys, "argv", ["pyro-regimes", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert stopped.value.code == code, printed.err
    return printed.out, printed.err


def fit_in_process(capsys, monkeypatch, *arguments: str) -> tuple[str, str]:
    quick = ["--n-regimes", "2", "--n-init", "1", "--max-iter", "999", "--covariance-type", "diag"]
    return call(capsys, monkeypatch, "fit", *arguments, *quick)
