"""Starts of the three kinds, on data of every length."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.all_starts import fit_starts
from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, find_spec
from pyro_regimes.estimator.starts import kind_of, make_starts
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
    assert (spec.least_variances(made.emission).min(-1) >= FLOOR * (1 - 1e-12)).all()
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


def test_random_observations_come_second() -> None:
    """Each with the overall spread, and transitions that are not those of k-means."""
    x = seeds.rng(0).standard_normal((200, 2)) * [1.0, 3.0]
    second = starts(x, 4).select(1)
    rows = {tuple(row) for row in x}
    assert all(tuple(center) in rows for center in second.emission["means"])
    overall = np.cov(x, rowvar=False, bias=True)
    np.testing.assert_allclose(second.emission["covariances"], np.stack([overall] * 3))
    assert np.ptp(second.transition_matrix.diagonal()) > 0.01


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_random_spreads_come_third(covariance_type: str) -> None:
    """Multiples of the overall covariance whose mean it is, and means within its bulk."""
    x = seeds.rng(0).standard_normal((200, 2)) * [1.0, 3.0] + [50.0, 0.0]
    spec, ratios = find_spec(covariance_type), []
    made = starts(x, 10, covariance_type)
    for start in (2, 4, 6, 8):
        _, transition_matrix, emission = made.select(start)
        around = spec.start_around(x, emission["means"], np.ones(3), FLOOR)
        multiples = emission["covariances"] / around["covariances"]
        by_regime = multiples.reshape(1 if covariance_type == "tied" else 3, -1)
        np.testing.assert_allclose(np.ptp(by_regime, axis=1), 0.0, atol=1e-9)
        assert multiples.mean() == pytest.approx(1.0)
        ratios.append(multiples.max() / multiples.min())
        rows, distances = x - x.mean(0), emission["means"] - x.mean(0)
        assert all((np.abs(rows - 2 * each).sum(1) < 1e-9).any() for each in distances)
        np.testing.assert_allclose(transition_matrix.diagonal(), 0.9)
    if covariance_type == "tied":
        assert ratios == pytest.approx([1.0] * 4)
    else:
        assert max(ratios) > 2.0


def test_kinds_by_number() -> None:
    kinds = [kind_of(start) for start in range(5)]
    assert kinds == ["k-means", "random", "spreads", "random", "spreads"]


@pytest.mark.parametrize("num_steps", [60, 3_000])
def test_data_that_hardly_ever_change(num_steps: int) -> None:
    """A sample of the rows need not hold three different values."""
    x = np.zeros((num_steps, 1))
    x[7], x[11] = 1.0, 2.0
    for centers in starts(x, 8, "diag").emission["means"]:
        assert len(np.unique(centers)) == 3


def test_random_spreads_find_regimes_that_differ_in_spread_alone() -> None:
    """One of eight such starts does."""
    rng, spec = seeds.rng(0), find_spec("spherical")
    states = np.arange(3_000) // 60 % 3
    x = np.array([0.3, 1.0, 4.0])[states][:, None] * rng.standard_normal((3_000, 2))
    spreads = starts(x, 17, "spherical").select(slice(2, None, 2))
    fit = fit_starts(
        spreads, spec, torch.tensor(x), None, inference="em",
        max_iter=300, tol=1e-3, min_eigenvalue=0.0, least=FLOOR,
    )  # fmt: skip
    found = np.sqrt(np.sort(fit.parameters.emission["covariances"][fit.best()]))
    np.testing.assert_allclose(found, [0.3, 1.0, 4.0], rtol=0.1)


def test_the_best_of_few_starts_is_the_best_known() -> None:
    x, _ = simulate("diag", 600)
    fits = [RegimeModel(3, "diag", n_init=n, random_state=0).fit(x) for n in (3, 12)]
    assert fits[0].log_likelihood_ == pytest.approx(fits[1].log_likelihood_, abs=1e-2)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
@pytest.mark.parametrize("num_alone", [1, 2])
def test_components_of_a_regime_of_few_rows(covariance_type: str, num_alone: int) -> None:
    """Clusters of one row, or of two in as many series, have no covariance of their own."""
    x = seeds.rng(1).standard_normal((20, 2))
    x[:num_alone] += 50.0
    spec = find_spec(covariance_type, "gaussian_mixture", 2)
    shares = np.eye(2)[np.r_[np.ones(num_alone, int), np.zeros(20 - num_alone, int)]]
    made = spec.overall(x, shares, seeds.rng(0))
    assert (spec.least_variances(made) > 1e-3).all()
    settings = {"covariance_type": covariance_type, "n_components": 2, "random_state": 0}
    model = RegimeModel(2, emission="gaussian_mixture", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of regimes that collapse
        assert np.isfinite(model.fit(x).log_likelihood_)
