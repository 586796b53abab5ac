"""Figures hold what they are said to hold, and touch no global state."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator import RegimeModel, plots
from tests import seeds
from tests.regimes import simulate

RETURNS = np.array([[1.0, 3.0], [0.0, -2.0], [1.0, 1.0], [2.0, 0.0]])
PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
STATES = np.array([0, 1, 1, 0])
DATES = np.array(["2020-01-01", "2020-01-02", "2020-01-06", "2020-01-07"], "datetime64[D]")


def labels(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


@pytest.mark.parametrize("dates", [None, DATES], ids=["steps", "dates"])
def test_regimes_show_the_running_sum_and_every_state(dates):
    before = dict(matplotlib.rcParams)
    figure = plots.plot_regimes(RETURNS, STATES, PROBS, ["Bull", "Bear"], dates)
    above, below = figure.axes
    np.testing.assert_allclose(above.lines[0].get_ydata(), [2.0, 1.0, 2.0, 3.0])
    (shade,) = above.collections
    assert shade.get_array().ravel().tolist() == [0, 1, 1, 0]
    assert labels(above) == ["Bull, 50% of rows", "Bear, 50% of rows"]
    assert above.get_legend().get_title().get_text() == "Shaded: regime of each row (Viterbi path)"
    assert len(below.collections) == 2 and below.get_ylim() == (0, 1)
    figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_an_impossible_path_stays_unshaded():
    figure = plots.plot_regimes(RETURNS, np.full(4, -1), PROBS, ["Bull", "Bear"])
    assert figure.axes[0].collections[0].get_array().mask.all()


def test_a_regime_that_does_not_occur_has_a_share_and_no_remark():
    probs = np.column_stack([PROBS, np.zeros(4)])
    above = plots.plot_regimes(RETURNS, STATES, probs, ["a", "b", "c"]).axes[0]
    assert labels(above)[2] == "c, 0% of rows"


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
        assert [text.split(",")[0] for text in labels(above)] == model.regime_names_
        assert len(below.collections) == 3
    assert len(set(plots.regime_colors(5))) == 5


def path_of(num_rows, num_regimes=3):
    """A path that changes often, and probabilities that agree with it."""
    rng = seeds.rng(1)
    path = rng.choice(num_regimes, p=[0.5, 0.4, 0.1], size=num_rows)
    probs = 0.1 + 0.7 * np.eye(num_regimes)[path]
    return rng.standard_normal((num_rows, 1)), path, probs


@pytest.mark.parametrize("num_rows, rows", [(60, 1), (170, 1), (171, 2), (1000, 10), (8312, 50)])
def test_a_band_is_wide_enough_to_be_seen(num_rows, rows):
    """Rows of a long path share bands, and the legend says how many."""
    returns, path, probs = path_of(num_rows)
    figure = plots.plot_regimes(returns, path, probs, list("abc"))
    above, below = figure.axes
    (shade,) = above.collections
    regimes = shade.get_array().ravel()
    assert len(regimes) == round(num_rows / rows) <= 170
    said = above.get_legend().get_title().get_text()
    assert ("each row " in said) if rows == 1 else (f"each {rows} rows" in said)
    if rows == 1:
        assert regimes.tolist() == path.tolist()


def test_a_band_shows_its_most_frequent_regime_and_how_frequent_it_is():
    path = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 2])
    probs = np.eye(3)[path]
    figure = plots.plot_regimes(np.zeros((12, 1)), path, probs, list("abc"), rows_per_band=4)
    above, below = figure.axes
    (shade,) = above.collections
    assert shade.get_array().ravel().tolist() == [0, 0, 1]
    opacity = np.ravel(shade.get_alpha())
    assert opacity[0] > opacity[1] > 0 and opacity[0] > opacity[2] > 0
    # A regime without a band is not hidden: it is in the legend and in the lower panel.
    assert sorted(labels(above)) == [
        "a, 58% of rows", "b, 33% of rows", "c, 8% of rows\nin no band the most frequent",
    ]  # fmt: skip
    edges = shade.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(edges, [-0.5, 3.5, 7.5, 11.5])
    for k, area in enumerate(below.collections):
        heights = [probs[first : first + 4, : k + 1].sum() / 4 for first in (0, 4, 8)]
        tops = area.get_paths()[0].vertices
        for (left, right), height in zip(zip(edges, edges[1:]), heights):
            inside = (tops[:, 0] >= left) & (tops[:, 0] <= right)
            assert np.isclose(tops[inside, 1], height).any()


def test_the_regime_of_a_tie_is_the_more_probable_one():
    path, probs = np.array([0, 1]), np.array([[0.55, 0.45], [0.1, 0.9]])
    figure = plots.plot_regimes(np.zeros((2, 1)), path, probs, ["a", "b"], rows_per_band=2)
    assert figure.axes[0].collections[0].get_array().ravel().tolist() == [1]


def test_axes_of_ones_own():
    """One for the upper panel, a pair for both; nothing else of the figure changes."""
    returns, path, probs = path_of(300)
    figure = Figure()
    upper, other = figure.subplots(2, 1)
    assert plots.plot_regimes(returns, path, probs, list("abc"), ax=upper) is figure
    assert len(figure.axes) == 2 and not other.has_data() and upper.get_xlabel() == "step"
    assert len(upper.lines) == 1 and len(upper.collections) == 1
    figure = Figure()
    pair = figure.subplots(2, 1)
    assert plots.plot_regimes(returns, path, probs, list("abc"), ax=pair) is figure
    assert len(pair[1].collections) == 3 and len(figure.axes) == 2
    part = Figure().subfigures(1, 2)[0]
    panel = part.subplots()
    assert plots.plot_regimes(returns, path, probs, list("abc"), ax=panel) is part.figure
    for wrong in ("axes", [], list(Figure().subplots(3, 1)), 3):
        with pytest.raises(ValueError, match="expected ax to be one matplotlib Axes .* or a pair"):
            plots.plot_regimes(returns, path, probs, list("abc"), ax=wrong)


def test_labels_say_the_unit_and_the_title_the_dates():
    figure = plots.plot_regimes(RETURNS, STATES, PROBS, ["Bull", "Bear"], DATES)
    above, below = figure.axes
    assert above.get_ylabel() == "cumulative return (unit of the data)\naverage of 2 series"
    assert above.get_title(loc="left") == "2 regimes, 2020-01-01 to 2020-01-07"
    assert below.get_ylabel() == "smoothed probability" and below.get_xlabel() == ""
    one = plots.plot_regimes(RETURNS[:, :1], STATES, PROBS, ["Bull", "Bear"], unit="%")
    assert one.axes[0].get_ylabel() == "cumulative return (%)"
    assert one.axes[0].get_title(loc="left") == "2 regimes, 4 steps"
    assert one.axes[1].get_xlabel() == "step"
    hours = DATES[:1] + np.arange(4) * np.timedelta64(90, "m")
    title = plots.plot_regimes(RETURNS, STATES, PROBS, ["Bull", "Bear"], hours).axes[0]
    assert title.get_title(loc="left") == "2 regimes, 2020-01-01 00:00 to 2020-01-01 04:30"


@pytest.mark.parametrize(
    "dates",
    [
        DATES.astype(object),
        DATES.astype(str),
        pd.DatetimeIndex(DATES, tz="America/New_York"),
        pd.PeriodIndex(DATES, freq="D"),
        pd.Series(DATES),
    ],
    ids=["date", "text", "time zone", "period", "series"],
)
def test_dates_of_many_kinds(dates):
    figure = plots.plot_regimes(RETURNS, STATES, PROBS, ["Bull", "Bear"], dates)
    assert figure.axes[0].get_title(loc="left") == "2 regimes, 2020-01-01 to 2020-01-07"
    figure.canvas.draw()


def test_nothing_is_drawn_over_anything_else():
    """On the embedded data: the title, the legend and the panel lie one above the other."""
    data = load_sector_returns()
    _, path, probs = path_of(len(data.values))
    names = ["Calm", "Normal", "Turbulent"]
    for width in (11, 4):
        figure = Figure(figsize=(width, 5), layout="constrained")
        panel = figure.subplots()
        plots.plot_regimes(data.values, path, probs, names, data.dates, ax=panel)
        FigureCanvasAgg(figure).draw()
        box, legend = panel.get_window_extent(), panel.get_legend().get_window_extent()
        title = panel._left_title.get_window_extent()
        assert box.y1 <= legend.y0 < legend.y1 <= title.y0
        assert legend.x1 <= figure.bbox.x1


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
@pytest.mark.parametrize(
    "size, rows, columns", [((6.4, 4.8), 2, 2), ((4, 3), 1, 1), ((9, 9), 3, 2)]
)
def test_nothing_is_cut_in_small_axes_of_the_caller(layout, size, rows, columns):
    """As ``plt.subplots(2, 2)`` makes them; and the panels of a column do not overlap."""
    data = load_sector_returns()
    _, path, probs = path_of(len(data.values))
    figure = Figure(figsize=size, layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False)
    for panel in grid[:, 0]:
        names = ["Calm", "Normal", "Turbulent"]
        plots.plot_regimes(data.values, path, probs, names, data.dates, ax=panel, unit="%")
    FigureCanvasAgg(figure).draw()
    above = figure.bbox.y1
    for panel in grid[:, 0]:
        parts = [panel._left_title, panel.get_legend(), panel.yaxis.label]
        boxes = [part.get_window_extent() for part in parts]
        assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        title, legend, _ = boxes
        assert panel.get_window_extent().y1 <= legend.y0 < legend.y1 <= title.y0
        assert title.y1 <= above
        above = panel.xaxis.get_tightbbox().y0


def test_one_sequence_is_drawn():
    x, _ = simulate("full", 60)
    model = RegimeModel(3, n_init=1, tol=1e-1, random_state=0).fit(x)
    with pytest.raises(ValueError, match="expected X to be one sequence, got 2; plot each"):
        model.plot([x[:30], x[30:]])
    with pytest.raises(ValueError, match="expected rows_per_band to be at least 1, got 0"):
        model.plot(x, rows_per_band=0)
    panel = Figure().subplots()
    assert model.plot(x, ax=panel, unit="%", rows_per_band=20) is panel.figure
    assert panel.collections[0].get_array().size == 3 and "(%)" in panel.get_ylabel()
    periods = pd.DataFrame(x, index=pd.period_range("2005-01", periods=60, freq="M"))
    assert model.plot(periods).axes[0].get_title(loc="left").endswith("2005-01-01 to 2009-12-01")


@pytest.mark.parametrize("num_rows", [20, 250, 500, 700, 1250, 1600, 8000])
@pytest.mark.parametrize("size", [(3, 2), (5, 2.5), (11, 6)])
def test_dates_of_any_length_are_labelled_without_a_warning(num_rows, size):
    """As matplotlib's locator gave between half-years and years; a warning is an error here."""
    first = np.datetime64("1995-03-06")
    dates = first + np.arange(num_rows) * 7 // 5
    states = np.arange(num_rows) // 10 % 2
    figure = Figure(figsize=size)
    both = tuple(figure.subplots(2, 1))
    probs = np.eye(2)[states]
    plots.plot_regimes(np.ones((num_rows, 1)), states, probs, ["a", "b"], dates, ax=both)
    figure.savefig(io.BytesIO())
    assert len(both[1].get_xticks()) >= 2
