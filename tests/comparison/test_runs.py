"""What a comparison says of its runs."""

from __future__ import annotations

import math

import pytest

from pyro_regimes.comparison import Comparison
from tests.comparison.made_runs import make_run

EM = make_run("EM", "likelihood", [-30.0, -11.0, -10.0])
LATER = make_run("SVI, Adam(0.03)", "likelihood", [-30.0, -20.0, -15.0, -10.05])
AT_ONCE = make_run("SVI, Adam(0.1)", "likelihood", [-10.05, -10.04])
FAST = make_run("EM, SQUAREM", "likelihood", [-30.0, -10.0])
NEVER = make_run("SVI, Adam(0.01)", "likelihood", [-30.0, -20.0])


@pytest.mark.parametrize(
    "runs, ratio",
    [
        ([EM, LATER], 1.5),
        ([EM, FAST, LATER], 3.0),  # EM's extrapolated steps are EM's
        ([EM, LATER, AT_ONCE], 0.0),  # a time of 0.0 is a time
        ([EM._replace(values=[-10.0] * 3), LATER], math.inf),
        ([EM._replace(values=[-10.0] * 3), AT_ONCE], 1.0),
        ([EM, NEVER], None),
        ([EM._replace(values=[-30.0] * 3), LATER], None),
        ([LATER, AT_ONCE], None),
        ([], None),
    ],
)
def test_speed_up(runs, ratio) -> None:
    assert Comparison(runs).speed_up() == ratio


def test_what_diverged_does_not_count() -> None:
    """Whatever value it had reached before."""
    diverged = make_run("SVI, Adam(1)", "likelihood", [-30.0, -2.0], diverged=True)
    found = Comparison([EM, LATER, diverged])
    assert found.best() == -10.0 and found.speed_up() == 1.5
    assert found.seconds_to_best(diverged) is None
    assert Comparison([diverged]).best() == -math.inf


def test_how_far_below_the_best_a_run_ends() -> None:
    guide = make_run("SVI, AutoNormal(0.03)", "ELBO", [-30.0, -20.0])
    lost = make_run("SVI, Adam(1)", "likelihood", [-30.0, -2.0], diverged=True)
    found = Comparison([EM, LATER, NEVER, guide, lost])
    below = [found.below_best(run) for run in found.runs]
    assert below == [0.0, pytest.approx(0.05), 10.0, None, None]
    assert found.fastest(True) == (EM, 2.0) and found.fastest(False) == (LATER, 3.0)
    assert Comparison([NEVER, EM]).fastest(False) is None
