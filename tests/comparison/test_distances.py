"""How far runs have ended from one another, by hand."""

from __future__ import annotations

import pytest
import torch

from pyro_regimes.comparison.distances import with_distances
from pyro_regimes.comparison.runs import Interval
from tests.comparison.made_runs import make_run


def interval(mean: list[float], deviation: list[float]) -> Interval:
    return Interval(torch.tensor(mean).double(), torch.tensor(deviation).double())


def test_posteriors_are_measured_in_the_deviations_of_nuts() -> None:
    """Means off by 1 and 0 deviations: sqrt(1 / 2). Deviations off by a half and none."""
    found = {"loc": interval([3.0, 1.0], [3.0, 4.0])}
    exact = {"loc": interval([1.0, 1.0], [2.0, 4.0])}
    variational, nuts = with_distances(
        [
            make_run("SVI, AutoNormal(0.03)", "ELBO", [-2.0, -1.0], found),
            make_run("NUTS", "draws", [-1.0], exact),
        ]
    )
    assert variational.posterior_errors == pytest.approx((0.5**0.5, 0.125**0.5), rel=1e-12)
    assert nuts.posterior_errors is None
    assert variational.distance_to_em is None  # no EM to be far from


def test_points_are_measured_relative_to_that_of_em() -> None:
    """(3, 4) against (0, 4): 3 of 4, and (0, 2): 2 of 4; with other parameters there is none."""
    points = [{"loc": [0.0], "b": [4.0]}, {"loc": [3.0], "b": [4.0]}, {"loc": [3.0]}]
    names = ["EM", "EM, SQUAREM", "SVI, Adam(0.03)", "SVI, Adam(0.1)"]
    points.insert(1, {"loc": [0.0], "b": [2.0]})
    em, fast, adam, other = with_distances(
        [
            make_run(name, "likelihood", [-2.0, -1.0])._replace(
                point={key: torch.tensor(value) for key, value in point.items()}
            )
            for name, point in zip(names, points, strict=True)
        ]
    )
    assert em.distance_to_em is None and other.distance_to_em is None
    assert adam.distance_to_em == pytest.approx(0.75, rel=1e-6)
    assert fast.distance_to_em == pytest.approx(0.5, rel=1e-6)  # EM is the reference, not this
