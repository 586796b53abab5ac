"""Notes on regimes that may be no regimes."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.problems import of_data, of_shares
from tests import seeds

NAMES = ["Calm", "Normal", "Turbulent"]


def _notes(share: float, duration: float, num_rows: float = 1000) -> list[str]:
    shares, durations = np.array([0.5, share, 0.5 - share]), np.array([50.0, duration, 20.0])
    return of_shares(NAMES, shares, durations, num_rows, 6)


@pytest.mark.parametrize("share, duration", [(0.05, 2.5), (0.2, 1.0), (0.05, 20.0)])
def test_lasting_or_frequent_regimes_have_no_note(share, duration) -> None:
    assert _notes(share, duration) == []


def test_rare_single_steps_have_a_note() -> None:
    (note,) = _notes(0.05, 1.2)
    assert note.startswith("Normal holds 50 of 1000 steps, most of them single steps")
    assert "fewer regimes" in note


def test_very_few_rows_are_an_outlier_however_long_they_last() -> None:
    (note,) = _notes(0.004, 30.0)
    assert note == "Normal holds 4 of 1000 steps: an outlier, or an error in the data?"
    assert of_shares(NAMES, np.array([1.0, 0, 0]), np.ones(3), 0, 6) == []  # not fitted


def test_outliers_that_take_a_regime_are_told_in_the_summary() -> None:
    rng = seeds.rng(0)
    calm, wild = rng.normal(0, 1, (300, 2)), rng.normal(0, 4, (200, 2))
    rows = np.concatenate([calm, wild])
    alone = np.arange(10, 250, 12)  # 20 days, each between others
    rows[alone] = rng.normal([-30, 30], 0.5, (len(alone), 2))
    model = RegimeModel(n_regimes=3, n_init=5, random_state=0).fit(rows)
    held = np.bincount(model.predict(rows), minlength=3)
    assert (held == len(alone)).any()
    text = " ".join(str(model.summary()).split())
    assert "holds 20 of 500 steps, most of them single steps" in text
    alike = RegimeModel(n_regimes=2, n_init=2, random_state=0).fit(np.concatenate([calm, wild]))
    assert "single steps" not in str(alike.summary())


def test_expected_durations() -> None:
    model = RegimeModel.from_parameters(
        [1.0, 0.0], [[0.9, 0.1], [0.0, 1.0]], means=np.zeros((2, 1)), covariances=np.ones((2, 1, 1))
    )
    np.testing.assert_allclose(model.expected_durations_, [10.0, np.inf])
    np.testing.assert_array_equal(model.summary().expected_duration, model.expected_durations_)


@pytest.mark.parametrize(
    "data, expected",
    [
        ([[0, 3], [2, 0]], True),
        ([[0, 3], [2, 1]], False),  # the second column is never 0
        ([[0.5, 3], [0, 0]], False),
        ([[-1, 3], [0, 0]], False),
        ([[0, 3], [0, 0]], False),  # a column of zeros
        ([[np.nan, 3], [2, 0], [0, np.nan]], True),
    ],
)
def test_counts_are_told(data, expected) -> None:
    rows = np.tile(np.array(data, float), (20, 1))
    found = [str(each) for each in of_data(rows, [len(rows)], None)]
    assert any("as counts do" in text for text in found) == expected
    if expected:
        assert len(found) == 1 and "--emission" in found[0]
