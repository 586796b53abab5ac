"""Statistics of data beside simulations: by scipy and by loops, and how often they reject."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.parameters import Array
from tests import seeds
from tests.estimator.emission_cases import CASES, TRANSITIONS
from tests.frequencies import assert_binomial

NAMES = {case.name: case for case in CASES}
GAUSSIAN = NAMES["gaussian-full"]


def statistics(columns: Array, lengths: list[int]) -> Array:
    """Of each series, one number after the other, of rows in sequences; NaN is missing."""
    found = []
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    for column in columns.T:
        seen = column[~np.isnan(column)]
        row = [seen.mean(), seen.std(), stats.skew(seen), stats.kurtosis(seen)]
        squares = (column - seen.mean()) ** 2
        squares = squares - np.nanmean(squares)
        for lag in (1, 5, 20):
            terms = [
                squares[t] * squares[t + lag]
                for t in range(len(column) - lag)
                if sequence[t] == sequence[t + lag]
            ]
            row.append(np.nansum(terms) / np.nansum(squares**2))
        falls = [0.0]
        for number in range(len(lengths)):
            level = peak = 0.0
            for change in np.nan_to_num(column[sequence == number]):
                level += change
                peak = max(peak, level)
                falls.append(peak - level)
        found.append([*row, max(falls)])
    return np.array(found)


@pytest.mark.parametrize("lengths", [[120], [70, 50]])
def test_observed_statistics(lengths):
    x = GAUSSIAN.sample(0, 120)[0]
    x[4], x[90, 1] = np.nan, np.nan
    check = GAUSSIAN.true().predictive_check(x, 3, random_state=0, lengths=lengths)
    np.testing.assert_allclose(check.observed, statistics(x, lengths), rtol=1e-9)
    assert check.quantiles.shape == (2, 8, 3) and check.n_simulations == 3


@pytest.mark.parametrize("unit", [1e-150, 1e6])
def test_the_unit_of_the_data_does_not_matter(unit):
    rng = seeds.seed(1)
    means, covariances = GAUSSIAN.values.values()
    model = RegimeModel.from_parameters(None, TRANSITIONS, unit * means, unit**2 * covariances)
    x = GAUSSIAN.sample(1, 100)[0]
    found = model.predictive_check(unit * x, 50, random_state=rng)
    expected = GAUSSIAN.true().predictive_check(x, 50, random_state=rng)
    np.testing.assert_allclose(found.p_value, expected.p_value)


def test_p_values_and_quantiles_are_those_of_the_simulations(monkeypatch):
    """Simulations in batches of 3; by hand 2 (1 + 4) / (1 + 10) where 4 are above."""
    monkeypatch.setattr("pyro_regimes.estimator.predictive_checks._MOST_NUMBERS", 3 * 40)
    model = RegimeModel.from_parameters([1.0], [[1.0]], [[0.0]], [[[1.0]]])
    drawn: list[Array] = []
    spec = type(model._fitted_spec())
    draw = spec.draw

    def kept(*arguments: Any) -> Array:
        values = draw(*arguments)
        drawn.extend(values.reshape(-1, 40, 1))
        return values

    monkeypatch.setattr(spec, "draw", kept)
    x = seeds.rng(2).standard_normal((40, 1))
    check = model.predictive_check(x, 10, random_state=0)
    simulated = np.stack([statistics(each, [40]) for each in drawn])
    assert simulated.shape == (10, 1, 8)
    above = (simulated >= check.observed).sum(0)
    below = (simulated <= check.observed).sum(0)
    np.testing.assert_allclose(
        check.p_value, np.minimum(2 * (1 + np.minimum(above, below)) / 11, 1.0)
    )
    np.testing.assert_allclose(
        np.moveaxis(check.quantiles, -1, 0), np.quantile(simulated, [0.05, 0.5, 0.95], axis=0)
    )


def test_data_of_the_model_are_rejected_at_the_nominal_rate():
    model = GAUSSIAN.true()
    p_values = []
    for number in range(60):
        x = model.sample(150, random_state=seeds.rng(100 + number))[0]
        p_values.append(model.predictive_check(x, 39, random_state=number).p_value[0])
    rejected = (np.array(p_values) <= 0.1).sum(0)  # of 8 statistics
    assert_binomial(rejected, 60, 0.1)


def test_heavy_tails_and_long_memory_are_rejected():
    rng = seeds.rng(3)
    model = RegimeModel.from_parameters([1.0], [[1.0]], [[0.0]], [[[1.0]]])
    heavy = rng.standard_t(3, (1000, 1))
    check = model.predictive_check(heavy / heavy.std(), 199, random_state=0)
    assert check.p_value[0, 3] == 2 / 200  # the kurtosis
    blocks = rng.standard_normal((4000, 1)) * np.repeat([0.1, 1.4], 2000)[:, None]
    check = model.predictive_check(blocks, 199, random_state=0)
    assert (check.p_value[0, 4:7] == 2 / 200).all()  # the squares


def test_simulations_begin_as_the_sequences_do():
    """Regimes that stay for ever, so that each sequence is of its first: far below, or above."""
    model = RegimeModel.from_parameters(
        [0.5, 0.5], np.eye(2), [[-100.0], [100.0]], np.ones((2, 1, 1)), initial="free"
    )
    x = np.zeros((7, 1))
    low = model.predictive_check(x, 20, random_state=0, lengths=[3, 4], start=[1.0, 0.0])
    assert (np.abs(low.quantiles[0, 0] + 100) < 3).all()
    both = model.predictive_check(x, 200, random_state=0, lengths=[1] * 7)
    assert both.quantiles[0, 0, 0] < -40 and both.quantiles[0, 0, 2] > 40


def test_random_states():
    model, x = GAUSSIAN.true(random_state=5), GAUSSIAN.sample(5, 60)[0]
    first, second = model.predictive_check(x, 20), model.predictive_check(x, 20)
    np.testing.assert_array_equal(first.quantiles, second.quantiles)
    other = model.predictive_check(x, 20, random_state=6)
    assert (first.quantiles != other.quantiles).any()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_emission(case):
    x = case.sample(6, 200)[0]
    if case.emission in ("von_mises", "categorical"):
        with pytest.raises(ValueError, match="expected an emission of numbers with a mean and a"):
            case.true().predictive_check(x, 20)
        return
    check = case.true().predictive_check(x, 20, random_state=0)
    assert np.isfinite(check.p_value).all() and (check.p_value >= 2 / 21).all()
    assert ("maximal drawdown" in check.statistics) == (
        case.emission in ("gaussian", "student_t", "gaussian_mixture")
    )


def test_angles_beside_numbers_are_left_out():
    model = RegimeModel.from_parameters(
        None, TRANSITIONS, emission={"angle": "von_mises", "size": "gamma"},
        von_mises_means=[[0.0], [2.0]], von_mises_concentrations=[[3.0], [1.0]],
        gamma_concentrations=[[2.0], [5.0]], gamma_rates=[[1.0], [1.0]],
        feature_names=["angle", "size"],
    )  # fmt: skip
    import pandas as pd

    x = pd.DataFrame(model.sample(50, random_state=0)[0], columns=["angle", "size"])
    check = model.predictive_check(x, 20, random_state=0)
    assert check.series_names == ["size"] and check.observed.shape == (1, 7)
    assert check.observed[0, 0] == pytest.approx(x["size"].mean())


def test_statistics_that_are_not_defined():
    """A constant has no skewness, and five rows no lag of 20."""
    model = RegimeModel.from_parameters(None, [[1.0]], emission="poisson", rates=[[5.0]])
    check = model.predictive_check(np.full((5, 1), 3.0), 20, random_state=0)
    assert np.isfinite(check.p_value[0, :2]).all() and np.isnan(check.p_value[0, 2:]).all()
    assert "nan" in str(check)


def test_table_and_frame():
    check = GAUSSIAN.true().predictive_check(GAUSSIAN.sample(7, 80)[0], 20, random_state=0)
    frame = check.to_frame()
    assert frame.shape == (16, 5)
    assert frame.loc[("series 2", "skewness"), "observed"] == check.observed[1, 2]
    assert frame.loc[("series 1", "mean"), "95%"] == check.quantiles[0, 0, 2]
    assert frame.loc[("series 1", "mean"), "p-value"] == check.p_value[0, 0]
    lines = str(check).splitlines()
    assert "20 simulations" in lines[0] and max(map(len, lines)) <= 80
    assert lines[3] == "series 1" and lines[4].split()[0] == "mean"
    page = check._repr_html_()
    assert page.startswith("<div>") and page.count(">skewness<") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_simulations": 0}, "expected n_simulations to be at least 1, got 0"),
        ({"random_state": -1}, "expected random_state to be at least 0, got -1"),
        ({"start": "first"}, "expected start to be one of"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GAUSSIAN.true().predictive_check(GAUSSIAN.sample(8, 30)[0], **options)


def test_a_constant_has_no_skewness_though_its_mean_is_rounded():
    x = np.full((50, 2), 0.1)
    x[3, 0] = np.nan
    check = GAUSSIAN.true().predictive_check(x, 3, random_state=0)
    np.testing.assert_array_equal(check.observed[:, :2], [[0.1, 0.0]] * 2)
    assert np.isnan(check.observed[:, 2:7]).all() and np.isnan(check.p_value[:, 2:7]).all()
