"""Figures of comparisons hold what they are said to hold."""

import pytest
import torch

from pyro_regimes.comparison import (
    Comparison,
    Interval,
    plot_comparison,
    plot_posteriors,
)
from tests.comparison.made_runs import make_run


def test_comparison_draws_every_method_and_its_distance_to_the_best():
    runs = [
        make_run("EM", "likelihood", [-30.0, -11.0, -10.0]),
        make_run("SVI, Adam(0.03)", "likelihood", [-30.0, -20.0, -12.0]),
        make_run("EM, MAP", "joint", [-40.0, -30.0, -29.0]),
    ]
    figure = plot_comparison(Comparison(runs))
    seconds, passes, below, _ = figure.axes
    assert [line.get_label() for line in passes.lines] == ["EM", "SVI, Adam(0.03)"]
    assert seconds.lines[1].get_ydata().tolist() == [-20.0, -12.0]
    assert below.lines[1].get_ydata().tolist() == [10.0, 2.0]
    figure.canvas.draw()


@pytest.mark.parametrize("with_em", [True, False])
def test_a_run_that_diverged_is_drawn_as_such(with_em):
    """And does not decide what the best is, unless there is no other."""
    em = make_run("EM", "likelihood", [-30.0, -11.0, -10.0])
    diverged = make_run("SVI, Adam(1)", "likelihood", [-30.0, -5.0, -90.0], diverged=True)
    at_once = make_run("SVI, Adam(9)", "likelihood", [-30.0], diverged=True)
    figure = plot_comparison(Comparison([em] * with_em + [diverged, at_once]))
    labels = [line.get_label() for line in figure.axes[1].lines]
    assert labels == ["EM"] * with_em + ["SVI, Adam(1), diverged"]
    best = -10.0 if with_em else -5.0
    assert figure.axes[0].get_ylim()[1] == pytest.approx(best, abs=1 if with_em else 10)
    assert figure.axes[2].lines[0].get_ydata()[-1] == (1e-3 if with_em else 85.0)
    figure.canvas.draw()


def test_a_comparison_without_a_single_step_can_be_drawn():
    at_once = make_run("SVI, Adam(9)", "likelihood", [-30.0], diverged=True)
    figure = plot_comparison(Comparison([at_once]))
    figure.canvas.draw()
    assert len(figure.axes) == 4 and not figure.axes[0].lines


def test_posteriors_stand_side_by_side():
    posterior = {"loc": Interval(torch.ones(2, 3), torch.ones(2, 3))}
    runs = [
        make_run("EM, MAP", "joint", [-2.0, -1.0]),
        make_run("SVI, AutoNormal(0.03)", "ELBO", [-2.0, -1.0], posterior),
        make_run("NUTS", "draws", [-1.0], posterior),
    ]
    figure = plot_posteriors(Comparison(runs))
    (panel,) = figure.axes
    labels = panel.get_legend_handles_labels()[1]
    assert sorted(labels) == ["EM, MAP", "NUTS", "SVI, AutoNormal(0.03)"]
    figure.canvas.draw()
    with pytest.raises(ValueError, match="a run with a posterior"):
        plot_posteriors(Comparison(runs[:1]))
