"""Names that can be believed."""

from __future__ import annotations

import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator import RegimeModel
from tests import seeds
from tests.estimator.test_units import two_regimes


def noise(seed: int, means: tuple[float, float]) -> np.ndarray:
    """Calm and wild runs of 40 steps with these means."""
    state = (np.arange(800) // 40) % 2
    wild = np.where(state, 3.0, 1.0)[:, None]
    return seeds.rng(seed).standard_normal((800, 2)) * wild + np.array(means)[state][:, None]


def test_names_by_mean_only_where_the_means_differ():
    settings = dict(n_init=2, random_state=0, order_by="mean")
    apart = RegimeModel(2, **settings).fit(noise(0, (0.5, -1.0)))
    assert apart.regime_names_ == ["Bull", "Bear"]
    alike = RegimeModel(2, **settings)
    with pytest.warns(UserWarning, match="no more than chance explains, .* named Bull, Bear"):
        alike.fit(noise(0, (0.0, 0.0)))
    assert alike.regime_names_ == ["Regime 1", "Regime 2"]


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical", "tied"])
def test_a_reference_gives_order_and_names(covariance_type):
    x, _ = two_regimes(0, 2, ratio=1.0 if covariance_type == "tied" else 4.0)
    model = RegimeModel(2, covariance_type, n_init=2, random_state=0).fit(x)
    model.regime_names_ = ["left", "right"]
    again = RegimeModel(2, covariance_type, n_init=2, random_state=3, order_by=model).fit(x)
    assert again.regime_names_ == ["left", "right"]
    np.testing.assert_allclose(again.means_, model.means_, rtol=1e-2, atol=1e-2)
    turned = clone(model).fit(x)
    turned.regime_names_ = ["right", "left"]
    for name in ("initial_probs_", "means_"):
        setattr(turned, name, getattr(model, name)[::-1].copy())
    turned.transition_matrix_ = model.transition_matrix_[::-1, ::-1].copy()
    if covariance_type != "tied":
        turned.covariances_ = model.covariances_[::-1].copy()
    other = RegimeModel(2, covariance_type, n_init=2, random_state=3, order_by=turned).fit(x)
    assert other.regime_names_ == ["right", "left"]
    np.testing.assert_allclose(other.means_, again.means_[::-1], rtol=1e-12)


def test_a_reference_survives_a_clone_and_is_not_saved(tmp_path):
    x, _ = two_regimes(0, 2)
    model = RegimeModel(2, n_init=1, random_state=0).fit(x)
    other = clone(RegimeModel(2, n_init=1, random_state=0, order_by=model))
    assert other.order_by is model
    other.fit(x).save(tmp_path / "m.json")
    assert RegimeModel.load(tmp_path / "m.json").order_by == "volatility"
    with pytest.raises(ValueError, match="a fitted model with 3 regimes, got one with 2"):
        RegimeModel(3, order_by=model).fit(x)
    with pytest.raises(ValueError, match="with 2 regimes, got one without a fit"):
        RegimeModel(2, order_by=RegimeModel()).fit(x)
    frame = pd.DataFrame(x, columns=["bonds", "stocks"])
    named = RegimeModel(2, n_init=1, random_state=0).fit(frame)
    with pytest.raises(ValueError, match="columns of the model in order_by, in their order"):
        RegimeModel(2, order_by=named).fit(frame[["stocks", "bonds"]])
    with pytest.raises(ValueError, match="to have the 2 series of the model in order_by, got 1"):
        RegimeModel(2, order_by=model).fit(x[:, :1])


def expected_rows(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """The expected number of rows on which regimes agree; and by the best order of the second."""
    agreement = one.T @ two
    orders = permutations(range(len(agreement)))
    best = max(sum(agreement[i, k] for i, k in enumerate(order)) for order in orders)
    return float(np.trace(agreement)), float(best)


@pytest.mark.slow
@pytest.mark.parametrize("n_regimes", [2, 3])
def test_labels_do_not_swap_from_window_to_window(n_regimes):
    """On 16 windows of four years, no other names would agree with the last model on more rows.

    Two regimes are the same ones in all windows. Three are not, and a warning says where a name
    contradicts the volatility.
    """
    frame = load_sector_returns().to_frame()
    settings = dict(n_init=4, max_iter=500, random_state=0)
    before = RegimeModel(n_regimes, **settings).fit(frame.iloc[:1000])
    names = before.regime_names_
    for start in range(500, 8000, 500):
        window = frame.iloc[start : start + 1000]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            after = RegimeModel(n_regimes, order_by=before, **settings).fit(window)
        assert after.regime_names_ == names
        probs = after.predict_proba(window)
        agreed, most = expected_rows(before.predict_proba(window, start="stationary"), probs)
        assert agreed >= most - 0.01
        moments = after.means_, np.diagonal(after.covariances_, axis1=1, axis2=2)
        unit = np.sqrt(moments[1].mean(0) + moments[0].var(0))
        volatility = (np.sqrt(moments[1]) / unit).mean(-1)
        falls = bool((volatility[:-1] > 1.02 * volatility[1:]).any())
        assert ["more volatile than" in str(each.message) for each in caught] == [True] * falls
        if n_regimes == 2:
            assert not falls
            last = frame.iloc[start - 500 : start + 500]  # 500 days are in both windows
            agreed, most = expected_rows(before.predict_proba(last)[500:], probs[:500])
            assert agreed == most
        before = after


def test_names_follow_the_rows():
    """The wilder regime of three has become the calmer one of two; the rows say which is which."""
    rng = seeds.rng(0)
    state = np.repeat([0, 1, 0, 1], 200)
    x = rng.standard_normal((800, 2)) + 6.0 * state[:, None]
    settings = dict(n_init=2, random_state=0)
    model = RegimeModel(2, **settings).fit(x * np.where(state, 2.0, 1.0)[:, None])
    assert model.regime_names_ == ["Calm", "Turbulent"]
    turned = x.copy()
    turned[state == 0] *= 3.0
    turned[state == 1] += 6.0
    with pytest.warns(UserWarning, match="Calm is more volatile than Turbulent now"):
        again = RegimeModel(2, order_by=model, **settings).fit(turned)
    assert (again.predict(turned) == state).mean() > 0.98
    # Also where the model in order_by has such a name itself, and nothing has changed since.
    with pytest.warns(UserWarning, match="Calm is more volatile than Turbulent now"):
        third = RegimeModel(2, order_by=again, **settings).fit(turned)
    assert (third.predict(turned) == state).mean() > 0.98


def test_parameters_without_data_take_the_names_of_a_reference():
    x, _ = two_regimes(0, 2)
    model = RegimeModel(2, n_init=2, random_state=0).fit(x)
    model.regime_names_ = ["left", "right"]
    turned = RegimeModel.from_parameters(
        model.initial_probs_[::-1].copy(),
        model.transition_matrix_[::-1, ::-1].copy(),
        model.means_[::-1].copy(),
        model.covariances_[::-1].copy(),
        order_by=model,
    )
    assert turned.regime_names_ == ["right", "left"]


def test_regimes_that_have_changed_places_are_told():
    """Each is most like the one of its name, by which series are wild, but not as wild as it."""
    rng = seeds.rng(0)
    state = np.repeat([0, 1, 2, 0, 2, 1], 200)

    def data(scales: list[list[float]]) -> np.ndarray:
        return rng.standard_normal((1200, 3)) * np.array(scales)[state]

    settings = dict(n_init=4, random_state=0)
    first = data([[1.0, 1.0, 1.0], [6.0, 2.0, 1.0], [1.0, 2.0, 9.0]])
    model = RegimeModel(3, **settings).fit(first)
    assert model.regime_names_ == ["Calm", "Normal", "Turbulent"]
    later = data([[1.0, 1.0, 1.0], [9.0, 3.0, 1.0], [1.0, 2.0, 7.0]])
    with pytest.warns(UserWarning, match="Normal is more volatile than Turbulent now"):
        again = RegimeModel(3, order_by=model, **settings).fit(later)
    assert again.means_.shape == (3, 3) and again.covariances_[1, 0, 0] > 50


def test_regimes_of_equal_volatility_have_no_name_by_volatility():
    x, _ = two_regimes(0, 2, ratio=1.0)
    model = RegimeModel(2, "tied", n_init=2, random_state=0).fit(x)
    assert model.regime_names_ == ["Regime 1", "Regime 2"]
