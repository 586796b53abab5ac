"""Levels are not annualised, and are shown as they are; returns are."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_regimes import RegimeModel
from tests import seeds


def _model(means, emission="gaussian", **kwargs) -> RegimeModel:
    """Two regimes of two series with standard deviations of 1 and 2."""
    covariances = np.array([np.eye(2), 4 * np.eye(2)])
    return RegimeModel.from_parameters(
        [0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], means=means, covariances=covariances, **kwargs
    )


@pytest.mark.parametrize(
    "means, annualised",
    [
        ([[0.1, 0.2], [-0.3, 0.0]], True),
        ([[100.0, 15.0], [90.0, 30.0]], False),
        ([[0.1, 15.0], [-0.3, 30.0]], True),  # returns beside a level
        ([[-100.0, -15.0], [-90.0, -30.0]], True),  # no level is negative
    ],
)
def test_means_far_above_zero_are_those_of_levels(means, annualised) -> None:
    summary = _model(means).summary()
    assert summary.is_annualised == annualised
    factor = 252 if annualised else 1
    np.testing.assert_allclose(summary.mean, np.multiply(means, factor))
    np.testing.assert_allclose(summary.volatility[:, 0] ** 2, [factor, 4 * factor])
    assert ("annualised" in str(summary)) == annualised


def test_fitted_levels_have_a_table_and_a_plot_in_their_own_unit() -> None:
    rng = seeds.rng(0)
    levels = np.concatenate([rng.normal(15, 1.5, 200), rng.normal(30, 3, 200)])[:, None]
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(levels, columns=["VIX"])
    model = RegimeModel(n_regimes=2, n_init=1, random_state=0).fit(frame)
    summary = model.summary()
    np.testing.assert_allclose(summary.mean.ravel(), [15, 30], rtol=0.05)
    assert "mean" in summary.to_frame().index.get_level_values(0)
    assert {"mean", "standard deviation"} <= set(
        model.conf_int(frame).to_frame().reset_index()["property"]
    )
    figure = model.plot(frame)
    assert figure.axes[0].get_ylabel() == "VIX"
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), levels[:, 0])
    assert model.plot(frame, unit="points").axes[0].get_ylabel() == "VIX (points)"


def test_levels_of_several_series_are_shown_as_standard_scores() -> None:
    rng = seeds.rng(1)
    levels = rng.normal([[1e6, 15.0]], [[1e5, 1.0]], (100, 2))
    model = RegimeModel(n_regimes=1).fit(levels)
    figure = model.plot(levels)
    assert "standard scores" in figure.axes[0].get_ylabel()
    expected = ((levels - levels.mean(0)) / levels.std(0)).mean(1)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), expected, rtol=1e-6, atol=1e-9)
