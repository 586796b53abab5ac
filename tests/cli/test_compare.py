"""``pyro-regimes compare``, run as a user runs it."""

from __future__ import annotations

import pytest

from tests.cli.running import SMALL, run


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
