"""Plots of residuals: what they show, in which axes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.stats import norm

from pyro_regimes.estimator import Residuals
from pyro_regimes.estimator.residual_tests import autocorrelations
from tests import seeds


def some(num_rows: int = 200, dates: object = None) -> Residuals:
    values = seeds.rng(0).standard_normal((num_rows, 2))
    values[7:8, 0] = np.nan
    return Residuals(values, None, None, "forecast", "series", ["a", "b"], [num_rows], dates)


def test_four_panels_hold_the_residuals():
    residuals = some()
    seen = residuals.values[~np.isnan(residuals.values[:, 0]), 0]
    figure = residuals.plot("a", lags=12)
    time, quantiles, histogram, correlations = figure.axes
    points = np.concatenate([line.get_ydata() for line in time.lines[:2]])
    np.testing.assert_array_equal(np.sort(points[~np.isnan(points)]), np.sort(seen))
    assert (np.abs(time.lines[1].get_ydata()) > 1.96).all()
    assert time.get_title("left").startswith("Forecast residuals of a\n")
    share = np.mean(np.abs(seen) > 1.96)
    assert f"{share:.1%} beyond" in time.get_title("left")
    np.testing.assert_array_equal(quantiles.lines[1].get_ydata(), np.sort(seen))
    np.testing.assert_allclose(
        quantiles.lines[1].get_xdata(), norm.ppf((np.arange(199) + 0.5) / 199), rtol=1e-9
    )
    area = sum(bar.get_height() * bar.get_width() for bar in histogram.patches)
    assert area == pytest.approx(1.0)
    heights = [bar.get_height() for bar in correlations.patches]
    for part, series in ((heights[:12], seen), (heights[12:], seen**2)):
        filled = residuals.values[:, 0].copy()
        filled[~np.isnan(filled)] = series
        np.testing.assert_allclose(part, autocorrelations(filled, [200], 12)[0], rtol=1e-12)


def test_each_quantile_lies_in_its_band_with_95_percent():
    """The band of the median of 3 is that of the beta distribution with 2 and 2."""
    panel = some(3).plot(1).axes[1]
    (band,) = panel.collections
    vertices = band.get_paths()[0].vertices
    middle = vertices[np.isclose(vertices[:, 0], 0.0, atol=1e-12), 1]
    # 3 p^2 - 2 p^3 = 0.025 has the root 0.094299...
    assert norm.cdf(middle.min()) == pytest.approx(0.0942993, abs=1e-6)


def test_dates_and_long_series():
    dates = pd.date_range("2001-01-01", periods=30_000, freq="h")
    figure = some(30_000, dates).plot("b")
    figure.canvas.draw()
    assert figure.axes[0].get_xlabel() == ""
    drawn = figure.axes[1].lines[1].get_ydata()
    values = some(30_000).values[:, 1]
    assert len(drawn) <= 1_000 and drawn[0] == values.min() and drawn[-1] == values.max()


def test_axes_of_the_user():
    figure = Figure()
    panels = figure.subplots(2, 2)
    assert some().plot(ax=panels) is figure
    assert all(panel.has_data() for panel in panels.flat)
    (alone,) = Figure().subplots(1, 1, squeeze=False).flat
    assert some().plot(1, ax=alone) is alone.get_figure()
    assert alone.get_title("right") == "Forecast residuals of b"
    assert alone.get_xlabel() == "quantile of N(0, 1)"
    for wrong in (panels[0], 3, [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="expected ax to be one matplotlib Axes for the quant"):
            some().plot(ax=wrong)


def test_discrete_residuals_are_randomised():
    upper = np.linspace(-2.0, 2.0, 50)[:, None]
    residuals = Residuals(
        upper - 0.05, upper - 0.1, upper, "ordinary", "series", ["n"], [50], None
    )
    figure = residuals.plot(random_state=3)
    drawn = residuals.randomized(3).values[:, 0]
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), np.sort(drawn))
    assert "Ordinary residuals of n (randomised)" in figure.axes[0].get_title("left")


@pytest.mark.parametrize("series", [2, -1, "c", True, None, 1.0])
def test_unknown_series(series):
    with pytest.raises(ValueError, match="expected series to be a number below 2 or one of 'a'"):
        some().plot(series)


def test_nothing_to_plot():
    residuals = some()._replace(values=np.full((5, 2), np.nan), lengths=[5])
    with pytest.raises(ValueError, match="expected residuals to plot, got none that is finite"):
        residuals.plot()


@pytest.mark.parametrize("is_alone", [False, True])
def test_dollars_in_names_are_letters(is_alone):
    """Two of them are mathematics to matplotlib."""
    residuals = some()._replace(series_names=["US$/EUR$", "b"])
    figure = residuals.plot(0, ax=Figure().subplots() if is_alone else None)
    named = [each for each in figure.findobj(Text) if "$" in each.get_text()]
    assert named and not any(each.get_parse_math() for each in named)


@pytest.mark.parametrize("width", [4, 8])
def test_the_legend_of_the_quantiles_hides_nothing(width):
    """Neither the title nor a point, beside the title of a user."""
    figure = Figure(figsize=(width, 4), layout="constrained")
    panel = figure.subplots()
    some(2_000).plot("b", ax=panel)
    panel.set_title("Mine", loc="left")
    FigureCanvasAgg(figure).draw()
    (said,) = panel.get_legend().get_texts()
    box = said.get_window_extent()
    for title in (panel._left_title, panel._right_title):
        assert title.get_text() and not box.overlaps(title.get_window_extent())
    points = panel.transData.transform(panel.lines[1].get_xydata())
    assert not any(box.contains(*point) for point in points)
