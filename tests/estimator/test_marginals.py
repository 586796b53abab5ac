"""The distribution of one series, or of a portfolio, in each regime of every emission."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.emissions.categories import Categories
from pyro_regimes.estimator.emissions.directions import Angles
from pyro_regimes.estimator.marginals import cdf_below, is_discrete, log_density
from pyro_regimes.estimator.parameters import Array
from tests import seeds
from tests.estimator.emission_cases import ALL, CASES, Case

DISCRETE = {"poisson", "negative_binomial", "categorical", "bernoulli"}
CLOSED = [case for case in CASES if case.emission in ("gaussian", "student_t", "gaussian_mixture")]
JOINT = [case for case in CLOSED if case.covariance_type in ("full", "tied")]
WITHOUT = [
    case
    for case in CASES
    if case.emission not in ("gaussian", "gaussian_mixture")
    and not (case.emission == "student_t" and case.covariance_type in ("full", "tied"))
]
LEVELS = np.array([1e-12, 1e-4, 0.01, 0.3, 0.5, 0.9, 1 - 1e-6])[:, None]


def marginals_of(case: Case) -> list[Any]:
    hmm = case.true()._hmm()
    return hmm.spec.marginals(hmm.parameters.emission)


def portfolio_of(case: Case, weights: Array) -> Any:
    hmm = case.true()._hmm()
    return hmm.spec.portfolio(hmm.parameters.emission, weights)


def flags_of(case: Case) -> list[bool]:
    """Whether each series is discrete."""
    if isinstance(case.emission, str):
        return [case.emission in DISCRETE] * 2
    return [case.emission[column] in DISCRETE for column in range(2)]


def density_of(case: Case, x: Array) -> Array:
    """The density of rows ``(T, 2)`` in each regime by the emission's torch distribution."""
    model = case.true()._hmm()
    arguments = model._arguments(model.parameters)
    with torch.no_grad():
        distribution = model.spec.observation_dist(arguments)
        rows = torch.from_numpy(x).to(torch.float64)
        if case.emission == "categorical":
            rows = rows.long()
        return distribution.log_prob(rows[:, None]).exp().numpy()


def other_values(is_of_integers: bool, positive: bool) -> tuple[Array, Array]:
    """Points and weights of an integral over all values of a series."""
    if is_of_integers:
        numbers = np.arange(400.0)
        return numbers, np.ones_like(numbers)
    grid, step = np.linspace(-30 if positive else -14, 14, 6_001, retstep=True)
    if positive:
        return np.exp(grid), step * np.exp(grid)
    return np.sinh(grid), step * np.cosh(grid)


@ALL
def test_the_density_is_that_of_the_observation_without_the_other_series(case: Case) -> None:
    x, _ = case.sample(1, 4)
    positive = case.emission in ("gamma", "lognormal", "exponential")
    for series, marginal in enumerate(marginals_of(case)):
        flag = flags_of(case)[1 - series]
        values, weights = other_values(flag, positive)
        if case.emission in ("categorical", "bernoulli"):
            values, weights = values[: 2 + (case.emission == "categorical")], 1.0
        if case.emission == "von_mises":
            values, weights = np.linspace(-np.pi, np.pi, 400, endpoint=False), np.pi / 200
        found = np.exp(log_density(marginal, x[:, series, None]))
        for row, value in enumerate(x[:, series]):
            rows = np.stack([np.full_like(values, value), values], 1)
            joint = density_of(case, rows if series == 0 else rows[:, ::-1].copy())
            expected = (np.atleast_1d(weights)[:, None] * joint).sum(0)
            np.testing.assert_allclose(found[row], expected, rtol=1e-7)


@ALL
def test_the_cdf_adds_up_the_density(case: Case) -> None:
    x, _ = case.sample(2, 6)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for series, (marginal, flag) in enumerate(zip(marginals_of(case), flags_of(case))):
        assert is_discrete(marginal) == flag
        points = x[:, series, None]
        cdf = marginal.cdf(points)
        assert cdf.shape == (6, 2)
        np.testing.assert_allclose(cdf + marginal.sf(points), 1.0, rtol=1e-12)
        step = cdf - cdf_below(marginal, points)
        if flag:
            np.testing.assert_allclose(step, np.exp(marginal.logpmf(points)), rtol=1e-9, atol=1e-15)
            np.testing.assert_array_equal(marginal.cdf(points + 0.5), cdf)
            np.testing.assert_array_equal(cdf_below(marginal, points + 0.5), cdf)
            continue
        np.testing.assert_array_equal(step, 0.0)
        ends = 0.95 * points  # which are inside the support, and no angle beyond pi
        middles, halves = (points + ends) / 2, (ends - points) / 2
        density = np.exp(log_density(marginal, (middles + halves * nodes)[..., None]))
        area = halves * np.einsum("n,tnk->tk", weights, density)
        np.testing.assert_allclose(marginal.cdf(ends) - cdf, area, rtol=1e-9, atol=1e-13)


@ALL
def test_quantiles_invert_the_cdf(case: Case) -> None:
    for marginal, flag in zip(marginals_of(case), flags_of(case)):
        if case.emission == "von_mises":
            with pytest.raises(ValueError, match="got angles, which have no quantiles"):
                marginal.ppf(LEVELS)
            continue
        found = marginal.ppf(LEVELS)
        assert found.shape == (len(LEVELS), 2)
        levels = np.broadcast_to(LEVELS, found.shape)
        if flag:
            assert (marginal.cdf(found) >= levels).all()
            assert (cdf_below(marginal, found) < levels).all()
        else:
            np.testing.assert_allclose(marginal.cdf(found), levels, rtol=1e-11)
            np.testing.assert_allclose(marginal.sf(found), 1 - levels, rtol=1e-11)


