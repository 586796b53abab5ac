"""RegimeRegression: what it computes, against independent computations."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars
import pyro
import pytest
import torch
from scipy.optimize import minimize
from sklearn.base import clone

from pyro_regimes import RegimeRegression
from tests import seeds
from tests.estimator.regression.cases import T, forward, softmax, table

DATA = table()


def fitted(formula="y ~ x", data=DATA, **settings) -> RegimeRegression:
    settings = {"n_init": 3, "random_state": 0} | settings
    return RegimeRegression(formula, **settings).fit(data)


@pytest.fixture(scope="module")
def model() -> RegimeRegression:
    return fitted()


@pytest.fixture(scope="module", params=["left", "entered"])
def varying(request) -> RegimeRegression:
    return fitted(transition_formula="~ z", transition_row=request.param)


def means_of(model, data=DATA) -> np.ndarray:
    return np.column_stack([np.ones(len(data)), data.x]) @ model.coef_.T


def test_likelihood_and_filter_are_those_of_the_forward_recursion(model):
    matrices = np.broadcast_to(model.transition_matrix_, (T - 1, 2, 2))
    arguments = model.initial_probs_, means_of(model), model.sigma_, matrices
    filtered, value = forward(DATA.y.to_numpy(), *arguments)
    assert model.log_likelihood_ == pytest.approx(value, abs=1e-8)
    assert model.score(DATA) == pytest.approx(value, abs=1e-8)
    np.testing.assert_allclose(model.predict_proba(DATA, kind="filtered"), filtered, atol=1e-10)
    np.testing.assert_allclose(
        model.initial_probs_ @ model.transition_matrix_, model.initial_probs_, atol=1e-10
    )
    predicted = np.vstack([model.initial_probs_, filtered[:-1] @ model.transition_matrix_])
    np.testing.assert_allclose(
        model.predict_mean(DATA), (predicted * means_of(model)).sum(-1), atol=1e-9
    )
    assert (np.diff(model.history_) >= -1e-9).all() and model.converged_


def test_transitions_with_covariates_are_at_the_maximum(varying):
    """Quasi-Newton from there finds no better parameters, by an independent likelihood."""
    x = np.column_stack([np.ones(T), DATA.x])
    moves = np.column_stack([np.ones(T), DATA.z])
    moves = moves[:-1] if varying.transition_row == "left" else moves[1:]
    y, first = DATA.y.to_numpy(), varying.initial_probs_

    def loss(u: np.ndarray) -> float:
        gamma = np.zeros((2, 2, 2))
        gamma[0, 1], gamma[1, 0] = u[6:8], u[8:10]
        matrices = softmax(np.einsum("tq,ijq->tij", moves, gamma))
        return -forward(y, first, x @ u[:4].reshape(2, 2).T, np.exp(u[4:6]), matrices)[1]

    gamma = varying.transition_coefficients_
    point = np.concatenate(
        [varying.coef_.ravel(), np.log(varying.sigma_), gamma[0, 1], gamma[1, 0]]
    )
    assert -loss(point) == pytest.approx(varying.log_likelihood_, abs=1e-8)
    best = minimize(loss, point, method="BFGS", options={"gtol": 1e-4})
    assert -best.fun < varying.log_likelihood_ + 1e-4
    assert (gamma[[0, 1], [0, 1]] == 0).all()
    matrices = varying.transition_matrices(DATA)
    expected = softmax(np.einsum("tq,ijq->tij", np.column_stack([np.ones(T), DATA.z]), gamma))
    np.testing.assert_allclose(matrices, expected, atol=1e-12)


def test_which_row_drives_a_transition_matters(varying):
    """Shifting the covariate by a row turns one convention into the other."""
    is_left = varying.transition_row == "left"
    moved = DATA.assign(z=DATA.z.shift(1 if is_left else -1).fillna(0.0))
    other = fitted(
        data=moved, transition_formula="~ z", transition_row="entered" if is_left else "left"
    )
    assert other.log_likelihood_ == pytest.approx(varying.log_likelihood_, abs=1e-4)


def test_forecast_is_the_forward_recursion_over_missing_responses(varying, model):
    rows, ahead = DATA.iloc[:200], DATA.iloc[200:205]
    missing = pd.concat([rows, ahead.assign(y=np.nan)])
    for each in (varying, model):
        found = each.forecast(rows, ahead[["x", "z"]])
        expected = each.predict_proba(missing, kind="filtered")[200:]
        np.testing.assert_allclose(found.regime_probs, expected, atol=1e-10)
        means = means_of(each, ahead)
        np.testing.assert_allclose(found.mean, (expected * means).sum(-1), atol=1e-10)
        second = (expected * (means**2 + each.sigma_**2)).sum(-1)
        np.testing.assert_allclose(found.deviation, np.sqrt(second - found.mean**2), atol=1e-9)
        low, high = found.interval(0.9)
        np.testing.assert_allclose(found.cdf(high) - found.cdf(low), 0.9, atol=1e-9)
        assert list(found.to_frame().columns[:2]) == each.regime_names_
        assert "step 5" in str(found)


def test_forecast_asks_for_covariates(model):
    with pytest.raises(ValueError, match="future, the covariates .* depends on 'x'; got None"):
        model.forecast(DATA)
    with pytest.raises(ValueError, match="none named 'x'"):
        model.forecast(DATA, DATA[["z"]])
    with pytest.raises(ValueError, match="NaN in 'x' in 1 of 2 rows"):
        model.forecast(DATA, pd.DataFrame({"x": [1.0, np.nan]}))
    alone = fitted("y ~ 1")
    assert alone.forecast(DATA, 3).mean.shape == (3,)


def test_terms_that_do_not_switch():
    model = fitted("y ~ x + z", switching=["1"], switching_variance=False)
    assert np.ptp(model.coef_[:, 1]) == np.ptp(model.coef_[:, 2]) == 0 < np.ptp(model.coef_[:, 0])
    assert np.ptp(model.sigma_) == 0
    assert model.n_parameters_ == 2 + 2 + 1 + 2
    assert model.aic() == pytest.approx(2 * 7 - 2 * model.log_likelihood_)
    assert model.bic() == pytest.approx(7 * np.log(T) - 2 * model.log_likelihood_)
    x = np.column_stack([np.ones(T), DATA.x, DATA.z])
    y, stay = DATA.y.to_numpy(), model.transition_matrix_

    def loss(u: np.ndarray) -> float:
        means = (x[:, 1:] @ u[2:4])[:, None] + u[:2]
        matrices = np.broadcast_to(stay, (T - 1, 2, 2))
        return -forward(y, model.initial_probs_, means, np.exp(u[4]), matrices)[1]

    point = np.concatenate([model.coef_[:, 0], model.coef_[0, 1:], np.log(model.sigma_[:1])])
    best = minimize(loss, point, method="BFGS", options={"gtol": 1e-5})
    assert -best.fun == pytest.approx(model.log_likelihood_, abs=1e-5)


def test_a_mean_without_terms():
    """Regimes of zero mean, which differ in their variance alone."""
    rng = seeds.rng(1714)
    data = DATA.assign(y=np.where(DATA.index // 20 % 2, 2.0, 0.5) * rng.normal(size=T))
    model = fitted("y ~ 0", data)
    matrices = np.broadcast_to(model.transition_matrix_, (T - 1, 2, 2))
    means = np.zeros((T, 2))
    value = forward(data.y.to_numpy(), model.initial_probs_, means, model.sigma_, matrices)[1]
    assert model.log_likelihood_ == pytest.approx(value, abs=1e-8)
    assert model.coef_.shape == (2, 0) and model.n_parameters_ == 4 and model.converged_
    assert "sigma" in str(model.summary()) and model.forecast(data, 2).mean.tolist() == [0.0, 0.0]
    common = fitted("y ~ x", switching=[])
    assert np.ptp(common.coef_, axis=0).max() == 0 and common.converged_


def test_one_regime_is_least_squares():
    model = fitted(n_regimes=1)
    x = np.column_stack([np.ones(T), DATA.x])
    beta, (squares,), *_ = np.linalg.lstsq(x, DATA.y, rcond=None)
    np.testing.assert_allclose(model.coef_[0], beta, rtol=1e-10)
    covariance = squares / T * np.linalg.inv(x.T @ x)
    np.testing.assert_allclose(model.covariance_, covariance, rtol=1e-8)
    frame = model.coefficients_.to_frame()
    np.testing.assert_allclose(
        frame["z"].iloc[:2], beta / np.sqrt(covariance.diagonal()), rtol=1e-8
    )


def test_missing_responses_are_marginalised():
    gone = np.arange(T) % 7 == 3
    data = DATA.assign(y=DATA.y.where(~gone))
    model = fitted(data=data)
    assert model.n_missing_ == gone.sum() and model.n_samples_fit_ == T - gone.sum()
    matrices = np.broadcast_to(model.transition_matrix_, (T - 1, 2, 2))
    arguments = model.initial_probs_, means_of(model), model.sigma_, matrices
    assert model.log_likelihood_ == pytest.approx(forward(data.y.to_numpy(), *arguments)[1])
    # Where x of a missing response is, does not matter.
    far = fitted(data=data.assign(x=data.x.where(~gone, 50.0)))
    np.testing.assert_allclose(far.coef_, model.coef_, atol=1e-4)


def test_lags_in_the_formula():
    """The first rows are steps without an observation, which a stationary start does not see."""
    lagged = fitted("y ~ x + lag(y, 2)")
    own = DATA.assign(lag=DATA.y.shift(2)).iloc[2:]
    dropped = fitted("y ~ x + lag", own)
    assert lagged.log_likelihood_ == pytest.approx(dropped.log_likelihood_, abs=1e-6)
    np.testing.assert_allclose(lagged.coef_, dropped.coef_, atol=1e-4)
    assert lagged.n_samples_fit_ == T - 2 and lagged.n_missing_ == 2
    np.testing.assert_allclose(
        lagged.predict_proba(DATA)[2:], dropped.predict_proba(own), atol=1e-4
    )
    assert np.isnan(lagged.predict_mean(DATA)).sum() == 2
    with pytest.raises(ValueError, match="lag.*would reach into the sequence before"):
        RegimeRegression("y ~ lag(x)").fit(DATA, lengths=[T - 9, 9])


@pytest.mark.parametrize("row", ["left", "entered"])
def test_transitions_of_several_sequences(row):
    model = RegimeRegression(
        "y ~ x", transition_formula="~ z", transition_row=row, n_init=1, random_state=0
    ).fit(DATA, lengths=[100, T - 100])
    parts = [DATA.iloc[:100], DATA.iloc[100:]]
    alone = sum(model.score(part, start=model.initial_probs_) for part in parts)
    assert model.log_likelihood_ == pytest.approx(alone, abs=1e-8)


def test_several_sequences():
    twice = pd.concat([DATA, DATA], ignore_index=True)
    model = fitted(data=twice)
    alone = fitted(data=twice).set_params().fit(twice, lengths=[T, T])
    start = alone.initial_probs_
    assert alone.log_likelihood_ == pytest.approx(2 * alone.score(DATA, start=start), abs=1e-8)
    assert alone.log_likelihood_ != pytest.approx(model.log_likelihood_, abs=1e-3)
    probs = alone.predict_proba(twice, lengths=[T, T])
    np.testing.assert_allclose(probs[:T], probs[T:], atol=1e-12)


def test_frames_of_all_kinds_and_arrays(model):
    columns = {name: DATA[name].to_numpy() for name in DATA}
    for data in (polars.DataFrame(columns), columns, DATA.convert_dtypes()):
        same = fitted(data=data)
        np.testing.assert_array_equal(same.coef_, model.coef_)
        np.testing.assert_array_equal(same.predict(data), model.predict(DATA))
    arrays = RegimeRegression(n_init=3, random_state=0).fit(DATA[["x"]], DATA.y)
    np.testing.assert_array_equal(arrays.coef_, model.coef_)
    assert arrays.coef_names_ == ["Intercept", "x"]
    moves = RegimeRegression(n_init=3, random_state=0).fit(DATA.x, DATA.y, Z=DATA.z)
    same = fitted(transition_formula="~ z")
    np.testing.assert_array_equal(moves.transition_coefficients_, same.transition_coefficients_)


def test_formulas_keep_levels_and_splines():
    model = fitted("y ~ bs(x, df=4) + C(group) + center(z)", switching=["1", "bs(x, df=4)"])
    part = DATA.iloc[:2]
    assert set(part.group) == {"a", "b"}
    inside = model.predict_proba(DATA, kind="filtered")[:2]
    np.testing.assert_allclose(model.predict_proba(part, kind="filtered"), inside, atol=1e-12)
    with pytest.raises(ValueError, match="categories of the training data, got {'d'}"):
        model.predict(DATA.assign(group="d"))


def test_names_of_columns_that_are_no_words_or_those_of_functions():
    """`lag` is a function of formulas, too."""
    data = DATA.rename(columns={"x": "lag", "z": "a b"})
    model = fitted("y ~ lag + `a b`", data, transition_formula="~ `a b`")
    same = fitted("y ~ x + z", transition_formula="~ z")
    np.testing.assert_array_equal(model.coef_, same.coef_)
    moves = model.transition_matrices(data[["a b"]])
    np.testing.assert_array_equal(moves, same.transition_matrices(DATA[["z"]]))
    with pytest.raises(ValueError, match="none named 'lag' among"):
        model.predict(data.drop(columns="lag"))
    with pytest.raises(ValueError, match="NaN in 'a b' in 1 of 240 rows"):
        data.loc[3, "a b"] = np.nan
        fitted("y ~ lag + `a b`", data)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_do_not_matter(model, unit):
    other = fitted(data=DATA.assign(y=DATA.y * unit, x=5.0 + DATA.x / unit))
    np.testing.assert_allclose(other.sigma_ / unit, model.sigma_, rtol=1e-6)
    np.testing.assert_allclose(other.coef_[:, 1] / unit**2, model.coef_[:, 1], rtol=1e-6)
    expected = model.log_likelihood_ - T * np.log(unit)
    assert other.log_likelihood_ == pytest.approx(expected, abs=1e-6)


def test_nothing_of_the_caller_changes(model):
    pyro.get_param_store()["sigma"] = torch.tensor(3.0)
    pyro.set_rng_seed(seeds.seed(5))
    before, data = torch.get_rng_state(), DATA.copy()
    fitted(n_init=1)
    assert torch.equal(before, torch.get_rng_state())
    assert list(pyro.get_param_store().keys()) == ["sigma"]
    pd.testing.assert_frame_equal(data, DATA)


def test_scikit_learn_and_pickle(model):
    assert clone(model).get_params() == model.get_params()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(DATA), model.predict_proba(DATA))
    before = model.coef_
    with pytest.raises(ValueError):
        model.fit(DATA.assign(x=np.nan))
    assert model.coef_ is before
    path = model.predict(DATA)
    np.testing.assert_array_equal(fitted().fit_predict(DATA), path)


def test_separated_transitions_are_said():
    moved = (DATA.index // 20 != (DATA.index + 1) // 20).astype(float)
    with pytest.warns(match="coefficients of some transition have no maximum"):
        model = fitted(data=DATA.assign(z=moved), transition_formula="~ z")
    assert not model.converged_


def test_a_regime_that_fits_its_rows_exactly_is_said():
    levels = DATA.assign(y=DATA.index // 20 % 2)
    with pytest.warns(match="A regime fits its rows exactly in every start"):
        model = fitted("y ~ 1", levels)
    assert model.starts_.collapsed.all()
    for y in (3.0, 1.0 + 2.0 * DATA.x, 0.0):
        with pytest.raises(ValueError, match="one that it explains exactly"):
            fitted(data=DATA.assign(y=y))


def test_a_tight_regime_beside_a_wild_one_is_no_collapse():
    rng = seeds.rng(1712)
    wild = np.arange(T) // 20 % 2
    y = DATA.x + np.where(wild, 1e7, 1.0) * rng.normal(size=T)
    model = fitted(data=DATA.assign(y=y))
    assert not model.starts_.collapsed[model.starts_.best]
    assert 0.7 < model.sigma_[0] < 1.3 and 0.7e7 < model.sigma_[1] < 1.3e7
    share = model.predict_proba(DATA.assign(y=y)).mean(0)
    np.testing.assert_allclose(model.share_of_time_, share, atol=1e-10)


def test_a_regime_of_a_few_rows_is_noted():
    y = DATA.x + 0.5 * np.sin(37.0 * DATA.index)
    y[[50, 51, 52]] += 40.0
    model = fitted(data=DATA.assign(y=y), n_init=8, switching_variance=False, switching=["1"])
    assert "holds 3 of 240 steps: an outlier" in " ".join(str(model.summary()).split())


@pytest.fixture(scope="module", params=[True, False], ids=["own scales", "one scale"])
def spread(request):
    rng = seeds.rng(1713)
    noise = np.exp(np.where(DATA.index // 20 % 2, 0.4, -1.0) + 0.5 * DATA.z)
    y = np.where(DATA.index // 20 % 2, 2.0 + DATA.x, -DATA.x) + noise * rng.normal(size=T)
    data = DATA.assign(y=y)
    return fitted(data=data, scale_formula="~ z", switching_variance=request.param), data


def test_scales_with_covariates_are_at_the_maximum(spread):
    """Quasi-Newton from there finds no better parameters, by an independent likelihood."""
    model, data = spread
    x, w = (np.column_stack([np.ones(T), data[name]]) for name in "xz")
    y, own = data.y.to_numpy(), model.switching_variance
    width = 8 if own else 6

    def loss(u: np.ndarray) -> float:
        stay = 1 / (1 + np.exp(-u[-2:]))
        matrix = np.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]])
        first = (1 - stay[::-1]) / (2 - stay.sum())
        sigma = np.exp(w @ u[4:width].reshape(-1, 2).T)
        matrices = np.broadcast_to(matrix, (T - 1, 2, 2))
        return -forward(y, first, x @ u[:4].reshape(2, 2).T, sigma, matrices)[1]

    stay = np.diagonal(model.transition_matrix_)
    delta = model.scale_coefficients_ if own else model.scale_coefficients_[:1]
    point = np.concatenate([model.coef_.ravel(), delta.ravel(), np.log(stay / (1 - stay))])
    assert -loss(point) == pytest.approx(model.log_likelihood_, abs=1e-8)
    best = minimize(loss, point, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-7})
    assert -best.fun < model.log_likelihood_ + 1e-6
    assert model.n_parameters_ == len(point) and model.converged_

    # Standard errors, from second differences of that likelihood.
    step, size = 1e-4, len(point)
    places = step * np.eye(size)
    hessian = np.array(
        [
            [
                sum(a * b * loss(point + a * i + b * j) for a in (1, -1) for b in (1, -1))
                for j in places
            ]
            for i in places
        ]
    ) / (4 * step**2)  # fmt: skip
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    of = model._errors.values
    np.testing.assert_allclose(of.coefficients.ravel(), errors[:4], rtol=1e-3)
    found = of.scale_coefficients if own else of.scale_coefficients[:1]
    np.testing.assert_allclose(found.ravel(), errors[4:width], rtol=1e-3)


def test_scales_with_covariates_in_tables_forecasts_and_files(spread, tmp_path):
    model, data = spread
    frame = model.coefficients_.to_frame()
    of = "Regime 1" if model.switching_variance else "all regimes"
    assert frame["estimate"][(of, "log sigma: z")] == model.scale_coefficients_[0, 1]
    assert "Log of sigma                 ~ z" in str(model.summary())
    average = np.exp(model.scale_coefficients_ @ [1.0, data.z.mean()])
    np.testing.assert_allclose(model.sigma_, average)
    ahead = data[["x", "z"]].iloc[:3]
    found = model.forecast(data, ahead)
    w = np.column_stack([np.ones(3), ahead.z])
    np.testing.assert_allclose(found.deviations, np.exp(w @ model.scale_coefficients_.T))
    with pytest.raises(ValueError, match="none named 'z'"):
        model.forecast(data, ahead[["x"]])
    model.save(tmp_path / "model.json")
    loaded = RegimeRegression.load(tmp_path / "model.json")
    np.testing.assert_array_equal(loaded.predict_proba(data), model.predict_proba(data))
    assert str(loaded.summary()) == str(model.summary())
    with pytest.raises(ValueError, match="NaN in 'z' in 1 of 240 rows"):
        model.predict(data.assign(z=data.z.where(data.index != 5)))


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_do_not_matter_to_scales(spread, unit):
    model, data = spread
    other = fitted(
        data=data.assign(y=data.y * unit, z=data.z / unit), scale_formula="~ z",
        switching_variance=model.switching_variance,
    )  # fmt: skip
    np.testing.assert_allclose(other.sigma_ / unit, model.sigma_, rtol=1e-5)
    expected = model.log_likelihood_ - T * np.log(unit)
    assert other.log_likelihood_ == pytest.approx(expected, abs=1e-6)
