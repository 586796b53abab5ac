from __future__ import annotations

import json
import os
import pickle
import threading
import warnings

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from hmmlearn.hmm import GaussianHMM
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from pyro_regimes.checks import collapsed_variance
from pyro_regimes.fitting import fit_starts
from pyro_regimes.gaussian_hmm import COVARIANCE_TYPES, full_covariances, to_arguments
from pyro_regimes.infer.em import EM
from pyro_regimes.model import RegimeModel
from pyro_regimes.starts import make_starts

TRANSITIONS = np.array([[0.95, 0.04, 0.01], [0.05, 0.9, 0.05], [0.02, 0.08, 0.9]])
MEANS = np.array([[2.0, 1.0], [0.0, 0.0], [-2.0, -3.0]])
# The volatility of the middle regime is the largest: by volatility the order is another one.
COVARIANCES = {
    "full": np.array(
        [[[0.3, 0.1], [0.1, 0.2]], [[1.0, -0.4], [-0.4, 1.2]], [[0.5, 0.3], [0.3, 0.8]]]
    ),
    "diag": np.array([[0.3, 0.2], [1.0, 1.2], [0.5, 0.8]]),
    "spherical": np.array([0.2, 1.2, 0.7]),
    "tied": np.array([[0.6, 0.2], [0.2, 0.9]]),
}


