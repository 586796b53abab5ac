"""The table of estimates and the summary."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from pyro_regimes import RegimeRegression
from tests.estimator.regression.cases import table

DATA = table()


@pytest.fixture(scope="module")
def model() -> RegimeRegression:
    return RegimeRegression("y ~ x + z", switching=["1", "x"], n_init=2, random_state=0).fit(DATA)


def test_rows(model):
    assert model.coefficients_.labels == [
        ("Regime 1", "Intercept"), ("Regime 1", "x"), ("Regime 1", "sigma"),
        ("Regime 2", "Intercept"), ("Regime 2", "x"), ("Regime 2", "sigma"),
        ("all regimes", "z"),
        *(("transition probabilities", f"Regime {i} to Regime {j}")
          for i in (1, 2) for j in (1, 2)),
    ]  # fmt: skip


def test_statistics(model):
    frame = model.conf_int(0.9).to_frame()
    value, error = frame["estimate"], frame["standard error"]
    z = value / error
    of = frame.index.get_level_values("of") != "transition probabilities"
    own = of & (frame.index.get_level_values("term") != "sigma")
    np.testing.assert_allclose(frame["z"][own], z[own])
    np.testing.assert_allclose(frame["p-value"][own], 2 * norm.sf(abs(z[own])), rtol=1e-9)
    times = norm.ppf(0.95)
    np.testing.assert_allclose(frame["upper"][own], (value + times * error)[own])
    assert frame["z"][~own].isna().all() and frame["p-value"][~own].isna().all()
    sigma = frame.loc[("Regime 1", "sigma")]
    assert sigma["lower"] * sigma["upper"] == pytest.approx(sigma["estimate"] ** 2)
    probs = frame.loc["transition probabilities"]
    odds = probs[["lower", "estimate", "upper"]] / (1 - probs[["lower", "estimate", "upper"]])
    np.testing.assert_allclose(odds["lower"] * odds["upper"], odds["estimate"] ** 2, rtol=1e-9)
    slope = np.log(odds["upper"] / odds["estimate"])
    expected = times * probs["standard error"] / (probs["estimate"] * (1 - probs["estimate"]))
    np.testing.assert_allclose(slope, expected)


def test_sandwich(model):
    other = model.get_params() | {"errors": "sandwich"}
    robust = RegimeRegression(**other).fit(DATA)
    assert robust.coefficients_.method.startswith("sandwich")
    ratio = robust.coefficients_.standard_error / model.coefficients_.standard_error
    assert (ratio > 0.3).all() and (ratio < 3).all() and (abs(ratio - 1) > 1e-6).any()


def test_summary(model):
    text = str(model.summary())
    for part in ("y ~ x + z", "Log-likelihood", "AIC", "P>|z|", "all regimes", "[0.025"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    assert "<table>" in model.summary()._repr_html_()
    for level in (0, 1, 1.5):
        with pytest.raises(ValueError, match="level"):
            model.conf_int(level)


def test_summary_of_transitions_with_covariates():
    varying = RegimeRegression("y ~ x", transition_formula="~ z", n_init=2, random_state=0)
    text = str(varying.fit(DATA).summary())
    assert "by the row that is left" in text and "log-odds against" in text
    assert ("Regime 1 to Regime 2", "z") in varying.coefficients_.labels
    assert max(map(len, text.splitlines())) <= 80


def test_without_standard_errors():
    model = RegimeRegression("y ~ x", errors=None, n_init=1, random_state=0).fit(DATA)
    assert model.covariance_ is None
    assert np.isnan(model.coefficients_.standard_error).all()
