"""Figures hold what they are said to hold, and touch no global state."""

import matplotlib
import numpy as np
import pytest
import torch

from pyro_regimes.estimator import plots
from pyro_regimes.infer.compare import Comparison, MethodRun
from pyro_regimes.infer.method_run import Interval

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
    with pytest.raises(ValueError, match="of one length, got 4, 3, 4 and 4"):
        plots.plot_regimes(RETURNS, STATES[:3], PROBS, ["Bull", "Bear"])


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
    figure = plots.plot_comparison(Comparison(runs))
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
    figure = plots.plot_posteriors(Comparison(runs))
    (panel,) = figure.axes
    labels = panel.get_legend_handles_labels()[1]
    assert sorted(labels) == ["EM, MAP", "NUTS", "SVI, AutoNormal(0.03)"]
    figure.canvas.draw()
    with pytest.raises(ValueError, match="a run with a posterior"):
        plots.plot_posteriors(Comparison(runs[:1]))
