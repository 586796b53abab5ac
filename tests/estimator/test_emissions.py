"""Every emission of RegimeModel in one battery: each test runs on all of them."""

from __future__ import annotations

import json
import warnings
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes import EM, RegimeModel
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.spec import EMISSIONS, SPECS, find_spec
from pyro_regimes.estimator.units import Units
from tests import seeds
from tests.estimator.emission_cases import ALL, CASES, TRANSITIONS, Case


@lru_cache
def _fitted(name: str) -> tuple[RegimeModel, Array, Array]:
    (case,) = (each for each in CASES if each.name == name)
    x, states = case.sample(1)
    return case.model().fit(x), x, states


def fitted(case: Case) -> tuple[RegimeModel, Array, Array]:
    return _fitted(case.name)


def test_every_emission_is_here() -> None:
    own = [case for case in CASES if isinstance(case.emission, str)]
    assert {case.emission for case in own} == set(EMISSIONS)
    assert {(case.emission, case.covariance_type) for case in own} | {
        ("gaussian", kind) for kind in ("diag", "spherical", "tied")
    } == set(SPECS)


@ALL
def test_the_fit_is_at_least_as_good_as_the_truth(case: Case) -> None:
    """From starts of its own, on data of two regimes that differ."""
    model, x, states = fitted(case)
    assert model.log_likelihood_ > case.true().score(x) - 1e-6 * len(x)
    assert model.history_[-1] >= model.history_[0]
    path = model.predict(x)
    assert max((path == states).mean(), (path != states).mean()) > 0.8
    assert model.emission_ == case.emission
    assert tuple(case.values) == model._fitted_spec().attributes


@ALL
def test_the_likelihood_is_that_of_scipy(case: Case) -> None:
    model, x, _ = fitted(case)
    np.testing.assert_allclose(model.score(x, start="fitted"), case.score(x, model), rtol=1e-9)
    np.testing.assert_allclose(model.score(x), model.log_likelihood_, rtol=1e-9)
    np.testing.assert_allclose(model.score_samples(x).sum(), model.score(x), rtol=1e-9)
    log_prob, path = model.decode(x)
    assert log_prob < model.score(x) + 1e-6 and path.shape == (len(x),)
    assert model.predict_proba(x).sum(-1) == pytest.approx(1.0)


@ALL
def test_parameters_are_counted(case: Case) -> None:
    model, x, _ = fitted(case)
    assert model.n_parameters_ == 1 + 2 + case.num_parameters
    assert model.aic() == pytest.approx(-2 * model.log_likelihood_ + 2 * model.n_parameters_)
    held = case.model(
        init_params=model, fixed=list(case.values), initial="uniform", max_iter=5, tol=None
    ).fit(x)
    assert held.n_parameters_ == 2
    for name in case.values:
        np.testing.assert_array_equal(getattr(held, f"{name}_"), getattr(model, f"{name}_"))


