"""Memory: that of the numbers that a model has, not of matrices that it does not have."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyro_regimes.estimator import RegimeModel
from tests import seeds

NUM_SERIES = 3000  # one matrix of them has 72 MB
_NO_START: dict[str, Any] = dict(means_=[[0] * 2500], training_start_=None)
SETTINGS: dict[str, Any] = dict(n_init=2, max_iter=3, tol=None, random_state=0)


def megabytes(call: Callable[[], object]) -> float:
    """The most that is allocated at one time during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_independent_series_make_no_matrices(covariance_type, tmp_path):
    state = np.repeat([0, 1, 0], 4)
    x = seeds.rng(0).standard_normal((12, NUM_SERIES))
    x += 2 * state[:, None]
    model = RegimeModel(2, covariance_type, **SETTINGS).fit(x)
    path = tmp_path / "model.json"

    def again(**settings: Any) -> RegimeModel:
        return RegimeModel(2, covariance_type, **SETTINGS, **settings).fit(x)

    assert megabytes(lambda: again(order_by=model)) < 60  # numba compiles its functions, too
    assert megabytes(lambda: again(order_by=model)) < 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the means differ by chance
        assert megabytes(lambda: again(order_by="mean")) < 20
    for call in (
        lambda: model.save(path),
        lambda: RegimeModel.load(path),
        lambda: str(model.summary()),
        lambda: model.summary().to_frame(),
        lambda: model.predict(x),
        lambda: model.predict_proba(x),
        lambda: model.score(x),
        lambda: model.sample(12),
        lambda: model.bic(x),
    ):
        assert megabytes(call) < 20
    summary = RegimeModel.load(path).summary()
    assert summary.correlation is None
    np.testing.assert_array_equal(summary.volatility, model.summary().volatility)


def small_file(path, **fitted: Any) -> None:
    """A saved model of one regime and one series, with other contents in it."""
    RegimeModel(1, "diag", n_init=1).fit([[0.0], [1.0], [3.0]]).save(path)
    content = json.loads(path.read_text())
    content["parameters"] |= fitted.pop("parameters", {})
    content["fitted"] |= dict.fromkeys(["n_missing_", "n_missing_rows_"]) | fitted
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "content, message",
    [
        (dict(parameters={"n_regimes": 10**9}), r"initial_probs_ has shape \(1,\), not"),
        (dict(parameters={"covariance_type": "full"}, means_=[[0] * 6000]), "covariances_ has"),
        (dict(parameters={"covariance_type": "tied"}, means_=[[0] * 6000]), "covariances_ has"),
        (dict(means_=[[0] * 2500], covariances_=[[1] * 2499]), "covariances_ has shape"),
        (dict(_NO_START, covariances_=[[-1] * 2500]), "expected covariances to be positive"),
        (dict(n_iter_=10**12), "history_ has shape"),
        (dict(transition_matrix_=[[]] * 3000), r"transition_matrix_ has shape \(3000, 0\), not"),
        (dict(means_=["x" * 12000]), "means_ has shape"),
        (dict(initial_probs_=["x" * 12000]), "could not convert string to float"),
        (dict(training_start_=[[]] * 3000), "training_start_ has shape"),
        (dict(training_start_={"a": 1}), "training_start_ has shape"),
        (dict(regime_names_=["x"] * 3000), "regime_names_ is not a list of 1 names"),
    ],
)
def test_a_small_file_is_refused_in_little_memory_and_few_words(tmp_path, content, message):
    path = tmp_path / "model.json"
    small_file(path, **content)
    assert path.stat().st_size < 20_000

    def load() -> None:
        with pytest.raises(ValueError, match=message) as caught:
            RegimeModel.load(path)
        assert len(str(caught.value)) < 1200 + len(str(path))

    assert megabytes(load) < 5


def test_a_small_file_is_loaded_in_little_memory(tmp_path):
    path = tmp_path / "model.json"
    small_file(path, means_=[[0] * 2500], covariances_=[[1] * 2500], training_start_=None)
    assert path.stat().st_size < 20_000
    assert megabytes(lambda: RegimeModel.load(path)) < 5


def test_a_sample_of_full_covariances_makes_no_matrix_for_each_row():
    x = seeds.rng(0).standard_normal((200, 40))
    model = RegimeModel(2, n_init=1, max_iter=2, tol=None, regularization=0.0).fit(x)
    drawn = []
    assert megabytes(lambda: drawn.append(model.sample(5000, random_state=1))) < 20
    ((values, states),) = drawn
    for k in range(2):
        rows = values[states == k]
        np.testing.assert_allclose(rows.mean(0), model.means_[k], atol=0.2)
        np.testing.assert_allclose(np.cov(rows.T), model.covariances_[k], atol=0.25)
