"""The step in the number of failures of large counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import psi
from torch import Tensor

from pyro_regimes.emissions import failures
from tests import seeds


def derivative(r: float, x: np.ndarray) -> float:
    """D of the module."""
    return float(np.mean(psi(r + x)) - psi(r) - np.log1p(x.mean() / r))


def step(r: float, x: np.ndarray, most: float = 4.0) -> float:
    at = torch.tensor([r], dtype=torch.float64)
    means = (each.mean(0, keepdim=True) for each in failures.rest(at + torch.tensor(x)))
    mean = torch.tensor([x.mean()])
    gap = torch.tensor([derivative(r, x)], dtype=torch.float64)
    return float(failures.step(gap, failures.Rest(*means), mean, at, most))


@pytest.mark.parametrize(
    "mean, count", [(3.0, 0.5), (1e3, 0.5), (1e3, 20.0), (1e6, 20.0), (1e6, 1e3)]
)
def test_no_step_passes_the_root(mean: float, count: float) -> None:
    rng = seeds.rng(0)
    x = rng.poisson(mean * rng.gamma(count, size=400) / count).astype(np.float64)
    root = brentq(derivative, 1e-3, 1e5, args=(x,), xtol=1e-12, rtol=1e-12)
    for start in (1e-3, 0.3, 0.9, 1.1, 3.0, 100.0):
        r = start * root
        for _ in range(12):
            new = step(r, x)
            assert (new - root) * np.sign(start - 1) >= -1e-6 * root  # on the same side
            assert new == r or abs(np.log(new / root)) <= abs(np.log(r / root)) + 1e-6
            r = new
        if mean > 10 * count:  # elsewhere the other bounds are the closer ones
            assert r == pytest.approx(root, rel=1e-5)


def test_the_largest_step() -> None:
    x = np.full(50, 1e6)  # without overdispersion there is no root
    assert step(10.0, x) == pytest.approx(40.0, rel=1e-12)
    assert step(10.0, x, most=2.0) == pytest.approx(20.0, rel=1e-12)
    assert np.isnan(step(np.nan, x))


def terms(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.digamma(), torch.polygamma(1, z)


def test_the_bounds_of_digamma() -> None:
    z = torch.logspace(-3, 4, 200, dtype=torch.float64)[:, None]
    psi_z, slope = terms(z)
    rest = failures.rest(z)
    torch.testing.assert_close(rest.slope, slope, rtol=1e-10, atol=0.0)
    for share in (0.01, 1.0, 30.0):
        more = (z * (1 + share)).digamma() - psi_z
        assert (more >= (z * share * slope).log1p() - 1e-12).all()
        less = (z / (1 + share)).digamma() - psi_z
        delta = z / (1 + share) - z
        assert (less <= torch.minimum((delta / z).log1p(), delta * slope) + 1e-12).all()