@ALL
def test_a_saved_model_is_the_same_to_the_bit(case: Case, tmp_path) -> None:
    model, x, _ = fitted(case)
    model.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    for name in (*case.values, "transition_matrix", "initial_probs", "share_of_time"):
        np.testing.assert_array_equal(getattr(loaded, f"{name}_"), getattr(model, f"{name}_"))
    assert loaded.emission == loaded.emission_ == case.emission
    assert loaded.score(x) == model.score(x) and loaded.aic() == model.aic()
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    assert str(loaded.summary()) == str(model.summary())
    content = json.loads((tmp_path / "model.json").read_text())
    content["fitted"][f"{next(iter(case.values))}_"] = [[[1.0]]] * 3
    (tmp_path / "broken.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="save the model again"):
        RegimeModel.load(tmp_path / "broken.json")


@ALL
def test_draws_have_the_moments_of_the_model(case: Case) -> None:
    """Of each regime, within five standard errors."""
    true = case.true()
    spec, emission = true._fitted_spec(), {n: getattr(true, f"{n}_") for n in case.values}
    number = 20_000
    means, variances = spec.moments(emission).means, spec.moments(emission).variances
    for regime in range(2):
        x = spec.draw(emission, np.full(number, regime), seeds.rng(regime))
        assert x.shape == (number, 2)
        if case.emission == "von_mises":
            vector = np.exp(1j * x).mean(0)
            np.testing.assert_allclose(np.angle(vector), means[regime], rtol=0, atol=0.06)
            np.testing.assert_allclose(1 - abs(vector), variances[regime], rtol=0, atol=0.03)
            continue
        error = x.std(0) / number**0.5
        assert (np.abs(x.mean(0) - means[regime]) <= 5 * error).all()
        error = (x - x.mean(0)).__pow__(2).std(0) / number**0.5
        assert (np.abs(x.var(0) - variances[regime]) <= 5 * error).all()


@ALL
def test_a_forecast_has_the_deviations_that_a_summary_has(case: Case) -> None:
    """A forecast from a known last regime that is never left."""
    model, x, _ = fitted(case)
    names = model._fitted_spec().attributes
    emission = {name: getattr(model, f"{name}_") for name in names}
    stay = RegimeModel.from_parameters(
        [0.0, 1.0], np.eye(2), emission=model.emission, covariance_type=model.covariance_type,
        feature_names=getattr(model, "feature_names_in_", None), **emission,
    )  # fmt: skip
    found = stay.forecast(x, 2).deviation
    expected = model._fitted_spec().deviations(emission)[[1, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@ALL
def test_a_forecast_has_the_moments_of_its_distribution(case: Case) -> None:
    model, x, _ = fitted(case)
    forecast = model.forecast(x, 2)
    assert forecast.mean.shape == (2, 2) and forecast.covariance.shape == (2, 2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed(0))
        draws = forecast.distribution.sample([20_000]).double().numpy()
    if case.emission == "von_mises":
        vector = np.exp(1j * draws).mean(0)
        np.testing.assert_allclose(np.angle(vector), forecast.mean, rtol=0, atol=0.1)
        wide = np.sqrt(-2 * np.log(np.abs(vector)))
        np.testing.assert_allclose(forecast.deviation, wide, rtol=0.05)
        return
    error = draws.std(0) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - forecast.mean) <= 5 * error).all()
    if case.emission != "categorical":  # torch knows no mean of a category
        variance = forecast.distribution.variance.numpy()
        np.testing.assert_allclose(forecast.distribution.mean.numpy(), forecast.mean, rtol=1e-8)
        diagonal = np.diagonal(forecast.covariance, axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, variance, rtol=1e-7)


@ALL
def test_a_summary_names_the_emission(case: Case) -> None:
    model, x, _ = fitted(case)
    text = str(model.summary())
    assert model._fitted_spec().title in text and "nan" not in text
    assert ("annualised" in text) == model._fitted_spec().of_changes
    for label in model._fitted_spec().described({n: getattr(model, f"{n}_") for n in case.values}):
        assert label in text and label in model.summary().to_frame().index.get_level_values(0)
    assert label_count(model.summary()._repr_html_()) >= 6
    model.plot(x)


def label_count(html: str) -> int:
    return html.count("<tr>")


@ALL
def test_wrong_data_are_refused(case: Case) -> None:
    model, x, _ = fitted(case)
    if np.isnan(case.wrong):
        pytest.skip("every number is an observation")
    before, wrong = model.score(x), x.copy()
    wrong[7, 1] = case.wrong
    for call in (case.model().fit, model.predict, model.score):
        with pytest.raises(ValueError) as caught:
            call(wrong)
        assert case.message in str(caught.value) and ";" in str(caught.value)
    assert model.score(x) == before == pytest.approx(model.log_likelihood_, rel=1e-12)


@ALL
def test_missing_entries(case: Case) -> None:
    """Whole rows and single entries: the score is that of the rest."""
    model, x, _ = fitted(case)
    part = x.copy()
    part[10], part[50, 1] = np.nan, np.nan
    assert np.isfinite(model.predict_proba(part)).all()
    np.testing.assert_allclose(model.score_samples(part).sum(), model.score(part), rtol=1e-9)
    assert model.score_samples(part)[10] == pytest.approx(0.0, abs=1e-9)
    again = case.model(n_init=1, init_params=model, max_iter=3, tol=None).fit(part)
    assert again.log_likelihood_ > model.score(part, start="fitted") - 1e-3


@ALL
def test_sequences_add_up(case: Case) -> None:
    model, x, _ = fitted(case)
    parts = [x[:150], x[150:151], x[151:]]
    total = sum(model.score(part, start="fitted") for part in parts)
    np.testing.assert_allclose(model.score(parts, start="fitted"), total, rtol=1e-9)
    again = case.model(n_init=1, init_params=model, max_iter=3, tol=None)
    assert again.fit(parts).log_likelihood_ > total - 1e-6


@ALL
def test_regimes_in_another_order_are_the_same_model(case: Case) -> None:
    true = case.true()
    swapped = {
        name: value if name in case.shared else value[::-1] for name, value in case.values.items()
    }
    other = RegimeModel.from_parameters(
        None, TRANSITIONS[::-1, ::-1], emission=case.emission,
        covariance_type=case.covariance_type, **swapped, **case.settings,
    )  # fmt: skip
    x, _ = case.sample(2)
    np.testing.assert_allclose(other.score(x), true.score(x), rtol=1e-10)
    np.testing.assert_allclose(other.forecast(x, 1).mean, true.forecast(x, 1).mean, rtol=1e-7)
    named = case.model(order_by=true, n_init=1, init_params=other, max_iter=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        named.fit(x)
    np.testing.assert_allclose(named.transition_matrix_, TRANSITIONS)


@ALL
def test_one_regime_and_single_precision(case: Case) -> None:
    model, x, _ = fitted(case)
    one = RegimeModel(
        1, emission=case.emission, covariance_type=case.covariance_type, max_iter=200,
        random_state=0, **case.settings,
    ).fit(x)  # fmt: skip
    assert one.log_likelihood_ < model.log_likelihood_
    single = case.model(dtype="float32", init_params=model, n_init=1).fit(x)
    np.testing.assert_allclose(single.log_likelihood_, model.log_likelihood_, rtol=1e-5)


@ALL
def test_svi_finds_the_maximum_of_em(case: Case) -> None:
    """From near it."""
    model, x, _ = fitted(case)
    found = case.model(inference="svi", init_params=model, n_init=1, max_iter=150, tol=None).fit(x)
    assert found.log_likelihood_ > model.log_likelihood_ - 0.3
    assert found.history_[0] == pytest.approx(model.log_likelihood_, abs=1e-2)


@ALL
def test_the_pyro_model_is_at_its_maximum(case: Case) -> None:
    model, x, _ = fitted(case)
    em = EM(model.model)
    loss = em.evaluate_loss(torch.tensor(x))
    np.testing.assert_allclose(-loss, model.score(x, start="fitted"), rtol=1e-9)
    result = em.run(torch.tensor(x), num_steps=3)
    assert -1e-6 < loss - result.history[-1] < 0.05


# ---- units ---------------------------------------------------------------------------------------

WITH_UNITS = [case for case in CASES if case.factor != 1]


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    case=st.sampled_from(WITH_UNITS),
    powers=st.tuples(st.integers(-12, 12), st.integers(-12, 12)),
    swap_columns=st.booleans(),
    swap_regimes=st.booleans(),
    level=st.floats(-1e3, 1e3),
)
def test_no_likelihood_depends_on_a_unit(case, powers, swap_columns, swap_regimes, level) -> None:
    """Columns scaled and permuted, regimes permuted: the same steps of EM from the same start."""
    if case.covariance_type == "spherical":
        powers = powers[:1] * 2
    x, _ = case.sample(3, 200)
    spec, units = case.true()._fitted_spec(), 10.0 ** np.array(powers)
    columns = [1, 0] if swap_columns else [0, 1]
    order = np.array([1, 0] if swap_regimes else [0, 1])
    shift = level if spec.spread is not None else 0.0  # positive numbers have no level
    other = (x + shift) * units
    values = spec.unscale(case.values, Units(shift * units, units))
    values = {
        name: _permuted(value, columns, order, name in case.shared, case)
        for name, value in values.items()
    }
    settings = dict(n_init=1, max_iter=3, tol=None, regularization=0.0)
    one = case.model(init_params={**case.values, "transition_matrix": TRANSITIONS}, **settings)
    two = case.model(
        init_params={**values, "transition_matrix": TRANSITIONS[np.ix_(order, order)]}, **settings
    )
    one.fit(x)
    two.fit(other[:, columns])
    expected = one.log_likelihood_ - len(x) * np.log(units).sum()
    np.testing.assert_allclose(two.log_likelihood_, expected, rtol=0, atol=1e-4)
    probs = two.predict_proba(other[:, columns])
    np.testing.assert_allclose(probs, one.predict_proba(x), rtol=0, atol=1e-4)


def _permuted(value: Array, columns: list[int], order: Array, shared: bool, case: Case) -> Array:
    """Of two regimes and two series."""
    value = value if shared else value[order]
    first = 0 if shared else 1
    if case.emission == "gaussian_mixture":
        first = 2
    for dim in range(first, value.ndim):
        value = np.take(value, columns, axis=dim)
    return value


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("emission", EMISSIONS)
def test_a_covariance_type_that_the_family_has_not_is_refused(emission: str) -> None:
    for kind in ("full", "diag", "spherical", "tied"):
        model = RegimeModel(2, kind, emission=emission)
        if (emission, kind) in SPECS:
            assert find_spec(kind, emission) is not None
            continue
        with pytest.raises(ValueError, match="expected covariance_type='full'.*leave it out"):
            model.fit(np.ones((9, 1)))


def test_columns_of_families() -> None:
    frame = pd.DataFrame({"wind": [0.1, 0.5, -0.5, 0.0] * 9, "rain": [0.0, 1.0, 3.0] * 12})
    families = {"rain": "exponential", "wind": "von_mises"}
    model = RegimeModel(2, emission=families, random_state=0, n_init=2, max_iter=3, tol=None)
    model.fit(frame)
    assert model.exponential_rates_.shape == (2, 1) and model.von_mises_means_.shape == (2, 1)
    summary = model.summary()
    means = summary.to_frame().loc["mean"]
    np.testing.assert_allclose(means.loc["rain"], 1 / model.exponential_rates_[:, 0])
    np.testing.assert_allclose(means.loc["wind"], model.von_mises_means_[:, 0], atol=1e-9)
    assert "exponential for rain; von Mises for wind" in str(summary)
    families.clear()  # the model has a copy
    assert model.emission_ == {"rain": "exponential", "wind": "von_mises"}
    for wrong in ({"wind": "von_mises"}, {0: "exponential", 1: "gamma", 2: "gamma"}):
        with pytest.raises(ValueError, match="name the family of each column of X"):
            RegimeModel(2, emission=wrong).fit(frame)
    for wrong in ({}, {"wind": "gamma", 1: "gamma"}, {1.5: "gamma"}):
        with pytest.raises(ValueError, match="a dict from the names or the numbers of all columns"):
            RegimeModel(2, emission=wrong).fit(frame)
    with pytest.raises(ValueError, match="expected emission of column 'rain' to be one of"):
        RegimeModel(2, emission={"rain": "snow"}).fit(frame)
    negative = frame.assign(rain=-1.0)
    with pytest.raises(ValueError, match="non-negative numbers, got -1 in row 0 of column 'rain'"):
        model.score(negative)


def test_wrong_settings_are_refused() -> None:
    x = np.arange(30.0)[:, None] % 4
    with pytest.raises(ValueError, match="expected emission to be one of 'gaussian', 'student_t'"):
        RegimeModel(2, emission="cauchy").fit(x)
    with pytest.raises(ValueError, match="expected min_eigenvalue=0 where emission='poisson'"):
        RegimeModel(2, emission="poisson", min_eigenvalue=1.0).fit(x)
    families = {0: "gaussian", 1: "poisson"}
    match = "min_eigenvalue=0 where emission={0: 'gaussian'.*: a floor holds for all columns, of"
    with pytest.raises(ValueError, match=match):
        RegimeModel(2, emission=families, min_eigenvalue=1.0).fit(np.hstack([x, x]))
    match = "covariance_type='full' or 'diag' or 'spherical' where emission='gaussian_mixture', got"
    with pytest.raises(ValueError, match=match):
        RegimeModel(2, emission="gaussian_mixture", covariance_type="tied").fit(x)
    with pytest.raises(ValueError, match="expected n_components to be at least 1"):
        RegimeModel(2, emission="gaussian_mixture", n_components=0).fit(x)
    match = "n_components=3 where emission='gaussian'; n_regimes is the number of regimes"
    with pytest.raises(ValueError, match=match):  # the name that hmmlearn has for n_regimes
        RegimeModel(n_components=3).fit(x)
    with pytest.raises(ValueError, match="expected the values of rates where emission='poisson'"):
        RegimeModel.from_parameters(None, np.eye(1), [[1.0]], [[1.0]], emission="poisson")
    with pytest.raises(ValueError, match="expected rates to be positive, got -1 in regime 1"):
        RegimeModel.from_parameters(
            None, TRANSITIONS, emission="poisson", rates=[[1.0], [-1.0]]
        )
    fitted = RegimeModel(2, emission="poisson", random_state=0).fit(x)
    with pytest.raises(ValueError, match="the same emission, 'gaussian', got 'poisson'"):
        RegimeModel(2, init_params=fitted).fit(x)


@pytest.mark.parametrize(
    "emission", ["student_t", "gamma", "lognormal", "von_mises"]
)
def test_a_regime_of_equal_observations_is_a_collapse(emission: str) -> None:
    """Two values, each a regime: the likelihood has no maximum, whatever the family."""
    x = np.repeat([1.37, 2.9], 60)[:, None]
    if emission == "student_t":
        x = x - 2  # no level
    with pytest.warns(ConvergenceWarning, match="collapsed onto a few points") as caught:
        RegimeModel(2, emission=emission, n_init=1, random_state=0).fit(x)
    assert len(caught) == 1  # and no warning of EM's own
    has_floor = emission == "student_t"
    assert ("min_eigenvalue" in str(caught[0].message)) == has_floor


@pytest.mark.parametrize("emission", ["gamma", "lognormal"])
@pytest.mark.parametrize("unit", [1.0, 1e-150, 1e100])
def test_a_tight_regime_is_no_collapse(emission: str, unit: float) -> None:
    """A relative deviation of a millionth, in any unit."""
    level = np.repeat([1.0, 2.0], 100)[:, None]
    x = unit * np.exp(level + 1e-6 * seeds.rng(0).standard_normal((200, 1)))
    model = RegimeModel(2, emission=emission, n_init=2, random_state=0).fit(x)
    assert (np.diff(model.predict(x)) != 0).sum() == 1
    moments = model._fitted_spec().moments({n: getattr(model, f"{n}_") for n in (
        model._fitted_spec().attributes
    )})  # fmt: skip
    relative = np.sqrt(moments.variances) / moments.means
    np.testing.assert_allclose(relative, 1e-6, rtol=0.3)


@pytest.mark.parametrize("deviation", [1.0, 1e-3])
def test_a_gamma_at_a_high_level_is_a_normal(deviation: float) -> None:
    """At a level of a million the moments of both families are those of the data."""
    is_wild = np.arange(600) // 50 % 2 == 1
    scale = np.where(is_wild, 3.0, 1.0)
    x = 1e6 + deviation * (scale * seeds.rng(0).randn(600) + 5 * is_wild)[:, None]
    model = RegimeModel(2, emission="gamma", n_init=2, random_state=0).fit(x)
    other = RegimeModel(2, regularization=0.0, n_init=2, random_state=0).fit(x)
    spec = model._fitted_spec()
    means, variances = spec.moments({n: getattr(model, f"{n}_") for n in spec.attributes})
    np.testing.assert_allclose(means, other.means_, rtol=0, atol=1e-3 * deviation)
    expected = other.covariances_.reshape(2, 1)
    np.testing.assert_allclose(variances, expected, rtol=1e-3)
    assert model.log_likelihood_ == pytest.approx(other.log_likelihood_, abs=1e-2)


def test_what_the_parameters_of_a_gamma_cannot_hold_is_refused() -> None:
    x = 1e6 * (1 + 1e-14 * seeds.rng(0).randint(0, 9, (60, 1)))
    match = r"deviate from its mean by more than 2.2e-13 times .* float64, got .*'gaussian'"
    with pytest.raises(ValueError, match=match):
        RegimeModel(2, emission="gamma", n_init=1).fit(x)


def test_large_counts_of_little_dispersion() -> None:
    """Counts of a billion whose regimes differ by a thousandth: r is far above its start."""
    state = np.arange(600) // 50 % 2
    count, mean = np.array([1e6, 1e5])[state], 1e9 * (1 + 0.005 * state)
    rng = seeds.rng(0)
    x = rng.poisson(rng.gamma(count, mean / count))[:, None].astype(np.float64)
    model = RegimeModel(2, emission="negative_binomial", n_init=3, random_state=0).fit(x)
    assert model.converged_
    found = model.predict(x)
    assert min((found != state).mean(), (found == state).mean()) < 0.03
    np.testing.assert_allclose(np.sort(model.total_counts_.ravel()), [1e5, 1e6], rtol=0.4)


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("emission", ["gamma", "von_mises", "exponential"])
def test_equal_observations_are_a_collapse_wherever_em_stops(emission: str, is_known: bool) -> None:
    """EM has no maximum to go to, and leaves the parameters where they are, far from any bound."""
    x = seeds.rng(2).gamma(3.0, 1.0, (60, 1))
    x[:30] = 0.0 if emission == "exponential" else 2.0
    x[[5, 40]] = np.nan
    states = np.arange(60) // 30
    if not is_known:
        states[1:30:2] = -1
    beside = np.concatenate([x, seeds.rng(3).randn(60, 1)], 1)
    for data, family in ((x, emission), (beside, {0: emission, 1: "gaussian"})):
        model = RegimeModel(2, emission=family, n_init=3, random_state=0)
        with pytest.warns(ConvergenceWarning, match="few points.*: Regime 1 holds") as caught:
            model.fit(data, states=states)
        assert len(caught) == 1 and np.isfinite(model.log_likelihood_)


def test_a_reference_of_another_family_must_suit_the_data() -> None:
    x = seeds.rng(0).randn(60, 1)
    counts = RegimeModel.from_parameters(
        None, [[0.9, 0.1], [0.1, 0.9]], emission="poisson", rates=[[1.0], [9.0]]
    )
    model = RegimeModel(2, order_by=counts, n_init=1, random_state=0)
    with pytest.raises(ValueError, match="X that suits the model in order_by.*: .* hold counts"):
        model.fit(x)


def test_angles_in_degrees_are_doubted() -> None:
    x = seeds.rng(0).uniform(0, 360, (50, 1))
    with pytest.warns(UserWarning, match=r"look like degrees.*np\.deg2rad"):
        RegimeModel(1, emission="von_mises", random_state=0).fit(x)


def test_more_categories_than_the_data_have() -> None:
    x = (np.arange(60) // 10 % 2)[:, None].astype(float)
    probs = np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.7, 0.1]]])
    model = RegimeModel(2, emission="categorical", init_params={"probabilities": probs})
    assert model.fit(x).probabilities_.shape == (2, 1, 3)
    assert model.score(np.array([[2.0]])) < -10
    with pytest.raises(ValueError, match="expected X to hold the categories of the model, 0 to 2"):
        model.score(np.array([[3.0]]))


