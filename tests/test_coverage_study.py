"""A tenth of the study of coverage, and its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import coverage

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "coverage-study.md"


@pytest.mark.slow
def test_intervals_cover_the_truth_in_a_tenth_of_the_study():
    # The seed does not shift: one share of many lies beyond three errors for some of them.
    study = coverage.run(50, 1000, seed=0)
    for method in ("observed", "sandwich"):
        shares = study.covers[method].mean()
        assert len(shares) == len(coverage.ROWS)
        assert (abs(shares - 0.95) <= coverage.bound(50)).all(), shares
    ratio = study.errors.mean() / study.deviations
    # The deviation of 50 estimates has a relative error of a tenth; four of these.
    assert ratio.between(0.7, 1.4).all()


def test_the_whole_program(capsys, tmp_path):
    page = tmp_path / "page.md"
    arguments = ["--sets", "2", "--steps", "150", "--bootstrap", "5", "--markdown", str(page)]
    coverage.main(arguments)
    printed = capsys.readouterr().out
    assert printed.strip() in page.read_text()
    for name in ("observed", "sandwich", "bootstrap", "stationary share Calm"):
        assert name in printed


def test_the_committed_table_is_within_three_errors():
    text = RESULTS.read_text()
    limit = float(text.split("of a share of 95 %: ")[1].split("%")[0]) / 100
    assert limit == pytest.approx(coverage.bound(500), abs=5e-4)
    words = [word for word in text.split("```")[1].split() if word.endswith("%") and len(word) > 1]
    shares = [float(word[:-1]) / 100 for word in words[:-1]]  # the last one is the limit
    assert len(shares) == 2 * len(coverage.ROWS)
    assert (abs(np.array(shares) - 0.95) <= limit + 5e-4).all()
