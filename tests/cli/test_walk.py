"""``pyro-regimes walk``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from pyro_regimes import RegimeModel, walk_forward
from pyro_regimes.datasets import load_sector_returns
from tests import seeds
from tests.cli.running import call

QUICK = ["--n-regimes", "2", "--n-init", "2"]


def test_walk_says_what_the_function_does(tmp_path, capsys, monkeypatch):
    returns = load_sector_returns().last(300).select([0, 1])
    data, out = tmp_path / "returns.csv", tmp_path / "out"
    returns.to_frame().to_csv(data, index_label="date")
    printed, told = call(
        capsys, monkeypatch, "walk", data, *QUICK, "--min-train", "150", "--refit-every", "50",
        "--level", "0.1", "--out", out,
    )  # fmt: skip
    model = RegimeModel(n_regimes=2, n_init=2, random_state=0)
    expected = walk_forward(model, returns.to_frame(), min_train=150, refit_every=50)
    table = pandas.read_csv(out / "walk.csv", index_col="date")
    assert list(table.index) == [str(date) for date in returns.dates[150:]]
    losses = expected.value_at_risk(0.1).to_numpy()
    parts = expected.walk.filtered, expected.walk.mean, expected.walk.deviation, losses
    np.testing.assert_allclose(table, np.hstack(parts), rtol=1e-12)
    assert list(table)[:2] == ["filtered_Calm", "filtered_Turbulent"]
    assert (out / "walk.png").read_bytes().startswith(b"\x89PNG")
    text = " ".join(printed.split())
    assert text.startswith(f"150 rows from {returns.dates[150]} to {returns.dates[-1]}, 3 fits")
    tests = expected.exceedances(0.1).loc[0.1]
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    for name in returns.names:
        assert lines[name][2:4] == [
            f"{tests.loc[name, 'exceedances']:.0f}", f"{tests.loc[name, 'share']:.2%}"
        ]  # fmt: skip
    assert "fits the first 150 of 300 rows, then again every 50 rows" in told


def test_walk_of_counts_without_dates(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = seeds.rng(0).poisson(np.repeat([2, 9, 2, 9], 30))
    pandas.DataFrame({"events": counts}).to_csv("counts.csv", index=False)
    printed, _ = call(capsys, monkeypatch, "walk", "counts.csv", *QUICK, "--emission", "poisson")
    assert printed.startswith("60 rows from 60 to 119, 5 fits, forecasts 1 row ahead")
    assert "VaR" not in printed and "same sign" not in printed
    table = pandas.read_csv(Path("walk/walk.csv"))
    assert not any("value_at_risk" in name for name in table)


@pytest.mark.parametrize(
    "option, message",
    [
        (["--refit-every", "decade"], "refit_every"),
        (["--level", "0.6"], "expected --level to be above 0 and below 0.5, got 0.6"),
        (["--min-train", "5000"], "min_train"),
    ],
)
def test_wrong_options_are_refused(option, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, err = call(capsys, monkeypatch, "walk", "--num-rows", "100", *QUICK, *option, code=2)
    assert message in err
