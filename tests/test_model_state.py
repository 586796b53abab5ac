"""A fit leaves the caller's state, and other threads, alone."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pyro
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.model import RegimeModel
from tests.regimes import simulate


@pytest.fixture(scope="module")
def full() -> tuple[RegimeModel, np.ndarray]:
    x, _ = simulate("full", 300, seed=1)
    return RegimeModel(n_init=2, tol=1e-3, random_state=0).fit(x), x


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_the_callers_state_is_left_as_it_was(inference):
    x, _ = simulate("full", 100)
    copy = x.copy()
    with pyro.get_param_store().scope():
        mine = pyro.param("loc", torch.tensor([1.0, 2.0]))
        leaf = mine.unconstrained()
        random = np.random.get_state()[1].copy(), torch.get_rng_state()
        before = torch.get_default_dtype(), torch.distributions.Distribution._validate_args
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = RegimeModel(n_init=2, max_iter=3, inference=inference).fit(x)
        model.predict_proba(x)
        model.sample(5)
        model.forecast(x, 2)
        model.summary()
        np.testing.assert_array_equal(np.random.get_state()[1], random[0])
        assert torch.equal(torch.get_rng_state(), random[1])
        after = torch.get_default_dtype(), torch.distributions.Distribution._validate_args
        assert after == before
        assert list(pyro.get_param_store().keys()) == ["loc"]
        assert pyro.param("loc").unconstrained() is leaf and leaf.tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(x, copy)


def test_the_fitted_models_function_does_not_write_to_the_fit(full):
    model, x = full
    function, means = pyro.poutine.trace(model.model), model.means_.copy()
    with pyro.get_param_store().scope():
        function(torch.tensor(x))
        with torch.no_grad():
            pyro.get_param_store()._params["loc"].zero_()
    np.testing.assert_array_equal(model.means_, means)
    with pyro.get_param_store().scope():
        function(torch.tensor(x))
        np.testing.assert_array_equal(pyro.param("loc").detach().numpy(), means)


def test_random_state():
    x, _ = simulate("full", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        heard: list[list[float]] = [[], [], []]
        first, second, _ = [
            RegimeModel(n_init=2, max_iter=2, random_state=seed).fit(
                x, callback=lambda step, mean, each=each: each.append(mean)
            )
            for seed, each in zip((1, np.random.RandomState(1), 2), heard, strict=True)
        ]
    np.testing.assert_array_equal(first.means_, second.means_)
    # The best start may be the same from any seed; the mean of all starts is not.
    assert heard[0] == heard[1] != heard[2]


def test_several_threads_fit_at_once():
    data = [simulate("full", 120, seed)[0] for seed in range(4)]

    def fit(x):
        return RegimeModel(2, n_init=2, tol=1e-2, random_state=0).fit(x)

    fits: dict[int, RegimeModel] = {}
    threads = [
        threading.Thread(target=lambda i=i: fits.update({i: fit(data[i])})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(data):
        np.testing.assert_allclose(fits[i].means_, fit(x).means_, rtol=1e-10)
