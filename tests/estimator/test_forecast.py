"""The distribution of tomorrow: quantiles, losses, portfolios, paths and one-row updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyro_regimes import RegimeModel
from pyro_regimes.estimator import Forecast
from pyro_regimes.estimator.parameters import Array
from tests import seeds
from tests.estimator.emission_cases import ALL, CASES, TRANSITIONS, Case

RETURNS = [case for case in CASES if case.emission in ("gaussian", "student_t", "gaussian_mixture")]
OF_RETURNS = pytest.mark.parametrize("case", RETURNS, ids=[case.name for case in RETURNS])
GAUSSIAN, JOINT_T = CASES[0], CASES[1]
WEIGHTS = np.array([0.6, 0.4])


def forecast_of(case: Case, n_steps: int = 3, **settings: Any) -> Forecast:
    return case.true(**settings).forecast(case.sample(1, 60)[0], n_steps)


def errors(shares: Array, number: int) -> Array:
    """Five standard errors of shares of so many draws."""
    return 5 * np.sqrt(np.maximum(shares * (1 - shares), 1 / number) / number)


@ALL
def test_paths_have_the_marginals_of_every_step(case: Case) -> None:
    forecast, number = forecast_of(case), 20_000
    paths = forecast.sample_paths(number, random_state=seeds.rng(2))
    assert paths.observations.shape == (number, 3, 2) and paths.regimes.shape == (number, 3)
    shares = (paths.regimes[..., None] == np.arange(2)).mean(0)
    assert (np.abs(shares - forecast.regime_probs) <= errors(forecast.regime_probs, number)).all()
    for x in np.quantile(paths.observations[:, 0], [0.1, 0.5, 0.9], axis=0):
        expected = forecast.cdf(x)
        found = (paths.observations <= x).mean(0)
        assert expected.shape == (3, 2)
        assert (np.abs(found - expected) <= errors(expected, number)).all()


@ALL
def test_paths_change_regimes_as_the_chain_does(case: Case) -> None:
    forecast, number = forecast_of(case, 4), 20_000
    regimes = forecast.sample_paths(number, random_state=seeds.rng(3)).regimes
    for old in range(2):
        left = regimes[:, :-1] == old
        moved = (regimes[:, 1:][left] != old).mean()
        expected = 1 - TRANSITIONS[old, old]
        assert abs(moved - expected) <= errors(np.array(expected), left.sum())


@ALL
def test_quantiles_invert_the_cdf_of_every_step(case: Case) -> None:
    forecast, levels = forecast_of(case), np.array([[0.01, 0.5], [0.95, 0.999]])
    if case.emission == "von_mises":
        with pytest.raises(ValueError, match="got angles, which have no quantiles"):
            forecast.quantile(levels)
        return
    found = forecast.quantile(levels)
    assert found.shape == (2, 2, 3, 2)
    reached = forecast.cdf(found)
    if case.emission in ("poisson", "negative_binomial", "categorical", "bernoulli"):
        assert (reached >= levels[..., None, None]).all()
        assert (forecast.cdf(found - 1) < levels[..., None, None]).all()
    else:
        assert (reached >= levels[..., None, None] - 1e-13).all()
    np.testing.assert_array_equal(forecast.quantile(0.95), found[1, 0])
    low, high = forecast.interval(0.9)
    np.testing.assert_array_equal(high, forecast.quantile(0.95))
    np.testing.assert_allclose(low, forecast.quantile(0.05), rtol=1e-12)


@OF_RETURNS
def test_losses_are_those_of_the_draws(case: Case) -> None:
    forecast, number = forecast_of(case, 2), 200_000
    draws = forecast.sample_paths(number, random_state=seeds.rng(4)).observations
    risk, shortfall = forecast.value_at_risk(0.05), forecast.expected_shortfall(0.05)
    assert risk.shape == shortfall.shape == (2, 2) and (shortfall > risk).all()
    share = (draws < -risk).mean(0)
    assert (np.abs(share - 0.05) <= errors(np.array(0.05), number)).all()
    losses = np.where(draws < -risk, -draws, np.nan)
    noise = np.nanstd(losses, (0,)) / np.sqrt(0.05 * number)
    assert (np.abs(np.nanmean(losses, 0) - shortfall) <= 6 * noise).all()


@pytest.mark.parametrize("case", [GAUSSIAN, JOINT_T, *RETURNS[-2:]], ids=lambda case: case.name)
def test_a_portfolio_is_the_weighted_sum_of_the_draws(case: Case) -> None:
    forecast, number = forecast_of(case), 100_000
    draws = forecast.sample_paths(number, random_state=seeds.rng(5)).observations @ WEIGHTS
    levels = np.array([0.01, 0.05, 0.9])
    found = forecast.quantile(levels, weights=WEIGHTS)
    assert found.shape == (3, 3)
    for level, points in zip(levels, found, strict=True):
        share = (draws <= points).mean(0)
        assert (np.abs(share - level) <= errors(np.array(level), number)).all()
    np.testing.assert_allclose(forecast.cdf(found, weights=WEIGHTS), levels[:, None] * np.ones(3))
    risk = forecast.value_at_risk(0.01, weights=WEIGHTS)
    np.testing.assert_array_equal(risk, -found[0])
    assert (forecast.expected_shortfall(0.01, weights=WEIGHTS) > risk).all()
    low, high = forecast.interval(0.9, weights=WEIGHTS)
    np.testing.assert_allclose(low, found[1], rtol=1e-12)


def test_diversification_and_signs() -> None:
    """One Gaussian regime, by the formulas of a textbook."""
    mean, covariance = np.array([[0.001, 0.0005]]), np.array([[[4e-4, -1e-4], [-1e-4, 1e-4]]])
    model = RegimeModel.from_parameters(None, [[1.0]], means=mean, covariances=covariance)
    forecast = model.forecast(None, 1, after=[1.0])
    z = stats.norm.ppf(0.99)
    sizes = np.array([0.02, 0.01])
    np.testing.assert_allclose(forecast.value_at_risk(0.01)[0], z * sizes - mean[0], rtol=1e-12)
    weights = np.array([0.5, 0.5])
    scale = np.sqrt(weights @ covariance[0] @ weights)
    expected = z * scale - mean[0] @ weights
    np.testing.assert_allclose(forecast.value_at_risk(0.01, weights=weights), expected, rtol=1e-12)
    tail = stats.norm.pdf(z) / 0.01 * scale - mean[0] @ weights
    np.testing.assert_allclose(forecast.expected_shortfall(0.01, weights=weights), tail, rtol=1e-12)
    np.testing.assert_allclose(
        forecast.value_at_risk(0.01, weights=-weights), z * scale + mean[0] @ weights, rtol=1e-12
    )
    assert forecast.change_probability()[0] == 0


def test_the_probability_of_a_change_is_counted_on_all_paths() -> None:
    model = GAUSSIAN.true()
    last = np.array([0.3, 0.7])
    forecast = model.forecast(None, 5, after=last)
    staying = last.copy()
    for found in forecast.change_probability():
        staying = staying * np.diagonal(TRANSITIONS)
        np.testing.assert_allclose(found, 1 - staying.sum(), rtol=1e-12)
    ones = dict(means=np.zeros((2, 1)), covariances=np.ones((2, 1, 1)))
    never = RegimeModel.from_parameters(None, np.array([[1.0, 0.0], [1.0, 0.0]]), **ones)
    np.testing.assert_array_equal(never.forecast(None, 2, after=[0, 1]).change_probability(), 1.0)
    np.testing.assert_array_equal(never.forecast(None, 2, after=[1, 0]).change_probability(), 0.0)
    rare = RegimeModel.from_parameters(None, [[1 - 1e-14, 1e-14], [0.5, 0.5]], **ones)
    found = rare.forecast(None, 3, after=[1.0, 0.0]).change_probability()
    stay = 1 - rare.transition_matrix_[0, 0]
    np.testing.assert_allclose(found, stay * np.arange(1, 4), rtol=1e-10)


@ALL
def test_yesterdays_probabilities_are_enough(case: Case) -> None:
    model, (x, _) = case.true(), case.sample(6, 50)
    whole = model.forecast(x, 2)
    last = model.predict_proba(x, "filtered")[-1]
    np.testing.assert_allclose(whole.last_probs, last, rtol=1e-12)
    before = model.predict_proba(x[:-1], "filtered")[-1]
    updated = model.predict_proba(x[-1:], "filtered", after=before)[-1]
    for found in (
        model.forecast(None, 2, after=last),
        model.forecast(x[:0], 2, after=last),
        model.forecast(x[-1:], 2, after=before),
        model.forecast(None, 2, after=updated),
    ):
        np.testing.assert_allclose(found.regime_probs, whole.regime_probs, rtol=1e-9)
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-9)
        np.testing.assert_allclose(found.cdf(x[0]), whole.cdf(x[0]), rtol=1e-8)


def test_the_cdf_of_what_comes_is_uniform() -> None:
    model = JOINT_T.true()
    x, _ = JOINT_T.sample(7, 800)
    last, found = model.predict_proba(x[:1], "filtered")[-1], []
    for row in x[1:]:
        found.append(model.forecast(None, 1, after=last).cdf(row)[0])
        last = model.predict_proba(row[None], "filtered", after=last)[-1]
    for series in np.transpose(found):
        assert stats.kstest(series, "uniform").pvalue > 1e-5


def test_paths_are_repeatable_and_the_callers_random_state_is_left() -> None:
    model = GAUSSIAN.true(random_state=4)
    forecast = model.forecast(None, 2, after=[0.5, 0.5])
    before = np.random.get_state()[1].copy()
    first, second = forecast.sample_paths(5), forecast.sample_paths(5)
    np.testing.assert_array_equal(first.observations, second.observations)
    other = forecast.sample_paths(5, random_state=1)
    assert (first.observations != other.observations).any()
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_angles_beside_other_series() -> None:
    model = RegimeModel.from_parameters(
        None,
        TRANSITIONS,
        emission={0: "von_mises", 1: "gamma"},
        von_mises_means=[[0.5], [3.0]],
        von_mises_concentrations=[[4.0], [1.0]],
        gamma_concentrations=[[2.0], [9.0]],
        gamma_rates=[[2.0], [1.0]],
    )
    forecast = model.forecast([[0.4, 1.0], [0.6, 2.0]], 2)
    found = forecast.quantile([0.1, 0.9])
    assert np.isnan(found[..., 0]).all() and np.isfinite(found[..., 1]).all()
    np.testing.assert_allclose(forecast.cdf(found)[..., 1], [[0.1, 0.1], [0.9, 0.9]], rtol=1e-12)
    np.testing.assert_allclose(forecast.cdf([np.pi, np.inf]), 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f: f.value_at_risk(0.99), "expected level to be above 0 and at most 0.5, got 0.99; "
         "give the probability of the tail, such as 0.01 for a confidence of 99 %"),
        (lambda f: f.expected_shortfall([0.01, 0.95]), "expected level .* got 0.95"),
        (lambda f: f.value_at_risk(0), "expected level to be above 0 and at most 0.5, got 0"),
        (lambda f: f.value_at_risk(5), "expected level .* got 5"),
        (lambda f: f.quantile(1.0), "expected p to be above 0 and below 1, got 1"),
        (lambda f: f.quantile("half"), "expected p to be an array of numbers"),
        (lambda f: f.quantile(np.nan), "expected p to be finite"),
        (lambda f: f.interval(95), "expected level to be above 0 and below 1, got 95"),
        (lambda f: f.quantile(0.5, weights=[1.0]), "expected weights to be one number for each"),
        (lambda f: f.quantile(0.5, weights=[0.0, 0]), "not all 0, got "),
        (lambda f: f.cdf(np.zeros(5)), "expected x to broadcast with .*, got shape \\(5,\\)"),
        (lambda f: f.sample_paths(0), "expected n_paths to be at least 1, got 0"),
        (lambda f: f.sample_paths(1, random_state=-1), "expected random_state to be at least 0"),
    ],
)  # fmt: skip
def test_wrong_calls_say_what_is_meant(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(forecast_of(GAUSSIAN))


@pytest.mark.parametrize("emission", ["poisson", "lognormal", "bernoulli"])
def test_losses_of_what_are_no_returns_are_refused(emission: str) -> None:
    (case,) = (case for case in CASES if case.emission == emission)
    forecast = forecast_of(case)
    for name in ("value_at_risk", "expected_shortfall"):
        message = f"expected {name} of returns, got {forecast.spec.title}"
        with pytest.raises(ValueError, match=message):
            getattr(forecast, name)(0.05)


def test_losses_of_the_series_of_returns_among_columns() -> None:
    forecast = forecast_of(CASES[-1])  # a Student-t series and counts
    with pytest.raises(ValueError, match="or weights for"):
        forecast.value_at_risk(0.05)
    found = forecast.value_at_risk(0.05, weights=[1.0, 0.0])
    np.testing.assert_allclose(found, -forecast.quantile(0.05)[:, 0], rtol=1e-12)
    with pytest.raises(ValueError, match="expected weights for an emission"):
        forecast.value_at_risk(0.05, weights=[1.0, 1.0])


def test_where_nothing_says_the_last_regime() -> None:
    model, (x, _) = GAUSSIAN.true(), GAUSSIAN.sample(8, 20)
    for wrong, message in (
        (dict(X=None), "expected X to have rows, or after"),
        (dict(X=x[:0]), "expected X to have rows, or after"),
        (dict(X=None, after=[0.5, 0.5], start="fitted"), "expected after alone"),
        (dict(X=None, after=[0.5, 0.5], gaps=[]), "expected after alone"),
        (dict(X=None, after=[0.5, 0.6]), "expected after to be 2 probabilities"),
        (dict(X=x[:0, :1], after=[0.5, 0.5]), "expected X to have 2 columns, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.forecast(n_steps=1, **wrong)


def test_a_sequence_that_cannot_be_has_no_forecast() -> None:
    model = RegimeModel.from_parameters(
        None, TRANSITIONS, emission="bernoulli", probabilities=[[1.0], [1.0]]
    )
    with pytest.raises(ValueError, match="expected X to have a positive probability"):
        model.forecast([[0.0], [1.0]], 1)


@settings(max_examples=15, deadline=None)
@given(st.floats(-6, 6), st.sampled_from(range(len(RETURNS))), st.floats(1e-6, 0.5))
def test_no_figure_depends_on_the_unit(log_unit: float, number: int, level: float) -> None:
    case, unit = RETURNS[number], 10**log_unit
    squares = {"covariances": unit**2, "scale_matrices": unit**2, "means": unit}
    values = {name: value * squares.get(name, 1.0) for name, value in case.values.items()}
    other = RegimeModel.from_parameters(
        None, TRANSITIONS, emission=case.emission, covariance_type=case.covariance_type,
        **values, **case.settings,
    )  # fmt: skip
    one = case.true().forecast(None, 2, after=[0.4, 0.6])
    two = other.forecast(None, 2, after=[0.4, 0.6])
    for found, expected in (
        (two.quantile(level), one.quantile(level)),
        (two.quantile(1 - level), one.quantile(1 - level)),
        (two.expected_shortfall(level), one.expected_shortfall(level)),
    ):
        np.testing.assert_allclose(found / unit, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(two.cdf(unit * 0.3), one.cdf(0.3), rtol=1e-9)


def test_weights_with_names_are_those_of_the_columns_in_any_order() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(GAUSSIAN.sample(6, 60)[0], columns=["A", "B"])
    model = GAUSSIAN.true(feature_names=["A", "B"])
    for forecast in (model.forecast(frame, 2), model.forecast(None, 2, after=[0.3, 0.7])):
        expected = forecast.value_at_risk(0.05, weights=[0.9, 0.1])
        for weights in ({"B": 0.1, "A": 0.9}, {"A": 0.9, "B": 0.1}):
            for named in (weights, pandas.Series(weights)):
                found = forecast.value_at_risk(0.05, weights=named)
                np.testing.assert_array_equal(found, expected)
        numbered = pandas.Series([0.9, 0.1])
        np.testing.assert_array_equal(forecast.value_at_risk(0.05, weights=numbered), expected)
        for wrong in ({"A": 0.9, "C": 0.1}, {"A": 1.0}):
            with pytest.raises(ValueError, match=r"expected weights to have the labels \['A', 'B'"):
                forecast.value_at_risk(0.05, weights=pandas.Series(wrong))


def test_probabilities_with_names_are_those_of_the_regimes_in_any_order() -> None:
    pandas = pytest.importorskip("pandas")
    model, x = GAUSSIAN.true(regime_names=["Bull", "Bear"]), GAUSSIAN.sample(7, 20)[0]
    named = pandas.Series({"Bear": 0.9, "Bull": 0.1})
    np.testing.assert_array_equal(model.forecast(None, 1, after=named).last_probs, [0.1, 0.9])
    for argument in ("after", "start"):
        found, expected = (model.predict_proba(x, **{argument: p}) for p in (named, [0.1, 0.9]))
        np.testing.assert_array_equal(found, expected)
        with pytest.raises(ValueError, match=f"expected {argument} to have the labels"):
            model.predict_proba(x, **{argument: pandas.Series({"Bear": 0.9, "Calm": 0.1})})


WRONG = ["a", [0.1, "b"], np.array([1.0 + 1.0j, 2.0]), 1j, [[1.0], [1.0, 2.0]]]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_are_no_real_numbers_is_refused_by_name(wrong: Any) -> None:
    forecast = forecast_of(GAUSSIAN)
    for method, name in ((forecast.cdf, "x"), (forecast.quantile, "p")):
        with pytest.raises(ValueError, match=f"expected {name} to be an array of numbers"):
            method(wrong)
    with pytest.raises(ValueError, match="expected weights to be an array of numbers"):
        forecast.quantile(0.5, weights=wrong)
    np.testing.assert_allclose(forecast.cdf(np.inf), 1.0, rtol=1e-15)  # as the weights add up
    assert np.isnan(forecast.cdf(np.nan)).all()
