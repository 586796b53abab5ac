"""Every script of examples/ runs as a user runs it, with small settings."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

#: Script, small settings, what it prints (a regular expression), the files that it writes.
TABLE = [
    (
        "sector_regimes.py",
        ["--num-rows=250", "--n-init=2", "--max-iter=200", "--tol=1"],
        r"250 days .*EM \w+ after \d+ iterations.*Calm +Normal +Turbulent.*on 2022-12-28 ",
        {"model.json", "regimes.png"},
    ),
    (
        "heavy_tails.py",
        ["--num-rows=400", "--n-init=2", "--max-iter=200", "--tol=1"],
        r"fit to 300 days .* held out 100 .*Gaussian +Student-t\nswitches .*degrees of freedom",
        {"heavy_tails.png", "heavy_tails.txt"},
    ),
    (
        "em_vs_svi.py",
        ["--num-rows=200", "--em-steps=5", "--svi-steps=5", "--learning-rates", "0.01", "0.1"],
        r"EM sets 4 parameters.*\nEM .*\nSVI .*\nEM .*ClippedAdam\(0.1\).*within 0.1 nats",
        {"em_vs_svi.png"},
    ),
    (
        "compose_in_pyro.py",
        ["--num-series=6", "--num-steps=20", "--svi-steps=30"],
        r"loss per observation\n0 .*truth .*probability of staying: 0\.\d+ calm",
        {"losses.csv"},
    ),
    (
        "hierarchical_panel.py",
        ["--num-rows=150", "--num-steps=8"],
        r"EM sets 4 parameters.*AutoDelta.means.*center .*means.loc.*population ",
        {"means.csv"},
    ),
    (
        "neural_transitions.py",
        ["--num-rows=150", "--num-steps=8"],
        r"EM sets 3 parameters.*Newton.*and moves 3 by gradient.*calm -> stressed.*are stressed",
        {"stressed.csv"},
    ),
    (
        "streaming_em.py",
        ["--num-sequences=60", "--num-steps=20", "--batch-size=20", "--passes=2"],
        r"full EM: \d+ passes.*pass 2: .* below full EM",
        {"held_out.csv"},
    ),
    (
        "stream_parquet.py",
        ["--num-rows=3000", "--chunk=1000", "--live=60"],
        r"Calm +Turbulent.*differ by \d[.\de-]* nats\nafter 60 rows: Calm 0\.\d+.*differs by ",
        {"returns.parquet", "model.json", "state.json"},
    ),
]


def run_python(arguments: list[str], folder: Path) -> str:
    # A child has not the parent's working directory, warnings filters or number of threads.
    finished = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def column(path: Path, name: str) -> list[float]:
    with open(path, newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_every_example_is_listed() -> None:
    of_ranks = {"torchrun_em.py"}  # run by tests/infer/test_ranks.py
    listed = of_ranks | {script for script, *_ in TABLE}
    assert {path.name for path in EXAMPLES.glob("*.py")} == listed


@pytest.mark.slow
@pytest.mark.parametrize("script, settings, printed, written", TABLE, ids=[row[0] for row in TABLE])
def test_example(
    script: str, settings: list[str], printed: str, written: set[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    output = run_python([str(EXAMPLES / script), *settings, f"--out={out}"], tmp_path)
    assert re.search(printed, output, re.DOTALL), output
    assert {path.name for path in out.iterdir()} == written
    assert all(path.stat().st_size > 0 for path in out.iterdir())
    if script == "streaming_em.py":
        held_out = column(out / "held_out.csv", "held_out")
        assert held_out[1] > held_out[0]
    if script == "compose_in_pyro.py":
        losses = column(out / "losses.csv", "loss")
        assert losses[-1] < losses[0] - 0.1


# All of them in one process, which is most of what each takes.
HELP = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (script, end.code)
    print("=" * 80)
"""


@pytest.mark.slow
def test_help(tmp_path: Path) -> None:
    scripts = [str(EXAMPLES / script) for script, *_ in TABLE]
    texts = run_python(["-c", HELP, *scripts], tmp_path).split("=" * 80)
    assert len(texts) == len(TABLE) + 1
    for (script, *_), text in zip(TABLE, texts):
        assert "--out" in text and f"usage: {script}" in text
