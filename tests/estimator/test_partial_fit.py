"""Updates of a fitted model by new rows."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.estimator import RegimeModel
from tests import seeds
from tests.estimator.emission_cases import ALL

TRANSITIONS = np.array([[0.97, 0.03], [0.05, 0.95]])
MEANS, SPREADS = np.array([1.0, -2.0]), np.array([0.5, 1.5])


def simulate(num_rows, seed):
    rng = seeds.rng(seed)
    states = np.zeros(num_rows, np.int64)
    for t in range(1, num_rows):
        states[t] = rng.rand() < TRANSITIONS[states[t - 1], 1]
    return (MEANS[states] + SPREADS[states] * rng.randn(num_rows))[:, None], states


def model_of(n_regimes=2, **settings):
    return RegimeModel(n_regimes, **dict(n_init=2, random_state=0, regularization=0.0) | settings)


def forward_backward(x, model, first):
    """Smoothed probabilities ``(T, K)``, and joint ones of each row and the next."""
    a = model.transition_matrix_
    scales = np.sqrt(model.covariances_[:, 0, 0])
    b = stats.norm.pdf(x, model.means_[:, 0], scales)
    alpha, beta = np.empty_like(b), np.ones_like(b)
    alpha[0] = first * b[0] / (first * b[0]).sum()
    for t in range(1, len(x)):
        alpha[t] = alpha[t - 1] @ a * b[t]
        alpha[t] /= alpha[t].sum()
    for t in range(len(x) - 2, -1, -1):
        beta[t] = a @ (b[t + 1] * beta[t + 1])
        beta[t] /= beta[t].sum()
    gamma = alpha * beta
    xi = alpha[:-1, :, None] * a * (b * beta)[1:, None, :]
    return gamma / gamma.sum(-1, keepdims=True), xi / xi.sum((1, 2), keepdims=True)


def state_of(model):
    return {name: value for name, value in vars(model).items() if name[-1:] == "_"}


def assert_same(one, other):
    """Two states of models."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_equal(value, other[name])


