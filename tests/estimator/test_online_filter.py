"""The filter row by row is the filter on all rows so far."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_regimes import OnlineFilter, RegimeModel
from tests import seeds


def data(num_rows: int = 300, num_series: int = 2, seed: int = 0) -> np.ndarray:
    wild = np.arange(num_rows) // 40 % 2
    return seeds.rng(seed).normal(size=(num_rows, num_series)) * (1 + 2 * wild)[:, None]


@pytest.fixture(scope="module")
def model() -> RegimeModel:
    return RegimeModel(2, n_init=2, random_state=0).fit(data())


def test_rows_as_they_come_are_the_whole_prefix(model):
    x = data(seed=1)
    online = OnlineFilter(model, start="stationary")
    for t, row in enumerate(x[:60]):
        found = online.update(row)
        so_far = model.predict_proba(x[: t + 1], "filtered", start="stationary")
        np.testing.assert_allclose(found.probs, so_far[-1], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.next_probs, so_far[-1] @ model.transition_matrix_)
        scores = model.score_samples(x[: t + 1], start="stationary")
        assert found.log_likelihood == pytest.approx(scores[-1], rel=1e-12)
    assert online.n_rows == 60
    total = model.score(x[:60], start="stationary")
    assert online.log_likelihood == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("sizes", [[300], [1, 299], [100, 0, 57, 143]], ids=str)
def test_blocks_of_rows(model, sizes):
    x = data(seed=1)
    online = OnlineFilter(model, start="stationary")
    parts = [online.update(part) for part in np.split(x, np.cumsum(sizes)[:-1])]
    expected = model.predict_proba(x, "filtered", start="stationary")
    probs = np.concatenate([part.probs for part in parts])
    np.testing.assert_allclose(probs, expected, rtol=1e-11, atol=1e-14)
    scores = np.concatenate([part.log_likelihood for part in parts])
    np.testing.assert_allclose(scores, model.score_samples(x, start="stationary"), rtol=1e-11)


@pytest.mark.parametrize("start", ["auto", "fitted", [0.3, 0.7]], ids=str)
def test_the_start_is_that_of_predict(model, start):
    x = data()  # the training data, which "auto" knows
    found = OnlineFilter(model, start=start).update(x)
    expected = model.predict_proba(x, "filtered", start=start)
    np.testing.assert_allclose(found.probs, expected, rtol=1e-12, atol=1e-15)


def test_after_the_training_data(model):
    x, more = data(), data(seed=2)
    after = model.predict_proba(x, "filtered")[-1]
    found = OnlineFilter(model, after=after).update(more)
    expected = model.predict_proba(more, "filtered", after=after)
    np.testing.assert_allclose(found.probs, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("emission", ["student_t", "poisson", "von_mises"])
def test_emissions_and_missing_values(emission):
    rng = seeds.rng(3)
    draw = {
        "student_t": lambda: data(seed=3),
        "poisson": lambda: rng.poisson(np.repeat([[2.0], [7.0]], 150, 0), (300, 2)),
        "von_mises": lambda: rng.vonmises(np.repeat([[0.0], [2.0]], 150, 0), 3.0, (300, 2)),
    }[emission]
    x = draw().astype(float)
    x[rng.random_sample(x.shape) < 0.1] = np.nan
    x[7] = np.nan
    fitted = RegimeModel(2, emission=emission, n_init=1, max_iter=20, random_state=0, tol=1.0)
    fitted.fit(x)
    online = OnlineFilter(fitted)
    parts = [online.update(part) for part in np.split(x, [5, 8, 200])]
    expected = fitted.predict_proba(x, "filtered")
    probs = np.concatenate([part.probs for part in parts])
    np.testing.assert_allclose(probs, expected, rtol=1e-10, atol=1e-13)
    assert online.log_likelihood == pytest.approx(fitted.score(x), rel=1e-11)


def test_going_on_from_json_is_exact(model, tmp_path):
    x = data(seed=4)
    online = OnlineFilter(model)
    online.update(x[:100])
    text = online.to_json()
    model.save(tmp_path / "model.json")
    again = OnlineFilter.from_json(RegimeModel.load(tmp_path / "model.json"), text)
    assert again.to_json() == text
    one, other = online.update(x[100:]), again.update(x[100:])
    for first, second in zip(one, other):
        np.testing.assert_array_equal(first, second)
    assert again.log_likelihood == online.log_likelihood and again.n_rows == 300


def test_json_before_the_first_row(model):
    online = OnlineFilter(model, start=[0.2, 0.8])
    again = OnlineFilter.from_json(model, online.to_json())
    assert again.probs is None
    np.testing.assert_array_equal(again.update([1.0, 2.0])[0], online.update([1.0, 2.0])[0])


def test_impossible_regimes_survive_json():
    model = RegimeModel.from_parameters(
        [1.0, 0.0], [[0.9, 0.1], [0.0, 1.0]], [[0.0], [5.0]], [[[1.0]], [[1.0]]]
    )
    online = OnlineFilter(model, start="fitted")
    online.update([0.0])
    assert json.loads(online.to_json())["log_probs"] == [0.0, None]
    again = OnlineFilter.from_json(model, online.to_json())
    np.testing.assert_array_equal(again.update([4.0])[0], online.update([4.0])[0])


def test_the_forecast(model):
    x = data(seed=5)
    online = OnlineFilter(model, start="stationary")
    online.update(x)
    ours, theirs = online.forecast(3), model.forecast(x, 3, start="stationary")
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours.quantile(0.05), theirs.quantile(0.05), rtol=1e-9)


def test_columns_by_name():
    frame = pd.DataFrame(data(), columns=["a", "b"])
    model = RegimeModel(2, n_init=1, random_state=0).fit(frame)
    expected = OnlineFilter(model).update(frame.to_numpy()[:3]).probs
    np.testing.assert_array_equal(OnlineFilter(model).update(frame[:3]).probs, expected)
    row = OnlineFilter(model).update(frame.iloc[0][["b", "a"]])
    np.testing.assert_array_equal(row.probs, expected[0])
    with pytest.raises(ValueError, match="columns of the model, in their order"):
        OnlineFilter(model).update(frame[["b", "a"]])


def test_wrong_input_leaves_the_filter_as_it_was(model):
    online = OnlineFilter(model)
    online.update(data(10))
    before = online.to_json()
    for wrong, message in (
        ([1.0], "one row .2,. or rows"),
        (np.zeros((2, 3)), "got shape .2, 3."),
        ("text", "expected rows to be an array of numbers"),
        ([np.inf, 0.0], "finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            online.update(wrong)
    assert online.to_json() == before


def test_what_is_refused(model):
    with pytest.raises(ValueError, match="expected model to be a RegimeModel"):
        OnlineFilter(3)
    with pytest.raises(ValueError, match="expected start to be one of"):
        OnlineFilter(model, start="later")
    with pytest.raises(ValueError, match="expected an update before a forecast"):
        OnlineFilter(model).forecast()
    for text in ("{}", "no json", None, "[1]"):
        with pytest.raises(ValueError, match="to be from OnlineFilter.to_json"):
            OnlineFilter.from_json(model, text)
    state = json.loads(OnlineFilter(model).to_json())
    for name, value, message in (
        ("version", 9, "version 1"),
        ("model", "x", "other parameters"),
        ("log_probs", [0.0], "probabilities of all regimes"),
        ("log_probs", "ab", "probabilities of all regimes"),
        ("n_rows", None, "probabilities of all regimes"),
    ):
        with pytest.raises(ValueError, match=message):
            OnlineFilter.from_json(model, json.dumps(state | {name: value}))


def test_an_impossible_row():
    model = RegimeModel.from_parameters(
        [0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], emission="bernoulli", probabilities=[[1.0], [1.0]]
    )
    online = OnlineFilter(model)
    online.update([1.0])
    with pytest.raises(ValueError, match="positive probability in the model, got 0 at row 1 of 2"):
        online.update([[1.0], [0.0]])
    assert online.n_rows == 1


def test_dates_ascend(model):
    index = pd.date_range("2020-01-01", periods=300, tz="Asia/Tokyo")
    frame = pd.DataFrame(data(300), index=index)
    online = OnlineFilter(model)
    for wrong in (frame[::-1], frame.iloc[[0, 1, 1]]):
        with pytest.raises(ValueError, match="in order of time|one row of X for each date"):
            online.update(wrong)
    assert online.n_rows == 0
    online.update(frame[:100])
    online.update(frame.iloc[100])
    for wrong in (frame[100:], frame.iloc[100], frame.iloc[3], frame.tz_localize(None)[150:]):
        with pytest.raises(ValueError, match="the update before"):
            online.update(wrong)
    online.update(frame[101:])
    assert online.n_rows == 300
    np.testing.assert_allclose(online.probs, model.predict_proba(frame, "filtered")[-1])


def test_masked_values_are_missing(model):
    x = np.ma.masked_greater(data(300), 1.0)
    found = OnlineFilter(model).update(x)
    np.testing.assert_allclose(found.probs, model.predict_proba(x, "filtered"))
    one, other = OnlineFilter(model), OnlineFilter(model)
    row = np.ma.masked_array([0.5, 9.0], [False, True])
    assert one.update(row).log_likelihood == other.update([0.5, np.nan]).log_likelihood


def test_tensors_and_times(model):
    row = torch.tensor([0.5, 1.0], requires_grad=True)
    known = OnlineFilter(model).update([0.5, 1.0])
    assert OnlineFilter(model).update(row).log_likelihood == known.log_likelihood
    with pytest.raises(ValueError, match="expected rows to be an array of numbers"):
        OnlineFilter(model).update(np.array(["2020", "2021"], "M8[D]"))
