"""The diagram of transitions shows every probability once, and nothing overlaps."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch

from pyro_regimes.estimator.plots import plot_transitions, regime_colors

MATRIX = np.array([[0.9, 0.08, 0.02], [0.0999, 0.9, 0.0001], [0.25, 0.0, 0.75]])


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_circles_stay_and_arrows_change():
    figure = plot_transitions(MATRIX, ["a", "b", "c"])
    circles = [each for each in figure.axes[0].patches if isinstance(each, Circle)]
    arrows = [each for each in figure.axes[0].patches if isinstance(each, FancyArrowPatch)]
    assert len(circles) == 3 and len(arrows) == 4  # 0.0001 and 0 have none
    assert sorted(texts(figure)) == sorted(
        ["8.0%", "2.0%", "10.0%", "25.0%", "a\n90.0%", "b\n90.0%", "c\n75.0%"]
    )
    widths = dict(zip(["8.0%", "2.0%", "10.0%", "25.0%"], [a.get_linewidth() for a in arrows]))
    assert widths["2.0%"] < widths["8.0%"] < widths["10.0%"] < widths["25.0%"]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8])
def test_circles_lie_apart_and_inside_the_panel(number):
    matrix = np.full((number, number), 0.1) + (1 - 0.1 * number) * np.eye(number)
    names = [f"regime {k}" for k in range(number)]
    figure = plot_transitions(matrix, names)
    FigureCanvasAgg(figure).draw()
    panel = figure.axes[0]
    circles = [each for each in panel.patches if isinstance(each, Circle)]
    centres = np.array([each.center for each in circles])
    radius = circles[0].radius
    distances = np.linalg.norm(centres[:, None] - centres, axis=-1)[~np.eye(number, dtype=bool)]
    assert (distances > 2 * radius).all()
    (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
    assert (centres.min(0) - radius > [left, low]).all()
    assert (centres.max(0) + radius < [right, high]).all()
    box = panel.get_window_extent()
    for text in panel.texts:
        own = text.get_window_extent()
        assert box.x0 <= own.x0 and own.x1 <= box.x1 and box.y0 <= own.y0 and own.y1 <= box.y1


def test_labels_of_arrows_lie_apart():
    figure = plot_transitions(np.full((3, 3), 0.2) + 0.4 * np.eye(3), list("abc"))
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for place, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[place + 1 :])


def test_axes_of_ones_own_and_bad_arguments():
    panel = Figure().subplots()
    assert plot_transitions(MATRIX, ["a", "b", "$c"], ax=panel) is panel.figure
    panel.figure.canvas.draw()
    for wrong in (3, list(Figure().subplots(2, 1))):
        with pytest.raises(ValueError, match="expected ax to be one matplotlib Axes"):
            plot_transitions(MATRIX, list("abc"), ax=wrong)
    with pytest.raises(ValueError, match=r"transition_matrix to have shape \(2, 2\), got \(3, 3\)"):
        plot_transitions(MATRIX, list("ab"))


def test_circles_have_the_colours_of_the_regimes():
    from matplotlib.colors import to_hex

    figure = plot_transitions(MATRIX, list("abc"))
    circles = [each for each in figure.axes[0].patches if isinstance(each, Circle)]
    assert [to_hex(each.get_facecolor()) for each in circles] == regime_colors(3)