@pytest.mark.parametrize("size", [1, 40])
@pytest.mark.parametrize("half_life", [None, 100.0])
def test_a_block_that_continues_is_met_given_the_rows_before(size, half_life):
    """Against sums of a forward-backward recursion over both parts as one sequence."""
    x, _ = simulate(200 + size, 1)
    model = model_of().fit(x[:200])
    before, xi_before = forward_backward(x[:200], model, model.initial_probs_)
    gamma, xi = forward_backward(x, model, model.initial_probs_)
    weight = 1.0 if half_life is None else 0.5 ** (size / half_life)
    counts = weight * xi_before.sum(0) + xi[199:].sum(0)
    rows = np.r_[weight * before, gamma[200:]]
    means = (rows * x).sum(0) / rows.sum(0)
    variances = (rows * (x - means) ** 2).sum(0) / rows.sum(0)
    score = model.score(x) - model.score(x[:200])
    known = model.log_likelihood_

    model.partial_fit(x[200:], half_life=half_life)
    np.testing.assert_allclose(model.means_[:, 0], means, rtol=1e-9)
    np.testing.assert_allclose(model.covariances_[:, 0, 0], variances, rtol=1e-9)
    expected = counts / counts.sum(-1, keepdims=True)
    np.testing.assert_allclose(model.transition_matrix_, expected, rtol=1e-9)
    np.testing.assert_allclose(model.initial_probs_, before[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.log_likelihood_ - known, score, rtol=1e-8)
    shares = np.r_[before, gamma[200:]].mean(0)
    np.testing.assert_allclose(model.share_of_time_, shares, rtol=1e-9)


@pytest.mark.parametrize("several", [False, True])
def test_a_new_sequence_begins_from_the_initial_distribution(several):
    x, _ = simulate(230, 2)
    model = model_of().fit(x[:200])
    first = model.initial_probs_
    parts = [forward_backward(x[:200], model, first)]
    blocks = [x[200:210], x[210:]] if several else [x[200:]]
    parts += [forward_backward(each, model, first) for each in blocks]
    xi = np.concatenate([each[1] for each in parts]).sum(0)
    starts = np.mean([each[0][0] for each in parts], axis=0)
    if several:
        model.partial_fit(blocks)
    else:
        model.partial_fit(x[200:], continues=False)
    expected = xi / xi.sum(-1, keepdims=True)
    np.testing.assert_allclose(model.transition_matrix_, expected, rtol=1e-9)
    np.testing.assert_allclose(model.initial_probs_, starts, rtol=1e-9, atol=1e-12)
    assert model.training_start_ is None  # the initial distribution is of several sequences
    other = model_of().fit(x[:200])
    if several:
        other.partial_fit(x[200:], lengths=[10, 20])
        np.testing.assert_array_equal(other.means_, model.means_)


@pytest.mark.parametrize("initial", ["free", "stationary", "uniform"])
def test_many_blocks_come_near_the_fit_of_all_rows(initial):
    x, states = simulate(6000, 3)
    whole = model_of(initial=initial).fit(x)
    model = model_of(initial=initial)
    for block in np.split(x, 40):
        model.partial_fit(block)
    assert model.n_updates_ == 39 and model.n_samples_fit_ == 6000
    errors = SPREADS / np.sqrt(np.bincount(states))
    order = np.argsort(-model.means_[:, 0])
    difference = model.means_[order] - whole.means_[np.argsort(-whole.means_[:, 0])]
    assert (abs(difference[:, 0]) < 3 * errors).all()
    assert model.score(x) > whole.score(x) - 0.01 * len(x)
    np.testing.assert_allclose(model.share_of_time_.sum(), 1)
    if initial == "stationary":
        np.testing.assert_allclose(
            model.initial_probs_ @ model.transition_matrix_, model.initial_probs_, rtol=1e-9
        )
    if initial == "uniform":
        np.testing.assert_array_equal(model.initial_probs_, 0.5)


def test_the_first_call_is_a_fit():
    x, _ = simulate(300, 4)
    one, other = model_of().fit(x), model_of().partial_fit(x)
    assert_same(state_of(one), state_of(other))
    for each in (one, other):
        each.partial_fit(x[:20])
    assert_same(state_of(one), state_of(other))
    assert_same(state_of(one.fit(x)), state_of(model_of().fit(x)))  # which forgets the updates
    again = one.partial_fit(x[:20])
    assert_same(state_of(again), state_of(other))


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical", "tied"])
def test_one_regime_has_the_moments_of_all_rows(covariance_type):
    """Exactly, also where a level is far from 0 and drifts between the blocks."""
    rng = seeds.rng(5)
    x = 1e3 + rng.randn(500, 2) @ [[1.0, 0.3], [0.0, 2.0]] + np.arange(500)[:, None] * [0.01, -0.02]
    model = model_of(1, covariance_type=covariance_type)
    for block in np.split(x, [100, 101, 104, 350]):
        model.partial_fit(block)
    covariance = np.cov(x.T, bias=True)
    expected = {
        "full": covariance[None],
        "tied": covariance,
        "diag": np.diag(covariance)[None],
        "spherical": np.diag(covariance).mean()[None],
    }[covariance_type]
    np.testing.assert_allclose(model.means_[0], x.mean(0), rtol=1e-11)
    np.testing.assert_allclose(model.covariances_, expected, rtol=1e-8)


def test_a_half_life_forgets():
    rng = seeds.rng(6)
    x = np.r_[rng.randn(1000, 1), rng.randn(1000, 1) + 5]
    model = model_of(1)
    for block in np.split(x, 20):
        model.partial_fit(block, half_life=50)
    weights = np.repeat(0.5 ** (np.arange(19, -1, -1) * 100 / 50), 100)
    np.testing.assert_allclose(model.means_[0], np.average(x, 0, weights), rtol=1e-10)
    assert abs(model.means_[0, 0] - 5) < 0.6


def test_the_order_and_the_names_stay():
    """Where later rows make the calm regime the volatile one."""
    rng = seeds.rng(7)
    calm, wild = 100 + rng.randn(200, 1), -100 + 3 * rng.randn(200, 1)
    model = model_of().partial_fit(np.r_[calm, wild])
    assert model.regime_names_ == ["Calm", "Turbulent"]
    for _ in range(10):
        model.partial_fit(100 + 5 * rng.randn(200, 1))
    assert model.regime_names_ == ["Calm", "Turbulent"]
    assert model.means_[0, 0] > 0 > model.means_[1, 0]
    assert model.covariances_[0, 0, 0] > model.covariances_[1, 0, 0]


@ALL
def test_every_emission_is_updated(case):
    """A one-row block, one with missing entries and rows, and a long one; it comes near a fit."""
    x, _ = case.sample(8, 1500)
    x[610, 1] = x[620:622] = x[625, 0] = np.nan
    model = case.model(init_params=case.true(), n_init=1).fit(x[:600])
    whole = case.model(init_params=case.true(), n_init=1).fit(x)
    first = {name: getattr(model, f"{name}_").copy() for name in case.values}
    for block in np.split(x[600:], [1, 20, 21, 22, 23, 300, 600]):
        model.partial_fit(block)
    for name in case.values:
        assert np.isfinite(getattr(model, f"{name}_")).all()
        assert not np.array_equal(getattr(model, f"{name}_"), first[name])
    assert model.n_samples_fit_ == whole.n_samples_fit_ == 1498
    assert model.n_missing_rows_ == whole.n_missing_rows_
    np.testing.assert_array_equal(model.n_missing_, whole.n_missing_)
    assert model.score(x) > whole.score(x) - 0.01 * len(x)
    pickle.loads(pickle.dumps(model)).partial_fit(x[:5])


def test_a_row_without_values_changes_no_emission():
    x, _ = simulate(200, 9)
    model = model_of().fit(x)
    gamma, xi = forward_backward(x, model, model.initial_probs_)
    counts = xi.sum(0) + gamma[-1][:, None] * model.transition_matrix_  # no row says more of it
    model.partial_fit([[np.nan]])
    means = (gamma * x).sum(0) / gamma.sum(0)
    np.testing.assert_allclose(model.means_[:, 0], means, rtol=1e-9)
    expected = counts / counts.sum(-1, keepdims=True)
    np.testing.assert_allclose(model.transition_matrix_, expected, rtol=1e-9)
    assert model.n_samples_fit_ == 200 and model.n_missing_rows_ == 1


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, {"min_eigenvalue": 1e-3}])
def test_settings(settings):
    x, _ = simulate(600, 10)
    model = model_of(**settings).partial_fit(x[:300])
    for block in np.split(x[300:], 3):
        model.partial_fit(block)
    assert model.score(x) > model_of(**settings).fit(x).score(x) - 0.01 * len(x)


