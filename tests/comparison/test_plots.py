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


def test_comparison_draws_the_best_value_so_far_of_every_method():
    runs = [
        make_run("EM", "likelihood", [-30.0, -11.0, -10.0]),
        make_run("SVI, Adam(0.03)", "likelihood", [-30.0, -12.0, -20.0]),
        make_run("EM, MAP", "joint", [-40.0, -30.0, -29.0]),
    ]
    figure = plot_comparison(Comparison(runs))
    for panel in figure.axes:
        em, adam = panel.lines[:2]
        assert (em.get_label(), adam.get_label()) == ("EM", "Adam(0.03)")
        assert em.get_ydata().tolist() == [1.0, 0.01] and adam.get_ydata().tolist() == [2.0, 2.0]
        assert em.get_xdata().tolist() == [1, 2]
    told = [[text.get_text() for text in panel.texts] for panel in figure.axes]
    assert told == [["EM\n2 s", "0.1 nats"], ["EM\n2 passes", "0.1 nats"]]
    figure.canvas.draw()


@pytest.mark.parametrize("with_em", [True, False])
def test_a_run_that_diverged_is_drawn_as_such(with_em):
    """And does not decide what the best is, unless there is no other."""
    em = make_run("EM", "likelihood", [-30.0, -11.0, -10.0])
    diverged = make_run("SVI, Adam(1)", "likelihood", [-30.0, -15.0, -5.0], diverged=True)
    at_once = make_run("SVI, Adam(9)", "likelihood", [-30.0], diverged=True)
    figure = plot_comparison(Comparison([em] * with_em + [diverged, at_once]))
    lines = [line for line in figure.axes[1].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["EM"] * with_em + ["Adam(1), diverged"]
    best = -10.0 if with_em else -5.0
    assert lines[-1].get_ydata().tolist() == [max(best + 15.0, 0.01), 0.01]
    figure.canvas.draw()


def test_runs_have_different_colours():
    rates = [0.01, 0.03, 0.1]
    names = [f"SVI, {name}({rate})" for name in ("Adam", "ClippedAdam") for rate in rates]
    guides = [f"SVI, {name}(0.03)" for name in ("AutoNormal", "AutoLowRank")]
    runs = [make_run(name, "likelihood", [-30.0, -10.0]) for name in ["EM", *names, *guides]]
    panel = plot_comparison(Comparison(runs)).axes[0]
    assert len({line.get_color() for line in panel.lines[: len(runs)]}) == len(runs)


def test_a_comparison_without_a_single_step_can_be_drawn():
    at_once = make_run("SVI, Adam(9)", "likelihood", [-30.0], diverged=True)
    figure = plot_comparison(Comparison([at_once]))
    figure.canvas.draw()
    assert len(figure.axes) == 2 and not figure.axes[0].lines


def compared(**means: torch.Tensor) -> Comparison:
    """EM, a guide and NUTS, with posteriors of these means and a deviation of 0.2."""
    posterior = {
        site: Interval(mean, torch.full_like(mean, 0.2)) for site, mean in means.items()
    }
    em = make_run("EM, MAP", "joint", [-2.0, -1.0])._replace(point=means)
    guide = make_run("SVI, AutoNormal(0.03)", "ELBO", [-2.0, -1.0], posterior)
    return Comparison([em, guide, make_run("NUTS", "draws", [-1.0], posterior)])


def test_posteriors_of_each_regime_have_a_panel():
    names = ["left", "middle", "right", "last"]
    probs = torch.tensor([[0.95, 0.05], [0.5, 0.5]])
    comparison = compared(
        initial=probs[0],
        transition=probs,
        loc=torch.arange(8.0).reshape(2, 4),
        precision=torch.arange(32.0).reshape(2, 4, 4),
    )
    figure = plot_posteriors(comparison, names)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == [
        "initial", "transition: from regime 1", "from regime 2", "loc: regime 1", "regime 2",
        "precision, diagonal: regime 1", "regime 2",
    ]  # fmt: skip
    labels = [[label.get_text() for label in panel.get_yticklabels()] for panel in panels]
    assert labels[0] == ["regime 1", "regime 2"] and labels[3] == labels[5] == names
    assert labels[1] == ["to regime 1", "to regime 2"]
    drawn = [panel.containers[1].lines[0].get_xdata().tolist() for panel in panels]
    assert drawn[1] == pytest.approx([0.95, 0.05])
    assert drawn[4] == [4.0, 5.0, 6.0, 7.0] and drawn[6] == [16.0, 21.0, 26.0, 31.0]
    ends = panels[0].containers[0].lines[2][0].get_segments()
    assert ends[0][:, 0].tolist() == pytest.approx([0.55, 1.0])  # not 1.35
    shown = panels[0].get_legend_handles_labels()[1]
    assert sorted(shown) == ["EM, MAP", "NUTS", "SVI, AutoNormal(0.03)"]
    figure.canvas.draw()


def test_posteriors_of_sites_of_any_shape_are_drawn():
    comparison = compared(
        one=torch.tensor(2.0), many=torch.arange(40.0), other=torch.arange(80.0).reshape(8, 10)
    )
    figure = plot_posteriors(comparison)
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == ["one", "many, 12 of 40", "other, 12 of 80"]
    assert figure.axes[2].get_yticklabels()[11].get_text() == "2, 2"
    figure.canvas.draw()
    with pytest.raises(ValueError, match="a run with a posterior"):
        plot_posteriors(Comparison(comparison.runs[:1]))
