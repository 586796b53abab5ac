"""The study of the tests of residuals: a tenth of it with seeds of the suite, and its page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import residuals as study
from tests import seeds
from tests.frequencies import assert_binomial

SETS = 20
PAGE = Path(__file__).parents[1] / "benchmarks" / "results" / "residuals-study.md"


def rejected(design: study.Design) -> np.ndarray:
    return study.rejected(design, [seeds.seed(number) for number in range(SETS)])


@pytest.mark.parametrize(
    "design",
    [each for each in study.DESIGNS if each.model == "true"],
    ids=lambda design: f"{design.data}-{design.kind}",
)
def test_a_right_model_is_rejected_at_the_nominal_rate(design):
    """By Kolmogorov-Smirnov and Ljung-Box; Jarque-Bera holds its level in long series only."""
    counts = rejected(design)[[0, 2, 3]]
    assert_binomial(counts[~np.isnan(counts)], SETS, study.LEVEL)
    assert np.isnan(counts[1]) == (design.kind == "ordinary")


def test_a_fitted_right_model_is_hardly_rejected():
    (design,) = (d for d in study.DESIGNS if d.model == "fitted" and d.data == "poisson")
    assert rejected(design)[0] <= 3


@pytest.mark.parametrize(
    ("data", "n_regimes", "test"),
    [("student_t", 2, 1), ("student_t", 1, 0), ("negative_binomial", 2, 0)],
)
def test_a_wrong_family_is_rejected(data, n_regimes, test):
    """By Jarque-Bera where two regimes imitate the shape, elsewhere by Kolmogorov-Smirnov."""
    (design,) = (
        d for d in study.DESIGNS if not d.is_right and (d.data, d.n_regimes) == (data, n_regimes)
    )
    assert rejected(design)[test] >= 15  # all 200 of the page


def test_the_page_of_the_study():
    """Kolmogorov-Smirnov rejects known models within the binomial limits of 200 data sets."""
    low, high = study.limits(200)
    assert (low, high) == (4, 16)
    lines = PAGE.read_text().splitlines()
    for design in study.DESIGNS:
        (row,) = (line for line in lines if line.startswith(study.cells(design, [], 1)[0] + " ")
                  and f" {design.title} " in line)  # fmt: skip
        counts = [2 * float(share) for share in re.findall(r"([\d.]+)%", row)]
        if design.model == "true":
            assert low <= counts[0] <= high
        if not design.is_right:
            assert max(counts) == 200


def test_the_program(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "NUM_ROWS", 60)
    monkeypatch.setattr(study, "DESIGNS", [study.DESIGNS[1], study.DESIGNS[7]])
    study.main(["--sets", "2", "--markdown", str(tmp_path / "page.md")])
    printed = capsys.readouterr().out
    assert "gaussian, true, ordinary" in printed and "fitted, new data" in printed
    assert printed.strip() in (tmp_path / "page.md").read_text()
    with pytest.raises(SystemExit):
        study.main(["--sets", "0"])
