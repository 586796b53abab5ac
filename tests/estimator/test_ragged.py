"""RegimeModel on sequences of very different lengths, none of which is padded."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

from benchmarks import measure
from pyro_regimes import RegimeModel
from tests import seeds


def series(n: int, seed: int = 0) -> np.ndarray:
    """One series in runs of 50 calm and 50 wild rows."""
    return (seeds.rng(seed).randn(n) * np.where(np.arange(n) // 50 % 2, 3.0, 1.0))[:, None]


def model(**settings) -> RegimeModel:
    return RegimeModel(**dict(n_regimes=2, n_init=1, random_state=0) | settings)


@pytest.fixture(scope="module")
def fitted() -> RegimeModel:
    return model(max_iter=20, tol=None).fit(series(600))


def test_the_score_is_the_sum_of_separate_ones(fitted):
    """300 sequences of 1 to 500 rows, in any order."""
    sizes = seeds.rng(1).randint(1, 501, 300)
    x = series(sizes.sum(), seed=2)
    parts = np.split(x, sizes.cumsum()[:-1])
    alone = [fitted.score(each, start="stationary") for each in parts]
    found = fitted.score(x, lengths=sizes, start="stationary")
    np.testing.assert_allclose(found, sum(alone), rtol=1e-12, atol=1e-10)
    rows = fitted.score_samples(x, lengths=sizes, start="stationary")
    each = [part.sum() for part in np.split(rows, sizes.cumsum()[:-1])]
    np.testing.assert_allclose(each, alone, rtol=1e-10, atol=1e-10)
    backwards = fitted.score(parts[::-1], start="stationary")
    np.testing.assert_allclose(backwards, found, rtol=1e-13)


@pytest.mark.parametrize("start", ["auto", "fitted", "stationary"])
def test_a_sequence_has_the_answers_that_it_has_alone(fitted, start):
    """The first one begins as the training data did, and so starts from the fitted distribution."""
    sizes = [600, 1, 3, 3, 1, 150, 2]
    x = series(sum(sizes))
    parts = np.split(x, np.cumsum(sizes)[:-1])
    for kind in ("smoothed", "filtered"):
        found = fitted.predict_proba(x, kind, lengths=sizes, start=start)
        alone = [fitted.predict_proba(each, kind, start=start) for each in parts]
        np.testing.assert_allclose(found, np.concatenate(alone), rtol=1e-10, atol=1e-10)
    rows = [fitted.score_samples(each, start=start) for each in parts]
    found = fitted.score_samples(x, lengths=sizes, start=start)
    np.testing.assert_allclose(found, np.concatenate(rows), rtol=1e-10, atol=1e-10)
    for algorithm in ("viterbi", "smoothing"):
        value, path = fitted.decode(x, lengths=sizes, algorithm=algorithm, start=start)
        own = [fitted.decode(each, algorithm=algorithm, start=start) for each in parts]
        np.testing.assert_array_equal(path, np.concatenate([each[1] for each in own]))
        np.testing.assert_allclose(value, sum(each[0] for each in own), rtol=1e-10)
    score = sum(fitted.score(each, start=start) for each in parts)
    np.testing.assert_allclose(fitted.score(x, lengths=sizes, start=start), score, rtol=1e-10)


def test_missing_entries_of_ragged_sequences(fitted):
    sizes = [80, 1, 3, 40, 2]
    x = series(sum(sizes), seed=7)
    x[::6] = np.nan
    parts = np.split(x, np.cumsum(sizes)[:-1])
    score = sum(fitted.score(each, start="fitted") for each in parts)
    np.testing.assert_allclose(fitted.score(x, lengths=sizes, start="fitted"), score, rtol=1e-11)
    probs = [fitted.predict_proba(each, start="fitted") for each in parts]
    found = fitted.predict_proba(x, lengths=sizes, start="fitted")
    np.testing.assert_allclose(found, np.concatenate(probs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["full", "diag", "spherical", "tied"])
@pytest.mark.parametrize("initial", ["free", "stationary"])
def test_the_order_of_sequences_changes_no_fit(kind, initial):
    sizes = [300, 1, 40, 2, 7, 150, 1]
    x = np.concatenate([series(sum(sizes), seed=3), series(sum(sizes), seed=4)], 1)
    parts = np.split(x, np.cumsum(sizes)[:-1])
    start = model(covariance_type=kind, max_iter=3, tol=None).fit(parts[0])
    settings = dict(covariance_type=kind, init_params=start, max_iter=15, tol=None, initial=initial)
    one = model(**settings).fit(parts)
    other = model(**settings).fit(parts[::-1])
    np.testing.assert_allclose(one.history_, other.history_, rtol=1e-10)
    np.testing.assert_allclose(one.means_, other.means_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(one.initial_probs_, other.initial_probs_, rtol=1e-6, atol=1e-8)


def test_svi_and_em_reach_the_same_optimum():
    sizes = [200, 1, 60, 2, 90]
    x = series(sum(sizes), seed=5)
    em = model(tol=1e-7, max_iter=500).fit(x, lengths=sizes)
    svi = model(tol=1e-5, max_iter=3_000, inference="svi").fit(x, lengths=sizes)
    assert svi.log_likelihood_ == pytest.approx(em.log_likelihood_, abs=0.02)


def test_the_pyro_model_takes_both_forms(fitted):
    sizes = [30, 1, 12]
    x = torch.tensor(series(sum(sizes)))
    padded = torch.nn.utils.rnn.pad_sequence(list(x.split(sizes)), batch_first=True)
    found = []
    for value in (x, padded):
        with pyro.get_param_store().scope():
            trace = poutine.trace(fitted.model).get_trace(value, torch.tensor(sizes))
            found.append(trace.log_prob_sum().item())
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.skipif(not measure.can_measure_memory(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("inference", ["em", "svi"])
def test_memory_is_in_proportion_to_the_rows(inference):
    """Padded to the longest, the data alone would take 0.8 GB."""
    sizes = [50_000] + [3] * 2_000
    x = series(sum(sizes), seed=6)
    small = model(max_iter=2, tol=None, inference=inference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small.fit(x[:3_000], lengths=[1_000] * 3)  # compiles

        def everything() -> None:
            small.fit(x, lengths=sizes)
            small.score_samples(x, lengths=sizes)
            small.predict(x, lengths=sizes)
            small.predict_proba(x, lengths=sizes)

        used = measure.extra_bytes(everything)
    assert used < 40 * 8 * len(x) + 50e6
