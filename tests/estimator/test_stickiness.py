"""The prior of regimes that last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.stickiness import log_normaliser, log_prior, row_prior
from tests.regimes import simulate


def model_of(n_regimes=3, **settings):
    return RegimeModel(n_regimes, **dict(n_init=2, random_state=0, regularization=0.0) | settings)


def penalty(model, stickiness):
    return stickiness * np.log(np.diagonal(model.transition_matrix_)).sum()


def test_the_density_of_the_prior():
    matrix = np.array([[0.9, 0.1, 0], [0, 0.8, 0.2], [0.5, 0.5, 0]])
    expected = 7 * np.log([0.9, 0.8]).sum()
    assert log_prior(matrix, 7.0) == pytest.approx(expected)
    total = float(row_prior(torch.from_numpy(matrix), 7.0).log_prob(torch.from_numpy(matrix)).sum())
    assert total == pytest.approx(expected + log_normaliser(matrix, 7.0))
    assert log_prior(matrix, 0.0) == log_normaliser(matrix, 0.0) == 0.0


@pytest.mark.parametrize("acceleration", [None, "squarem"])
@pytest.mark.parametrize("stickiness", [0.5, 40.0])
def test_the_fit_is_the_mode_of_the_posterior(stickiness, acceleration):
    """At the mode the matrix is that of the expected counts with the prior's added."""
    x, _ = simulate("full", 300)
    model = model_of(
        stickiness=stickiness, tol=1e-10, max_iter=2000, acceleration=acceleration
    ).fit(x)
    hmm, data, sizes = model._hmm_of(x, None, "fitted")
    counts = hmm._scaled(data, sizes)[0].posterior(hmm._scaled(data, sizes)[1])
    counts = counts.expected_transitions.numpy() + stickiness * np.eye(3)
    expected = counts / counts.sum(-1, keepdims=True)
    np.testing.assert_allclose(model.transition_matrix_, expected, atol=1e-5)


def test_the_history_is_the_penalised_objective_and_never_falls():
    x, _ = simulate("full", 300)
    model = model_of(stickiness=30.0, acceleration=None, tol=1e-6, max_iter=500).fit(x)
    assert (np.diff(model.history_) > -1e-8).all()
    assert model.log_likelihood_ == pytest.approx(model.score(x, start="fitted"), rel=1e-12)
    expected = model.log_likelihood_ + penalty(model, 30.0)
    assert model.history_[-1] == pytest.approx(expected, rel=1e-9)
    plain = model_of(init_params=model, tol=1e-6, max_iter=500).fit(x)
    assert plain.log_likelihood_ > model.log_likelihood_
    assert penalty(plain, 1.0) < penalty(model, 1.0)
    stayed = np.diagonal(model.transition_matrix_)
    assert (stayed > np.diagonal(plain.transition_matrix_)).all()
    assert model.n_parameters_ == plain.n_parameters_


def test_gradient_ascent_has_the_same_objective():
    x, _ = simulate("diag", 200)
    em = model_of(2, covariance_type="diag", stickiness=20.0, tol=1e-8, max_iter=500).fit(x)
    svi = model_of(
        2, covariance_type="diag", stickiness=20.0, inference="svi", init_params=em,
        max_iter=300, tol=1e-4,
    ).fit(x)  # fmt: skip
    assert svi.history_[0] == pytest.approx(em.history_[-1], rel=1e-9)
    assert svi.history_[-1] == pytest.approx(em.history_[-1], abs=1e-3)
    np.testing.assert_allclose(svi.transition_matrix_, em.transition_matrix_, atol=1e-2)


def test_zero_changes_nothing():
    x, _ = simulate("full", 200)
    one, other = model_of().fit(x), model_of(stickiness=0.0).fit(x)
    np.testing.assert_array_equal(one.history_, other.history_)
    assert one.get_params()["stickiness"] == 0.0


def test_all_states_known():
    x, states = simulate("full", 200)
    model = model_of(stickiness=5.0).fit(x, states=states)
    counts = 5.0 * np.eye(3)
    np.add.at(counts, (states[:-1], states[1:]), 1)
    np.testing.assert_allclose(
        model.transition_matrix_, counts / counts.sum(-1, keepdims=True), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("initial", ["stationary", "uniform"])
def test_with_other_initial_distributions_and_masks(initial):
    x, _ = simulate("full", 200)
    ring = np.eye(3) + np.roll(np.eye(3), 1, axis=1)
    model = model_of(stickiness=10.0, initial=initial, transition_mask=ring).fit(x)
    assert (model.transition_matrix_[ring == 0] == 0).all()
    expected = model.score(x, start="fitted") + penalty(model, 10.0)
    assert model.history_[-1] == pytest.approx(expected, rel=1e-9)
    # A diagonal that is not allowed has no prior.
    away = model_of(stickiness=10.0, transition_mask=1 - np.diag([0, 0, 1])).fit(x)
    assert away.transition_matrix_[2, 2] == 0 and np.isfinite(away.history_).all()


def test_saved(tmp_path):
    x, _ = simulate("full", 100)
    model = model_of(stickiness=3, max_iter=2, tol=None).fit(x)
    model.save(tmp_path / "model.json")
    assert RegimeModel.load(tmp_path / "model.json").stickiness == 3


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(stickiness=-1), "stickiness to be a non-negative finite number, got -1"),
        (dict(stickiness=np.nan), "stickiness to be a non-negative finite number"),
        (dict(stickiness="high"), "stickiness to be a non-negative finite number"),
        (
            dict(
                stickiness=2, fixed="transition_matrix",
                init_params={"transition_matrix": np.full((3, 3), 1 / 3)},
            ),
            "stickiness=0 where transition_matrix is fixed, got 2",
        ),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(settings, message):
    x, _ = simulate("full", 60)
    with pytest.raises(ValueError, match=message):
        model_of(**settings).fit(x)
