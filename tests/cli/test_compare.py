"""``pyro-regimes compare``, run as a user runs it."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from pyro_regimes.cli import screen
from tests.cli.running import SMALL, call, run


@pytest.mark.slow
def test_compare_prints_the_table_and_draws_it(tmp_path):
    done = run(
        "compare",
        *SMALL,
        "--svi-steps",
        "5",
        "--em-steps",
        "5",
        "--learning-rate",
        "0.02",
        "--learning-rate",
        "0.05",
        "--nuts",
        "--nuts-steps",
        "3",
        "--out",
        tmp_path / "c",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    told = ("EM, SQUAREM", "Adam(0.02)", "DecayingAdam(0.05)", "L-BFGS", "AutoLowRank", "NUTS")
    for word in (*told, "Against NUTS"):
        assert word in text
    assert "ClippedAdam" not in text
    assert "held out" in text and "within 0.1" in text
    assert "…" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    for name in ("comparison.png", "posteriors.png"):
        assert (tmp_path / "c" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_compare_with_some_methods(tmp_path):
    chosen = ["--method", "EM", "--method", "Adam", "--learning-rate", "0.05"]
    steps = ["--svi-steps", "5", "--em-steps", "5"]
    done = run("compare", *SMALL, *steps, *chosen, "--out", tmp_path / "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Adam(0.05)" in done.stdout and "Auto" not in done.stdout
    # Without a terminal there is no bar, but a line where each method begins.
    lines = [line for line in done.stderr.splitlines() if ": step " not in line]  # if it is slow
    told = [line.split(",")[0] for line in lines if line]
    assert told == ["Comparing 2 methods: 2 regimes", "EM", "SVI"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["comparison.png"]


@pytest.mark.slow
def test_compare_of_heavy_tails(tmp_path):
    chosen = ["--emission", "student_t", "--svi-steps", "5", "--learning-rate", "0.05"]
    done = run("compare", *SMALL, *chosen, "--out", tmp_path / "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("EM, SQUAREM", "DecayingAdam(0.05)", "L-BFGS", "emission student_t"):
        assert word in done.stdout
    assert "Comparing 5 methods" in done.stderr and "Auto" not in done.stdout
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["comparison.png"]
    done = run("compare", *SMALL, *chosen, "--nuts", "--out", tmp_path / "d", cwd=tmp_path)
    assert done.returncode != 0 and "have no priors here" in " ".join(done.stderr.split())


def test_a_bar_waits_for_compilers_and_is_full_at_the_end(monkeypatch):
    """EM ends when it has converged, long before the largest number of steps."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, markup=False)
    monkeypatch.setattr(screen, "err", terminal)
    with screen.Progress() as progress:
        progress.tell("EM", 0, 200)
        waiting = terminal.file.getvalue()
        progress.tell("EM", 53, 53, -1.0)
        done = terminal.file.getvalue().removeprefix(waiting)
    assert "EM, compiling" in waiting and "0/200" in waiting
    assert "53/53" in done and "compiling" not in done


def test_notes_are_broken_between_words_on_a_terminal_only(monkeypatch):
    note = "the rows are daily, and the model has another frequency, which is monthly; " * 3
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=60, markup=False)
        monkeypatch.setattr(screen, "err", console)
        screen.note(note)
        lines = console.file.getvalue().splitlines()
        assert " ".join(lines).split() == f"note: {note}".split()
        assert (len(lines) > 3 and max(map(len, lines)) <= 60) if is_terminal else len(lines) == 1


def test_without_a_terminal_a_line_tells_where_a_method_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(screen, "BETWEEN_LINES", 0.0)
    steps = ["--svi-steps", "3", "--em-steps", "40", "--learning-rate", "0.02", "--nuts-steps", "2"]
    methods = ["EM", "Adam", "AutoNormal", "NUTS"]
    chosen = [word for method in methods for word in ("--method", method)]
    out, err = call(capsys, monkeypatch, "compare", *SMALL, *steps, *chosen, "--processes", "1")
    told: dict[str, list[float]] = {}
    for line in err.splitlines():
        found = re.fullmatch(r"(.+): step (\d+) of (\d+)(, objective (-?[\d.]+))?", line)
        if found and found[1] == "EM":
            assert found[2] == found[3] and 1 < int(found[2]) <= 40
        if found:
            told.setdefault(found[1], []).append(float(found[5] or math.nan))
    assert list(map(len, told.values())) == [1, 3, 3, 4]
    em, adam, guide, draws = told.values()
    assert adam[0] < adam[1] < em[0] and f" {em[0]:.2f} " in out  # in the units of the data
    assert guide[-1] < em[0] and all(map(math.isnan, draws))


def test_fit_tells_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", *SMALL, "--n-init", "2", "--max-iter", "999"]
    _, err = call(capsys, monkeypatch, *arguments)
    assert all(": step " in line for line in err.splitlines())  # where it takes long
    monkeypatch.setattr(screen, "BETWEEN_LINES", 0.0)
    _, err = call(capsys, monkeypatch, *arguments)
    lines = [line for line in err.splitlines() if ": step " in line]
    assert len(lines) > 3
    assert re.fullmatch(r"EM, 2 starts: step 1 of 999, objective -\d+\.\d\d", lines[0])
    values = [float(line.split()[-1]) for line in lines]
    assert values == sorted(values) and values[0] < values[-1]
