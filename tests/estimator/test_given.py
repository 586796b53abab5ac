"""Parameters that the user gives: starts, constants of a fit, and models without a fit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone

from pyro_regimes import EM
from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.spec import COVARIANCE_TYPES
from tests import seeds
from tests.regimes import simulate

NAMES = ("initial_probs", "transition_matrix", "means", "covariances")
STICKY = [[0.98, 0.02, 0.0], [0.01, 0.97, 0.02], [0.0, 0.05, 0.95]]


def values(model):
    return {name: getattr(model, f"{name}_") for name in NAMES}


def model_of(covariance_type="full", **settings):
    settings = dict(n_init=3, random_state=0, regularization=0.0, order_by="mean") | settings
    return RegimeModel(3, covariance_type, **settings)


@pytest.fixture(scope="module", params=COVARIANCE_TYPES)
def fitted(request):
    x, _ = simulate(request.param, 600)
    return model_of(request.param, tol=1e-8, max_iter=500).fit(x), x


# ---- starts ------------------------------------------------------------------------------------


def test_a_warm_start_is_at_the_optimum_at_once(fitted):
    model, x = fitted
    warm = clone(model).set_params(init_params=model, tol=1e-4).fit(x)
    assert warm.n_iter_ <= 2 and warm.converged_
    assert abs(warm.log_likelihood_ - model.log_likelihood_) < 1e-4
    again = clone(model).set_params(init_params=values(model), tol=1e-4).fit(x)
    np.testing.assert_array_equal(again.history_, warm.history_)


@pytest.mark.parametrize("unit, level", [(1.0, 0.0), (1e-6, 3.0), (1e6, -1e6)])
def test_the_first_likelihood_is_that_of_the_given_parameters(fitted, unit, level):
    """Given in the units of the data."""
    model, x = fitted
    squared = {"means": level + unit * model.means_, "covariances": unit**2 * model.covariances_}
    start = values(model) | squared
    moved = RegimeModel.from_parameters(**start, covariance_type=model.covariance_type)
    data = level + unit * x
    warm = clone(model).set_params(init_params=start, max_iter=1, tol=None).fit(data)
    expected = moved.score(data, start="fitted")
    assert abs(warm.history_[0] - expected) < 1e-7 * abs(expected) + 1e-5


def test_means_alone_are_those_of_every_start():
    x, _ = simulate("full", 300)
    means = np.array([[2.0, 2.0], [0.0, 0.0], [-2.0, -1.0]])
    seen = []
    for seed in range(2):
        model = model_of(max_iter=0, random_state=seed, init_params={"means": means}, tol=None)
        seen.append(model.fit(x))
        # Fits are in units of the data, so a mean of 0 is rounded as the data are.
        rounding = 8 * np.finfo(float).eps * np.abs(x).max()
        np.testing.assert_allclose(seen[-1].means_, means, rtol=0, atol=rounding)
    model.set_params(max_iter=100, tol=1e-4).fit(x)
    assert model.converged_ and not np.allclose(model.means_, means)


def test_zeros_of_a_given_transition_matrix_stay():
    x, _ = simulate("full", 300)
    model = model_of(init_params={"transition_matrix": STICKY}, order_by="volatility").fit(x)
    assert (model.transition_matrix_ == 0).sum() == 2


# ---- what a fit leaves as it is ----------------------------------------------------------------


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("fixed", [["means"], ["covariances"], ["transition_matrix", "means"]])
@pytest.mark.parametrize("whole", [False, True])
def test_fixed_parameters_keep_their_bits(fitted, inference, fixed, whole):
    model, x = fitted
    start = values(model) if whole else {name: values(model)[name] for name in fixed}
    start = {name: value.copy() for name, value in start.items()}
    found = model_of(
        model.covariance_type, inference=inference, max_iter=10, tol=None, init_params=start,
        fixed=fixed, regularization=1e-3,
    ).fit(x * 1.1)  # fmt: skip
    # The regimes are sorted like any, so their order is found first.
    order = np.argsort(-found.means_.mean(-1))
    np.testing.assert_array_equal(order, range(3))
    own = np.argsort(-start["means"].mean(-1)) if "means" in fixed else None
    for name in fixed:
        if own is not None or model.covariance_type == "tied" and name == "covariances":
            np.testing.assert_array_equal(getattr(found, f"{name}_"), start[name])
        else:  # free means may have sorted them otherwise
            given = np.sort(start[name], axis=0)
            np.testing.assert_array_equal(np.sort(getattr(found, f"{name}_"), axis=0), given)
    assert found.fixed_ == sorted(fixed)
    assert (np.diff(found.history_) > -1e-6).all() or inference == "svi"


def test_the_rest_is_at_its_maximum():
    """EM on a Pyro model with a constant transition matrix ends in the same parameters."""
    x, _ = simulate("full", 400)
    model = model_of(
        init_params={"transition_matrix": STICKY}, fixed="transition_matrix", tol=1e-9,
        max_iter=1000, order_by="volatility",
    ).fit(x)  # fmt: skip
    before = model.score(x, start="fitted")
    free = clone(model).set_params(init_params=values(model), fixed=(), tol=1e-4).fit(x)
    assert free.log_likelihood_ > before - 1e-6
    held = clone(model).set_params(init_params=values(model), max_iter=3, tol=None).fit(x)
    np.testing.assert_allclose(held.means_, model.means_, atol=1e-5)
    assert abs(held.log_likelihood_ - before) < 1e-6


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("kind", ["constant", "collinear", "few", "equal"])
def test_fixed_covariances_bound_the_likelihood_of_any_data(covariance_type, kind, inference):
    noise = seeds.rng(0).normal(size=(3 if kind == "few" else 40, 3))
    x = {
        "constant": noise * [1.0, 1.0, 0.0] + 5.0,
        "collinear": noise[:, [0, 1, 0]] + noise[:, [1, 0, 0]],
        "few": noise,
        "equal": np.repeat(noise[:1], 40, axis=0),
    }[kind]
    matrix = np.diag([1.0, 2.0, 0.5]) if covariance_type in ("full", "diag") else 2 * np.eye(3)
    value = {"full": matrix[None], "tied": matrix, "diag": np.diagonal(matrix)[None]}.get(
        covariance_type, [2.0]
    )
    model = RegimeModel(
        1, covariance_type, init_params={"covariances": value}, fixed="covariances",
        inference=inference, max_iter=500, tol=1e-6, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* rows .* of X|Column|The column", UserWarning)
        model.fit(x)
    accuracy = 1e-9 if inference == "em" else 1e-2
    np.testing.assert_allclose(model.means_[0], x.mean(0), atol=accuracy)
    expected = multivariate_normal(x.mean(0), matrix).logpdf(x).sum()
    assert model.log_likelihood_ == pytest.approx(expected, abs=accuracy)
    if kind not in ("few", "equal"):
        both = np.concatenate([value] * 2) if covariance_type != "tied" else value
        model.set_params(n_regimes=2, init_params={"covariances": both}, max_iter=5, tol=None)
        model.set_params(order_by="mean" if inference == "svi" else "volatility")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model.fit(x)
        assert (np.diff(model.history_) > -1e-9).all() or inference == "svi"


def test_fixed_parameters_do_not_count(fitted):
    model, x = fitted
    spec = model._spec()
    counts = spec.num_free_parameters(3, 2) | {"initial_probs": 2, "transition_matrix": 6}
    for name in NAMES:
        found = model_of(
            model.covariance_type, init_params=model, fixed=[name], max_iter=1, tol=None
        ).fit(x)
        assert found.n_parameters_ == model.n_parameters_ - counts[name]


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(init_params=3), "expected init_params to be a dict of initial_probs"),
        (dict(init_params={"mean": 0}), "expected the keys of init_params among .*'mean'"),
        (dict(init_params={"means": [[0.0]]}), r"expected means in init_params .*\(3, 2\)"),
        (dict(init_params={"means": [[np.nan]] * 3}), "expected means in init_params to be finite"),
        (
            dict(init_params={"transition_matrix": np.ones((3, 3))}),
            "expected transition_matrix in init_params to be 3 rows of 3 probabilities",
        ),
        (
            dict(init_params={"covariances": -np.stack([np.eye(2)] * 3)}),
            "to be symmetric and positive definite, got a least eigenvalue of -1 in regime 0",
        ),
        (dict(init_params=RegimeModel()), "expected init_params to be a fitted model"),
        (dict(fixed=["means"]), "expected init_params to hold the values of the fixed 'means'"),
        (dict(fixed=["mean"]), "expected fixed to hold names among"),
        (dict(fixed=3), "expected fixed to hold names among"),
    ],
)
def test_wrong_parameters_are_refused(settings, message):
    x, _ = simulate("full", 60)
    with pytest.raises(ValueError, match=message):
        model_of(**settings).fit(x)


def test_a_model_with_other_regimes_series_or_covariances_is_refused(fitted):
    model, x = fitted
    other = "diag" if model.covariance_type == "full" else "full"
    for settings, data, message in (
        (dict(n_regimes=2), x, "the same regimes, 2, got 3"),
        (dict(covariance_type=other), x, "the same covariance_type"),
        ({}, np.c_[x, x[:, ::-1] ** 2], "the 2 series of the model in init_params, got 4"),
        (dict(fixed=NAMES), x, "from_parameters makes a model without a fit"),
        (dict(fixed="covariances", min_eigenvalue=0.1), x, "expected min_eigenvalue=0 where"),
    ):
        with pytest.raises(ValueError, match=message):
            clone(model).set_params(init_params=model, **settings).fit(data)


def test_settings_survive_clone_and_file(fitted, tmp_path):
    model, x = fitted
    warm = model_of(model.covariance_type, init_params=model, fixed=["means"], max_iter=2).fit(x)
    assert clone(warm).init_params is model
    warm.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert loaded.fixed_ == ["means"] and loaded.n_parameters_ == warm.n_parameters_
    again, first = clone(loaded).fit(x), clone(warm).fit(x)
    np.testing.assert_array_equal(again.history_, first.history_)


# ---- without a fit -----------------------------------------------------------------------------


def test_a_model_from_parameters_is_the_fitted_one(fitted, tmp_path):
    model, x = fitted
    made = RegimeModel.from_parameters(
        **values(model), covariance_type=model.covariance_type, order_by="mean"
    )
    assert made.score(x) == model.score(x)
    np.testing.assert_array_equal(made.predict(x), model.predict(x))
    np.testing.assert_allclose(made.share_of_time_, model.stationary_distribution_, atol=1e-12)
    assert np.isnan(made.log_likelihood_) and made.n_samples_fit_ == 0
    assert "not fitted to data" in str(made.summary())
    assert made.bic(x) == model.bic()
    with pytest.raises(ValueError, match="expected X, got None"):
        made.bic()
    made.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert loaded.score(x) == model.score(x) and np.isnan(loaded.log_likelihood_)
    em = EM(made.model).run(torch.tensor(x), num_steps=1, tol=None)
    assert abs(em.restart_history[0] + model.score(x)) < 1e-8 * abs(model.score(x))


def test_regimes_from_parameters_keep_their_order():
    settings = dict(initial_probs=None, transition_matrix=[[0.9, 0.1], [0.2, 0.8]])
    made = RegimeModel.from_parameters(means=[0.0, 1.0], covariances=[[[4.0]], [[1.0]]], **settings)
    assert made.regime_names_ == ["Turbulent", "Calm"]
    np.testing.assert_allclose(made.initial_probs_, [2 / 3, 1 / 3])
    named = RegimeModel.from_parameters(
        means=[[0.0], [1.0]], covariances=[4.0, 1.0], covariance_type="spherical",
        regime_names=["Risk off", "Risk on"], feature_names=["SPX"], **settings,
    )  # fmt: skip
    assert named.regime_names_ == ["Risk off", "Risk on"]
    assert list(named.feature_names_in_) == ["SPX"]


def test_the_long_run_of_a_chain_that_never_mixes():
    made = RegimeModel.from_parameters([0.3, 0.7], np.eye(2), [0.0, 1.0], [[[1.0]], [[1.0]]])
    np.testing.assert_allclose(made.share_of_time_, [0.3, 0.7])
    cycle = RegimeModel.from_parameters([1.0, 0], [[0, 1], [1, 0]], [0, 1], [[[1.0]], [[1.0]]])
    np.testing.assert_allclose(cycle.share_of_time_, [0.5, 0.5])


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_model_of_hmmlearn_says_the_same(covariance_type):
    hmm = pytest.importorskip("hmmlearn.hmm")
    x, _ = simulate(covariance_type, 300)
    other = hmm.GaussianHMM(3, covariance_type, random_state=0, n_iter=20).fit(x)
    model = RegimeModel.from_hmmlearn(other)
    assert abs(model.score(x) - other.score(x)) < 1e-8 * abs(other.score(x))
    np.testing.assert_array_equal(model.predict(x), other.predict(x))
    np.testing.assert_allclose(model.predict_proba(x), other.predict_proba(x), atol=1e-9)
    with pytest.raises(ValueError, match="expected a fitted hmmlearn.hmm.GaussianHMM"):
        RegimeModel.from_hmmlearn(hmm.GaussianHMM(3))
    with pytest.raises(ValueError, match="expected a fitted hmmlearn.hmm.GaussianHMM"):
        RegimeModel.from_hmmlearn(hmm.CategoricalHMM(2))
    with pytest.raises(ValueError, match=r"from_parameters\(.*, emission='poisson', rates=hmm"):
        RegimeModel.from_hmmlearn(hmm.PoissonHMM(2))


MOVES = [[0.9, 0.1], [0.2, 0.8]]
OF_ONE_SERIES = dict(means=[0.0, 1.0], covariances=[[[4.0]], [[1.0]]])


@pytest.mark.parametrize(
    "initial, expected", [("stationary", [2 / 3, 1 / 3]), ("uniform", [0.5, 0.5])]
)
@pytest.mark.parametrize("given", [False, True])
def test_the_first_regime_of_parameters_is_that_of_initial(initial, expected, given, tmp_path):
    """The score, the Pyro model and the number of parameters say the same."""
    made = RegimeModel.from_parameters(
        expected if given else None, MOVES, initial=initial, **OF_ONE_SERIES
    )
    np.testing.assert_allclose(made.initial_probs_, expected, rtol=1e-15)
    assert made.n_parameters_ == 2 + 4
    x = seeds.rng(0).normal(size=(20, 1))
    result = EM(made.model).run(torch.tensor(x), num_steps=1, tol=None)
    score = made.score(x, start="fitted")
    assert result.restart_history[0].item() == pytest.approx(-score, rel=1e-12)
    made.save(tmp_path / "model.json")
    assert RegimeModel.load(tmp_path / "model.json").score(x, start="fitted") == score


@pytest.mark.parametrize("initial", ["stationary", "uniform"])
def test_another_first_regime_than_that_of_initial_is_refused(initial, tmp_path):
    message = f"expected initial_probs to be None or the {initial} distribution .*initial='free'"
    for probs in ([1.0, 0.0], [0.6, 0.4]):
        with pytest.raises(ValueError, match=message):
            RegimeModel.from_parameters(probs, MOVES, initial=initial, **OF_ONE_SERIES)
    made = RegimeModel.from_parameters(None, MOVES, initial=initial, **OF_ONE_SERIES)
    made.initial_probs_ = np.array([1.0, 0.0])
    made.save(tmp_path / "model.json")
    with pytest.raises(ValueError, match=f"expected initial_probs_ to be .*the {initial} dist"):
        RegimeModel.load(tmp_path / "model.json")


def test_each_call_has_its_own_remedy_where_there_is_no_stationary_distribution():
    how = dict(transition_matrix=np.eye(2), **OF_ONE_SERIES)
    several = "with one stationary distribution, got a matrix with several: some regimes .*; "
    with pytest.raises(ValueError, match=f"transition_matrix {several}give initial_probs$"):
        RegimeModel.from_parameters(None, **how)
    remedy = "give initial_probs, with initial='free'$"
    with pytest.raises(ValueError, match=f"transition_matrix {several}{remedy}"):
        RegimeModel.from_parameters(None, initial="stationary", **how)
    made = RegimeModel.from_parameters([0.5, 0.5], **how)
    with pytest.raises(ValueError, match=f"transition_matrix_ {several}see share_of_time_"):
        made.stationary_distribution_
    with pytest.raises(ValueError, match=f"transition_matrix_ {several}use start='fitted'$"):
        made.score([[0.0], [1.0]], start="stationary")


def test_a_stationary_fit_refuses_a_matrix_that_has_no_stationary_distribution():
    x, _ = simulate("full", 60)
    halves = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    message = "expected transition_matrix in init_params with one stationary .*; .*initial="
    for fixed in ((), ("transition_matrix",)):
        model = model_of(
            initial="stationary", init_params={"transition_matrix": halves}, fixed=fixed
        )
        with pytest.raises(ValueError, match=message) as caught:
            model.fit(x)
        assert "Trace Shapes" not in str(caught.value)
    model.set_params(initial="uniform", order_by="volatility", max_iter=2, tol=None).fit(x)


@pytest.mark.parametrize("name", ["regime_names", "feature_names"])
@pytest.mark.parametrize("value", [5, 5.0, "ab", [1], ["a", "b", "c"], str])
def test_names_that_are_none_are_refused(name, value):
    number = 2 if name == "regime_names" else 1
    with pytest.raises(ValueError, match=f"expected {name} to be {number} strings, got"):
        RegimeModel.from_parameters(None, MOVES, **OF_ONE_SERIES, **{name: value})


class Elsewhere:
    """What :meth:`.from_hmmlearn` reads."""

    covariance_type = "diag"
    startprob_, transmat_ = np.array([0.5, 0.5]), np.array(MOVES)
    means_, covars_ = np.array([[0.0], [1.0]]), np.array([[[4.0]], [[1.0]]])


def test_settings_of_a_model_of_hmmlearn_may_repeat_it():
    made = RegimeModel.from_hmmlearn(
        Elsewhere(), covariance_type="diag", means=[[0], [1]], order_by="mean"
    )
    np.testing.assert_array_equal(made.covariances_, [[4.0], [1.0]])
    assert made.covariance_type_ == "diag" and made.order_by == "mean"
    for name, value in (
        ("covariance_type", "full"),
        ("covariance_type", np.array(["diag", "full"])),
        ("means", [[0.0], [2.0]]),
        ("initial_probs", None),
        ("covariances", "none"),
    ):
        with pytest.raises(ValueError, match=f"expected {name} to be that of the hmmlearn model, "):
            RegimeModel.from_hmmlearn(Elsewhere(), **{name: value})


@pytest.mark.parametrize(
    "covariance_type, value, message",
    [
        ("full", [[[4.0]], [[-1.0]]], "to be symmetric and positive .* of -1 in regime 1"),
        ("tied", [[0.0]], "to be symmetric .*, got a least eigenvalue of 0; "),
        ("diag", [[4.0], [0.0]], "to be positive variances, got 0 in regime 1; "),
        ("spherical", [-4.0, 1.0], "to be positive variances, got -4 in regime 0; "),
    ],
)
def test_covariances_that_are_none_are_refused(covariance_type, value, message):
    with pytest.raises(ValueError, match=f"expected covariances {message}"):
        RegimeModel.from_parameters(None, MOVES, [0, 1], value, covariance_type=covariance_type)
    model = RegimeModel(2, covariance_type, init_params={"covariances": value})
    with pytest.raises(ValueError, match=f"expected covariances {message}"):
        model.fit(np.arange(9.0)[:, None])


def test_covariances_that_are_not_symmetric_are_refused():
    value = [np.eye(2), [[1.0, 0.5], [0.3, 1.0]]]
    message = r"got a matrix C in regime 1 that is not symmetric; use \(C \+ C.T\) / 2"
    with pytest.raises(ValueError, match=message):
        RegimeModel.from_parameters(None, MOVES, np.zeros((2, 2)), value)


SHAPES = {
    "full": [[[4.0]], [[1.0]]],
    "tied": [[2.0]],
    "diag": [[4.0], [1.0]],
    "spherical": [4.0, 1.0],
}


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_dims_of_one_series_may_be_left_out(covariance_type):
    x = seeds.rng(0).normal(size=(60, 1)) * np.repeat([1.0, 2.0], 30)[:, None]
    shape = np.shape(SHAPES[covariance_type])
    arrays = [SHAPES[covariance_type]]
    while arrays[-1] is not None and shape and shape[-1] == 1:
        arrays.append(np.squeeze(arrays[-1], -1))
        shape = shape[:-1]
    assert len(arrays) == {"full": 3, "tied": 3, "diag": 2, "spherical": 1}[covariance_type]
    models, fits = [], []
    for covariances in arrays:
        for means in ([[0.0], [0.5]], [0.0, 0.5]):
            given = {"means": means, "covariances": covariances}
            models.append(
                RegimeModel.from_parameters(None, MOVES, **given, covariance_type=covariance_type)
            )
            fits.append(
                RegimeModel(
                    2, covariance_type, init_params=given, fixed=["means"], max_iter=3, tol=None,
                    random_state=0,
                ).fit(x)
            )  # fmt: skip
    for each in (models, fits):
        assert {model.score(x) for model in each} == {each[0].score(x)}
        assert {model.covariances_.shape for model in each} == {np.shape(arrays[0])}
        assert {model.means_.shape for model in each} == {(2, 1)}


def test_dims_of_several_series_may_not_be_left_out():
    x = seeds.rng(0).normal(size=(60, 2))
    for given in ({"means": [0.0, 1.0]}, {"covariances": [1.0, 1.0]}):
        with pytest.raises(ValueError, match=r"init_params to have shape \(2, 2.*, got \(2,\)"):
            RegimeModel(2, init_params=given).fit(x)
    with pytest.raises(ValueError, match=r"expected covariances to have shape \(2, 2\), got \(2,"):
        RegimeModel.from_parameters(
            None, MOVES, np.zeros((2, 2)), [1.0, 1.0], covariance_type="diag"
        )
    wrong = {"covariances": [[1.0, 1.0]]}
    with pytest.raises(ValueError, match=r"expected covariances to have shape \(2, 1, 1\), got"):
        RegimeModel.from_parameters(None, MOVES, [0.0, 1.0], **wrong)


@pytest.mark.parametrize(
    "probs, message",
    [
        ([0.333] * 3, r"that sum to 1, got \[0.333.*, with the sum 0.999; divide .* their sum$"),
        ([0.5, 0.3, 0.3], r"that sum to 1, got \[0.5, 0.3, 0.3\], with the sum 1.1$"),
        ([1.2, -0.2, 0.0], r"that sum to 1, got \[1.2, -0.2, 0.0\], with the negative -0.2$"),
        ([0.5, 0.5], r"that sum to 1, got \[0.5, 0.5\]$"),
    ],
)
def test_the_sum_of_rounded_probabilities_is_shown(probs, message):
    covariances = np.ones((3, 1, 1))
    how = dict(means=[0, 1, 2], covariances=covariances)
    with pytest.raises(ValueError, match=f"expected initial_probs to be 3 probabilities {message}"):
        RegimeModel.from_parameters(probs, STICKY, **how)
    matrix = [STICKY[0], probs, STICKY[2]]
    if len(probs) == 3:
        rows = "(?s)expected transition_matrix.* 3 rows of 3 probabilities that sum to 1, got .*"
        row = message.partition(", with")[2].replace("divide .* their", "divide each row by its")
        row = f"{rows}, with{row}".replace("the sum", "the sum of row 1,")
        for call in (
            lambda: RegimeModel.from_parameters(None, matrix, **how),
            lambda: model_of(init_params={"transition_matrix": matrix}).fit(np.eye(9)[:, :1]),
        ):
            with pytest.raises(ValueError, match=row):
                call()


# ---- a start that collapses beside others ------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_start_collapses_where_rounding_hides_the_floor(dtype):
    """Its largest variance is so large that the least one is lost in rounding."""
    rng = seeds.rng(0)
    x = rng.normal(size=(400, 4))
    x[200:] *= 3
    x[100:103] *= 300
    start = {
        "means": [[0.0] * 4, [0.0] * 4, list(x[101])],
        "covariances": [np.eye(4), 9 * np.eye(4), 1e4 * np.eye(4)],
    }
    model = RegimeModel(3, n_init=1, init_params=start, dtype=dtype, random_state=0, tol=1e-3)
    with pytest.warns(Warning, match="A regime collapsed onto a few points"):
        model.fit(x)
    assert np.isfinite(model.log_likelihood_)


# ---- the distribution of the first regime ------------------------------------------------------


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("initial", ["stationary", "uniform"])
def test_the_first_regime(fitted, inference, initial, tmp_path):
    model, x = fitted
    found = model_of(
        model.covariance_type, inference=inference, initial=initial, max_iter=20, tol=None
    ).fit(x, lengths=[200, 400])
    expected = np.full(3, 1 / 3) if initial == "uniform" else found.stationary_distribution_
    np.testing.assert_allclose(found.initial_probs_, expected, rtol=1e-12)
    assert found.n_parameters_ == model.n_parameters_ - 2
    assert (np.diff(found.history_) > -1e-7).all() or inference == "svi"
    assert abs(found.history_[-1] - found.score(x, lengths=[200, 400])) < 1e-6
    found.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert loaded.initial_ == initial and loaded.score(x) == found.score(x)
    before = loaded.score(x, start="fitted")
    result = EM(loaded.model).run(torch.tensor(x), num_steps=3, tol=None)
    assert abs(result.restart_history[0] + before) < 1e-7 * abs(before)
    assert (result.restart_history.flatten().diff() < 1e-7).all()


@pytest.mark.parametrize("n_regimes", [2, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_stationary_start_is_recognised_in_every_dtype(n_regimes, dtype):
    x, _ = simulate("full", 300)
    model = RegimeModel(n_regimes, initial="stationary", dtype=dtype, random_state=0, max_iter=5)
    model.set_params(tol=None).fit(x)
    np.testing.assert_allclose(
        model.initial_probs_, model.stationary_distribution_, rtol=1e-4, atol=1e-6
    )


def test_a_stationary_start_is_where_gradients_end():
    x, _ = simulate("diag", 400)
    settings = dict(initial="stationary", tol=1e-7, max_iter=2000)
    model = model_of("diag", **settings).fit(x)
    again = clone(model).set_params(init_params=model, inference="svi", max_iter=300, tol=None)
    assert again.fit(x).log_likelihood_ <= model.log_likelihood_ + 1e-6


def test_the_first_regime_is_no_parameter_then():
    x, _ = simulate("full", 60)
    start = {"initial_probs": [1.0, 0, 0]}
    with pytest.raises(ValueError, match="expected no initial_probs in init_params where initial"):
        model_of(initial="uniform", init_params=start).fit(x)
    with pytest.raises(ValueError, match="expected initial to be one of 'free', 'stationary', 'un"):
        model_of(initial="fixed").fit(x)
