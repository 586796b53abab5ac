"""Known regimes of rows: fits, scores and paths with states=."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.alignment import best_order
from pyro_regimes.estimator.spec import COVARIANCE_TYPES
from tests import seeds
from tests.regimes import COVARIANCES, MEANS, simulate

EXACT = dict(rtol=1e-12, atol=1e-12)


def model_of(covariance_type="full", n_regimes=3, **settings):
    settings = dict(n_init=3, random_state=0, regularization=0.0) | settings
    return RegimeModel(n_regimes, covariance_type, **settings)


def covariances_of(x, states, covariance_type):
    """Maximum-likelihood covariances of each regime, by hand."""
    each = np.stack([np.cov(x[states == k].T, bias=True) for k in range(3)])
    if covariance_type == "full":
        return each
    if covariance_type == "diag":
        return np.diagonal(each, axis1=1, axis2=2)
    if covariance_type == "spherical":
        return np.trace(each, axis1=1, axis2=2) / x.shape[1]
    return np.tensordot(np.bincount(states) / len(states), each, 1)


def counts_of(sequences):
    counts = np.zeros((3, 3))
    for path in sequences:
        np.add.at(counts, (path[:-1], path[1:]), 1)
    return counts


# ---- all known ---------------------------------------------------------------------------------


@pytest.mark.parametrize("acceleration", [None, "squarem"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_all_states_known_is_supervised_maximum_likelihood(covariance_type, acceleration):
    x, states = simulate(covariance_type, 400)
    model = model_of(covariance_type, acceleration=acceleration).fit(x, states=states)
    counts = counts_of([states])
    np.testing.assert_allclose(
        model.transition_matrix_, counts / counts.sum(-1, keepdims=True), **EXACT
    )
    np.testing.assert_allclose(model.initial_probs_, np.eye(3)[states[0]], **EXACT)
    means = np.stack([x[states == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(model.means_, means, **EXACT)
    np.testing.assert_allclose(
        model.covariances_, covariances_of(x, states, covariance_type), **EXACT
    )
    np.testing.assert_allclose(model.share_of_time_, np.bincount(states) / 400, **EXACT)
    assert model.converged_ and model.n_iter_ <= 3
    assert model.log_likelihood_ == pytest.approx(model.score(x, states=states), rel=1e-12)


def test_several_sequences_in_the_forms_of_x():
    parts = [simulate("full", size, seed) for seed, size in enumerate((200, 90, 1, 150))]
    xs, paths = [x for x, _ in parts], [path for _, path in parts]
    first = model_of().fit(xs, states=paths)
    counts = counts_of(paths)
    np.testing.assert_allclose(
        first.transition_matrix_, counts / counts.sum(-1, keepdims=True), **EXACT
    )
    starts = np.bincount([path[0] for path in paths], minlength=3) / 4
    np.testing.assert_allclose(first.initial_probs_, starts, **EXACT)
    lengths = [len(x) for x in xs]
    whole, path = np.concatenate(xs), np.concatenate(paths)
    names = "abcd"
    for x, states, sizes in (
        (whole, path, lengths),
        (whole, path.tolist(), lengths),
        (xs, [path.tolist() for path in paths], None),
        (xs, path, None),
        (xs, [np.eye(3, dtype=bool)[path] for path in paths], None),
        (whole, np.eye(3, dtype=bool)[path].tolist(), lengths),
        (dict(zip(names, xs)), dict(zip(names, paths)), None),
        (xs, path.astype(float), None),
        (xs, pd.Series(path, dtype="Int64"), None),
    ):
        again = model_of().fit(x, states=states, lengths=sizes)
        np.testing.assert_array_equal(again.means_, first.means_)
        np.testing.assert_array_equal(again.transition_matrix_, first.transition_matrix_)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_gradient_ascent_reaches_the_same(inference):
    x, states = simulate("diag", 200)
    model = model_of("diag", inference=inference, max_iter=200, tol=None).fit(x, states=states)
    means = np.stack([x[states == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(model.means_, means, atol=1e-2)


# ---- numbers and names -------------------------------------------------------------------------


def test_regimes_keep_the_numbers_of_the_states():
    """By volatility the order is another one; names are those of order_by."""
    x, states = simulate("full", 400)
    spread = np.array([x[states == k].std(0).mean() for k in range(3)])
    by_volatility = np.argsort(spread)
    model = model_of().fit(x, states=states)
    named = np.array(model.regime_names_)[by_volatility]
    np.testing.assert_array_equal(named, ["Calm", "Normal", "Turbulent"])
    assert (by_volatility != np.arange(3)).any()
    by_mean = model_of(order_by="mean").fit(x, states=states)
    assert by_mean.regime_names_ == ["Bull", "Sideways", "Bear"]
    np.testing.assert_array_equal(by_mean.means_, model.means_)
    four = np.where(np.arange(400) % 7 == 0, 3, states)
    numbered = model_of(n_regimes=4).fit(x, states=four)
    assert numbered.regime_names_ == [f"Regime {i + 1}" for i in range(4)]


@pytest.mark.parametrize("permutation", [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]])
def test_a_few_known_states_number_the_regimes(permutation):
    x, states = simulate("full", 600)
    renamed = np.array(permutation)[states]
    some = np.full(600, -1)
    some[::25] = renamed[::25]
    for k in range(3):
        some[np.flatnonzero(renamed == k)[:2]] = k
    model = model_of().fit(x, states=some)
    assert (model.predict(x, states=some)[some >= 0] == some[some >= 0]).all()
    assert (model.predict(x, states=some) == renamed).mean() > 0.9
    nan = model_of().fit(x, states=np.where(some < 0, np.nan, some))
    np.testing.assert_array_equal(nan.means_, model.means_)
    assert (np.diff(model.history_) > -1e-8).all()
    probs = model.predict_proba(x, states=some)
    np.testing.assert_allclose(probs[some >= 0], np.eye(3)[some[some >= 0]], atol=1e-12)


def test_the_first_start_alone_is_numbered_right():
    """With five regimes, in an order that k-means does not know."""
    rng = seeds.rng(3)
    states = np.repeat(rng.permutation(np.arange(40) % 5), 10)
    x = rng.normal(size=(400, 2)) * 0.3 + np.array([3, 0, 4, 1, 2])[states, None] * 4.0
    some = np.where(np.arange(400) % 3 == 0, states, -1)
    model = model_of(n_regimes=5, n_init=1).fit(x, states=some)
    np.testing.assert_allclose(model.means_[:, 0], [12, 0, 16, 4, 8], atol=0.5)


def test_the_best_order_of_many_items():
    target = seeds.rng(0).permutation(7)
    assert best_order(lambda order: sum(np.array(order) == target), 7) == tuple(target)
    assert best_order(lambda order: 0.0, 7) == tuple(range(7))
    assert best_order(lambda order: -float("inf"), 3) == (0, 1, 2)


def test_states_that_may_be_one_of_two():
    """Of every row one regime is known that it does not have."""
    x, states = simulate("full", 500)
    allowed = np.ones((500, 3), bool)
    allowed[np.arange(500), (states + 1 + np.arange(500) % 2) % 3] = False
    model = model_of().fit(x, states=allowed)
    path = model.predict(x, states=allowed)
    assert allowed[np.arange(500), path].all() and (path == states).mean() > 0.9


# ---- likelihoods -------------------------------------------------------------------------------


def test_scores_are_those_of_the_data_with_the_states():
    x, states = simulate("full", 50)
    model = model_of().fit(x, states=states)
    density = np.stack(
        [
            multivariate_normal(mean, covariance).logpdf(x)
            for mean, covariance in zip(model.means_, model.covariances_)
        ]
    )
    with np.errstate(divide="ignore"):
        initial, moves = np.log(model.initial_probs_), np.log(model.transition_matrix_)
    expected = initial[states[0]] + density[states, np.arange(50)].sum()
    expected += moves[states[:-1], states[1:]].sum()
    assert model.score(x, states=states) == pytest.approx(expected, rel=1e-10)
    assert model.decode(x, states=states)[0] == pytest.approx(expected, rel=1e-10)
    np.testing.assert_array_equal(model.fit_predict(x, states=states), states)


def test_impossible_states_are_no_path():
    x, _ = simulate("full", 60)
    matrix = [[0.5, 0.5, 0], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
    model = RegimeModel.from_parameters(None, matrix, MEANS, COVARIANCES["full"])
    never = np.full(60, -1)
    never[10], never[11] = 0, 2
    assert (model.predict(x, states=never) == -1).all()
    assert model.score(x, states=never) == -np.inf


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "states, message",
    [
        ([0, 1, 2], r"states to have an entry for each of the 60 rows of X, got shape \(3,\)"),
        (np.full(60, 3), "states from 0 to 2, or -1 where unknown, got 3 at row 0"),
        (np.full(60, -2), "states from 0 to 2, or -1 where unknown, got -2 at row 0"),
        (np.full(60, 0.5), "states to be integers"),
        (np.full(60, "calm"), r"states to be integers .*; number the regimes: .*\.map\("),
        (np.full(60, "calm", dtype=object), r"states to be integers .*; number the regimes"),
        (np.arange(60) % 2 == 0, r"states to be integers .* use states.astype\(int\)"),
        (np.ones((60, 2), bool), r"bool array \(T, 3\), got shape \(60, 2\)"),
        (np.ones((60, 3)), "bool array .* of dtype float64"),
        (np.zeros((60, 3), bool), "to allow a regime at every row, got none at 0"),
        (np.zeros(60, int), "no row that may have regime 1"),
        ([[0, 1], [2]], "states"),
        ({"a": np.zeros(60)}, "states to be a dict only where X is one"),
    ],
)
def test_wrong_states_are_refused(states, message):
    x, _ = simulate("full", 60)
    with pytest.raises(ValueError, match=message):
        model_of().fit(x, states=states)


def test_masked_states_are_unknown():
    x, truth = simulate("full", 300, 0)
    hidden = np.arange(300) % 3 > 0
    states = np.ma.array(truth, mask=hidden)
    model = RegimeModel(3, n_init=1, max_iter=3, tol=None, random_state=0)
    expected = np.where(hidden, -1, truth)
    one = model.fit(x, states=states).log_likelihood_
    assert one == model.fit(x, states=expected).log_likelihood_
    parts = [states[:120], states[120:]]
    several = model.fit([x[:120], x[120:]], states=parts).log_likelihood_
    assert several == model.fit(x, lengths=[120, 180], states=expected).log_likelihood_
    flags = np.ma.array(np.ones((300, 3), bool), mask=hidden[:, None] & np.ones(3, bool))
    with pytest.raises(ValueError, match="expected states without masked flags"):
        model.fit(x, states=flags)


def test_states_of_other_rows_are_refused():
    x, states = simulate("full", 60)
    dates = pd.date_range("2020-01-01", periods=60)
    frame = pd.DataFrame(x, dates, ["a", "b"])
    model_of().fit(frame, states=pd.Series(states, dates))
    with pytest.raises(ValueError, match=r"the index of X, got another; use states.reindex"):
        model_of().fit(frame, states=pd.Series(states, dates + pd.Timedelta(days=1)))
    with pytest.raises(ValueError, match=r"states of 2 sequences of \[20, 40\] rows"):
        model_of().fit([x[:20], x[20:]], states=[states[:30], states[30:]])


def test_states_that_given_zeros_forbid_are_refused():
    x, states = simulate("full", 60)
    known = np.full(60, -1)
    known[[0, 20, 45]] = [0, 1, 2]
    matrix = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]])
    model_of(init_params={"transition_matrix": matrix}, max_iter=2, tol=None).fit(x, states=known)
    known[50] = 1
    with pytest.raises(ValueError, match="an impossible sequence of states at row 50"):
        model_of(init_params={"transition_matrix": matrix}).fit(x, states=known)
    first = {"initial_probs": [0, 0.5, 0.5]}
    with pytest.raises(ValueError, match="an impossible sequence of states at row 0"):
        model_of(init_params=first).fit(x, states=known)


@pytest.mark.parametrize("emission", ["poisson", "student_t", "gamma"])
def test_other_emissions(emission):
    """The supervised estimate, and the numbers of a few known states."""
    x, states = simulate("full", 300)
    if emission == "poisson":
        x = np.round(np.exp(0.5 * x[:, :1] + 1))
    elif emission == "gamma":
        x = np.exp(x[:, :1])
    model = RegimeModel(3, emission=emission, n_init=2, random_state=0, regularization=0.0)
    model.fit(x, states=states)
    counts = counts_of([states])
    np.testing.assert_allclose(
        model.transition_matrix_, counts / counts.sum(-1, keepdims=True), **EXACT
    )
    if emission == "poisson":
        rates = np.stack([x[states == k].mean(0) for k in range(3)])
        np.testing.assert_allclose(model.rates_, rates, **EXACT)
    some = np.where(np.arange(300) % 2 == 0, states, -1)
    for k in range(3):
        some[np.flatnonzero(states == k)[:3]] = k
    partly = model.fit(x, states=some)
    path = partly.predict(x, states=some)
    assert (path[some >= 0] == some[some >= 0]).all()


def test_a_known_row_without_a_value():
    """It says nothing of the means, but counts in the transitions."""
    x, states = simulate("full", 200)
    x[50:60] = np.nan
    model = model_of().fit(x, states=states)
    counts = counts_of([states])
    np.testing.assert_allclose(
        model.transition_matrix_, counts / counts.sum(-1, keepdims=True), **EXACT
    )
    seen = ~np.isnan(x[:, 0])
    means = np.stack([x[seen & (states == k)].mean(0) for k in range(3)])
    np.testing.assert_allclose(model.means_, means, **EXACT)
