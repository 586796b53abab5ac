"""Published switching regressions, from the estimator's own starts; sources in ``tests/data``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_regimes import RegimeRegression

DATA = Path(__file__).parents[2] / "data"


def lagged(file: str, name: str) -> pd.DataFrame:
    data = pd.read_csv(DATA / file)
    return data.assign(lag=data[name].shift())


FEDFUNDS = lagged("usmacro.csv", "fedfunds")


@pytest.fixture(scope="module")
def one_lag() -> RegimeRegression:
    model = RegimeRegression(
        "fedfunds ~ lag", switching_variance=False, n_init=5, random_state=0
    )
    return model.fit(FEDFUNDS.iloc[1:])


def test_the_federal_funds_rate_with_one_lag(one_lag):
    assert one_lag.log_likelihood_ == pytest.approx(-264.71069, abs=1e-5)
    printed = [[-0.0988764, 1.061174], [0.724457, 0.7631424]]  # the regimes are in our order
    order = one_lag.coef_[:, 1].argsort()[::-1]
    np.testing.assert_allclose(one_lag.coef_[order], printed, atol=2e-4)
    np.testing.assert_allclose(one_lag.sigma_, 0.6915759, atol=2e-5)
    matrix = one_lag.transition_matrix_[np.ix_(order, order)]
    np.testing.assert_allclose(matrix[1], [0.36218249, 0.6378175], atol=1e-3)


def test_its_standard_errors(one_lag):
    """Of the observed information, within 1 % of those that Stata prints."""
    errors = one_lag.coefficients_.to_frame()["standard error"]
    low, high = (f"Regime {k + 1}" for k in one_lag.coef_[:, 1].argsort())
    printed = {
        (low, "Intercept"): 0.2886657, (low, "lag"): 0.0337234,
        (high, "Intercept"): 0.1183838, (high, "lag"): 0.0185031,
        ("transition probabilities", f"{low} to {low}"): 0.1202616,
        ("transition probabilities", f"{high} to {low}"): 0.0495924,
    }  # fmt: skip
    for label, value in printed.items():
        assert errors[label] == pytest.approx(value, rel=0.01), label


def test_the_federal_funds_rate_with_output_gap_and_inflation():
    rows = FEDFUNDS.iloc[4:]
    model = RegimeRegression(
        "fedfunds ~ lag + ogap + inf", switching_variance=False, n_init=5, random_state=0
    ).fit(rows)
    assert model.log_likelihood_ == pytest.approx(-229.25614, abs=1e-5)
    low = model.coef_[:, 1].argmin()
    printed = [0.6554954, 0.8314458, 0.1355425, -0.0273928]
    np.testing.assert_allclose(model.coef_[low], printed, atol=2e-4)


def test_three_regimes_reach_beyond_the_published_local_optimum():
    """Stata prints -189.89493; statsmodels' own tests know a higher one."""
    model = RegimeRegression(
        "fedfunds ~ lag + ogap + inf", switching_variance=False, n_regimes=3, random_state=0,
        n_init=12, errors=None,
    ).fit(FEDFUNDS.iloc[4:])  # fmt: skip
    assert model.converged_ and model.log_likelihood_ > -182.27188
    assert model.score(FEDFUNDS.iloc[4:]) == pytest.approx(model.log_likelihood_, abs=1e-9)


def test_absolute_returns_with_a_switching_variance():
    rows = lagged("areturns.csv", "areturns").iloc[1:]
    model = RegimeRegression("areturns ~ lag", n_init=6, random_state=0).fit(rows)
    assert model.log_likelihood_ == pytest.approx(-745.7977, abs=1e-4)
    np.testing.assert_allclose(model.sigma_, [0.5895792, 1.605333], atol=5e-4)
    printed = [[0.7641424, 0.0790744], [1.972771, 0.527953]]
    np.testing.assert_allclose(model.coef_, printed, atol=5e-4)


def test_mumps_without_a_constant():
    rows = lagged("mumps.csv", "mumpspc").iloc[1:]
    model = RegimeRegression("mumpspc ~ 0 + lag", n_init=3, random_state=0).fit(rows)
    assert model.log_likelihood_ == pytest.approx(131.7225, abs=1e-4)
    np.testing.assert_allclose(model.coef_[:, 0], [0.420275, 0.9847369], atol=2e-4)
    np.testing.assert_allclose(model.sigma_, [0.0562405, 0.2611362], atol=1e-4)


def test_the_federal_funds_rate_without_covariates():
    """The hidden Markov model with a common variance, with Stata's probabilities and means."""
    data = pd.read_csv(DATA / "fedfunds.csv")
    model = RegimeRegression("fedfunds ~ 1", switching_variance=False, n_init=3, random_state=0)
    model.fit(data)
    assert model.log_likelihood_ == pytest.approx(-508.63592, abs=1e-5)
    probs = model.predict_proba(data)[:, model.coef_[:, 0].argmin()]
    np.testing.assert_allclose(probs, data.smoothed_1, atol=2e-5)
