from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_regimes.gaussian_hmm import COVARIANCE_TYPES
from pyro_regimes.model import RegimeModel
from tests.regimes import simulate


@pytest.fixture(scope="module", params=COVARIANCE_TYPES)
def fitted(request) -> tuple[RegimeModel, np.ndarray]:
    x, _ = simulate(request.param, 100)
    return RegimeModel(2, request.param, n_init=1, tol=1.0, random_state=0).fit(x), x


@pytest.fixture(scope="module")
def one() -> RegimeModel:
    return RegimeModel(3, n_init=1, tol=1.0, random_state=0).fit(simulate("full", 100)[0])


def test_a_saved_model_is_the_same_to_the_last_bit(fitted, tmp_path):
    model, x = fitted
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


def test_a_save_that_fails_leaves_the_old_file(one, tmp_path, monkeypatch):
    path = tmp_path / "model.json"
    path.write_text("precious")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        one.save(path)
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
def test_load_refuses_what_save_did_not_write(one, tmp_path, change, message):
    path = tmp_path / "model.json"
    one.save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        RegimeModel.load(path)


@pytest.mark.parametrize("content", [b"", b"no JSON", b"\x80\x04\x95\x00", b"[" * 100_000])
def test_load_refuses_what_is_no_json(tmp_path, content):
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match="to be a saved RegimeModel, got"):
        RegimeModel.load(tmp_path / "model")
