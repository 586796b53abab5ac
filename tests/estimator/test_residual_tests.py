"""Tests of residuals: numbers by hand and by scipy, and how often they reject."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.residual_tests import autocorrelations, ljung_box, run_tests
from tests import seeds
from tests.frequencies import assert_binomial


def test_ljung_box_by_hand():
    """Of 1 to 5: r_1 = 4 / 10 and r_2 = -1 / 10, so Q = 5 * 7 * (0.16 / 4 + 0.01 / 3)."""
    statistic, p_value = ljung_box(np.arange(1.0, 6.0), [5], 2)
    assert statistic == pytest.approx(91 / 60)
    assert p_value == pytest.approx(np.exp(-91 / 120))


def test_autocorrelations_of_pairs_within_sequences_that_are_there():
    values = seeds.rng(0).standard_normal(40)
    values[[3, 17, 18]] = np.nan
    lengths = [25, 1, 14]
    sequence = np.repeat([0, 1, 2], lengths)
    centred = values - np.nanmean(values)
    found, pairs = autocorrelations(values, lengths, 15)
    for lag in range(1, 16):
        terms = [
            centred[row] * centred[row + lag]
            for row in range(40 - lag)
            if sequence[row] == sequence[row + lag]
            and np.isfinite(centred[row] * centred[row + lag])
        ]
        assert pairs[lag - 1] == len(terms)
        assert found[lag - 1] == pytest.approx(sum(terms) / np.nansum(centred**2))


def test_lags_without_pairs_do_not_count():
    values = seeds.rng(1).standard_normal(6)
    statistic, p_value = ljung_box(values, [3, 3], 10)
    r = autocorrelations(values, [3, 3], 2)[0]
    assert statistic == pytest.approx(8 * 6 * (r[0] ** 2 / 4 + r[1] ** 2 / 2))
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 2))
    assert np.isnan(ljung_box(np.ones(9), [9], 3)).all()
    assert np.isnan(ljung_box(values, [1] * 6, 3)).all()


def test_each_test_is_that_of_scipy():
    values = seeds.rng(2).standard_t(4, (50, 2))
    values[4, 0] = np.nan
    tests = run_tests(values, [50], "forecast", 5, ["a", "b"])
    for column in range(2):
        seen = values[~np.isnan(values[:, column]), column]
        for found, expected in (
            (tests.jarque_bera, stats.jarque_bera(seen)),
            (tests.kolmogorov_smirnov, stats.kstest(seen, "norm")),
        ):
            assert found.statistic[column] == pytest.approx(expected.statistic, rel=1e-12)
            assert found.p_value[column] == pytest.approx(expected.pvalue, rel=1e-12)
        squares = ljung_box(values[:, column] ** 2, [50], 5)
        assert tests.ljung_box_squares.p_value[column] == squares[1]
    assert tests.n.tolist() == [49, 50]


def test_independent_normal_numbers_are_rejected_at_the_nominal_rate():
    """That of Jarque-Bera is left out: it is only asymptotic, and rejects less often."""
    values = seeds.rng(3).standard_normal((1000, 200))
    tests = run_tests(values, [1000], "forecast", 10, [str(n) for n in range(200)])
    for test in (tests.kolmogorov_smirnov, tests.ljung_box, tests.ljung_box_squares):
        assert_binomial((test.p_value < 0.05).sum(), 200, 0.05)


def test_what_the_tests_are_against():
    rng = seeds.rng(4)
    noise = rng.standard_normal(2000)
    dependent = np.convolve(noise, [1.0, 0.5])[:2000] / 1.25**0.5
    volatile = noise * np.repeat([0.3, 1.4], 1000)
    values = np.stack([rng.standard_t(3, 2000), noise + 0.3, dependent, volatile], 1)
    tests = run_tests(values, [2000], "forecast", 10, list("abcd"))
    assert tests.jarque_bera.p_value[0] < 1e-6
    assert tests.kolmogorov_smirnov.p_value[1] < 1e-6
    assert tests.ljung_box.p_value[2] < 1e-6
    assert tests.ljung_box_squares.p_value[3] < 1e-6


def test_table_and_frame():
    values = seeds.rng(5).standard_normal((40, 2))
    values[:, 1] = np.nan
    tests = run_tests(values, [40], "forecast", 3, ["first", "second"])
    frame = tests.to_frame()
    assert frame.loc["first", ("Ljung-Box", "statistic")] == tests.ljung_box.statistic[0]
    assert frame["n"].tolist() == [40, 0] and frame.shape == (2, 9)
    lines = str(tests).splitlines()
    assert "up to lag 3" in lines[0]
    assert lines[3].split()[:2] == ["first", "40"]
    assert lines[4].split() == ["second", "0", "-", "-", "-", "-"]
    assert max(map(len, lines)) <= 80
    page = tests._repr_html_()
    assert page.startswith("<div>") and ">first<" in page and page.count(">-<") == 4


def test_ordinary_residuals_have_no_ljung_box_test():
    x = RegimeModel.from_parameters(None, [[1.0]], [[0.0]], [[[1.0]]]).sample(50, random_state=0)[0]
    model = RegimeModel.from_parameters(None, [[1.0]], [[0.0]], [[[1.0]]])
    tests = model.residuals(x, "ordinary").tests()
    assert np.isnan(tests.ljung_box.p_value).all() and np.isfinite(tests.jarque_bera.p_value).all()
    assert "no Ljung-Box tests" in str(tests)
    assert "no Ljung-Box tests" not in str(model.residuals(x).tests())


def test_an_impossible_observation_is_rejected():
    values = np.append(seeds.rng(6).standard_normal(30), np.inf)[:, None]
    tests = run_tests(values, [31], "forecast", 3, ["a"])
    assert tests.jarque_bera.p_value[0] == 0.0 and np.isnan(tests.ljung_box.p_value[0])


@pytest.mark.parametrize("lags", [0, 1.5, True, "ten"])
def test_wrong_lags(lags):
    with pytest.raises(ValueError, match="expected lags to be"):
        run_tests(np.zeros((9, 1)), [9], "forecast", lags, ["a"])


def test_more_lags_than_rows_are_left_out() -> None:
    values = seeds.rng(20).standard_normal((30, 1))
    most, more = (run_tests(values, [30], "forecast", lags, ["x"]) for lags in (29, 10**15))
    np.testing.assert_array_equal(more.ljung_box.p_value, most.ljung_box.p_value)
