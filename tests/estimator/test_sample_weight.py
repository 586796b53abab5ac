"""Weights of sequences."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.spec import COVARIANCE_TYPES
from tests.regimes import COVARIANCES, MEANS, TRANSITIONS, simulate

SIZES = (120, 60, 1, 90)


def sequences():
    return [simulate("full", size, seed)[0] for seed, size in enumerate(SIZES)]


def model_of(covariance_type="full", **settings):
    """From given parameters: a random start depends on the number of rows."""
    start = {
        "initial_probs": [0.3, 0.3, 0.4],
        "transition_matrix": TRANSITIONS,
        "means": MEANS + 0.3,
        "covariances": COVARIANCES[covariance_type] * 1.5,
    }
    settings = dict(init_params=start, regularization=0.0, max_iter=15, tol=None) | settings
    return RegimeModel(3, covariance_type, **settings)


def assert_same(one, other, rtol=1e-12):
    names = ("initial_probs_", "transition_matrix_", "means_", "covariances_", "share_of_time_")
    for name in (*names, "history_", "log_likelihood_", "n_samples_fit_", "regime_names_"):
        if name == "regime_names_":
            assert one.regime_names_ == other.regime_names_
        else:
            own, others = getattr(one, name), getattr(other, name)
            np.testing.assert_allclose(own, others, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(one.bic(), other.bic(), rtol=rtol)


@pytest.mark.parametrize("acceleration", [None, "squarem"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_weight_of_two_is_the_sequence_twice(covariance_type, acceleration):
    xs = sequences()
    twice = [xs[0], xs[1], xs[1], xs[2], xs[2], xs[2], xs[3]]
    # The lengths of extrapolated steps are ratios of small differences, which multiply rounding.
    rtol = 1e-12 if acceleration is None else 1e-7
    settings = dict(acceleration=acceleration)
    weighted = model_of(covariance_type, **settings).fit(xs, sample_weight=[1, 2, 3, 1])
    repeated = model_of(covariance_type, **settings).fit(twice)
    assert_same(weighted, repeated, rtol)
    assert weighted.n_samples_fit_ == 120 + 2 * 60 + 3 + 90
    score = weighted.score(xs, sample_weight=[1, 2, 3, 1])
    assert score == pytest.approx(weighted.score(twice), rel=1e-12)


def test_a_weight_of_two_is_the_sequence_twice_with_states():
    parts = [simulate("full", size, seed) for seed, size in enumerate(SIZES)]
    xs, paths = ([part[i] for part in parts] for i in (0, 1))
    paths[0][::2] = -1
    model = model_of(acceleration=None)
    weighted = clone(model).fit(xs, states=paths, sample_weight=[2, 1, 1, 1])
    repeated = clone(model).fit([xs[0], *xs], states=[paths[0], *paths])
    assert_same(weighted, repeated)


def test_gradient_ascent_has_the_weighted_objective():
    xs = sequences()
    svi = model_of(inference="svi", max_iter=20).fit(xs, sample_weight=[2, 1, 1, 0.5])
    em = model_of(acceleration=None).fit(xs, sample_weight=[2, 1, 1, 0.5])
    assert svi.history_[0] == pytest.approx(em.history_[0], rel=1e-12)
    assert svi.history_[0] < svi.history_[-1] <= em.history_[-1]


def test_a_weight_of_zero_is_no_sequence():
    """To the last bit, with random starts too."""
    xs = sequences()
    for settings in ({}, {"init_params": None, "n_init": 3, "random_state": 0}):
        weighted = model_of(**settings).fit(xs, sample_weight=[1, 0, 1, 1])
        without = model_of(**settings).fit([xs[0], xs[2], xs[3]])
        np.testing.assert_array_equal(weighted.means_, without.means_)
        np.testing.assert_array_equal(weighted.history_, without.history_)
        assert weighted.n_samples_fit_ == without.n_samples_fit_ == 211
    only = model_of().fit(xs, sample_weight=[1, 0, 0, 0])
    np.testing.assert_array_equal(only.training_start_, xs[0][:3])
    assert only.score(xs, sample_weight=[0, 1, 0, 0]) == only.score(xs[1])


def test_weights_of_one_are_none():
    xs = sequences()
    weighted, plain = model_of().fit(xs, sample_weight=np.ones(4)), model_of().fit(xs)
    np.testing.assert_array_equal(weighted.means_, plain.means_)
    np.testing.assert_array_equal(weighted.history_, plain.history_)


def test_a_weight_for_each_row_of_a_sequence():
    xs = sequences()
    weights = [0.5, 2.25, 1, 0.125]
    each = model_of().fit(xs, sample_weight=weights)
    rows = model_of().fit(xs, sample_weight=np.repeat(weights, SIZES))
    np.testing.assert_array_equal(each.means_, rows.means_)
    one = model_of().fit(xs[0], sample_weight=np.full(120, 0.5))
    plain = model_of().fit(xs[0])
    np.testing.assert_allclose(one.means_, plain.means_, rtol=1e-10)
    assert one.log_likelihood_ == pytest.approx(plain.log_likelihood_ / 2, rel=1e-10)
    assert one.n_samples_fit_ == 60 and isinstance(one.n_samples_fit_, int)
    assert each.n_samples_fit_ == 60 + 135 + 1 + 11.25


def test_a_weighted_fit_is_saved(tmp_path):
    xs = sequences()
    model = model_of().fit(xs, sample_weight=[0.5, 2.25, 1, 0.125])
    model.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert loaded.n_samples_fit_ == model.n_samples_fit_ and loaded.bic() == model.bic()


def test_the_likelihood_never_falls():
    model = model_of(acceleration=None).fit(sequences(), sample_weight=[0.1, 7, 2, 0.3])
    assert (np.diff(model.history_) > -1e-9).all()


@pytest.mark.parametrize(
    "weights, message",
    [
        ([1, 1, 1], r"one sample_weight for each of 4 sequences, got shape \(3,\)"),
        (np.ones((4, 1)), r"one sample_weight for each of 4 sequences, got shape \(4, 1\)"),
        ([1, -1, 1, 1], "sample_weight to be non-negative finite numbers"),
        ([1, np.nan, 1, 1], "sample_weight to be non-negative finite numbers"),
        ([0, 0, 0, 0], "some sample_weight to be positive, got only zero"),
        ("heavy", "sample_weight to be an array of numbers"),
        (np.array([1, 2, 3, 4], "m8[D]"), "sample_weight to be an array of numbers"),
        (np.ma.masked_array([1, 2, 3, 4], [0, 1, 0, 0]), "sample_weight without masked values"),
        ({0: 1, 1: 1, 2: 1, 3: 1}, "sample_weight to be a dict only where X is one with the same"),
        (np.arange(271), "weights that differ between the rows of one"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        model_of().fit(sequences(), sample_weight=weights)


def test_missing_entries_of_weighted_sequences(tmp_path):
    """Counts are weighted, too, and a file keeps them."""
    xs = sequences()
    xs[1][3:9, 0] = xs[1][20:22] = xs[3][5, 1] = np.nan
    weighted = model_of(acceleration=None).fit(xs, sample_weight=[1, 2, 1, 1])
    repeated = model_of(acceleration=None).fit([xs[0], xs[1], xs[1], xs[2], xs[3]])
    assert_same(weighted, repeated)
    np.testing.assert_array_equal(weighted.n_missing_, repeated.n_missing_)
    assert weighted.n_missing_rows_ == repeated.n_missing_rows_ == 4
    assert str(weighted.summary()) == str(repeated.summary())
    half = model_of(max_iter=2).fit(xs, sample_weight=[1, 0.25, 1, 1])
    half.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert str(loaded.summary()) == str(half.summary())
    assert loaded.n_missing_rows_ == half.n_missing_rows_ == 0.5


def test_weights_of_another_emission():
    counts = [np.round(np.abs(x[:, :1]) * 3) for x in sequences()]
    settings = dict(emission="poisson", acceleration=None, regularization=0.0, tol=None)
    start = {"transition_matrix": TRANSITIONS, "rates": [[1.0], [4.0], [8.0]]}
    model = RegimeModel(3, **settings, init_params=start, max_iter=15)
    weighted = clone(model).fit(counts, sample_weight=[1, 2, 1, 1])
    repeated = clone(model).fit([counts[0], counts[1], *counts[1:]])
    np.testing.assert_allclose(weighted.rates_, repeated.rates_, rtol=1e-12)
    np.testing.assert_allclose(weighted.history_, repeated.history_, rtol=1e-12)


def test_a_dict_of_weights_suits_a_dict_of_sequences():
    xs, weights = dict(zip("abcd", sequences(), strict=True)), [0.5, 2, 1, 1.5]
    model = model_of().fit(xs, sample_weight=dict(zip("abcd", weights, strict=True)))
    assert_same(model, model_of().fit(xs, sample_weight=weights), rtol=0)
    with pytest.raises(ValueError, match="sample_weight to be a dict only where X is one"):
        model.fit(xs, sample_weight=dict(zip("dcba", weights, strict=True)))
