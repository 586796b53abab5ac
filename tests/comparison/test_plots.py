"""Figures of comparisons hold what they are said to hold."""

import pytest
import torch

from pyro_regimes.comparison import (
    Comparison,
    Interval,
    MethodRun,
    plot_comparison,
    plot_posteriors,
)


def make_run(method: str, objective: str, values: list[float], posterior=None) -> MethodRun:
    count = len(values)
    return MethodRun(
        method=method,
        objective=objective,
        log_likelihood=values[-1],
        log_joint=None,
        elbo=None,
        held_out=None,
        held_out_averaged=None,
        num_steps=count - 1,
        num_passes=count,
        seconds=float(count - 1),
        times=[float(step) for step in range(count)],
        passes=list(range(count)),
        values=values,
        gradient_norm=None,
        point={"loc": torch.zeros(2, 3)},
        posterior=posterior,
    )


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
