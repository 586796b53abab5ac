"""Rows that are not equally spaced."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

from pyro_regimes import RegimeHMM
from pyro_regimes.estimator import RegimeModel
from tests import seeds
from tests.regimes import COVARIANCES, MEANS, TRANSITIONS, simulate


def spaced(num_steps, share=0.4, seed=0):
    """Some rows of a simulation, with the steps since the row before, and all rows with NaN."""
    x, states = simulate("full", num_steps, seed)
    kept = seeds.rng(seed + 1).uniform(size=num_steps) < share
    kept[[0, -1]] = True
    rows = np.flatnonzero(kept)
    whole = np.where(kept[:, None], x, np.nan)
    return x[rows], np.diff(rows, prepend=-1), whole, states[rows]


def model_of(**settings):
    start = {
        "initial_probs": [0.3, 0.3, 0.4],
        "transition_matrix": np.full((3, 3), 0.1) + 0.7 * np.eye(3),
        "means": MEANS + 0.3,
        "covariances": COVARIANCES["full"] * 1.5,
    }
    return RegimeModel(3, **dict(init_params=start, regularization=0.0, tol=None) | settings)


def explicit(model, whole):
    """The same model of all rows, of which some are missing."""
    tensors = [torch.tensor(getattr(model, f"{name}_")) for name in (
        "initial_probs", "transition_matrix", "means", "covariances"
    )]  # fmt: skip
    emission = dist.MultivariateNormal(tensors[2], tensors[3])
    hmm = RegimeHMM(
        initial_probs=tensors[0], transition_probs=tensors[1], observation_dist=emission,
        missing="marginalise",
    )  # fmt: skip
    return hmm, torch.tensor(whole)


@pytest.mark.parametrize("acceleration", [None, "squarem"])
def test_the_likelihood_is_that_of_missing_rows(acceleration):
    x, gaps, whole, _ = spaced(300)
    model = model_of(max_iter=20, acceleration=acceleration).fit(x, gaps=gaps)
    hmm, data = explicit(model, whole)
    seen = ~np.isnan(whole[:, 0])
    expected = float(hmm.log_prob(data))
    assert model.log_likelihood_ == pytest.approx(expected, rel=1e-10)
    settings = dict(start="fitted", gaps=gaps)
    assert model.score(x, **settings) == pytest.approx(expected, rel=1e-10)
    assert model.score_samples(x, **settings).sum() == pytest.approx(expected, rel=1e-10)
    smoothed = hmm.smoothed_probs(data).numpy()[seen]
    np.testing.assert_allclose(model.predict_proba(x, **settings), smoothed, atol=1e-10)
    filtered = hmm.filtered_probs(data).numpy()[seen]
    found = model.predict_proba(x, kind="filtered", **settings)
    np.testing.assert_allclose(found, filtered, atol=1e-10)
    later = model.forecast(x, 2, **settings)
    weights = hmm.forecast(data, 2).mixture_distribution.probs.numpy()
    np.testing.assert_allclose(later.regime_probs, weights, atol=1e-10)
    assert (np.diff(model.history_) > -1e-8).all()


def test_a_fit_finds_the_transitions_of_single_steps():
    """Without gaps they are those from row to row, in which regimes last less."""
    x, gaps, _, _ = spaced(12_000)
    model = model_of(max_iter=60).fit(x, gaps=gaps)
    order = np.argsort(model.means_[:, 0])[::-1]  # as in the simulation
    matrix = model.transition_matrix_[np.ix_(order, order)]
    np.testing.assert_allclose(matrix, TRANSITIONS, atol=0.035)
    plain = model_of(max_iter=60).fit(x)
    assert (np.diagonal(plain.transition_matrix_) < np.diagonal(model.transition_matrix_)).all()


def test_several_sequences_and_known_states():
    parts = [spaced(size, seed=seed) for seed, size in enumerate((150, 60, 90))]
    xs, gaps, wholes, states = (list(each) for each in zip(*parts))
    gaps[1] = np.where(np.arange(len(gaps[1])) == 0, np.nan, gaps[1])  # the first is ignored
    model = model_of(max_iter=5).fit(xs, gaps=gaps)
    total = sum(float(explicit(model, whole)[0].log_prob(torch.tensor(whole))) for whole in wholes)
    assert model.log_likelihood_ == pytest.approx(total, rel=1e-10)
    joined = model_of(max_iter=5).fit(
        np.concatenate(xs), lengths=[len(x) for x in xs], gaps=np.concatenate(gaps)
    )
    np.testing.assert_array_equal(joined.means_, model.means_)
    known = RegimeModel(3, regularization=0.0).fit(xs, gaps=gaps, states=states)
    whole, flat = np.concatenate(xs), np.concatenate(states)
    means = np.stack([whole[flat == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(known.means_, means, rtol=1e-10)
    path = known.predict(xs, gaps=gaps, states=states)
    np.testing.assert_array_equal(path, flat)


def test_a_mask_holds_within_the_gaps():
    """In two steps of a ring the chain may come to the regime before."""
    x, gaps, _, _ = spaced(200)
    ring = np.eye(3) + np.roll(np.eye(3), 1, axis=1)
    model = RegimeModel(3, transition_mask=ring, n_init=2, random_state=0, max_iter=5, tol=None)
    model.fit(x, gaps=gaps)
    assert (model.transition_matrix_[ring == 0] == 0).all()
    states = np.full(len(x), -1)
    states[5:7] = [0, 2]  # by way of 1
    model.fit(x, gaps=np.full(len(x), 2), states=states)
    with pytest.raises(ValueError, match="impossible sequence of states at row 6"):
        model.fit(x, gaps=np.ones(len(x)), states=states)


def test_gaps_of_one_are_none():
    x, _ = simulate("full", 120)
    model, plain = model_of(max_iter=4).fit(x, gaps=np.ones(120)), model_of(max_iter=4).fit(x)
    np.testing.assert_array_equal(model.history_, plain.history_)


def test_masked_gaps_are_refused():
    x = simulate("full", 200, 0)[0]
    gaps = np.ma.array(np.ones(200, int), mask=np.arange(200) == 7)
    with pytest.raises(ValueError, match="after the first row of a sequence, got nan at row 7"):
        model_of().fit(x, gaps=gaps)
    model_of(max_iter=1).fit(x, gaps=np.ma.array(gaps.data, mask=np.arange(200) == 0))


def test_gaps_of_dates():
    x, gaps, _, _ = spaced(100)
    dates = pd.Timestamp("2020-01-01") + pd.to_timedelta(gaps.cumsum(), "D")
    frame = pd.DataFrame(x, dates, ["a", "b"])
    days = frame.index.to_series().diff() / pd.Timedelta(days=1)
    model = model_of(max_iter=3).fit(frame, gaps=days)
    expected = model_of(max_iter=3).fit(x, gaps=gaps)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-10)


def with_rows_before(whole, gap):
    """The rows of a gap, of which nothing is known, before those of a sequence."""
    return np.concatenate([np.full((gap - 1, whole.shape[-1]), np.nan), whole])


def test_a_gap_after_the_rows_before():
    """It is as that number of rows before the first, less one, of which nothing is known."""
    x, gaps, whole, _ = spaced(200)
    model, after = model_of(max_iter=3).fit(x, gaps=gaps), np.array([0.05, 0.9, 0.05])
    seen = ~np.isnan(whole[:, 0])
    for first in (1, 2, 7):
        gaps[0] = first
        longer, kept = with_rows_before(whole, first), np.r_[np.zeros(first - 1, bool), seen]
        given, plain = dict(after=after, gaps=gaps), dict(after=after)
        assert model.score(x, **given) == pytest.approx(model.score(longer, **plain), rel=1e-10)
        rows, expected = model.score_samples(x, **given), model.score_samples(longer, **plain)
        np.testing.assert_allclose(rows, expected[kept], rtol=1e-9)
        for kind in ("smoothed", "filtered"):
            expected = model.predict_proba(longer, kind, **plain)[kept]
            np.testing.assert_allclose(
                model.predict_proba(x, kind, **given), expected, rtol=1e-9, atol=1e-12
            )
        probs = model.forecast(x, 3, **given).regime_probs
        np.testing.assert_allclose(probs, model.forecast(longer, 3, **plain).regime_probs)
    # several sequences, each with its own gap
    firsts = (1, 4, 2, 1)
    parts, steps = [x[:20]] * 4, [np.r_[first, gaps[1:20]] for first in firsts]
    own = [model.score(x[:20], after=after, gaps=each) for each in steps]
    assert len({round(each, 6) for each in own}) == 3
    total = model.score(parts, after=after, gaps=steps)
    assert total == pytest.approx(sum(own), rel=1e-10)
    probs = model.predict_proba(parts, after=after, gaps=steps)
    expected = [model.predict_proba(x[:20], after=after, gaps=each) for each in steps]
    np.testing.assert_allclose(probs, np.concatenate(expected), rtol=1e-9, atol=1e-12)


def test_the_first_gap_counts_only_after_something():
    x, gaps, _, _ = spaced(100)
    model, after = model_of(max_iter=2).fit(x, gaps=gaps), [0.1, 0.8, 0.1]
    gaps = gaps.astype(float)
    one = model.score(x, gaps=np.r_[1.0, gaps[1:]], after=after)
    for unknown in (np.nan, None, pd.NA, np.ma.masked):
        given = np.ma.array(gaps, dtype=object)
        given[0] = unknown
        assert model.score(x, gaps=given, after=after) == one
    for wrong in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="where after is given, or NaN for .* at row 0"):
            model.score(x, gaps=np.r_[wrong, gaps[1:]], after=after)
        assert np.isfinite(model.score(x, gaps=np.r_[wrong, gaps[1:]]))


def test_values_are_imputed_by_rows_that_are_apart():
    x, gaps, whole, _ = spaced(300)
    model, seen = model_of(max_iter=3).fit(x, gaps=gaps), ~np.isnan(whole[:, 0])
    whole[seen] = np.where(seeds.rng(5).uniform(size=x.shape) < 0.3, np.nan, x)
    for given in ({"start": "stationary"}, {"after": [0.1, 0.2, 0.7]}):
        found = model.impute(whole[seen], gaps=gaps, **given)
        expected = model.impute(whole, **given)
        np.testing.assert_allclose(found.mean, expected.mean[seen], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(found.variance, expected.variance[seen], rtol=1e-9)


def test_values_are_imputed_in_known_states():
    """Given the state, they are regressions on the values beside them in this state alone."""
    x, _, _, states = spaced(200)
    model = model_of(max_iter=3).fit(x)
    holes = x.copy()
    holes[::3, 1] = np.nan
    found = model.impute(holes, states=states)
    for k in range(3):
        (mean, other), cov = model.means_[k], model.covariances_[k]
        rows = np.flatnonzero((states == k) & np.isnan(holes[:, 1]))
        slope = cov[0, 1] / cov[0, 0]
        expected = other + slope * (x[rows, 0] - mean)
        np.testing.assert_allclose(found.mean[rows, 1], expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(found.variance[rows, 1], cov[1, 1] - slope * cov[0, 1])


@pytest.mark.parametrize(
    "gaps, message",
    [
        (np.ones(59), "gaps to have an entry for each of the 60 rows of X"),
        (np.zeros(60), "gaps to be integers from 1 to .*, got 0.0 at row 1"),
        (np.full(60, 1.5), "gaps to be integers from 1 to .*, got 1.5 at row 1"),
        (np.full(60, np.nan), "gaps to be integers from 1 to .*, got nan at row 1"),
        (np.full(60, np.timedelta64(1, "D")), "gaps to be integers .* divide by the length of a"),
        (np.full(60, "one"), "gaps to be integers"),
        (np.ones((60, 2)), "gaps to be integers"),
    ],
)
def test_wrong_gaps_are_refused(gaps, message):
    x, _ = simulate("full", 60)
    with pytest.raises(ValueError, match=message):
        model_of().fit(x, gaps=gaps)


@pytest.mark.parametrize("emission", ["gaussian", "poisson"])
def test_a_fit_with_gaps_is_the_fit_with_missing_rows(emission):
    """Step by step, also where a compiled engine would serve equally spaced rows."""
    x, gaps, whole, _ = spaced(250)
    if emission == "poisson":
        x, whole = (np.round(np.exp(0.5 * each[:, :1] + 1)) for each in (x, whole))
    settings = dict(emission=emission, tol=None, max_iter=8, acceleration=None, n_init=1)
    start = {"transition_matrix": np.full((3, 3), 0.1) + 0.7 * np.eye(3)}
    if emission == "poisson":
        start["rates"] = [[1.0], [3.0], [6.0]]
    else:
        start |= {"means": MEANS + 0.3, "covariances": COVARIANCES["full"] * 1.5}
    model = RegimeModel(3, init_params=start, regularization=0.0, **settings)
    one = model.fit(x, gaps=gaps)
    found = {name: value for name, value in vars(one).items() if name.endswith("_")}
    other = model.fit(whole)
    for name in ("transition_matrix_", "initial_probs_", "history_", "log_likelihood_"):
        np.testing.assert_allclose(found[name], getattr(other, name), rtol=1e-9, atol=1e-10)
    name = "rates_" if emission == "poisson" else "means_"
    np.testing.assert_allclose(found[name], getattr(other, name), rtol=1e-9)
