"""Forbidden transitions."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from sklearn.base import clone

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.mask import masked, read_mask
from tests import seeds
from tests.regimes import COVARIANCES, MEANS, simulate

LEFT_TO_RIGHT = np.triu(np.ones((3, 3), bool))
NEXT_ONLY = np.eye(3, dtype=bool) | np.eye(3, k=1, dtype=bool)
RING = np.eye(3, dtype=bool) | np.roll(np.eye(3, dtype=bool), 1, axis=1)  # 0 to 1 to 2 to 0


def model_of(n_regimes=3, **settings):
    return RegimeModel(n_regimes, **dict(n_init=3, random_state=0) | settings)


def passing(order, size=80, seed=0):
    """A sequence that passes through regimes of known means once."""
    rng = seeds.rng(seed)
    states = np.repeat(np.asarray(order), size)
    return np.stack([rng.multivariate_normal(MEANS[s], COVARIANCES["full"][s]) for s in states])


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("mask", [LEFT_TO_RIGHT, NEXT_ONLY, RING], ids=["left", "next", "ring"])
def test_forbidden_transitions_stay_exactly_zero(mask, inference):
    x, _ = simulate("full", 300)
    settings = dict(inference=inference, max_iter=30, tol=None)
    with np.errstate(all="raise"):
        model = model_of(transition_mask=mask, **settings).fit(x)
    assert (model.transition_matrix_[~mask] == 0).all()
    assert (model.transition_matrix_[mask] > 0).all()
    np.testing.assert_allclose(model.transition_matrix_.sum(-1), 1, rtol=1e-12)
    if inference == "em":
        assert (np.diff(model.history_) > -1e-7).all()
    assert not read_mask(mask, 3) is None and (model.transition_mask_ == mask).all()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]])
def test_a_left_to_right_chain_finds_the_order_of_time(order):
    """From every start: k-means does not know which cluster is first."""
    x = [passing(order, seed=seed) for seed in range(2)]
    for n_init in (1, 3):
        first = {"initial_probs": [1.0, 0, 0]}
        model = model_of(
            n_init=n_init, transition_mask=LEFT_TO_RIGHT, init_params=first, regularization=0.0
        ).fit(x)
        np.testing.assert_allclose(model.means_, MEANS[order], atol=0.6)
        assert (model.initial_probs_ == [1, 0, 0]).all()
        path = model.predict(x[0])
        assert (np.diff(path) >= 0).all() and (path == np.repeat([0, 1, 2], 80)).mean() > 0.95


def test_regimes_keep_the_numbers_of_the_mask():
    """The middle one has the largest variance; the names are those of order_by."""
    x = passing([0, 1, 2])
    model = model_of(transition_mask=NEXT_ONLY).fit(x)
    assert model.regime_names_ == ["Calm", "Turbulent", "Normal"]
    model.set_params(order_by="mean").fit(x)
    assert model.regime_names_ == ["Bull", "Sideways", "Bear"]
    like = model_of(transition_mask=NEXT_ONLY, order_by=model).fit(x)
    np.testing.assert_allclose(like.means_, model.means_, rtol=1e-6)
    assert like.regime_names_ == model.regime_names_


def test_a_mask_that_allows_all_changes_nothing():
    x, _ = simulate("full", 200)
    model, plain = model_of(transition_mask=np.ones((3, 3))).fit(x), model_of().fit(x)
    assert model.transition_mask_ is None
    np.testing.assert_array_equal(model.transition_matrix_, plain.transition_matrix_)
    assert model.bic() == plain.bic()


@pytest.mark.parametrize("mask, free", [(LEFT_TO_RIGHT, 3), (NEXT_ONLY, 2), (np.eye(3), 0)])
def test_forbidden_transitions_do_not_count(mask, free):
    x, _ = simulate("full", 120)
    settings = dict(max_iter=2, tol=None)
    model = model_of(transition_mask=mask, **settings).fit(x)
    plain = model_of(**settings).fit(x)
    assert model.n_parameters_ == plain.n_parameters_ - 6 + free
    expected = -2 * model.log_likelihood_ + 2 * model.n_parameters_
    assert model.aic() == pytest.approx(expected)
    # Of the fit, not of the next one.
    model.set_params(transition_mask=None)
    assert model.n_parameters_ == plain.n_parameters_ - 6 + free


def test_with_known_states():
    x, states = passing([0, 1, 2]), np.repeat([0, 1, 2], 80)
    model = model_of(transition_mask=NEXT_ONLY).fit(x, states=states)
    expected = [[79 / 80, 1 / 80, 0], [0, 79 / 80, 1 / 80], [0, 0, 1]]
    np.testing.assert_allclose(model.transition_matrix_, expected, rtol=1e-12)
    back = np.where(np.arange(240) == 100, 0, states)
    with pytest.raises(ValueError, match="an impossible sequence of states at row 100"):
        model_of(transition_mask=NEXT_ONLY).fit(x, states=back)


def test_saved_cloned_and_pickled(tmp_path):
    x, _ = simulate("full", 120)
    model = model_of(transition_mask=RING, max_iter=2, tol=None).fit(x)
    model.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    for other in (loaded, pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.transition_matrix_, model.transition_matrix_)
        np.testing.assert_array_equal(other.transition_mask_, RING)
        np.testing.assert_array_equal(other.transition_mask, RING)
        assert other.n_parameters_ == model.n_parameters_
    again = clone(model).fit(x)
    np.testing.assert_array_equal(again.means_, model.means_)
    content = json.loads((tmp_path / "model.json").read_text())
    content["parameters"]["transition_mask"][0] = [False, True, False]
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="transition_matrix_ to be 0 where transition_mask is"):
        RegimeModel.load(tmp_path / "model.json")


def test_given_parameters_agree_with_the_mask():
    x, _ = simulate("full", 120)
    matrix = masked(np.full((3, 3), 1 / 3), NEXT_ONLY)
    np.testing.assert_allclose(matrix, [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]])
    given = {"transition_matrix": matrix}
    model = model_of(
        transition_mask=NEXT_ONLY, init_params=given, fixed="transition_matrix", max_iter=3,
        tol=None,
    ).fit(x)  # fmt: skip
    np.testing.assert_array_equal(model.transition_matrix_, matrix)
    warm = model_of(transition_mask=NEXT_ONLY, init_params=model, max_iter=1, tol=None).fit(x)
    assert (warm.transition_matrix_[~NEXT_ONLY] == 0).all()
    with pytest.raises(ValueError, match="0 where transition_mask is False, got 0.5 from regime 0"):
        model_of(transition_mask=np.eye(3), init_params=given).fit(x)
    settings = dict(means=MEANS, covariances=COVARIANCES["full"])
    RegimeModel.from_parameters([1, 0, 0], matrix, transition_mask=NEXT_ONLY, **settings)
    with pytest.raises(ValueError, match="transition_matrix to be 0 where transition_mask"):
        RegimeModel.from_parameters([1, 0, 0], matrix, transition_mask=np.eye(3), **settings)


def test_a_stationary_start_needs_one_stationary_distribution():
    x, _ = simulate("full", 120)
    model = model_of(transition_mask=RING, initial="stationary").fit(x)
    np.testing.assert_allclose(
        model.initial_probs_ @ model.transition_matrix_, model.initial_probs_, atol=1e-12
    )
    with pytest.raises(ValueError, match="transition_mask with one stationary distribution"):
        model_of(transition_mask=np.eye(3), initial="stationary").fit(x)


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.ones((2, 2)), r"transition_mask to be a bool matrix \(3, 3\)"),
        (np.full((3, 3), 0.5), "transition_mask to be a bool matrix"),
        ([[1, 0], [1]], "transition_mask to be a bool matrix"),
        ("upper", "transition_mask to be a bool matrix"),
        (np.diag([1, 1, 0]), "each row of transition_mask to allow .* none from regime 2"),
    ],
)
def test_wrong_masks_are_refused(mask, message):
    x, _ = simulate("full", 60)
    with pytest.raises(ValueError, match=message):
        model_of(transition_mask=mask).fit(x)
