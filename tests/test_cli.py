"""The command, run as a user runs it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyro_regimes import RegimeModel, cli, datasets, version
from tests import seeds

SMALL = ["--num-rows", "300", "--n-regimes", "2"]


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "pyro_regimes.cli", *map(str, arguments)],
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
    assert "did not converge in 8 iterations" in done.stderr
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
    for word in ("EM", "Adam(0.02)", "ClippedAdam(0.05)", "AutoLowRank", "NUTS", "Against NUTS"):
        assert word in text
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
    told = [line.split(",")[0] for line in done.stderr.splitlines() if line]
    assert told == ["Comparing 2 methods: 2 regimes", "EM", "SVI"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["comparison.png"]


@pytest.mark.slow
def test_help_teaches(tmp_path):
    done = run("compare", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "conjugate priors" in done.stdout
    assert "embedded daily" in " ".join(done.stdout.replace("│", " ").split())
    assert "compare" in run(cwd=tmp_path).stdout


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
        (["fit", "--out", "empty.csv"], "File exists: 'empty.csv'"),
        (["fit", "--num-rows", "2"], "n_regimes"),
        (["compare", "--held-out", "2"], "expected held_out to lie between 0 and 1, got 2.0"),
        (["compare", "--num-rows", "5"], "rows on either side of the split"),
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


def write_months(path: Path) -> Path:
    rng = np.random.default_rng(seeds.seed(1))
    scale = np.where(np.arange(120) % 60 < 30, 1.0, 4.0)[:, None]
    values = rng.normal(size=(120, 3)) * scale
    days = [f"28.{month:02d}.{year}" for year in range(2010, 2020) for month in range(1, 13)]
    lines = [";".join([day, *map("{:.3f}".format, row)]) for day, row in zip(days, values)]
    names = "Datum;FX [EUR] :smile:;re\x1b[31md;a, b\n"
    path.write_text(names + "\n".join(reversed(lines)) + "\n")
    return path


def fit_in_process(capsys, monkeypatch, *arguments: str):
    quick = ["--n-regimes", "2", "--n-init", "1", "--max-iter", "999", "--covariance-type", "diag"]
    monkeypatch.setattr(sys, "argv", ["pyro-regimes", "fit", *arguments, *quick])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert stopped.value.code == 0, printed.err
    return printed.out, printed.err


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
            [sys.executable, "-m", "pyro_regimes.cli", "fit", "-", "--sort", *quick],
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


def test_the_program_ends_with_the_code_the_exit_functions_and_the_traceback():
    def end(main: str) -> subprocess.CompletedProcess[str]:
        script = (
            "import atexit\nfrom pyro_regimes import cli\n"
            "atexit.register(print, 'at exit')\n"
            f"def main():\n    print('printed')\n    {main}\n"
            "cli.main = main\ncli.program()\n"
        )
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    stopped = end("raise SystemExit(2)")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (2, "printed\nat exit\n", "")
    failed = end("1 / 0")
    assert (failed.returncode, failed.stdout) == (1, "printed\nat exit\n")
    assert "ZeroDivisionError" in failed.stderr


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


def test_version(tmp_path):
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, f"pyro-regimes {version.__version__}")
