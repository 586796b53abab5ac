"""Where a sequence starts: as training did, or as the chain does in the long run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.beginning import is_irreducible, stationary_probs
from tests import seeds
from tests.estimator.test_inputs import data


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), num_states=st.integers(1, 6), zeros=st.floats(0, 0.6))
def test_the_stationary_distribution_is_one(seed, num_states, zeros):
    rng = seeds.rng(seed)
    matrix = rng.dirichlet(np.ones(num_states), size=num_states)
    matrix *= rng.uniform(size=matrix.shape) > zeros
    matrix[np.arange(num_states), (np.arange(num_states) + 1) % num_states] += 1e-3  # a cycle
    matrix /= matrix.sum(1, keepdims=True)
    probs = stationary_probs(matrix, "A", "")
    assert is_irreducible(matrix) and (probs > 0).all()
    np.testing.assert_allclose(probs @ matrix, probs, rtol=1e-12)
    np.testing.assert_allclose(probs.sum(), 1.0, rtol=1e-12)


def test_chains_with_states_that_are_left_for_good():
    left_to_right = np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.0, 0.0, 1.0]])
    assert not is_irreducible(left_to_right)
    np.testing.assert_array_equal(stationary_probs(left_to_right, "A", ""), [0, 0, 1])
    message = "expected A with one stationary distribution, got a matrix with several: .*; mend it"
    with pytest.raises(ValueError, match=message):
        stationary_probs(np.eye(2), "A", "mend it")


def fitted(x: np.ndarray, **how: object) -> RegimeModel:
    settings = dict(n_init=2, max_iter=200, order_by="volatility", random_state=0)
    return RegimeModel(2, **settings).fit(x, **how)


def test_other_data_do_not_start_on_the_first_day_of_training():
    x = data(400)
    model = fitted(x)
    assert model.initial_probs_.max() > 1 - 1e-6  # one sequence says what its first day was
    wild = x[12:40] * 3
    stationary = model.score(wild, start="stationary")
    assert model.score(wild) == stationary > model.score(wild, start="fitted")
    assert model.score(x) == pytest.approx(model.log_likelihood_, abs=1e-9)
    assert model.score(x[:50]) == model.score(x[:50], start="fitted")
    np.testing.assert_array_equal(
        model.predict_proba(wild), model.predict_proba(wild, start=model.stationary_distribution_)
    )
    # Each sequence of several by itself.
    both = model.score([x, wild])
    assert both == pytest.approx(model.score(x) + stationary, rel=1e-12)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical", "tied"])
@pytest.mark.parametrize("scale, level", [(0.01, 0.0), (1.0, 0.0), (1.0, 1e5)])
def test_the_training_data_are_known_again_when_they_are_rounded(covariance_type, scale, level):
    """As float32, and from a file with six decimals or six digits."""
    x = scale * data(300) + level
    model = RegimeModel(2, covariance_type, n_init=2, tol=1e-2, random_state=0).fit(x)
    assert model.initial_probs_.max() > 0.99
    copies = [x.astype(np.float32), np.round(x, 6)]
    if not level:
        copies.append(np.vectorize(lambda value: float(f"{value:.6g}"))(x))
    for copy in copies:
        assert not (copy == x).all()
        for rows in (copy, copy[:2]):
            assert model.score(rows) == model.score(rows, start="fitted")
            assert model.score(rows) != model.score(rows, start="stationary")
    for other in (x[1:], x + 0.05 * scale, x[::-1]):
        assert model.score(other) == model.score(other, start="stationary")


def test_after_continues_a_sequence():
    x = data(400)
    model = fitted(x)
    before, later = x[:250], x[250:]
    last = model.predict_proba(before, "filtered")[-1]
    whole = model.predict_proba(x, "filtered")[250:]
    np.testing.assert_allclose(model.predict_proba(later, "filtered", after=last), whole, atol=1e-9)
    assert model.score(before) + model.score(later, after=last) == pytest.approx(
        model.score(x), rel=1e-12
    )
    expected = model.forecast(x, 3).regime_probs
    np.testing.assert_allclose(model.forecast(later, 3, after=last).regime_probs, expected)


def test_several_training_sequences_and_left_to_right_chains_start_as_fitted():
    x = data(400)
    model = fitted(x, lengths=[100, 150, 150])
    other = x[30:90] * 2
    assert model.score(other) == model.score(other, start="fitted")
    model = fitted(x)
    model.transition_matrix_ = np.array([[0.9, 0.1], [0.0, 1.0]])
    assert model.score(other) == model.score(other, start="fitted")
    assert model.score(other) != model.score(other, start="stationary")


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(start="random"), "expected start to be one of 'auto', 'fitted', 'stationary' or"),
        (dict(start=[0.5, 0.6]), r"expected start to be 2 probabilities that sum to 1, got \[0.5"),
        (dict(start=[1.0]), "expected start to be 2 probabilities"),
        (dict(after=[-0.5, 1.5]), "expected after to be 2 probabilities"),
        (dict(after="yesterday"), "expected after to be 2 probabilities"),
        (dict(after=[1, 0], start="fitted"), "expected start='auto' where after is given"),
    ],
)
def test_other_starts_are_refused(how, message):
    model = fitted(data(100))
    for call in (model.score, model.predict, model.predict_proba, model.decode):
        with pytest.raises(ValueError, match=message):
            call(data(100), **how)


def test_criteria_of_the_training_data():
    x = data(200)
    model = fitted(x)
    assert model.n_samples_fit_ == 200
    assert model.bic() == pytest.approx(model.bic(x), rel=1e-12)
    assert model.aic() == pytest.approx(model.aic(x), rel=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 1e-3)])
def test_scores_of_rows_sum_to_the_score(dtype, tolerance):
    x = data(400)
    model = fitted(x).set_params(dtype=dtype)
    rows = model.score_samples(x)
    assert rows.shape == (400,) and rows.sum() == pytest.approx(model.score(x), abs=400 * tolerance)
    parts = [x[:100], x[30:31], x[200:]]
    rows = model.score_samples(parts)
    assert rows.sum() == pytest.approx(model.score(parts), abs=400 * tolerance)
    # A row's score does not depend on those after it.
    np.testing.assert_allclose(rows[:100], model.score_samples(x)[:100], atol=10 * tolerance)
    # The first of them is the density of the mixture at the start.
    weights = model.stationary_distribution_
    density = sum(
        weight * multivariate_normal(mean, covariance).pdf(parts[1][0])
        for weight, mean, covariance in zip(weights, model.means_, model.covariances_)
    )
    assert rows[100] == pytest.approx(np.log(density), abs=10 * tolerance)


@pytest.mark.parametrize("start", ["auto", "fitted", "stationary", [0.3, 0.7]])
def test_scores_of_rows_of_several_sequences(start):
    x = data(400)
    model = fitted(x, lengths=[100, 150, 150])
    rows = model.score_samples(x, lengths=[100, 300], start=start)
    for part in (slice(0, 100), slice(100, 400)):
        alone = model.score_samples(x[part], start=start)
        np.testing.assert_allclose(rows[part], alone, rtol=1e-12)


def test_scores_of_rows_where_a_regime_that_is_kept_for_good_fades():
    """Its filtered probability is far below the least positive number, and an outlier needs it."""
    x = data(400)
    model = fitted(x)
    model.transition_matrix_ = np.array([[1.0, 0.0], [0.1, 0.9]])
    x = np.concatenate([0.1 * x, [[50.0, 50.0]]])
    for start in ("fitted", [0.5, 0.5]):
        score = model.score(x, start=start)
        assert model.score_samples(x, start=start).sum() == pytest.approx(score, rel=1e-9)


def test_fit_predict():
    x = data(200)
    settings = dict(n_init=1, random_state=0)
    np.testing.assert_array_equal(
        RegimeModel(2, **settings).fit_predict(x), RegimeModel(2, **settings).fit(x).predict(x)
    )
    lengths = [8] * 25
    model = RegimeModel(2, **settings)
    path = model.fit_predict(x, lengths)
    np.testing.assert_array_equal(path, model.predict(x, lengths=lengths))


def test_a_model_of_two_rows_serves_longer_data():
    x = data(5)
    assert np.isfinite(RegimeModel(1, "diag").fit(x[:2]).score(x))
