"""The line of the upper panel: prices on a logarithmic scale, and names in the areas below."""

import numpy as np
import pytest

from pyro_regimes.estimator.plots import plot_regimes
from pyro_regimes.estimator.plots.lines import line_of_prices

STATES = np.array([0, 0, 1, 1])
PROBS = np.eye(2)[STATES]


def draw(prices, **more):
    return plot_regimes(np.zeros((4, 2)), STATES, PROBS, ["Bull", "$Bear"], prices=prices, **more)


def test_one_price_is_shown_as_it_is():
    panel = draw([10.0, 20.0, 15.0, 40.0]).axes[0]
    assert panel.lines[0].get_ydata().tolist() == [10.0, 20.0, 15.0, 40.0]
    assert panel.get_yscale() == "log" and panel.get_ylabel() == "price, log scale"


def test_several_prices_are_a_geometric_mean_from_100():
    prices = np.array([[1.0, 10.0], [2.0, 10.0], [2.0, 20.0], [4.0, 80.0]])
    panel = draw(prices).axes[0]
    expected = 100 * np.sqrt([1.0, 2.0, 4.0, 32.0])
    np.testing.assert_allclose(panel.lines[0].get_ydata(), expected)
    assert panel.get_ylabel() == "price index, log scale\naverage of 2 series, first row 100"


def test_a_series_that_begins_later_or_has_gaps_makes_no_jump():
    prices = np.array([[1.0, np.nan], [2.0, 50.0], [np.nan, 100.0], [8.0, 100.0]])
    line = line_of_prices(prices, 4).values
    # 2 from the first; (1 by the first, 2 by the second); (4, 1)
    np.testing.assert_allclose(line, 100 * np.array([1, 2, 2 * 2**0.5, 2 * 2**0.5 * 2]))


@pytest.mark.parametrize(
    "prices, got", [(np.ones(3), r"shape \(3,\)"), (np.zeros(4), "0"), (-np.ones((4, 2)), "-1")]
)
def test_bad_prices(prices, got):
    with pytest.raises(ValueError, match=f"positive numbers with a row for each of the 4 .* {got}"):
        draw(prices)


@pytest.mark.parametrize("growth", [1.0, 1.05, 3.0, 1e6])
def test_the_logarithmic_axis_has_plain_numbers(growth):
    figure = draw(np.array([100.0, 100.0, 100 * growth, 100.0]))
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    shown = [text for text in labels if text]
    assert shown and all("10^" not in text and "times" not in text for text in shown)


def test_areas_with_room_have_the_name_of_their_regime():
    number = 400
    states = (np.arange(number) >= 200).astype(int)
    probs = np.stack([0.9 * (states == 0), 0.9 * (states == 1), np.full(number, 0.1)], 1)
    names = ["Bull", "$Bear", "rare"]
    below = plot_regimes(np.zeros((number, 1)), states, probs, names).axes[1]
    assert [text.get_text() for text in below.texts] == ["Bull", "$Bear"]  # 0.1 has no room
    (left, low), (right, _) = (text.get_position() for text in below.texts)
    assert left < 200 < right and 0 < low < 0.9
