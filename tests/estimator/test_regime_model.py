from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from hmmlearn.hmm import GaussianHMM
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.pyro_model import to_arguments
from pyro_regimes.estimator.spec import COVARIANCE_TYPES
from pyro_regimes.infer import EM
from tests.frequencies import assert_binomial
from tests.regimes import COVARIANCES, MEANS, TRANSITIONS, simulate


@pytest.fixture(scope="module", params=COVARIANCE_TYPES)
def fitted(request) -> tuple[RegimeModel, np.ndarray, np.ndarray]:
    x, states = simulate(request.param, 1200)
    model = RegimeModel(
        3, request.param, n_init=3, random_state=0, regularization=0.0, order_by="mean"
    )
    return model.fit(x), x, states


@pytest.fixture(scope="module")
def full() -> tuple[RegimeModel, np.ndarray]:
    x, _ = simulate("full", 300, seed=1)
    return RegimeModel(n_init=2, tol=1e-3, order_by="mean", random_state=0).fit(x), x


def hmmlearn_twin(model: RegimeModel) -> GaussianHMM:
    """hmmlearn's model with the fitted parameters."""
    twin = GaussianHMM(len(model.means_), model.covariance_type)
    twin.n_features = model.n_features_in_
    twin.startprob_, twin.transmat_ = model.initial_probs_, model.transition_matrix_
    twin.means_, twin.covars_ = model.means_, model.covariances_
    return twin


def matrices(model: RegimeModel) -> np.ndarray:
    """The fitted covariances as matrices, written out for each type."""
    covariances = model.covariances_
    return {
        "full": lambda: covariances,
        "tied": lambda: np.stack([covariances] * 3),
        "diag": lambda: np.stack([np.diag(each) for each in covariances]),
        "spherical": lambda: np.stack([each * np.eye(2) for each in covariances]),
    }[model.covariance_type]()


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
        hmm = model._hmm()
        arguments = to_arguments(hmm.parameters, hmm.spec)
        assert set(pyro.get_param_store().keys()) == set(arguments)
        for name, value in arguments.items():
            assert pyro.param(name).shape == value.shape
            torch.testing.assert_close(pyro.param(name).detach(), value, rtol=1e-2, atol=1e-3)
        assert -1e-9 <= loss - em.step(torch.tensor(x)) < model.tol


def test_the_best_start_is_kept():
    x, _ = simulate("full", 200)
    one = RegimeModel(n_init=1, tol=1e-2, random_state=0).fit(x)
    many = RegimeModel(n_init=6, tol=1e-2, random_state=0).fit(x)  # the first of them is the same
    assert many.log_likelihood_ >= one.log_likelihood_ - 1e-2


def test_collapse_in_every_start_is_a_warning():
    x = np.repeat([[0.0], [1.0], [5.0]], 5, axis=0)
    with pytest.warns(ConvergenceWarning, match="collapsed onto a few points in every"):
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
        absolute = clone(ridge).set_params(regularization_scale="absolute")
        plain.fit(x)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "regularization=0.1 lowers the log-likelihood")
            for model in (ridge, absolute):
                model.fit(x)
        ones = np.eye(2) if covariance_type in {"full", "tied"} else 1.0
        expected = plain.covariances_ + 0.1 * ones * plain.covariances_
        np.testing.assert_allclose(ridge.covariances_, expected, rtol=1e-12)
        expected = plain.covariances_ + 0.1 * ones
        np.testing.assert_allclose(absolute.covariances_, expected, rtol=1e-12)
        for model in (ridge, absolute):
            np.testing.assert_array_equal(model.history_, plain.history_)
            assert model.log_likelihood_ < model.history_[-1]
            assert model.log_likelihood_ == model.score(x)


