"""Families of responses, against statsmodels' GLM and an independent likelihood."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars
import pytest
from scipy.optimize import minimize
from scipy.special import digamma, expit
from scipy.stats import bernoulli, binom, expon, gamma, norm, poisson

from pyro_regimes import RegimeRegression
from tests import seeds
from tests.estimator.regression.cases import forward_of

# One regime is a generalised linear model. The numbers are those of statsmodels 0.14,
# sm.GLM(y, sm.add_constant(x), family=...).fit(tol=1e-14), on the data of ``waves``: coefficients,
# standard errors by its observed Hessian, and llf.
GLM = {
    "poisson": (
        [0.694058684512, 0.482897558275], [0.0937506369703, 0.131731657403], -91.9970285177
    ),
    "logit": (
        [-0.327408323344, 1.38130351693], [0.291213409293, 0.438404483135], -35.1936615236
    ),
    "probit": (
        [-0.204165672751, 0.851042916515], [0.174379322681, 0.258167343973], -35.1459840508
    ),
    "binomial": (
        [-0.646448941227, 0.75359650854], [0.115097626733, 0.166163932833], -89.7004169157
    ),
}  # fmt: skip


def waves() -> pd.DataFrame:
    t = np.arange(60)
    x = np.sin(1.7 * t)
    eta = 0.8 + 0.5 * x + 0.5 * (np.cos(2.3 * t) + 0.6 * np.sin(0.9 * t * t))
    few = np.minimum(np.floor(np.exp(eta)), 6)
    return pd.DataFrame(
        {
            "x": x, "count": np.floor(np.exp(eta)), "high": eta > 0.9, "few": few,
            "others": 6 - few, "positive": np.exp(eta),
        }
    )  # fmt: skip


SETTINGS = {
    "poisson": ("count ~ x", {"family": "poisson"}),
    "logit": ("high ~ x", {"family": "bernoulli"}),
    "probit": ("high ~ x", {"family": "bernoulli", "link": "probit"}),
    "binomial": ("few + others ~ x", {"family": "binomial"}),
}


@pytest.mark.parametrize("name", GLM)
def test_one_regime_is_a_generalised_linear_model(name):
    formula, settings = SETTINGS[name]
    model = RegimeRegression(formula, n_regimes=1, **settings).fit(waves())
    coefficients, errors, value = GLM[name]
    np.testing.assert_allclose(model.coef_[0], coefficients, rtol=1e-8)
    np.testing.assert_allclose(np.sqrt(np.diag(model.covariance_)), errors, rtol=1e-7)
    assert model.log_likelihood_ == pytest.approx(value, rel=1e-10)


def test_one_regime_of_a_gamma_is_a_generalised_linear_model():
    """statsmodels, whose shape is that of moments: the coefficients do not depend on it."""
    model = RegimeRegression("positive ~ x", family="gamma", n_regimes=1, tol=1e-12).fit(waves())
    np.testing.assert_allclose(model.coef_[0], [0.913741409858, 0.433736585293], rtol=1e-7)
    data = waves()
    mean = np.exp(model.coef_[0, 0] + model.coef_[0, 1] * data.x)
    ratio = data.positive / mean
    score = np.log(model.shape_[0]) - digamma(model.shape_[0]) - (ratio - 1 - np.log(ratio)).mean()
    assert abs(score) < 1e-8
    expected = gamma(model.shape_[0], scale=mean / model.shape_[0]).logpdf(data.positive).sum()
    assert model.log_likelihood_ == pytest.approx(expected)
    # The information of the coefficients is a X^T diag(y / m) X.
    X = np.column_stack([np.ones(len(data)), data.x])
    information = model.shape_[0] * (X.T * ratio.to_numpy()) @ X
    np.testing.assert_allclose(model.covariance_, np.linalg.inv(information), rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_a_gamma_do_not_matter(unit):
    settings = {"family": "gamma", "n_init": 2, "random_state": 0}
    model = RegimeRegression("waits ~ x", **settings).fit(DATA)
    other = RegimeRegression("waits ~ x", **settings).fit(DATA.assign(waits=DATA.waits * unit))
    np.testing.assert_allclose(other.coef_[:, 1], model.coef_[:, 1], rtol=1e-5)
    np.testing.assert_allclose(other.coef_[:, 0] - np.log(unit), model.coef_[:, 0], rtol=1e-5)
    np.testing.assert_allclose(other.shape_, model.shape_, rtol=1e-5)
    expected = model.log_likelihood_ - T * np.log(unit)
    assert other.log_likelihood_ == pytest.approx(expected, abs=1e-6)


T = 300
ETA = {0: (-0.9, -1.1), 1: (1.2, 0.7)}


def table() -> pd.DataFrame:
    rng = seeds.rng(1750)
    regime, x = np.arange(T) // 30 % 2, rng.normal(size=T)
    level, slope = np.array([ETA[q] for q in regime]).T
    eta = level + slope * x
    n = rng.randint(1, 9, size=T)
    some = rng.binomial(n, expit(eta))
    return pd.DataFrame(
        {
            "x": x, "count": rng.poisson(np.exp(eta)), "high": rng.uniform(size=T) < expit(eta),
            "some": some, "others": n - some, "positive": rng.exponential(np.exp(eta)),
            "waits": rng.gamma(4.0, np.exp(eta) / 4.0),
        }
    )  # fmt: skip


DATA = table()
CASES = {
    "poisson": ("count ~ x", {}, lambda eta: poisson(np.exp(eta)).logpmf(DATA[["count"]])),
    "bernoulli": ("high ~ x", {}, lambda eta: bernoulli(expit(eta)).logpmf(DATA[["high"]])),
    "probit": ("high ~ x", {}, lambda eta: bernoulli(norm.cdf(eta)).logpmf(DATA[["high"]])),
    "binomial": (
        "some + others ~ x", {},
        lambda eta: binom((DATA.some + DATA.others).to_numpy()[:, None], expit(eta)).logpmf(
            DATA[["some"]]
        ),
    ),
    "gamma": (
        "waits ~ x", {},
        lambda eta, shape: gamma(shape, scale=np.exp(eta) / shape).logpdf(DATA[["waits"]]),
    ),
    "exponential": (
        "positive ~ x", {"switching": ["1"]},
        lambda eta: expon(scale=np.exp(eta)).logpdf(DATA[["positive"]]),
    ),
}  # fmt: skip


def family_of(name: str) -> dict[str, str]:
    return {"family": "bernoulli", "link": "probit"} if name == "probit" else {"family": name}


@pytest.fixture(scope="module", params=CASES)
def fitted(request):
    formula, settings, density = CASES[request.param]
    model = RegimeRegression(
        formula, n_init=3, random_state=0, **settings, **family_of(request.param)
    )
    return model.fit(DATA), density, settings


def test_two_regimes_are_at_the_maximum(fitted):
    """Quasi-Newton from there finds no better parameters, by an independent likelihood."""
    model, density, settings = fitted
    X = np.column_stack([np.ones(T), DATA.x])
    own = 1 if settings else 2  # coefficients of each regime
    shapes = np.log(model.shape_) if model.family == "gamma" else np.empty(0)

    def loss(u: np.ndarray) -> float:
        stay, more = expit(u[-2:]), ()
        if len(shapes):
            u, more = np.concatenate([u[:-4], u[-2:]]), (np.exp(u[-4:-2]),)
        matrix = np.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]])
        first = (1 - stay[::-1]) / (2 - stay.sum())
        beta = np.column_stack([u[: 2 * own].reshape(2, own), np.tile(u[2 * own : -2], (2, 1))])
        matrices = np.broadcast_to(matrix, (T - 1, 2, 2))
        return -forward_of(density(X @ beta.T, *more), first, matrices)[1]

    stay = np.diagonal(model.transition_matrix_)
    point = np.concatenate(
        [model.coef_[:, :own].ravel(), model.coef_[0, own:], shapes, np.log(stay / (1 - stay))]
    )
    assert -loss(point) == pytest.approx(model.log_likelihood_, abs=1e-8)
    best = minimize(loss, point, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-7})
    assert -best.fun < model.log_likelihood_ + 1e-6
    np.testing.assert_allclose(best.x, point, atol=1e-3)
    assert model.converged_ and (np.diff(model.history_) >= -1e-9).all()
    assert model.n_parameters_ == len(point)


def test_forecast_and_means(fitted):
    model, density, _ = fitted
    has_trials = model.family == "binomial"
    options = {"trials": 5} if has_trials else {}
    rows, ahead = DATA.iloc[:200], DATA[["x"]].iloc[200:204]
    found = model.forecast(rows, ahead, **options)
    eta = np.column_stack([np.ones(4), ahead.x]) @ model.coef_.T
    inverse = {"log": np.exp, "logit": expit, "probit": norm.cdf}[model._form.response.link]
    each = inverse(eta) * (5 if has_trials else 1)
    np.testing.assert_allclose(found.means, each)
    np.testing.assert_allclose(found.mean, (found.regime_probs * each).sum(-1))
    if model.family in ("bernoulli", "poisson"):
        variance = each * (1 - each) if model.family == "bernoulli" else each
        second = (found.regime_probs * (variance + each**2)).sum(-1)
        np.testing.assert_allclose(found.deviation**2, second - found.mean**2)
    assert (found.cdf(found.quantile(0.4)) >= 0.4 - 1e-12).all() and "step 4" in str(found)
    predicted = model.predict_mean(rows, kind="smoothed")
    probs = model.predict_proba(rows)
    means = inverse(np.column_stack([np.ones(200), rows.x]) @ model.coef_.T)
    np.testing.assert_allclose(predicted, (probs * means).sum(-1))
    assert model.link is None or f"{model.link} link" in str(model.summary())


def test_saved(fitted, tmp_path):
    model = fitted[0]
    model.save(tmp_path / "model.json")
    loaded = RegimeRegression.load(tmp_path / "model.json")
    np.testing.assert_array_equal(loaded.predict_proba(DATA), model.predict_proba(DATA))
    assert str(loaded.summary()) == str(model.summary()) and not hasattr(loaded, "sigma_")


def test_missing_responses_are_marginalised(fitted):
    model, density, _ = fitted
    gone = np.arange(T) % 7 == 3
    names = [name for name in DATA if name in model.formula.split("~")[0]]
    data = DATA.assign(**{names[0]: DATA[names[0]].astype(float).where(~gone)})
    X = np.column_stack([np.ones(T), DATA.x])
    more = (model.shape_,) if model.family == "gamma" else ()
    each = np.where(gone[:, None], 0.0, density(X @ model.coef_.T, *more))
    matrices = np.broadcast_to(model.transition_matrix_, (T - 1, 2, 2))
    expected = forward_of(each, model.initial_probs_, matrices)[1]
    assert model.score(data, start="fitted") == pytest.approx(expected, abs=1e-8)
    again = RegimeRegression(**model.get_params() | {"n_init": 1}).fit(data)
    assert again.n_missing_ == gone.sum() and again.converged_
    assert again.score(data) == pytest.approx(again.log_likelihood_, abs=1e-8)


def test_arrays():
    y = DATA[["some", "others"]].to_numpy()
    settings = {"family": "binomial", "n_init": 2, "random_state": 0}
    model = RegimeRegression(**settings).fit(DATA[["x"]], y)
    same = RegimeRegression("some + others ~ x", **settings).fit(DATA)
    np.testing.assert_array_equal(model.coef_, same.coef_)
    with pytest.raises(ValueError, match="successes and one of failures .* got shape"):
        model.fit(DATA[["x"]], y[:, 0])


def test_flags_with_missing_ones():
    settings = {"family": "bernoulli", "n_init": 1, "random_state": 0}
    gone = DATA.index % 9 == 4
    numbers = DATA.assign(high=DATA.high.astype(float).where(~gone))
    model = RegimeRegression("high ~ x", **settings).fit(numbers)
    columns = {"x": DATA.x.to_numpy(), "high": [None if g else h for g, h in zip(gone, DATA.high)]}
    for data in (
        DATA.assign(high=DATA.high.astype("boolean").where(~gone)),
        DATA.assign(high=DATA.high.astype(object).where(~gone, None)),
        polars.DataFrame(columns),
    ):
        same = RegimeRegression("high ~ x", **settings).fit(data)
        np.testing.assert_array_equal(same.coef_, model.coef_)
        assert same.n_missing_ == gone.sum()


@pytest.mark.parametrize(
    ("family", "formula", "told"),
    [
        ("poisson", "wrong ~ x", r"counts \(0, 1, 2, ...\) with family=.*, got 0.5 in row 4"),
        ("bernoulli", "count ~ x", "of 0 or 1 with family='bernoulli', got .* give counts of succ"),
        ("binomial", "wrong + count ~ x", "counts of successes .* got 0.5 in row 4; .* not shares"),
        ("binomial", "count ~ x", "successes and failures as the response, .* got the columns"),
        ("gaussian", "some + count ~ x", "one number as the response"),
        ("exponential", "count ~ x", "positive numbers .* got 0 in row"),
        ("gauss", "count ~ x", "family to be one of 'gaussian', 'poisson'"),
    ],
)
def test_impossible_responses_are_refused(family, formula, told):
    data = DATA.assign(wrong=1.0)
    data.loc[4, "wrong"] = 0.5
    with pytest.raises(ValueError, match=told):
        RegimeRegression(formula, family=family).fit(data)


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="link of family='poisson' to be one of 'log', got"):
        RegimeRegression("count ~ x", family="poisson", link="logit").fit(DATA)
    with pytest.raises(ValueError, match="only a gaussian response"):
        RegimeRegression("count ~ x", family="poisson", scale_formula="~ x").fit(DATA)
    model = RegimeRegression("count ~ x", family="poisson", n_init=1, random_state=0).fit(DATA)
    with pytest.raises(ValueError, match="trials with family='binomial' only"):
        model.forecast(DATA, DATA[["x"]].iloc[:1], trials=3)


def test_separated_responses_are_said():
    data = DATA.assign(high=DATA.x > 0.1)
    with pytest.warns(match="coefficients of the mean have no maximum"):
        RegimeRegression("high ~ x", family="bernoulli", n_regimes=1, errors=None).fit(data)
    none = DATA.assign(count=np.where(DATA.x > 0.1, 0, 3))
    with pytest.warns(match="coefficients of the mean have no maximum"):
        RegimeRegression("count ~ {x > 0.1}", family="poisson", n_regimes=1, errors=None).fit(none)


def test_units_of_covariates_do_not_matter():
    settings = {"family": "poisson", "n_init": 2, "random_state": 0}
    model = RegimeRegression("count ~ x", **settings).fit(DATA)
    for unit in (1e-6, 1e6):
        other = RegimeRegression("count ~ x", **settings).fit(DATA.assign(x=DATA.x * unit + 3))
        np.testing.assert_allclose(other.coef_[:, 1] * unit, model.coef_[:, 1], rtol=1e-5)
        assert other.log_likelihood_ == pytest.approx(model.log_likelihood_, abs=1e-7)
