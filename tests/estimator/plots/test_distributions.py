"""Histograms and densities beside each other, with areas and heights known by hand or by scipy."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from pyro_regimes.estimator.plots import plot_distributions
from tests import seeds
from tests.estimator.emission_cases import ALL


def stairs(panel):
    return [each.get_data() for each in panel.patches]


def test_areas_are_shares_and_lines_are_densities():
    rng = seeds.rng(8)
    path = np.arange(4000) < 3000
    values = np.where(path, rng.normal(0, 1, 4000), rng.normal(5, 2, 4000))[:, None]
    probs = np.stack([path, ~path], 1).astype(float)
    marginal = stats.norm(np.array([0.0, 5.0]), np.array([1.0, 2.0]))
    figure = plot_distributions(values, probs, [marginal], ["x"], ["a", "b"], unit="%")
    (panel,) = figure.axes
    total, *own = stairs(panel)
    areas = [(each.values * np.diff(each.edges)).sum() for each in (total, *own)]
    np.testing.assert_allclose(areas, [1.0, 0.75, 0.25], atol=0.003)  # 0.2 % are left out
    np.testing.assert_allclose(total.values, own[0].values + own[1].values)
    first, second, mixture = panel.lines
    points = first.get_xdata()
    np.testing.assert_allclose(first.get_ydata(), 0.75 * stats.norm.pdf(points), rtol=1e-12)
    np.testing.assert_allclose(second.get_ydata(), 0.25 * stats.norm.pdf(points, 5, 2), rtol=1e-12)
    np.testing.assert_allclose(mixture.get_ydata(), first.get_ydata() + second.get_ydata())
    assert panel.get_xlabel() == "%" and panel.get_title(loc="left") == "x"
    # the fit is that of the data: bars and the line agree
    middles = (total.edges[:-1] + total.edges[1:]) / 2
    line = np.interp(middles, points, mixture.get_ydata())
    np.testing.assert_allclose(total.values, line, atol=0.12 * line.max())


def test_integers_have_bars_and_points():
    values = np.repeat([0.0, 1.0, 2.0], [20, 50, 30])[:, None]
    marginal = stats.poisson(np.array([1.1]))
    figure = plot_distributions(values, np.ones((100, 1)), [marginal], ["n"], ["a"])
    (panel,) = figure.axes
    np.testing.assert_allclose([bar.get_height() for bar in panel.patches], [0.2, 0.5, 0.3])
    (points,) = panel.lines
    np.testing.assert_array_equal(points.get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(points.get_ydata(), stats.poisson.pmf([0, 1, 2], 1.1))


def test_many_integers_share_bars():
    values = np.arange(1000.0)[:, None]
    marginal = stats.randint(np.array([0]), np.array([1000]))
    figure = plot_distributions(values, np.ones((1000, 1)), [marginal], ["n"], ["a"])
    bars, points = figure.axes[0].patches, figure.axes[0].lines[0]
    assert len(bars) <= 60
    inside = slice(1, -1)
    heights = np.array([bar.get_height() for bar in bars])[inside]
    np.testing.assert_allclose(heights, points.get_ydata()[inside], rtol=1e-9)


@ALL
def test_every_emission_is_drawn(case):
    x, _ = case.sample(4, 200)
    x[5, 1] = np.nan
    figure = case.true().plot_distributions(x)
    assert len(figure.axes) == 2
    for panel in figure.axes:
        heights = [np.nanmax(np.asarray(line.get_ydata(), float)) for line in panel.lines]
        assert len(panel.lines) == 3 and min(heights) > 0 and panel.get_ylim()[1] > 0
    figure.canvas.draw()


def test_series_of_a_model():
    from tests.estimator.emission_cases import CASES

    model = CASES[0].true(feature_names=["left", "right"])
    x = pd.DataFrame(model.sample(100, random_state=0)[0], columns=["left", "right"])
    for chosen, titles in ((["right"], ["right"]), ([1, "left"], ["right", "left"]), (0, ["left"])):
        figure = model.plot_distributions(x, series=chosen)
        assert [panel.get_title(loc="left") for panel in figure.axes] == titles
    for wrong in (["middle"], [2], [-1], [True], []):
        with pytest.raises(ValueError, match="expected series to be numbers below 2 or names"):
            model.plot_distributions(x, series=wrong)
    panels = Figure().subplots(1, 2)
    assert model.plot_distributions(x, ax=panels) is panels[0].figure
    with pytest.raises(ValueError, match="expected ax to be 2 matplotlib Axes"):
        model.plot_distributions(x, ax=panels[0])


def test_a_constant_and_an_empty_series_can_be_drawn():
    values = np.column_stack([np.full(30, 2.0), np.full(30, np.nan)])
    marginals = [stats.norm(np.array([2.0]), np.array([1.0]))] * 2
    figure = plot_distributions(values, np.ones((30, 1)), marginals, ["c", "e"], ["a"])
    figure.canvas.draw()
    assert len(figure.axes[0].lines) == 1 and not figure.axes[1].lines


def test_numbers_of_series_must_agree():
    with pytest.raises(ValueError, match="same number of series, got 1, 1 and 2"):
        plot_distributions(np.zeros((3, 1)), np.ones((3, 1)), [stats.norm(0, 1)], list("xy"), ["a"])