@pytest.mark.parametrize("emission", ["gamma", "lognormal"])
def test_zeros_beside_positive_numbers_have_a_remedy(emission: str) -> None:
    rain = np.where(np.arange(40) % 3, 0.0, 1.0 + np.arange(40))[:, None]
    with pytest.raises(ValueError, match="ZeroInflatedContinuous"):
        RegimeModel(2, emission=emission).fit(rain)
    with pytest.raises(ValueError) as caught:
        RegimeModel(2, emission=emission).fit(rain - 5)
    assert "ZeroInflated" not in str(caught.value)


def test_a_summary_and_a_plot_of_columns_of_families() -> None:
    """Rows have the names of columns; series of several units are drawn as standard scores."""
    rng = seeds.rng(0)
    x = np.column_stack([rng.standard_t(4, (80, 2)), 1e6 * rng.standard_gamma(3.0, 80)])
    table = pd.DataFrame(x, columns=["a", "b", "c"])
    families = {"a": "student_t", "b": "student_t", "c": "gamma"}
    model = RegimeModel(2, emission=families, n_init=1, max_iter=5, tol=None, random_state=0)
    table.iloc[3, 1] = np.nan
    model.fit(table)
    lines = str(model.summary()).splitlines()
    assert any(line.startswith("degrees of freedom, a, b ") for line in lines)
    upper = model.plot(table).axes[0]
    scores = (table - table.mean()) / table.std(ddof=0)
    np.testing.assert_allclose(upper.lines[0].get_ydata(), scores.mean(axis=1), rtol=1e-9)
    assert "observation (standard scores)" in upper.get_ylabel()
    assert model.summary().correlation is not None
    alone = clone(model).set_params(emission={"a": "student_t", "c": "gamma"})
    alone.fit(table[["a", "c"]])
    assert alone.summary().correlation is None and "correlation" not in str(alone.summary())
    assert alone.forecast(table[["a", "c"]], 2).covariance.shape == (2, 2, 2)
    assert "observation (m)" in model.plot(table, unit="m").axes[0].get_ylabel()