def test_units_do_not_matter():
    """In other units, far from zero, the same regimes; log p(x) moves by T D log(unit)."""
    x, _ = simulate("full", 100)
    settings = dict(n_init=2, max_iter=20, regularization=0.0, random_state=0)
    for inference in ("em", "svi"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
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
    x = full[1]
    settings = dict(n_init=2, max_iter=20, tol=None, random_state=0)
    model = RegimeModel(**settings).fit(x)
    for dtype in ("float32", torch.float32):
        single = RegimeModel(**settings, dtype=dtype)
        single.fit(x)
        assert single.means_.dtype == np.float64 == single.predict_proba(x).dtype
        # Measured: 3e-5 after 20 iterations.
        np.testing.assert_allclose(single.means_, model.means_, rtol=0, atol=1e-3)
        np.testing.assert_allclose(single.log_likelihood_, model.log_likelihood_, rtol=1e-5)
        with pyro.get_param_store().scope():
            pyro.poutine.trace(single.model)(torch.tensor(x, dtype=torch.float32))
            assert pyro.param("loc").dtype == torch.float32


@pytest.mark.slow
def test_svi_reaches_em():
    x, _ = simulate("full", 80)
    em = RegimeModel(2, n_init=1, random_state=0).fit(x)
    settings = dict(n_init=1, max_iter=5_000, tol=1e-4, inference="svi", random_state=0)
    svi = RegimeModel(2, **settings).fit(x)
    assert svi.converged_ and 10 < svi.n_iter_ < 5_000
    np.testing.assert_allclose(svi.log_likelihood_, em.log_likelihood_, rtol=0, atol=0.1)
    np.testing.assert_allclose(svi.means_, em.means_, rtol=0, atol=0.05)


def test_no_convergence_is_a_warning_and_no_iteration_is_none():
    x, _ = simulate("full", 100)
    with pytest.warns(ConvergenceWarning, match="did not converge in 2 iterations"):
        model = RegimeModel(n_init=2, max_iter=2, random_state=0).fit(x)
    assert not model.converged_ and model.n_iter_ == 2 and model.history_.shape == (3,)
    model = RegimeModel(n_init=2, max_iter=0, random_state=0).fit(x)
    assert model.n_iter_ == 0 and model.history_.shape == (1,)


def test_verbose_prints_every_step(capsys):
    x, _ = simulate("full", 100)
    heard = []
    model = RegimeModel(1, verbose=True, regularization=0.0)
    model.fit(x, callback=lambda step, log_likelihood: heard.append((step, log_likelihood)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == model.n_iter_
    assert lines[0] == f"step 1: log-likelihood {model.history_[1]:.4f} (mean of the starts)"
    assert [step for step, _ in heard] == list(range(1, model.n_iter_ + 1))
    np.testing.assert_allclose([value for _, value in heard], model.history_[1:], rtol=1e-12)


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
            below(partial(joined.predict_proba, kind=kind)),
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
    full = matrices(model)
    for k in range(3):
        drawn = x[states == k]
        variances = full[k].diagonal()
        error = np.sqrt(variances / len(drawn))
        assert (np.abs(drawn.mean(0) - model.means_[k]) < 6 * error).all()
        error = np.sqrt((full[k] ** 2 + np.outer(variances, variances)) / len(drawn))
        assert (np.abs(np.cov(drawn.T) - full[k]) < 6 * error).all()
        following = np.bincount(states[1:][states[:-1] == k], minlength=3)
        assert_binomial(following, following.sum(), model.transition_matrix_[k])
    np.testing.assert_array_equal(x, model.sample(20_000, random_state=3)[0])
    np.testing.assert_array_equal(model.sample(5)[0], model.sample(5, random_state=0)[0])
    first = [model.sample(1, random_state=seed)[1][0] for seed in range(200)]
    assert_binomial(np.bincount(first, minlength=3), 200, model.initial_probs_)


def test_forecast(fitted):
    model, x, _ = fitted
    forecast = model.forecast(x, 3)
    probs = model.predict_proba(x, "filtered")[-1]
    full = matrices(model)
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
    named = RegimeModel(
        n_init=2, tol=1e-3, random_state=0, periods_per_year=100, order_by="mean"
    ).fit(names)
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
        score = model.score(x.numpy(), start="fitted")
        np.testing.assert_allclose(svi.evaluate_loss(x), -score, rtol=1e-12)
        parts = [x[:100].numpy(), x[100:160].numpy()]
        loss = svi.step(padded, lengths)
        np.testing.assert_allclose(loss, -model.score(parts, start="fitted"), rtol=1e-12)
        assert svi.evaluate_loss(padded, lengths) < loss