def test_a_floor_holds():
    x, _ = simulate(400, 11)
    model = model_of(min_eigenvalue=1.0)
    with pytest.warns(UserWarning, match="min_eigenvalue"):
        model.fit(x[:300])
    model.partial_fit(x[300:])
    assert model.covariances_.min() == pytest.approx(1.0)


def test_forbidden_transitions_stay_forbidden():
    x, _ = simulate(400, 12)
    ring = np.eye(3, dtype=bool) | np.roll(np.eye(3, dtype=bool), 1, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = model_of(3, transition_mask=ring).fit(x[:300])
    model.partial_fit(x[300:350]).partial_fit(x[350:])
    assert (model.transition_matrix_[~ring] == 0).all()
    np.testing.assert_allclose(model.transition_matrix_.sum(-1), 1, rtol=1e-12)


def test_what_cannot_be_updated_is_refused(tmp_path):
    x, _ = simulate(300, 13)
    updated = model_of().fit(x).partial_fit(x[:50])
    for criterion in (updated.aic, updated.bic):
        with pytest.raises(ValueError, match="expected X, got None for a model that partial_fit"):
            criterion()
        assert np.isfinite(criterion(x))
    assert "summed over all blocks" in str(updated.summary())
    updated.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert_same(state_of(loaded), state_of(updated))
    assert loaded.n_updates_ == 1
    given = {"means": [[1.0], [-2.0]]}
    for model in (
        loaded,
        RegimeModel.from_parameters(None, TRANSITIONS, MEANS, SPREADS**2),
        model_of().fit(x, states=np.r_[0, np.full(299, -1)]),
        model_of().fit([x[:100], x[100:]], sample_weight=[1, 2]),
        model_of().fit(x, gaps=np.r_[1, np.full(299, 2)]),
    ):
        before = state_of(model)
        with pytest.raises(ValueError, match="running averages.*call fit .*, or .* by pickle"):
            model.partial_fit(x)
        assert_same(state_of(model), before)
    for settings, name in (
        ({"inference": "svi"}, "inference='em'"),
        ({"stickiness": 5}, "stickiness=0.0"),
        ({"init_params": given, "fixed": ["means"]}, "fixed=\\[\\]"),
    ):
        model = model_of(**settings)
        with pytest.raises(ValueError, match=f"expected {name} for partial_fit"):
            model.partial_fit(x)
        assert not hasattr(model, "means_")
    assert not hasattr(clone(updated), "means_")


@pytest.mark.parametrize(
    "X, arguments, match",
    [
        (np.zeros((3, 2)), {}, "2 features"),
        ([[np.inf]], {}, "infinity"),
        ([[1.0]], {"half_life": 0}, "expected half_life to be a positive number"),
        ([[1.0]], {"half_life": "a year"}, "expected half_life to be a positive number"),
        ([[1.0]], {"continues": "yes"}, "expected continues to be True, False or None"),
        ([[1.0]], {"lengths": [2]}, "expected lengths to sum"),
        ([[[1.0]], [[2.0]]], {"continues": True}, "expected one sequence after one sequence"),
    ],
)
def test_a_refused_call_leaves_the_model_as_it_was(X, arguments, match):
    x, _ = simulate(200, 14)
    model, other = model_of().fit(x), model_of().fit(x)
    before = state_of(model)
    with pytest.raises(ValueError, match=match):
        model.partial_fit(X, **arguments)
    assert_same(state_of(model), before)
    assert_same(state_of(model.partial_fit(x[:9])), state_of(other.partial_fit(x[:9])))


def test_a_setting_that_changed_since_the_fit_is_refused():
    x, _ = simulate(200, 15)
    model = model_of().fit(x).set_params(n_regimes=3)
    with pytest.raises(ValueError, match="expected n_regimes=2 as in the fit"):
        model.partial_fit(x)
    model.set_params(n_regimes=2, min_eigenvalue=0.1).partial_fit(x)  # one series has one unit
    with pytest.raises(ValueError, match="nothing before them"):
        model_of().partial_fit(x, continues=True)
    model.partial_fit([x[:5], x[5:9]])
    with pytest.raises(ValueError, match="several sequences in the call before"):
        model.partial_fit(x, continues=True)


def test_rows_of_probability_zero_are_refused():
    x = np.repeat([[0.0], [1.0]], 20, axis=0)
    start = {"probabilities": [[[0.5, 0.5, 0.0]]]}  # of categories; the last one is impossible
    model = RegimeModel(1, emission="categorical", init_params=start).fit(x)
    before = state_of(model)
    with pytest.raises(ValueError, match="X of probability zero; call fit with all rows"):
        model.partial_fit([[2.0]])
    assert_same(state_of(model), before)
    model.partial_fit(x)
    assert model.n_samples_fit_ == 80


def test_a_regime_that_no_longer_varies_is_told():
    rng = seeds.rng(16)
    model = model_of(1).fit(rng.randn(100, 1))
    with pytest.warns(ConvergenceWarning, match="no longer vary in some direction in Regime 1"):
        for _ in range(40):
            model.partial_fit(np.ones((100, 1)), half_life=5)
    assert np.isfinite(model.covariances_).all()


def test_rows_that_continue_have_later_dates():
    x = seeds.rng(7).normal(size=(120, 2)) * np.tile(np.repeat([1.0, 3.0], 20), 3)[:, None]
    frame = pd.DataFrame(x, index=pd.date_range("2020-01-01", periods=120, tz="Asia/Tokyo"))
    model = RegimeModel(2, n_init=2, random_state=0).fit(frame[:80])
    for wrong in (frame[:80], frame[79:], frame[:80].tz_localize(None)):
        with pytest.raises(ValueError, match="in the call before|kind of the call before"):
            model.partial_fit(wrong)
    assert model.n_updates_ == 0
    again = pickle.loads(pickle.dumps(model)).partial_fit(frame[80:100])
    with pytest.raises(ValueError, match="2020-04-09.* after 2020-04-09.*or set continues=False"):
        again.partial_fit(frame[99:])
    again.partial_fit(frame[100:])
    again.partial_fit(frame[:80], continues=False)
    again.partial_fit([frame[:10], frame[:10]])
    again.partial_fit(x[:10])
    assert again.n_updates_ == 5
