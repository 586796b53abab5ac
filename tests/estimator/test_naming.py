"""Names that can be believed."""

from __future__ import annotations

import warnings

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
        setattr(turned, name, getattr(model, name)[::-1])
    turned.transition_matrix_ = model.transition_matrix_[::-1, ::-1]
    if covariance_type != "tied":
        turned.covariances_ = model.covariances_[::-1]
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


@pytest.mark.slow
def test_labels_do_not_swap_from_window_to_window():
    """On 16 windows of four years each name stays with its end of the volatilities."""
    frame = load_sector_returns().to_frame()
    settings = dict(n_init=4, max_iter=500, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = RegimeModel(2, **settings).fit(frame.iloc[:1000])
        for start in range(500, 8000, 500):
            window = frame.iloc[start : start + 1000]
            after = RegimeModel(2, order_by=before, **settings).fit(window)
            assert after.regime_names_ == ["Calm", "Turbulent"]
            calm, turbulent = after.summary().volatility.mean(-1)
            assert calm < turbulent
            before = after


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
