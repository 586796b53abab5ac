"""Heat maps of correlations."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.plots import plot_correlations
from tests.estimator.emission_cases import CASES

MATRICES = np.array([[[1.0, 0.3], [0.3, 1.0]], [[1.0, -0.25], [-0.25, 1.0]]])


def test_each_regime_has_a_panel_with_its_numbers():
    figure = plot_correlations(MATRICES, ["x", "$y"], ["a", "b"])
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["a", "b"]
    for panel, matrix, shown in zip(figure.axes, MATRICES, (".30", "−.25")):
        np.testing.assert_array_equal(panel.images[0].get_array(), matrix)
        assert panel.images[0].get_clim() == (-1, 1)
        assert [text.get_text() for text in panel.texts] == ["1", shown, shown, "1"]
        assert [label.get_text() for label in panel.get_xticklabels()] == ["x", "$y"]
    figure.canvas.draw()


def test_a_correlation_that_rounds_to_zero_has_no_sign():
    panel = plot_correlations([[[1.0, -0.001], [-0.001, 1.0]]], ["x", "y"], ["a"]).axes[0]
    assert [text.get_text() for text in panel.texts] == ["1", ".00", ".00", "1"]


def test_small_cells_have_no_numbers_and_not_all_names():
    many = np.broadcast_to(np.eye(60), (1, 60, 60))
    panel = plot_correlations(many, [f"a series of number {d}" for d in range(60)], ["a"]).axes[0]
    assert not panel.texts and 10 < len(panel.get_xticks()) < 60
    assert panel.get_xticklabels()[0].get_text() == "a series of n…"


def test_a_model_draws_those_of_its_summary():
    model = CASES[0].true()
    figure = model.plot_correlations()
    for panel, matrix in zip(figure.axes, model.summary().correlation, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), matrix)
    independent = RegimeModel.from_parameters(
        None, np.eye(2) * 0.8 + 0.1, np.zeros((2, 2)), np.ones((2, 2)), covariance_type="diag"
    )
    with pytest.raises(ValueError, match="expected several series with correlations"):
        independent.plot_correlations()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"correlation to have shape \(2, 3, 3\), got \(2, 2, 2\)"):
        plot_correlations(MATRICES, list("xyz"), list("ab"))
    with pytest.raises(ValueError, match="expected ax to be 2 matplotlib Axes"):
        plot_correlations(MATRICES, list("xy"), list("ab"), ax=Figure().subplots())
