"""The study of the value at risk: a tenth of its days, and the numbers of its page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, chi2, norm, t

from benchmarks.studies import value_at_risk as study
from pyro_regimes.datasets import load_sector_returns
from tests import seeds

PAGE = Path(__file__).parents[1] / "benchmarks" / "results" / "value_at_risk-study.md"


@pytest.mark.parametrize("emission", study.EMISSIONS)
def test_a_tenth_of_the_study_counts_the_days_below_the_forecast_distribution(emission):
    """The value at risk is exceeded where the distribution function is below the level."""
    returns = load_sector_returns().to_frame()
    number = len(returns) // 10
    first = seeds.rng(0).randint(len(returns) - number)
    days = returns.iloc[first : first + number, :3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of regimes
        walked = study.walk(days, emission, min_train=number // 2)
    table, counts = study.exceedances(walked), np.zeros((len(study.LEVELS), 4), int)
    weights = np.eye(4, 3)
    weights[3] = 1 / 3
    for row in range(1, len(walked.data)):
        model = walked.models[walked.walk.refit[row - 1]]
        for place, each in enumerate(weights):
            spread = model.covariances_ if emission == "gaussian" else model.scale_matrices_
            at = (walked.data[row] - model.means_) @ each
            at /= np.sqrt(np.einsum("i,kij,j->k", each, spread, each))
            cdf = norm.cdf(at) if emission == "gaussian" else t.cdf(at, model.degrees_of_freedom_)
            counts[:, place] += walked.walk.ahead[row - 1] @ cdf < np.array(study.LEVELS)
    for level, own in zip(study.LEVELS, counts, strict=True):
        assert list(table.loc[level, "exceedances"]) == list(own)


def test_the_numbers_of_the_page_agree():
    """Shares, intervals and Kupiec's p-values are those of the counts."""
    text = PAGE.read_text()
    rows = re.findall(
        r"(\d)%  +(?:Gaussian|Student-t) +(\d+) +(\d+) +([\d.]+)% +([\d.]+)% to +([\d.]+)% +(\S+)",
        text,
    )
    assert len(rows) == 2 * 2 * 8
    for level, *counts, share, low, high, p_value in rows:
        chance, (total, number) = int(level) / 100, map(int, counts)
        found = number / total
        assert float(share) == pytest.approx(100 * found, abs=0.0051)
        ends = beta.ppf(0.025, number, total + 1 - number), beta.ppf(
            0.975, number + 1, total - number
        )
        assert [float(low), float(high)] == pytest.approx([100 * e for e in ends], abs=0.0051)
        ratio = number * np.log(found / chance)
        ratio += (total - number) * np.log((1 - found) / (1 - chance))
        wanted = chi2.sf(2 * ratio, 1)
        assert wanted < 0.0005 if p_value == "<0.001" else float(p_value) == pytest.approx(
            wanted, abs=0.00051
        )


def test_the_program(capsys, tmp_path):
    page = tmp_path / "page.md"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.main(["--rows", "320", "--min-train", "300", "--markdown", str(page)])
    printed = capsys.readouterr().out
    assert printed.strip() in page.read_text()
    for name in ("equal weights", "Student-t", "InfoTech"):
        assert name in printed
