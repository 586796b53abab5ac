"""Figures of comparisons hold what they are said to hold."""

from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Text

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
    assert told == [["EM: 2 s", "to 0.1 nats"], ["EM: 2 passes", "to 0.1 nats"]]
    figure.canvas.draw()


def test_the_first_to_come_close_are_named_in_order_and_beside_the_lines():
    late = [-30.0, -29.0, -28.0, -27.0]
    runs = [
        make_run("EM", "likelihood", [*late, -10.0]),
        make_run("EM, SQUAREM", "likelihood", [*late[:2], -10.0]),
        make_run("L-BFGS", "likelihood", [*late[:3], -10.0]),
        make_run("SVI, DecayingAdam(0.1)", "likelihood", [*late, -20.0, -10.0]),
    ]
    figure = plot_comparison(Comparison(runs))
    figure.draw_without_rendering()
    panel = figure.axes[0]
    texts = {text.get_text(): text for text in panel.texts}
    assert list(texts) == ["EM: 4 s", "L-BFGS: 3 s", "EM, SQUAREM: 2 s", "to 0.1 nats"]
    heights = [text.get_window_extent().y0 for text in panel.texts]
    assert heights == sorted(heights)
    legend = figure.legends[0].get_window_extent()
    assert all(legend.y1 <= axes.get_window_extent().y0 for axes in figure.axes)
    names = [text.get_text() for text in figure.legends[0].get_texts() if text.get_text()]
    assert names == ["EM", "EM, SQUAREM", "L-BFGS", "DecayingAdam(0.1)"]


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
    figure.draw_without_rendering()


#: sRGB, linear, as a reader without red or without green cones sees it (Machado, Oliveira and
#: Fernandes 2009, severity 1).
DEFICIENCIES = {
    "none": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def lab(color: str, seen: list[list[float]]) -> np.ndarray:
    """CIE Lab (D65) of a colour as a reader sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (np.array(seen) @ linear).clip(0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt((np.array(to_xyz) @ linear) / [0.9505, 1.0, 1.089] + 1e-4)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", DEFICIENCIES)
def test_runs_have_different_colours_or_dashes(seen):
    """Where dashes are the same, colours are at least 12 units of Lab apart."""
    rates = [0.01, 0.03, 0.1]
    optimisers = ("Adam", "ClippedAdam", "DecayingAdam")
    names = [f"SVI, {name}({rate})" for name in optimisers for rate in rates]
    guides = ("AutoNormal", "AutoMultivariateNormal", "AutoLowRank")
    names += ["EM", "EM, SQUAREM", "L-BFGS", *(f"SVI, {name}(0.03)" for name in guides)]
    runs = [make_run(name, "likelihood", [-30.0, -10.0]) for name in names]
    lines = plot_comparison(Comparison(runs)).axes[0].lines[: len(runs)]
    looks = [(lab(line.get_color(), DEFICIENCIES[seen]), line) for line in lines]
    for (one, line), (other, another) in combinations(looks, 2):
        if line._dash_pattern == another._dash_pattern:
            pair = line.get_label(), another.get_label()
            assert np.linalg.norm(one - other) > 12, pair


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


def test_dollars_in_names_of_series_are_letters():
    figure = plot_posteriors(compared(loc=torch.arange(4.0).reshape(2, 2)), ["US$", "EUR$ US$"])
    figure.canvas.draw()
    named = [each for each in figure.findobj(Text) if "$" in each.get_text()]
    assert named and not any(each.get_parse_math() for each in named)
