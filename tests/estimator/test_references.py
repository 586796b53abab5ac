"""A fitted model in order_by: a chain of them keeps the last link only."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.estimator import RegimeModel
from tests.regimes import simulate

X = simulate("diag", 60)[0]
SETTINGS: dict[str, Any] = dict(n_regimes=2, covariance_type="diag", n_init=1, random_state=0)


def fit(order_by: str | RegimeModel = "volatility", **settings: Any) -> RegimeModel:
    return RegimeModel(**SETTINGS | {"order_by": order_by, "tol": 1e-1} | settings).fit(X)


@pytest.mark.parametrize("num_links", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_a_long_chain_is_no_longer_than_one_link(num_links):
    model, sizes = fit(max_iter=2, tol=None), []
    first = weakref.ref(model)
    model.regime_names_ = ["low", "high"]
    for link in range(num_links):
        model = fit(model, max_iter=2, tol=None)
        if link % 10 == 1:  # the first of all has no reference of its own
            sizes.append(len(pickle.dumps(model)))
    assert model.regime_names_ == ["low", "high"]
    assert max(sizes) - min(sizes) < 100  # bytes, of numbers with more digits
    gc.collect()
    assert first() is None
    assert len(repr(model)) < 1000
    probs = model.predict_proba(X)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict_proba(X), probs)
        assert other.order_by.regime_names_ == ["low", "high"]
    again = clone(model)
    assert again.order_by is model.order_by
    assert again.get_params().keys() == model.get_params().keys()
    assert again.fit(X).regime_names_ == ["low", "high"]
    np.testing.assert_array_equal(again.means_, model.means_)


def test_the_object_that_was_given_is_kept_where_it_has_no_reference_itself():
    first = fit()
    second = RegimeModel(order_by=first)
    assert second.order_by is first and second.get_params(deep=False)["order_by"] is first
    second.set_params(**SETTINGS, tol=1e-1).fit(X)
    third = RegimeModel(order_by=second)
    assert second.order_by is first  # the model that is given is not changed
    given = third.order_by
    assert given is not second and given.order_by == "volatility"
    assert third.set_params(order_by=given).order_by is given
    assert RegimeModel(**third.get_params(deep=False)).order_by is given
    for name, value in vars(second).items():
        if name.endswith("_"):
            assert getattr(given, name) is value


def test_a_model_may_keep_its_own_labels():
    model = fit()
    model.regime_names_ = ["low", "high"]
    model.set_params(order_by=model)
    assert len(repr(model)) < 1000 and len(model.get_params()) > 10
    means = model.means_
    assert model.fit(X).regime_names_ == ["low", "high"]
    np.testing.assert_array_equal(model.means_, means)
    model = RegimeModel(**SETTINGS)
    with pytest.raises(ValueError, match="order_by to be a fitted model .*, got one without a fit"):
        model.set_params(order_by=model).fit(X)


def test_no_circle_of_models():
    one, other = fit(), fit()
    one.set_params(order_by=other)
    other.set_params(order_by=one)
    for model in (one, other):
        assert len(repr(model)) < 1000
        for call in (copy.deepcopy, pickle.dumps, clone, RegimeModel.get_params):
            call(model)


def test_a_reference_that_gets_one_later_can_be_cloned():
    first, second = fit(), fit()
    second.set_params(order_by=first)
    first.set_params(order_by=fit())
    assert clone(second).fit(X).regime_names_ == first.regime_names_


def test_a_clone_keeps_metadata_requests():
    for order_by in ("mean", fit()):
        model = RegimeModel(**SETTINGS, order_by=order_by)
        with sklearn.config_context(enable_metadata_routing=True):
            model.set_fit_request(lengths=True, callback=False)
            routed = clone(model).get_metadata_routing()
            asked = {key: each for key, each in routed.fit.requests.items() if each is not None}
            assert asked == {"callback": False, "lengths": True}
            clone(model).set_fit_request(lengths=False)  # a copy of its own
            assert model.get_metadata_routing().fit.requests["lengths"] is True


def test_a_chain_is_saved_as_its_last_model(tmp_path):
    model = fit(fit(fit()))
    model.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert loaded.regime_names_ == model.regime_names_ and loaded.score(X) == model.score(X)


@pytest.fixture(autouse=True)
def few_iterations():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
