"""Tests of a value at risk, against published limits, scipy's G-test, and forecasts of rows."""

import warnings

import numpy as np
import pytest
from scipy.stats import beta, chi2_contingency

from pyro_regimes import RegimeModel, walk_forward
from pyro_regimes.estimator.exceedances import COLUMNS, christoffersen, kupiec, row_of_tests
from tests import seeds


@pytest.mark.parametrize(
    "level, rows, low, high",
    [
        (0.01, 510, 1, 11),
        (0.01, 1000, 4, 17),
        (0.05, 255, 6, 21),
        (0.05, 510, 16, 36),
        (0.05, 1000, 37, 65),
    ],
)
def test_kupiec_rejects_what_the_published_table_does(level, rows, low, high):
    """Kupiec 1995, as in Jorion's "Value at Risk": more than ``low`` and fewer than ``high``."""
    kept = [number for number in range(rows) if kupiec(number, rows, level) >= 0.05]
    assert (kept[0], kept[-1]) == (low + 1, high - 1)


def test_christoffersen_is_the_g_test_of_pairs():
    rng = seeds.rng(0)
    exceeded, counts = rng.random_sample(400) < 0.2, rng.random_sample(400) < 0.9
    pairs = counts[:-1] & counts[1:]
    table = np.zeros((2, 2))
    np.add.at(table, (exceeded[:-1][pairs].astype(int), exceeded[1:][pairs].astype(int)), 1)
    wanted = chi2_contingency(table, correction=False, lambda_="log-likelihood").pvalue
    assert christoffersen(exceeded, counts) == pytest.approx(wanted, rel=1e-6)
    assert christoffersen(np.arange(400) % 100 < 10) < 1e-9
    assert np.isnan(christoffersen(np.zeros(10))) and np.isnan(christoffersen(np.ones(10)))


def test_a_row_has_the_exact_interval():
    exceeded = np.arange(300) % 23 == 0
    row = dict(zip(COLUMNS, row_of_tests(exceeded, np.ones(300, bool), 0.05, True)))
    number = exceeded.sum()
    assert (row["rows"], row["exceedances"], row["share"]) == (300, number, number / 300)
    assert row["lower"] == pytest.approx(beta.ppf(0.025, number, 301 - number))
    assert row["upper"] == pytest.approx(beta.ppf(0.975, number + 1, 300 - number))
    assert row["Kupiec"] == kupiec(number, 300, 0.05)
    none = row_of_tests(exceeded, np.zeros(300, bool), 0.05, True)
    assert none[:2] == (0, 0) and np.isnan(none[2:]).all()


@pytest.mark.parametrize("emission", ["gaussian", "student_t"])
def test_a_weighted_sum_has_the_quantiles_of_its_forecasts(emission):
    spreads = np.where(np.arange(120) % 40 < 20, 1, 3)[:, None]
    data = seeds.rng(1).standard_normal((120, 2)) * spreads
    data[100, 1] = np.nan
    model = RegimeModel(2, emission=emission, n_init=1, random_state=0, max_iter=30, tol=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*refits have warnings")  # of names, for some seeds
        walk = walk_forward(model, data, min_train=80, refit_every=20)
    weights = np.array([0.7, 0.3])
    found = walk.value_at_risk([0.05], weights=weights)
    assert list(found.columns) == [(0.05, "weighted sum")]
    for row in (82, 110):
        fit = walk.fits[walk.walk.refit[row - 1 - 80]]
        forecast = fit.model.forecast(data[fit.window.first : row], 1, start="fitted")
        wanted = forecast.value_at_risk(0.05, weights=weights)[0]
        assert found.to_numpy()[row - 80, 0] == pytest.approx(wanted, rel=1e-6)
    table = walk.exceedances([0.05], weights=weights)
    sums = data[81:] @ weights
    assert table["rows"].item() == 38
    assert table["exceedances"].item() == (sums < -found.to_numpy()[1:, 0]).sum()
    alone = walk.exceedances([0.05], weights=[1.0, 0.0])
    assert alone["rows"].item() == 39  # the missing value has weight 0
    assert alone.to_numpy()[0] == pytest.approx(walk.exceedances([0.05]).to_numpy()[0], nan_ok=True)
    for wrong in ([1.0], [0.0, 0.0], "ab"):
        with pytest.raises(ValueError, match="weights"):
            walk.exceedances([0.05], weights=wrong)


def test_forecasts_that_overlap_have_no_test_of_independence():
    data = seeds.rng(2).standard_normal((120, 1))
    model = RegimeModel(1, random_state=0)
    walk = walk_forward(model, data, min_train=40, refit_every=80, horizon=2)
    table = walk.exceedances([0.2])
    assert np.isnan(table["Christoffersen"].item()) and not np.isnan(table["Kupiec"].item())
