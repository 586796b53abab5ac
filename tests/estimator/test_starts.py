"""Starts of the three kinds, on data of every length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.fitting import fit_starts
from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, find_spec
from pyro_regimes.estimator.starts import make_starts
from tests import seeds
from tests.regimes import simulate

FLOOR = 1e-6


def starts(x: np.ndarray, number: int, covariance_type: str = "full", k: int = 3) -> Parameters:
    return make_starts(x, k, number, find_spec(covariance_type), FLOOR, seeds.rng(0))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("num_steps", [3, 5, 60, 2_001])
def test_every_start_is_admissible(covariance_type: str, num_steps: int) -> None:
    x = seeds.rng(num_steps).standard_normal((num_steps, 2))
    made = starts(x, 5, covariance_type)
    assert made.initial_probs.shape == (5, 3) and made.transition_matrix.shape == (5, 3, 3)
    np.testing.assert_allclose(made.transition_matrix.sum(-1), 1.0)
    assert (made.transition_matrix > 0).all()
    spec = find_spec(covariance_type)
    assert (spec.least_variance(made.emission, 5) >= FLOOR * (1 - 1e-12)).all()
    for centers in made.emission["means"]:
        assert np.isfinite(centers).all() and len(np.unique(centers, axis=0)) == 3


def test_k_means_comes_first() -> None:
    """Three clusters that nobody could miss, however many observations there are."""
    for num_steps in (300, 6_000):
        states = np.arange(num_steps) // 10 % 3
        x = 50.0 * states[:, None] + seeds.rng(0).standard_normal((num_steps, 2))
        emission = starts(x, 1).select(0).emission
        order = np.argsort(emission["means"][:, 0])
        np.testing.assert_allclose(emission["means"][order, 0], [0, 50, 100], rtol=0, atol=1.0)
        whole = np.stack([np.cov(x[states == k], rowvar=False, bias=True) for k in range(3)])
        np.testing.assert_allclose(emission["covariances"][order], whole, rtol=1e-8)


def test_windows_come_third() -> None:
    """Rows that follow one another, of windows that do not overlap."""
    x = np.column_stack([np.arange(200.0), seeds.rng(0).standard_normal(200)])
    emission = starts(x, 3).select(2).emission
    middle = np.sort(emission["means"][:, 0])
    assert (np.diff(middle) >= 20).all()
    for center, covariance in zip(emission["means"], emission["covariances"], strict=True):
        rows = x[int(center[0] - 9.5) : int(center[0] + 10.5)]
        np.testing.assert_allclose(center, rows.mean(0))
        np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False, bias=True))


@pytest.mark.parametrize("num_steps", [60, 3_000])
def test_data_that_hardly_ever_change(num_steps: int) -> None:
    """Neither all windows nor a sample of the rows need hold three different values."""
    x = np.zeros((num_steps, 1))
    x[7], x[11] = 1.0, 2.0
    for centers in starts(x, 8, "diag").emission["means"]:
        assert len(np.unique(centers)) == 3


def test_windows_find_regimes_that_differ_in_spread_alone() -> None:
    """From that start alone."""
    rng, spec = seeds.rng(0), find_spec("spherical")
    states = np.arange(3_000) // 60 % 3
    x = np.array([0.3, 1.0, 4.0])[states][:, None] * rng.standard_normal((3_000, 2))
    third = Parameters.stack([starts(x, 3, "spherical").select(2)])
    fit = fit_starts(
        third, spec, torch.tensor(x), None, inference="em",
        max_iter=300, tol=1e-3, min_eigenvalue=0.0, least=FLOOR,
    )  # fmt: skip
    found = np.sqrt(np.sort(fit.parameters.emission["covariances"][0]))
    np.testing.assert_allclose(found, [0.3, 1.0, 4.0], rtol=0.1)


def test_the_best_of_few_starts_is_the_best_known() -> None:
    x, _ = simulate("diag", 600)
    fits = [RegimeModel(3, "diag", n_init=n, random_state=0).fit(x) for n in (3, 12)]
    assert fits[0].log_likelihood_ == pytest.approx(fits[1].log_likelihood_, abs=1e-2)
