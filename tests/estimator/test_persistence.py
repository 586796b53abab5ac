from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.spec import COVARIANCE_TYPES
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
    kept = vars(model).keys() - {"_running"}  # for partial_fit, which needs the fit itself
    assert vars(loaded).keys() == kept
    assert loaded.starts_.to_plain() == model.starts_.to_plain()
    for name in kept - {"starts_"}:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
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
        (lambda content: content | {"version": 1}, "to have version 2 .* got 1"),
        (lambda content: content | {"fitted": {}}, "to hold a complete RegimeModel, got KeyError"),
        (lambda content: content | {"parameters": {"os": 1}}, "RegimeModel, got TypeError"),
        (
            lambda content: content | {"parameters": content["parameters"] | {"n_init": 0}},
            "n_init to be at least 1",
        ),
        (
            lambda content: content | {"fitted": content["fitted"] | {"means_": [[1.0, 2.0]]}},
            "means_ has shape",
        ),
        (
            lambda content: (
                content | {"fitted": content["fitted"] | {"share_of_time_": [1, 1, None]}}
            ),
            "share_of_time_ is not finite",
        ),
        (
            lambda content: content | {"fitted": content["fitted"] | {"regime_names_": ["Bull"]}},
            "regime_names_ is not a list of 3 names",
        ),
    ],
)
def test_load_refuses_what_save_did_not_write(one, tmp_path, change, message):
    path = tmp_path / "model.json"
    one.save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        RegimeModel.load(path)


def _covariances(first: list[list[float]]) -> dict[str, object]:
    return {"covariances_": [first, [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]}


@pytest.mark.parametrize(
    "fitted, message",
    [
        ({"n_iter_": "1e999"}, "n_iter_"),
        ({"n_iter_": 2.5}, "n_iter_"),
        ({"n_iter_": True}, "n_iter_"),
        ({"n_iter_": -1}, "n_iter_"),
        ({"n_iter_": 10**9}, "history_ has shape"),
        ({"history_": []}, "history_ has shape"),
        ({"history_": [[1.0]]}, "history_ has shape"),
        ({"means_": [[10**400, 0], [0, 0], [0, 0]]}, "OverflowError"),
        ({"means_": [[], [], []]}, "means_ has shape"),
        ({"log_likelihood_": "1e999"}, "log_likelihood_"),
        ({"log_likelihood_": "-1"}, "log_likelihood_"),
        ({"converged_": 1}, "converged_"),
        ({"converged_": "no"}, "converged_"),
        ({"feature_names_in_": [["a"], ["b"]]}, "feature_names_in_"),
        ({"feature_names_in_": []}, "feature_names_in_"),
        ({"feature_names_in_": "ab"}, "feature_names_in_"),
        ({"feature_names_in_": [1, 2]}, "feature_names_in_"),
        ({"regime_names_": [["a"], "b", "c"]}, "regime_names_"),
        ({"regime_names_": "abc"}, "regime_names_"),
        ({"initial_probs_": [0.5, 0.5, 0.5]}, "initial_probs_"),
        ({"initial_probs_": [1.5, -0.5, 0.0]}, "initial_probs_"),
        ({"transition_matrix_": [[1, 0, 0], [0, 1, 0], [0, 0, 2]]}, "transition_matrix_"),
        ({"share_of_time_": [2.0, 0.0, 0.0]}, "share_of_time_"),
        (_covariances([[1.0, 2.0], [2.0, 1.0]]), "expected covariances to be symmetric"),
        (_covariances([[1.0, 0.5], [0.0, 1.0]]), "expected covariances to be symmetric"),
        (_covariances([[0.0, 0.0], [0.0, 1.0]]), "expected covariances to be symmetric"),
    ],
)
def test_load_refuses_values_that_no_fit_has(one, tmp_path, fitted, message):
    path = tmp_path / "model.json"
    one.save(path)
    content = json.loads(path.read_text())
    content["fitted"] |= fitted
    path.write_text(json.dumps(content).replace('"1e999"', "1e999"))
    with pytest.raises(ValueError, match=f"to hold a complete RegimeModel, got .*{message}"):
        RegimeModel.load(path)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_load_refuses_variances_that_are_not_positive(covariance_type, tmp_path):
    path = tmp_path / "model.json"
    x, _ = simulate(covariance_type, 60)
    RegimeModel(2, covariance_type, n_init=1, tol=1.0, random_state=0).fit(x).save(path)
    content = json.loads(path.read_text())
    content["fitted"]["covariances_"] = {"diag": [[1, 1], [0, 1]], "spherical": [0, 1]}[
        covariance_type
    ]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected covariances to be positive"):
        RegimeModel.load(path)


@pytest.mark.parametrize("parameters", [{"n_regimes": 2}, {"covariance_type": "tied"}])
def test_load_refuses_parameters_of_another_fit(one, tmp_path, parameters):
    path = tmp_path / "model.json"
    one.save(path)
    content = json.loads(path.read_text())
    content["parameters"] |= parameters
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="_ has shape"):
        RegimeModel.load(path)