def simulate(covariance_type: str, num_steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations and states, from the explicit model one step at a time."""
    rng = np.random.RandomState(seed)
    full = full_covariances(COVARIANCES[covariance_type], covariance_type, MEANS.shape)
    states = [rng.randint(3)]
    for _ in range(num_steps - 1):
        states.append(rng.choice(3, p=TRANSITIONS[states[-1]]))
    x = np.stack([rng.multivariate_normal(MEANS[state], full[state]) for state in states])
    return x, np.array(states)


@pytest.fixture(scope="module", params=COVARIANCE_TYPES)
def fitted(request) -> tuple[RegimeModel, np.ndarray, np.ndarray]:
    x, states = simulate(request.param, 1200)
    model = RegimeModel(3, request.param, n_init=3, random_state=0, regularization=0.0)
    return model.fit(x), x, states


@pytest.fixture(scope="module")
def full() -> tuple[RegimeModel, np.ndarray]:
    x, _ = simulate("full", 300, seed=1)
    return RegimeModel(n_init=2, tol=1e-3, random_state=0).fit(x), x


def hmmlearn_twin(model: RegimeModel) -> GaussianHMM:
    """hmmlearn's model with the fitted parameters."""
    twin = GaussianHMM(len(model.means_), model.covariance_type)
    twin.n_features = model.n_features_in_
    twin.startprob_, twin.transmat_ = model.initial_probs_, model.transition_matrix_
    twin.means_, twin.covars_ = model.means_, model.covariances_
    return twin


# ---- the fit ---------------------------------------------------------------------------------


def test_fit_recovers_a_known_simulation(fitted):
    """Within some three standard errors of 1200 steps; regimes sorted by their mean."""
    model, x, states = fitted
    assert model.converged_ and model.n_iter_ == len(model.history_) - 1
    assert model.regime_names_ == ["Bull", "Sideways", "Bear"]
    np.testing.assert_allclose(model.means_, MEANS, rtol=0, atol=0.25)
    np.testing.assert_allclose(model.transition_matrix_, TRANSITIONS, rtol=0, atol=0.06)
    expected = COVARIANCES[model.covariance_type]
    assert model.covariances_.shape == expected.shape
    np.testing.assert_allclose(model.covariances_, expected, rtol=0, atol=0.3)
    assert np.mean(model.predict(x) == states) > 0.95
    for name in ("initial_probs_", "transition_matrix_", "means_", "covariances_", "history_"):
        assert getattr(model, name).dtype == np.float64


def test_every_iteration_rises_to_the_score(fitted):
    """The smallest difference of the trace; in the data's own units, whatever the fit's."""
    model, x, _ = fitted
    assert np.diff(model.history_).min() >= -1e-9
    np.testing.assert_allclose(model.history_[-1], model.log_likelihood_, rtol=1e-12)
    assert model.score(x) == model.log_likelihood_


def test_the_fit_is_a_fixed_point_of_em_on_the_model(fitted):
    """``.model`` starts where the fit ended, in the caller's store, and EM has no more to do."""
    model, x, _ = fitted
    with pyro.get_param_store().scope():
        em = EM(model.model)
        loss = em.step(torch.tensor(x))
        np.testing.assert_allclose(loss, -model.log_likelihood_, rtol=1e-12)
        arguments = to_arguments(*model._fitted())
        assert set(pyro.get_param_store().keys()) == set(arguments)
        for name, value in arguments.items():
            assert pyro.param(name).shape == value.shape
            torch.testing.assert_close(pyro.param(name).detach(), value, rtol=1e-2, atol=1e-3)
        assert -1e-9 <= loss - em.step(torch.tensor(x)) < model.tol


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("ragged", [False, True])
def test_starts_in_one_batch_equal_each_alone(covariance_type, inference, ragged):
    x, _ = simulate(covariance_type, 120)
    starts = make_starts(x, 3, 3, covariance_type, 1e-6, np.random.RandomState(0))
    data, lengths = torch.tensor(x), None
    if ragged:
        data = torch.stack([data[:60], data[60:]])
        data[1, 40:] = torch.nan  # padding
        lengths = torch.tensor([60, 40])
    settings = dict(inference=inference, max_iter=6, tol=None, min_eigenvalue=0.0, least=1e-6)
    batch = fit_starts(starts, covariance_type, data, lengths, **settings)
    assert batch.history.shape == (7, 3)
    for i in range(3):
        one = type(starts)(*(value[i : i + 1] for value in starts))
        alone = fit_starts(one, covariance_type, data, lengths, **settings)
        np.testing.assert_allclose(batch.history[:, i], alone.history[:, 0], rtol=1e-10)
        for both, single in zip(batch.parameters, alone.parameters, strict=True):
            np.testing.assert_allclose(both[i], single[0], rtol=1e-8, atol=1e-10)


def test_the_best_start_is_kept():
    x, _ = simulate("full", 200)
    one = RegimeModel(n_init=1, tol=1e-2, random_state=0).fit(x)
    many = RegimeModel(n_init=6, tol=1e-2, random_state=0).fit(x)  # the first of them is the same
    assert many.log_likelihood_ >= one.log_likelihood_ - 1e-2


def test_a_collapsed_start_does_not_win():
    """On a repeated point, where the likelihood has no bound, a sound start is kept all the same."""
    rng = np.random.RandomState(0)
    x = np.concatenate(
        [rng.standard_normal((60, 1)), np.full((6, 1), 9.0), rng.standard_normal((60, 1))]
    )
    starts = make_starts(x, 2, 2, "full", 1e-6, np.random.RandomState(0))
    # Start 0 is about to collapse onto the repeated point, start 1 splits the noise by its sign.
    starts.means[0], starts.covariances[0] = [[0.0], [9.0]], [[[1.0]], [[0.01]]]
    starts.means[1], starts.covariances[1] = [[-1.0], [1.0]], [[[1.0]], [[9.0]]]
    settings = dict(inference="em", max_iter=5, tol=None, min_eigenvalue=0.0, least=1e-6)
    fit = fit_starts(starts, "full", torch.tensor(x), None, **settings)
    assert fit.degenerate.tolist() == [True, False]
    assert fit.history[-1, 0] > fit.history[-1, 1] and fit.best() == 1
    # A floor that the user asked for is the user's to reach.
    fit = fit_starts(starts, "full", torch.tensor(x), None, **settings | {"min_eigenvalue": 1e-4})
    assert not fit.degenerate.any() and fit.best() == 0
    nan = fit._replace(history=np.array([[-1.0, np.nan], [np.nan, -5.0]]))
    assert nan.best() == 1
    with pytest.raises(ValueError, match="not finite from each of 2 starts"):
        nan._replace(history=np.full((2, 2), np.nan)).best()


def test_collapse_in_every_start_is_a_warning():
    x = np.repeat([[0.0], [1.0], [5.0]], 5, axis=0)
    with pytest.warns(ConvergenceWarning, match="In each of the 2 starts a regime collapsed"):
        model = RegimeModel(n_init=2, random_state=0).fit(x)
    assert np.isfinite(model.log_likelihood_)
    np.testing.assert_allclose(model.means_[:, 0], [5, 1, 0], rtol=0, atol=1e-6)


def test_regularization_is_added_after_the_fit_and_rescored():
    x, _ = simulate("full", 150)
    for covariance_type in COVARIANCE_TYPES:
        plain, ridge = [
            RegimeModel(
                2, covariance_type, n_init=1, max_iter=200, random_state=0, regularization=r
            )
            for r in (0.0, 0.1)
        ]
        plain.fit(x), ridge.fit(x)
        added = ridge.covariances_ - plain.covariances_
        ones = np.eye(2) if covariance_type in {"full", "tied"} else 1.0
        np.testing.assert_allclose(added, np.broadcast_to(0.1 * ones, added.shape), rtol=1e-12)
        np.testing.assert_array_equal(ridge.history_, plain.history_)
        assert ridge.log_likelihood_ < ridge.history_[-1]
        assert ridge.log_likelihood_ == ridge.score(x)


def test_units_do_not_matter():
    """In other units, far from zero, the same regimes; the log-likelihood moves by T D log(unit)."""
    x, _ = simulate("full", 200)
    settings = dict(n_init=2, max_iter=100, tol=1e-3, regularization=0.0, random_state=0)
    for inference in ("em", "svi"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # SVI's hundred steps
            first = RegimeModel(inference=inference, **settings).fit(x)
            second = RegimeModel(inference=inference, **settings).fit(0.01 * x + 7)
        np.testing.assert_allclose(second.means_, 0.01 * first.means_ + 7, rtol=1e-6)
        np.testing.assert_allclose(second.covariances_, 1e-4 * first.covariances_, rtol=1e-4)
        moved = second.log_likelihood_ + x.size * np.log(0.01)
        np.testing.assert_allclose(moved, first.log_likelihood_, rtol=1e-6)


def test_one_regime_is_the_gaussian():
    x, _ = simulate("full", 50)
    model = RegimeModel(1, regularization=0.0).fit(x)
    assert model.regime_names_ == ["Regime 1"] and model.converged_
    np.testing.assert_allclose(model.means_[0], x.mean(0), rtol=1e-10)
    np.testing.assert_allclose(model.covariances_[0], np.cov(x.T, bias=True), rtol=1e-10)
    expected = multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x).sum()
    np.testing.assert_allclose(model.log_likelihood_, expected, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(x), np.zeros(50))
    assert "inf" in str(model.summary())  # a regime that is never left


def test_few_observations():
    x = np.array([[0.0], [1.0], [5.0], [6.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = RegimeModel(2, n_init=2, random_state=0).fit(x)
    assert model.predict(x[:1]).shape == (1,)
    assert np.isfinite(model.log_likelihood_)


def test_float32(full):
    model, x = full
    for dtype in ("float32", torch.float32):
        single = RegimeModel(
            n_init=2, max_iter=model.n_iter_, tol=None, dtype=dtype, random_state=0
        )
        with pytest.warns(ConvergenceWarning):
            single.fit(x)
        assert single.means_.dtype == np.float64 == single.predict_proba(x).dtype
        # Measured: 3e-5 after 20 iterations.
        np.testing.assert_allclose(single.means_, model.means_, rtol=0, atol=1e-3)
        np.testing.assert_allclose(single.log_likelihood_, model.log_likelihood_, rtol=1e-5)
        with pyro.get_param_store().scope():
            pyro.poutine.trace(single.model)(torch.tensor(x, dtype=torch.float32))
            assert pyro.param("loc").dtype == torch.float32


def test_svi_reaches_em():
    x, _ = simulate("full", 150)
    em = RegimeModel(2, n_init=1, random_state=0).fit(x)
    svi = RegimeModel(2, n_init=1, max_iter=600, tol=1e-3, inference="svi", random_state=0).fit(x)
    assert svi.converged_ and 50 < svi.n_iter_ < 600
    np.testing.assert_allclose(svi.log_likelihood_, em.log_likelihood_, rtol=0, atol=0.1)
    np.testing.assert_allclose(svi.means_, em.means_, rtol=0, atol=0.05)


def test_svi_leaves_a_collapsed_start_where_it_is():
    x = np.repeat([[0.0], [1.0], [5.0]], 5, axis=0)
    with pytest.warns(ConvergenceWarning, match="In each of the 2 starts a regime collapsed"):
        model = RegimeModel(n_init=2, max_iter=400, inference="svi", random_state=0).fit(x)
    assert np.isfinite(model.history_).all()


def test_no_convergence_is_a_warning_and_no_iteration_is_none():
    x, _ = simulate("full", 100)
    with pytest.warns(ConvergenceWarning, match="did not converge in 2 iterations"):
        model = RegimeModel(n_init=2, max_iter=2, random_state=0).fit(x)
    assert not model.converged_ and model.n_iter_ == 2 and model.history_.shape == (3,)
    model = RegimeModel(n_init=2, max_iter=0, random_state=0).fit(x)
    assert model.n_iter_ == 0 and model.history_.shape == (1,)


def test_verbose_prints_every_step(capsys):
    x, _ = simulate("full", 100)
    model = RegimeModel(1, verbose=True, regularization=0.0).fit(x)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == model.n_iter_
    assert lines[0] == f"step 1: log-likelihood {model.history_[1]:.4f} (mean of the starts)"


# ---- several sequences -----------------------------------------------------------------------


def test_lengths_equal_a_list_of_arrays(full):
    x = full[1]
    lengths = [100, 1, 120, 79]
    parts = np.split(x, np.cumsum(lengths)[:-1])
    settings = dict(n_init=2, tol=1e-2, random_state=0)
    joined = RegimeModel(**settings).fit(x, lengths=lengths)
    listed = RegimeModel(**settings).fit(parts)
    np.testing.assert_array_equal(joined.means_, listed.means_)
    np.testing.assert_array_equal(joined.history_, listed.history_)
    np.testing.assert_array_equal(joined.share_of_time_, listed.share_of_time_)
    assert joined.log_likelihood_ == listed.score(parts)

    def below(method):
        return np.concatenate([method(part) for part in parts])

    path = joined.predict(x, lengths=lengths)
    np.testing.assert_array_equal(path, below(joined.predict))
    np.testing.assert_array_equal(path, joined.predict(parts))
    for kind in ("smoothed", "filtered"):
        np.testing.assert_allclose(
            joined.predict_proba(x, kind, lengths=np.array(lengths)),
            below(lambda part: joined.predict_proba(part, kind)),
            rtol=1e-10,
            atol=1e-14,
        )
    for algorithm in ("viterbi", "smoothing"):
        np.testing.assert_allclose(
            joined.decode(x, algorithm, lengths=lengths)[0],
            sum(joined.decode(part, algorithm)[0] for part in parts),
            rtol=1e-12,
        )
    alone = sum(joined.score(part) for part in parts)
    np.testing.assert_allclose(joined.score(x, lengths=lengths), alone, rtol=1e-12)
    bic = -2 * alone + joined.n_parameters_ * np.log(300)
    np.testing.assert_allclose(joined.bic(x, lengths=lengths), bic, rtol=1e-12)
    np.testing.assert_allclose(joined.bic(parts), bic, rtol=1e-12)
    assert joined.score(x) != joined.score(parts)  # no transition from one sequence to the next
    # One sequence is one, however it comes.
    assert joined.score(x, lengths=[300]) == joined.score([x]) == joined.score(x)
    assert joined.forecast([x], 2).mean.shape == (2, 2)


# ---- what the fitted model says ----------------------------------------------------------------


def test_hmmlearn_says_the_same(fitted):
    model, x, _ = fitted
    twin = hmmlearn_twin(model)
    np.testing.assert_allclose(model.score(x), twin.score(x), rtol=1e-10)
    np.testing.assert_allclose(model.predict_proba(x), twin.predict_proba(x), rtol=0, atol=1e-9)
    log_prob, path = twin.decode(x)
    np.testing.assert_array_equal(model.predict(x), path)
    assert model.predict(x).dtype == np.int64
    np.testing.assert_allclose(model.decode(x)[0], log_prob, rtol=1e-10)
    assert model.n_parameters_ == sum(twin._get_n_fit_scalars_per_param().values())
    np.testing.assert_allclose(model.aic(x), twin.aic(x), rtol=1e-10)
    np.testing.assert_allclose(model.bic(x), twin.bic(x), rtol=1e-10)


def test_smoothing_path_and_its_log_probability(full):
    model, x = full
    log_prob, path = model.decode(x, "smoothing")
    np.testing.assert_array_equal(path, model.predict_proba(x).argmax(-1))
    expected = np.log(model.initial_probs_[path[0]])
    expected += np.log(model.transition_matrix_[path[:-1], path[1:]]).sum()
    for k in range(3):
        density = multivariate_normal(model.means_[k], model.covariances_[k])
        expected += density.logpdf(x[path == k]).sum()
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    assert log_prob <= model.decode(x)[0]


def test_filtered_probabilities_do_not_look_ahead(full):
    model, x = full
    filtered = model.predict_proba(x, kind="filtered")
    np.testing.assert_allclose(filtered.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(filtered[:100], model.predict_proba(x[:100], "filtered"), rtol=1e-10)
    np.testing.assert_allclose(filtered[-1], model.predict_proba(x)[-1], rtol=1e-10)


@pytest.mark.parametrize(
    "covariance_type, expected",
    # K = 3, D = 2: initial 2, transitions 6, means 6, and the covariances
    [("full", 14 + 9), ("diag", 14 + 6), ("spherical", 14 + 3), ("tied", 14 + 3)],
)
def test_aic_and_bic_by_hand(covariance_type, expected):
    x, _ = simulate(covariance_type, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = RegimeModel(3, covariance_type, n_init=1, max_iter=2).fit(x)
    assert model.n_parameters_ == expected
    score = model.score(x)
    np.testing.assert_allclose(model.aic(x), -2 * score + 2 * expected, rtol=1e-14)
    np.testing.assert_allclose(model.bic(x), -2 * score + expected * np.log(100), rtol=1e-14)


@pytest.mark.parametrize(
    "order_by, n_regimes, names",
    [
        ("mean", 2, ["Bull", "Bear"]),
        ("mean", 3, ["Bull", "Sideways", "Bear"]),
        ("mean", 4, ["Regime 1", "Regime 2", "Regime 3", "Regime 4"]),
        ("volatility", 2, ["Calm", "Turbulent"]),
        ("volatility", 3, ["Calm", "Normal", "Turbulent"]),
        ("volatility", 1, ["Regime 1"]),
    ],
)
def test_regimes_are_sorted_and_named(order_by, n_regimes, names):
    x, _ = simulate("diag", 300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = RegimeModel(
            n_regimes, "diag", n_init=2, max_iter=5, order_by=order_by, random_state=0
        ).fit(x)
    assert model.regime_names_ == names
    if order_by == "mean":
        assert (np.diff(model.means_.mean(-1)) < 0).all()
    else:
        assert (np.diff(np.sqrt(model.covariances_).mean(-1)) > 0).all()
    assert model.score(x) == model.log_likelihood_  # everything moved together


def test_order_by_volatility_where_all_are_tied_falls_back_to_the_mean():
    x, _ = simulate("tied", 200)
    model = RegimeModel(3, "tied", n_init=1, tol=0.1, order_by="volatility", random_state=0).fit(x)
    assert (np.diff(model.means_.mean(-1)) < 0).all()


def test_sample(fitted):
    model, _, _ = fitted
    x, states = model.sample(20_000, random_state=3)
    assert x.shape == (20_000, 2) and states.shape == (20_000,)
    full = full_covariances(model.covariances_, model.covariance_type, (3, 2))
    for k in range(3):
        drawn = x[states == k]
        np.testing.assert_allclose(drawn.mean(0), model.means_[k], rtol=0, atol=0.08)
        np.testing.assert_allclose(np.cov(drawn.T), full[k], rtol=0, atol=0.08)
        following = np.bincount(states[1:][states[:-1] == k], minlength=3)
        share = following / following.sum()
        np.testing.assert_allclose(share, model.transition_matrix_[k], rtol=0, atol=0.02)
    np.testing.assert_array_equal(x, model.sample(20_000, random_state=3)[0])
    np.testing.assert_array_equal(model.sample(5)[0], model.sample(5, random_state=0)[0])
    first = [model.sample(1, random_state=seed)[1][0] for seed in range(200)]
    share = np.bincount(first, minlength=3) / 200
    np.testing.assert_allclose(share, model.initial_probs_, rtol=0, atol=0.12)


def test_forecast(fitted):
    model, x, _ = fitted
    forecast = model.forecast(x, 3)
    probs = model.predict_proba(x, "filtered")[-1]
    full = full_covariances(model.covariances_, model.covariance_type, (3, 2))
    for step in range(3):
        probs = probs @ model.transition_matrix_
        np.testing.assert_allclose(forecast.regime_probs[step], probs, rtol=1e-10)
        mean = sum(p * m for p, m in zip(probs, model.means_, strict=True))
        second = sum(
            p * (cov + np.outer(m, m)) for p, m, cov in zip(probs, model.means_, full, strict=True)
        )
        np.testing.assert_allclose(forecast.mean[step], mean, rtol=1e-10)
        np.testing.assert_allclose(
            forecast.covariance[step], second - np.outer(mean, mean), rtol=1e-8, atol=1e-12
        )
    assert forecast.distribution.batch_shape == (3,)
    np.testing.assert_allclose(forecast.distribution.mean.numpy(), forecast.mean, rtol=1e-10)
    np.testing.assert_allclose(
        forecast.distribution.variance.numpy(),
        np.diagonal(forecast.covariance, axis1=-2, axis2=-1),
        rtol=1e-8,
    )
    assert forecast.distribution.sample().shape == (3, 2)


def test_summary(full):
    model, x = full
    names = pd.DataFrame(x, columns=["Energy", "Technology"])
    named = RegimeModel(n_init=2, tol=1e-3, random_state=0, periods_per_year=100).fit(names)
    summary = named.summary()
    assert summary.series_names == ["Energy", "Technology"]
    np.testing.assert_allclose(summary.mean, 100 * named.means_, rtol=1e-14)
    volatility = np.sqrt([np.diag(each) for each in named.covariances_])
    np.testing.assert_allclose(summary.volatility, 10 * volatility, rtol=1e-14)
    stay = np.diag(named.transition_matrix_)
    np.testing.assert_allclose(summary.expected_duration, 1 / (1 - stay), rtol=1e-12)
    np.testing.assert_allclose(
        summary.share_of_time, named.predict_proba(names).mean(0), rtol=1e-12
    )
    text = str(summary)
    for part in (
        "Bull",
        "Sideways",
        "Bear",
        "Energy",
        "Technology",
        "share of time",
        "transitions",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert rows["expected duration, steps"].split()[-1] == f"{1 / (1 - stay[2]):.1f}"
    # The same numbers, 252 periods a year and no names.
    plain = model.summary()
    np.testing.assert_allclose(plain.mean, 2.52 * summary.mean, rtol=1e-12)
    assert plain.series_names == ["series 1", "series 2"]


def test_feature_names(full):
    model, x = full
    frame = pd.DataFrame(x, columns=["a", "b"])
    named = RegimeModel(2, n_init=1, tol=0.1).fit([frame[:150], frame[150:]])
    assert named.feature_names_in_.tolist() == ["a", "b"] and named.n_features_in_ == 2
    assert not hasattr(model, "feature_names_in_")
    with pytest.raises(ValueError, match="feature names"):
        named.predict(frame[["b", "a"]])


def test_the_pyro_model_goes_on_by_svi_and_over_several_sequences(fitted):
    model, x, _ = fitted
    x = torch.tensor(x[:200])
    padded = torch.stack([x[:100], x[100:]])
    padded[1, 60:] = torch.nan
    lengths = torch.tensor([100, 60])
    with pyro.get_param_store().scope():
        optim = pyro.optim.Adam({"lr": 1e-3})
        guide = lambda x, lengths=None: None  # noqa: E731
        svi = pyro.infer.SVI(model.model, guide, optim, pyro.infer.Trace_ELBO())
        np.testing.assert_allclose(svi.evaluate_loss(x), -model.score(x.numpy()), rtol=1e-12)
        parts = [x[:100].numpy(), x[100:160].numpy()]
        loss = svi.step(padded, lengths)
        np.testing.assert_allclose(loss, -model.score(parts), rtol=1e-12)
        assert svi.evaluate_loss(padded, lengths) < loss
    assert model.score(parts) == -loss or np.isclose(model.score(parts), -loss, rtol=1e-12)


# ---- save and load ---------------------------------------------------------------------------


def test_a_saved_model_is_the_same_to_the_last_bit(fitted, tmp_path):
    model, x, _ = fitted
    path = tmp_path / "model.json"
    model.save(path)
    assert os.listdir(tmp_path) == ["model.json"]
    loaded = RegimeModel.load(path)
    assert type(loaded) is RegimeModel and loaded.get_params() == model.get_params()
    assert vars(loaded).keys() == vars(model).keys()
    for name, value in vars(model).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))
    assert str(loaded.summary()) == str(model.summary())
    pickled = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(pickled.predict(x), model.predict(x))


def test_save_of_parameters_that_json_does_not_have(tmp_path):
    x = pd.DataFrame(simulate("full", 60)[0], columns=["a", "b"])
    model = RegimeModel(
        n_regimes=np.int64(1),
        tol=np.float32(0.5),
        dtype=torch.float64,
        device=torch.device("cpu"),
        random_state=np.random.RandomState(0),
        verbose=np.bool_(False),
    ).fit(x)
    model.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert loaded.feature_names_in_.tolist() == ["a", "b"]
    assert (loaded.dtype, loaded.device, loaded.random_state) == ("float64", "cpu", None)
    assert loaded.score(x) == model.score(x)


def test_a_save_that_fails_leaves_the_old_file(full, tmp_path, monkeypatch):
    model, _ = full
    path = tmp_path / "model.json"
    path.write_text("precious")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["model.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: [1], "to have the format 'pyro_regimes.RegimeModel', got list"),
        (lambda content: content | {"format": "pickle"}, "to have the format .* got 'pickle'"),
        (lambda content: content | {"version": 2}, "to have version 1 .* got 2"),
        (lambda content: content | {"fitted": {}}, "to hold a whole RegimeModel, got KeyError"),
        (lambda content: content | {"parameters": {"os": 1}}, "whole RegimeModel, got TypeError"),
        (
            lambda content: content | {"parameters": content["parameters"] | {"n_init": 0}},
            "n_init to be at least 1",
        ),
        (
            lambda content: content | {"fitted": content["fitted"] | {"means_": [[1.0, 2.0]]}},
            "initial_probs_ of shape",
        ),
        (
            lambda content: (
                content | {"fitted": content["fitted"] | {"share_of_time_": [1, 1, None]}}
            ),
            "share_of_time_ that is not finite",
        ),
        (
            lambda content: content | {"fitted": content["fitted"] | {"regime_names_": ["Bull"]}},
            "names that do not fit",
        ),
    ],
)
def test_load_refuses_what_save_did_not_write(full, tmp_path, change, message):
    path = tmp_path / "model.json"
    full[0].save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        RegimeModel.load(path)


@pytest.mark.parametrize("content", [b"", b"no JSON", b"\x80\x04\x95\x00", b"[" * 100_000])
def test_load_refuses_what_is_no_json(tmp_path, content):
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match="to be a saved RegimeModel, got"):
        RegimeModel.load(tmp_path / "model")


# ---- the caller's state ------------------------------------------------------------------------


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_the_callers_state_is_left_as_it_was(inference):
    x, _ = simulate("full", 100)
    copy = x.copy()
    with pyro.get_param_store().scope():
        mine = pyro.param("loc", torch.tensor([1.0, 2.0]))
        leaf = mine.unconstrained()
        random = np.random.get_state()[1].copy(), torch.get_rng_state()
        before = torch.get_default_dtype(), torch.distributions.Distribution._validate_args
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = RegimeModel(n_init=2, max_iter=3, inference=inference).fit(x)
        model.predict_proba(x), model.sample(5), model.forecast(x, 2), model.summary()
        np.testing.assert_array_equal(np.random.get_state()[1], random[0])
        assert torch.equal(torch.get_rng_state(), random[1])
        after = torch.get_default_dtype(), torch.distributions.Distribution._validate_args
        assert after == before
        assert list(pyro.get_param_store().keys()) == ["loc"]
        assert pyro.param("loc").unconstrained() is leaf and leaf.tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(x, copy)


def test_the_store_is_restored_after_an_error():
    with pyro.get_param_store().scope():
        pyro.param("mine", torch.tensor(1.0))
        starts = make_starts(np.arange(6.0)[:, None], 2, 1, "full", 1e-6, np.random.RandomState(0))
        with pytest.raises(ValueError):
            fit_starts(
                starts, "full", torch.zeros(6, 5), None,
                inference="em", max_iter=1, tol=None, min_eigenvalue=0.0, least=0.0,
            )  # fmt: skip
        assert list(pyro.get_param_store().keys()) == ["mine"]


def test_the_fitted_models_function_does_not_write_to_the_fit(full):
    model, x = full
    function, means = pyro.poutine.trace(model.model), model.means_.copy()
    with pyro.get_param_store().scope():
        function(torch.tensor(x))
        with torch.no_grad():
            pyro.get_param_store()._params["loc"].zero_()
    np.testing.assert_array_equal(model.means_, means)
    with pyro.get_param_store().scope():
        function(torch.tensor(x))
        np.testing.assert_array_equal(pyro.param("loc").detach().numpy(), means)


def test_random_state():
    x, _ = simulate("full", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        first, second, other = [
            RegimeModel(n_init=2, max_iter=2, random_state=seed).fit(x)
            for seed in (1, np.random.RandomState(1), 2)
        ]
    np.testing.assert_array_equal(first.means_, second.means_)
    assert not np.array_equal(first.history_, other.history_)


def test_several_threads_fit_at_once():
    data = [simulate("full", 120, seed)[0] for seed in range(4)]

    def fit(x):
        return RegimeModel(2, n_init=2, tol=1e-2, random_state=0).fit(x)

    fits: dict[int, RegimeModel] = {}
    threads = [
        threading.Thread(target=lambda i=i: fits.update({i: fit(data[i])})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(data):
        np.testing.assert_allclose(fits[i].means_, fit(x).means_, rtol=1e-10)


# ---- bad input ---------------------------------------------------------------------------------

GOOD = np.random.RandomState(0).standard_normal((30, 2))
CONSTANT = GOOD * [1.0, 0.0] + [0.0, 3.0]
COLLINEAR = GOOD[:, [0, 1, 0]] + GOOD[:, [1, 0, 0]]
BAD_PARAMETERS = [
    (dict(n_regimes=0), "expected n_regimes to be at least 1, got 0"),
    (dict(n_regimes=2.0), "expected n_regimes to be an integer, got 2.0"),
    (dict(n_regimes=True), "expected n_regimes to be an integer, got True"),
    (dict(covariance_type="round"), "expected covariance_type to be one of 'full', .* got 'round'"),
    (dict(covariance_type=None), "expected covariance_type to be one of .* got None"),
    (dict(n_init=0), "expected n_init to be at least 1, got 0"),
    (dict(max_iter=-1), "expected max_iter to be at least 0, got -1"),
    (dict(tol=0), "expected tol to be a positive finite number, got 0"),
    (dict(tol=float("nan")), "expected tol to be a positive finite number, got nan"),
    (dict(regularization=-1.0), "expected regularization to be a non-negative finite number"),
    (dict(regularization="1"), "expected regularization to be a non-negative .* got '1'"),
    (dict(min_eigenvalue=float("inf")), "expected min_eigenvalue to be a non-negative finite"),
    (dict(inference="mcmc"), "expected inference to be one of 'em', 'svi', got 'mcmc'"),
    (dict(order_by="name"), "expected order_by to be one of 'mean', 'volatility', got 'name'"),
    (dict(periods_per_year=0), "expected periods_per_year to be a positive finite number, got 0"),
    (dict(dtype="float16"), "expected dtype to be 'float32' or 'float64', got 'float16'"),
    (dict(dtype=torch.int64), "expected dtype to be 'float32' or 'float64', got torch.int64"),
    (dict(device="abacus"), "expected device to be a torch device, got 'abacus'"),
    (dict(random_state="dice"), "expected random_state to be an integer, got 'dice'"),
    (dict(random_state=2**32), "expected random_state to be below"),
]
BAD_DATA = [
    ((GOOD[:2],), {}, "at least 3 observations for n_regimes=3, got 2 samples"),
    ((GOOD[:1],), {}, "got 1 sample"),
    ((GOOD[:0],), {}, "Found array with 0 sample"),
    ((GOOD[:, 0],), {}, "Expected 2D array, got 1D"),
    ((GOOD[None],), {}, "Found array with dim 3|expected X"),
    ((np.where(GOOD > 2, np.nan, GOOD),), {}, "contains NaN"),
    ((np.where(GOOD > 2, np.inf, GOOD),), {}, "contains infinity"),
    (([["a", "b"]] * 30,), {}, "could not convert string|dtype='numeric'|Unable to convert"),
    ((GOOD * 1e200,), {}, "finite variance"),
    ((np.repeat(GOOD[:2], 9, axis=0),), {}, "at least n_regimes=3 distinct observations, got 2"),
    ((CONSTANT,), {}, "every column of X to vary, got the constant 3.0 in column 1"),
    ((pd.DataFrame(CONSTANT, columns=["a", "b"]),), {}, "constant 3.0 in column 'b'"),
    ((COLLINEAR,), {}, "3 columns of X to be linearly independent .* got rank 2 from 30"),
    ((np.eye(4),), {}, "to be linearly independent .* got rank 3 from 4"),
    (
        (GOOD,),
        dict(lengths=[10, 10]),
        "expected lengths to sum to the 30 rows of X, got a sum of 20",
    ),
    ((GOOD,), dict(lengths=[31, -1]), "expected lengths to be a list of positive integers"),
    ((GOOD,), dict(lengths=[15.0, 15.0]), "expected lengths to be a list of positive integers"),
    ((GOOD,), dict(lengths=[]), "expected lengths to be a list of positive integers"),
    ((GOOD,), dict(lengths=30), "expected lengths to be a list of positive integers"),
    (([GOOD, GOOD],), dict(lengths=[30, 30]), "expected lengths to be None where X is a list"),
    (([GOOD, GOOD[:, :1]],), {}, "X has 1 features, but RegimeModel is expecting 2"),
]


@pytest.mark.parametrize("parameters, message", BAD_PARAMETERS)
def test_bad_parameters(parameters, message):
    model = RegimeModel(**parameters)  # refused by fit, not before
    with pytest.raises(ValueError, match=message):
        model.fit(GOOD)


@pytest.mark.parametrize("arguments, keywords, message", BAD_DATA)
def test_bad_data(arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        RegimeModel(max_iter=2).fit(*arguments, **keywords)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.predict_proba(GOOD, kind="predicted"), "expected kind to be one of"),
        (lambda m: m.decode(GOOD, algorithm="map"), "expected algorithm to be one of"),
        (lambda m: m.predict(GOOD[:, :1]), "X has 1 features, but RegimeModel is expecting 2"),
        (lambda m: m.score(GOOD, lengths=[3]), "expected lengths to sum to the 30 rows"),
        (lambda m: m.bic(GOOD, lengths=[3]), "expected lengths to sum to the 30 rows"),
        (lambda m: m.sample(0), "expected n_samples to be at least 1, got 0"),
        (lambda m: m.sample(2.5), "expected n_samples to be an integer, got 2.5"),
        (lambda m: m.sample(2, random_state=-1), "expected random_state to be at least 0"),
        (lambda m: m.forecast(GOOD, 0), "expected n_steps to be at least 1, got 0"),
        (lambda m: m.forecast([GOOD, GOOD], 1), "expected X to be one sequence .* got 2"),
    ],
)
def test_bad_calls(full, call, message):
    with pytest.raises(ValueError, match=message):
        call(full[0])


def test_nothing_works_before_the_fit():
    model = RegimeModel()
    for call in (
        lambda: model.predict(GOOD),
        lambda: model.predict_proba(GOOD),
        lambda: model.score(GOOD),
        lambda: model.aic(GOOD),
        lambda: model.bic(GOOD),
        lambda: model.sample(),
        lambda: model.forecast(GOOD, 1),
        lambda: model.summary(),
        lambda: model.save("nowhere"),
    ):
        with pytest.raises(NotFittedError):
            call()
    for name in ("model", "n_parameters_"):
        assert not hasattr(model, name)


def test_data_without_spread_are_fitted_where_their_type_or_a_floor_allows_it():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        settings = dict(n_regimes=2, n_init=2, max_iter=3, random_state=0)
        RegimeModel(covariance_type="diag", **settings).fit(COLLINEAR)
        RegimeModel(covariance_type="spherical", **settings).fit(CONSTANT)
        for covariance_type in COVARIANCE_TYPES:
            model = RegimeModel(
                covariance_type=covariance_type, min_eigenvalue=0.01, regularization=0.0, **settings
            )
            for x in (CONSTANT, COLLINEAR):
                full = full_covariances(model.fit(x).covariances_, covariance_type, (2, x.shape[1]))
                assert np.linalg.eigvalsh(full).min() >= 0.01 * (1 - 1e-9)
        RegimeModel(1, min_eigenvalue=0.01, max_iter=2).fit(np.ones((5, 1)))


def test_min_eigenvalue_is_in_the_datas_units():
    x, _ = simulate("full", 200)
    model = RegimeModel(
        2, n_init=1, tol=0.1, min_eigenvalue=20.0, regularization=0.0, random_state=0
    )
    model.fit(10 + 3 * x)
    values = np.linalg.eigvalsh(model.covariances_)
    np.testing.assert_allclose(values.min(), 20.0, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_collapsed_covariance_can_still_be_inverted(covariance_type, dtype):
    z = GOOD * [1.0, 1e-3]
    least = collapsed_variance(z, covariance_type, dtype)
    assert 0 < least <= 2e-5
    torch.linalg.cholesky(torch.diag(torch.tensor([2.0, least], dtype=dtype)))