@ALL
def test_moments_and_support_are_those_of_the_emission(case: Case) -> None:
    hmm, (x, _) = case.true()._hmm(), case.sample(3)
    moments = hmm.spec.moments(hmm.parameters.emission)
    for series, marginal in enumerate(marginals_of(case)):
        np.testing.assert_allclose(marginal.mean(), moments.means[:, series], rtol=1e-12)
        np.testing.assert_allclose(marginal.var(), moments.variances[:, series], rtol=1e-10)
        low, high = marginal.support()
        assert (low <= x[:, series].min()).all() and (x[:, series].max() <= high).all()


@pytest.mark.parametrize("case", JOINT, ids=[case.name for case in JOINT])
def test_a_portfolio_is_an_integral_over_the_rows_of_its_value(case: Case) -> None:
    weights = np.array([0.7, -0.4])
    grid, steps = other_values(False, False)
    found = portfolio_of(case, weights)
    for value in (-1.3, 0.2, 4.0):
        rows = np.stack([(value - weights[1] * grid) / weights[0], grid], 1)
        expected = (steps[:, None] * density_of(case, rows)).sum(0) / weights[0]
        np.testing.assert_allclose(np.exp(found.logpdf([value])), expected, rtol=1e-7)


@pytest.mark.parametrize("case", CLOSED, ids=[case.name for case in CLOSED])
def test_a_portfolio_of_one_series_is_that_series(case: Case) -> None:
    marginal, found = marginals_of(case)[1], portfolio_of(case, np.array([0.0, 1.0]))
    points = np.array([[-2.0], [0.3], [9.0]])
    np.testing.assert_allclose(found.cdf(points), marginal.cdf(points), rtol=1e-13)
    half = portfolio_of(case, np.array([0.0, -0.5]))
    np.testing.assert_allclose(half.sf(-0.5 * points), marginal.cdf(points), rtol=1e-12)


@pytest.mark.parametrize("kind", ("diag", "spherical"))
def test_independent_series_add_up(kind: str) -> None:
    variances = np.array([1.0, 9.0] if kind == "spherical" else [[1.0, 4.0], [9.0, 16.0]])
    model = RegimeModel.from_parameters(
        None, np.full((2, 2), 0.5), means=np.eye(2), covariances=variances, covariance_type=kind
    )
    hmm = model._hmm()
    found = hmm.spec.portfolio(hmm.parameters.emission, np.array([3.0, -2.0]))
    expected = [13.0, 13 * 9.0] if kind == "spherical" else [9 + 16.0, 81 + 64.0]
    np.testing.assert_allclose(found.var(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.mean(), [3.0, -2.0], rtol=1e-12)


@pytest.mark.parametrize("case", WITHOUT, ids=[case.name for case in WITHOUT])
def test_other_portfolios_are_refused_by_name(case: Case) -> None:
    text = "of one series" if case.emission == "student_t" else "weighted sums have a known"
    with pytest.raises(ValueError, match=f"expected weights .*{text}") as raised:
        portfolio_of(case, np.array([0.5, 0.5]))
    assert case.true()._hmm().spec.title in str(raised.value)


def test_a_portfolio_of_columns_of_one_family_is_one_of_that_family() -> None:
    columns = CASES[-1]
    found = portfolio_of(columns, np.array([2.0, 0.0]))
    np.testing.assert_allclose(found.cdf([1.0]), marginals_of(columns)[0].cdf([0.5]))
    with pytest.raises(ValueError, match="got Poisson"):
        portfolio_of(columns, np.array([0.0, 2.0]))


def test_categories_outside_the_model_have_no_probability() -> None:
    rng = seeds.rng(4)
    found = Categories(rng.dirichlet(np.ones(4), 3))
    points = np.array([[-np.inf], [-1.0], [1.5], [4.0], [np.inf], [np.nan]])
    np.testing.assert_array_equal(np.exp(found.logpmf(points))[:-1], 0.0)
    np.testing.assert_array_equal(found.cdf(points)[[0, 1, 3, 4], 0], [0, 0, 1, 1])
    assert np.isnan(found.cdf(points)[-1]).all() and np.isnan(found.sf(points)[-1]).all()
    np.testing.assert_array_equal(found.ppf([[0.0], [1.0]]), [[0] * 3, [3] * 3])
    assert np.isnan(found.ppf([-0.1])).all()


def test_angles_are_counted_from_the_same_place_in_every_regime() -> None:
    found = Angles(np.array([3.0, -2.0, 9.0]), np.array([4.0, 0.5, 300.0]))
    np.testing.assert_allclose(found.cdf([np.pi]), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found.cdf([-np.pi]), 0.0, atol=1e-12)
    grid = np.linspace(-np.pi, np.pi, 2_001)[:, None]
    assert (np.diff(found.cdf(grid), axis=0) >= 0).all()
    np.testing.assert_allclose(found.cdf(grid[1:-1] + 2 * np.pi), found.cdf(grid[1:-1]), atol=1e-12)
    draws = seeds.rng(5).vonmises(3.0, 4.0, 20_000)
    share = (draws[:, None] <= np.array([-2.5, 0.0, 2.5])).mean(0)
    np.testing.assert_allclose(found.cdf([[-2.5], [0.0], [2.5]])[:, 0], share, atol=0.02)