def test_what_is_set_after_the_fit_is_of_the_next_fit(tmp_path):
    x, _ = simulate("full", 100)
    model = RegimeModel(2, n_init=1, tol=1.0, random_state=0).fit(x)
    before = model.score(x), model.bic(x), str(model.summary()), model.sample(3)[0]
    model.set_params(covariance_type="diag", n_regimes=3).save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert (loaded.n_regimes, loaded.covariance_type) == (2, "full")
    for each in (model, loaded):
        assert (each.score(x), each.bic(x), str(each.summary())) == before[:3]
        np.testing.assert_array_equal(each.sample(3)[0], before[3])
    assert model.fit(x).covariances_.shape == (3, 2)


MATRIX = [[0.9, 0.1], [0.2, 0.8]]
HELD = {"A": MATRIX}
LARGER = {"initial_probs": [0.2, 0.3, 0.5]}


@pytest.mark.parametrize(
    "settings, kept",
    [
        (dict(n_regimes=3, init_params=LARGER), {}),
        (dict(n_regimes=3, init_params=LARGER, fixed=["initial_probs"]), {}),
        (dict(init_params={"means": np.zeros((2, 3))}), {}),
        (dict(init_params={"means": [["a"]]}), {}),
        (dict(initial="uniform", init_params={"transition_matrix": MATRIX}), HELD),
        (dict(covariance_type="diag", init_params={"covariances": np.ones((2, 2))}), {}),
        (dict(init_params={"transition_matrix": MATRIX}, fixed="transition_matrix"), HELD),
        (dict(init_params={"transition_matrix": MATRIX}, fixed={"transition_matrix"}), HELD),
        (dict(fixed=["means"]), {}),
    ],
)
def test_a_file_holds_the_given_values_that_suit_its_fit(tmp_path, settings, kept):
    x, _ = simulate("full", 100)
    model = RegimeModel(2, n_init=1, tol=1.0, random_state=0).fit(x)
    model.set_params(**settings).save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert loaded.score(x) == model.score(x)
    if not kept:
        assert loaded.init_params is None and loaded.fixed == ()
    else:
        assert loaded.init_params == {"transition_matrix": kept["A"]}
        assert loaded.fixed == (("transition_matrix",) if "fixed" in settings else ())
    clone(loaded).set_params(max_iter=0).fit(x)


def test_a_stationary_fit_keeps_no_other_initial_probabilities(tmp_path):
    x, _ = simulate("full", 100)
    model = RegimeModel(2, n_init=1, tol=1.0, random_state=0, initial="stationary").fit(x)
    model.set_params(initial="free", init_params={"initial_probs": [0.5, 0.5]})
    model.save(tmp_path / "model.json")
    assert RegimeModel.load(tmp_path / "model.json").init_params is None


@pytest.mark.parametrize(
    "name, value", [("tol", -1.0), ("tol", float("inf")), ("n_init", 0), ("device", "abacus")]
)
def test_settings_with_which_no_file_loads_are_refused_by_save(tmp_path, name, value):
    x, _ = simulate("full", 100)
    model = RegimeModel(2, n_init=1, tol=1.0, random_state=0).fit(x).set_params(**{name: value})
    with pytest.raises(ValueError, match=f"expected {name} to be"):
        model.save(tmp_path / "model.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no JSON", b"\x80\x04\x95\x00", b"[" * 100_000])
def test_load_refuses_what_is_no_json(tmp_path, content):
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match="to be a saved RegimeModel, got"):
        RegimeModel.load(tmp_path / "model")
