"""Figures hold what they are said to hold, and touch no global state."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from pyro_regimes.estimator import RegimeModel, plots
from tests.regimes import simulate

RETURNS = np.array([[1.0, 3.0], [0.0, -2.0], [1.0, 1.0], [2.0, 0.0]])
PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
STATES = np.array([0, 1, 1, 0])
DATES = np.array(["2020-01-01", "2020-01-02", "2020-01-06", "2020-01-07"], "datetime64[D]")


@pytest.mark.parametrize("dates", [None, DATES], ids=["steps", "dates"])
def test_regimes_show_the_running_sum_and_every_state(dates):
    before = dict(matplotlib.rcParams)
    figure = plots.plot_regimes(RETURNS, STATES, PROBS, ["Bull", "Bear"], dates)
    above, below = figure.axes
    np.testing.assert_allclose(above.lines[0].get_ydata(), [2.0, 1.0, 2.0, 3.0])
    (shade,) = above.collections
    assert shade.get_array().ravel().tolist() == [0, 1, 1, 0]
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["Bull", "Bear"]
    assert len(below.collections) == 2 and below.get_ylim() == (0, 1)
    figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_an_impossible_path_stays_unshaded():
    figure = plots.plot_regimes(RETURNS, np.full(4, -1), PROBS, ["Bull", "Bear"])
    assert figure.axes[0].collections[0].get_array().mask.all()


def test_a_single_step_can_be_drawn():
    figure = plots.plot_regimes(RETURNS[:1], STATES[:1], PROBS[:1], ["Bull", "Bear"], DATES[:1])
    figure.canvas.draw()
    assert figure.axes[0].lines[0].get_ydata().tolist() == [2.0]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="to have the same length, got 4, 3, 4 and 4"):
        plots.plot_regimes(RETURNS, STATES[:3], PROBS, ["Bull", "Bear"])


def test_a_fitted_model_draws_its_path_and_probabilities():
    """Over the dates of a table's index, or those that are given in their place."""
    x, _ = simulate("full", 60)
    model = RegimeModel(3, n_init=1, tol=1e-1, random_state=0).fit(x)
    dates = pd.date_range("2020-01-01", periods=60)
    table = pd.DataFrame(x, index=dates)
    later = dates + pd.Timedelta(days=7)
    for figure, expected in (
        (model.plot(table), dates),
        (model.plot(table, later), later),
        (model.plot(x), None),
        (model.plot(table.reset_index(drop=True)), None),
    ):
        above, below = figure.axes
        across = above.lines[0].get_xdata()
        if expected is None:
            np.testing.assert_array_equal(across, np.arange(60))
        else:
            np.testing.assert_array_equal(across, np.asarray(expected))
        np.testing.assert_allclose(above.lines[0].get_ydata(), x.mean(1).cumsum())
        (shade,) = above.collections
        np.testing.assert_array_equal(shade.get_array().ravel(), model.predict(x))
        assert [text.get_text() for text in above.get_legend().get_texts()] == model.regime_names_
        assert len(below.collections) == 3
    assert len(set(plots.regime_colors(5))) == 5
