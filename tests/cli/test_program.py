"""The program: its help, its version, its errors, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyro_regimes import cli, version
from tests.cli.running import run


@pytest.mark.slow
def test_help_teaches(tmp_path):
    done = run("compare", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "conjugate priors" in done.stdout
    assert "embedded daily" in " ".join(done.stdout.split())
    bare = run(cwd=tmp_path)
    assert "  compare  " in bare.stdout and (bare.returncode, bare.stderr) == (2, "")


NEWEST = "date,a,b,cc\n2020-01-02,1,3,4\n2020-01-01,2,4,1\n"
EMPTY, TEXT = "date,a\n", "date,a\n2020-01-01,1\n2020-01-02,one\n2020-01-03,2\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["fit", "missing.csv"], "No such file or directory: 'missing.csv'"),
        (["fit", "."], "expected path to name a file, got the directory"),
        (["fit", "empty.csv"], "empty.csv"),
        (["fit", "text.csv"], "one"),
        (["fit", "--prices"], "expected --prices together with a file"),
        (["fit", "--drop-missing"], "expected --drop-missing together with a file"),
        (["compare", "--columns", "a"], "expected --columns together with a file"),
        (["fit", "--no-dayfirst"], "expected --dayfirst or --no-dayfirst together with a file"),
        (["fit", "newest.csv"], "the newest row comes first; sort=True (--sort) sorts the rows"),
        (["fit", "newest.csv", "--sort", "--columns", "a,c"], "'c' (did you mean"),
        (["fit", "newest.csv", "--decimal", "x"], "expected decimal to be"),
        (["fit", "--periods-per-year", "0"], "expected periods_per_year to be a positive"),
        (["fit", "\x1b[31m.csv"], "No such file or directory: '\\x1b[31m.csv'"),
        (["fit", "--n-regimes", "0"], "--n-regimes"),
        (["fit", "--n-regimes", "two"], "valid integer"),
        (["fit", "--covariance-type", "round"], "--covariance-type"),
        (["fit", "--out", "empty.csv"], "for the results, got 'empty.csv' (File exists)"),
        (["fit", "--num-rows", "2"], "n_regimes"),
        (["compare", "--held-out", "2"], "expected held_out to lie between 0 and 1, got 2.0"),
        (["compare", "--num-rows", "5"], "rows on either side of the split"),
        (["predict"], "Missing argument 'MODEL'"),
        (["today", "missing.json"], "No such file or directory: 'missing.json'"),
        (["today", "empty.csv"], "to be a saved RegimeModel, got a file that is no JSON"),
        (["forecast", "missing.json", "--steps", "0"], "--steps"),
        (["predict", "missing.json", "--start", "later"], "--start"),
        (["predict"], "pyro-regimes predict regimes/model.json DATA"),
        (
            ["divine"],
            "Commands: compare, fit, forecast, predict, regress, report, select, today, walk.",
        ),
        (["text.csv"], "To fit regimes to a file: pyro-regimes fit text.csv"),
        (["divine"], "No such command"),
        (["fit", "--luck"], "No such option"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty.csv").write_text(EMPTY)
    (tmp_path / "text.csv").write_text(TEXT)
    (tmp_path / "newest.csv").write_text(NEWEST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pyro-regimes", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and printed.out.strip() == ""
    (line,) = [line for line in printed.err.splitlines() if line.strip()]
    assert line.startswith("pyro-regimes: error: ") and message in line
    assert (tmp_path / "empty.csv").read_text() == EMPTY


def test_the_program_ends_with_the_code_the_exit_functions_and_the_traceback():
    def end(main: str) -> subprocess.CompletedProcess[str]:
        script = (
            "import atexit\nfrom pyro_regimes.cli import entry\n"
            "atexit.register(print, 'at exit')\n"
            f"def main():\n    print('printed')\n    {main}\n"
            "entry.main = main\nentry.program()\n"
        )
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    stopped = end("raise SystemExit(2)")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (2, "printed\nat exit\n", "")
    failed = end("1 / 0")
    assert (failed.returncode, failed.stdout) == (1, "printed\nat exit\n")
    assert "ZeroDivisionError" in failed.stderr


def test_version(tmp_path):
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, f"pyro-regimes {version.__version__}")
