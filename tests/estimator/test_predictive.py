"""Mixtures over regimes: quantiles by another root finder, tail means by integration."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from pyro_regimes.estimator.emissions.categories import Categories
from pyro_regimes.estimator.predictive import Mixture
from tests import seeds

WEIGHTS = np.array([[0.9, 0.08, 0.02], [0.2, 0.35, 0.45]])
LEVELS = np.array([1e-12, 1e-6, 0.01, 0.05, 0.5, 0.95, 1 - 1e-9])

#: Levels of a component between which its density is integrated by Gauss's rule.
PANELS = np.append(10.0 ** np.arange(-40, -1), np.linspace(0.05, 0.5, 10))[:, None]

CONTINUOUS: dict[str, Any] = {
    "norm": stats.norm(np.array([0.1, -0.2, 0.0]), np.array([1.0, 2.0, 5.0])),
    "t": stats.t(np.array([3.0, 5.0, 40.0]), np.array([0.1, -0.2, 0.0]), np.array([1.0, 2.0, 5.0])),
    "other scales": stats.norm(np.array([0.0, 1.0, -5.0]), np.array([1e-6, 1.0, 1e6])),
    "far apart": stats.norm(np.array([-1e6, 0.0, 1e6]), np.array([1e-3, 1e-3, 1e-3])),
    "gamma": stats.gamma(np.array([0.5, 3.0, 20.0]), scale=np.array([1.0, 2.0, 5.0])),
    "lognorm": stats.lognorm(np.array([0.5, 1.0, 2.0]), scale=np.array([1.0, 2.0, 5.0])),
    "expon": stats.expon(scale=np.array([1e-6, 1.0, 1e6])),
}

DISCRETE: dict[str, Any] = {
    "poisson": stats.poisson(np.array([0.01, 3.0, 4e6])),
    "nbinom": stats.nbinom(np.array([0.5, 3.0, 100.0]), np.array([0.9, 0.5, 1e-4])),
    "bernoulli": stats.bernoulli(np.array([0.0, 0.3, 1.0])),
    "categories": Categories(np.array([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]])),
}


def excess(weights: np.ndarray, components: Any, level: float, x: float) -> float:
    """P(X <= x) less its level, in an upper tail by the probability above x."""
    if level > 0.5:
        return 1 - level - float(np.dot(weights, components.sf(x)))
    return float(np.dot(weights, components.cdf(x))) - level


@pytest.mark.parametrize("name", CONTINUOUS)
def test_quantiles_are_the_roots_of_the_cdf(name: str) -> None:
    components = CONTINUOUS[name]
    found = Mixture(WEIGHTS, components).ppf(LEVELS[:, None])
    assert found.shape == (len(LEVELS), 2)
    for column, weights in enumerate(WEIGHTS):
        for row, level in enumerate(LEVELS):
            each = components.ppf(level)
            width = np.ptp(each)
            bracket = each.min() - 1e-3 * width, each.max() + 1e-3 * width
            gap = partial(excess, weights, components, level)
            expected = brentq(gap, *bracket, xtol=1e-300, rtol=1e-14, maxiter=1_000)
            np.testing.assert_allclose(found[row, column], expected, rtol=1e-8)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_tails_have_their_probability(name: str) -> None:
    mixture = Mixture(WEIGHTS, CONTINUOUS[name])
    levels = np.array([1e-12, 1e-9, 1e-3, 0.3])[:, None]
    rtol = 1e-12 if name != "far apart" else 1e-6  # x itself has 1e-10 of the scale there
    found = mixture.cdf(mixture.ppf(levels))
    np.testing.assert_allclose(found, np.broadcast_to(levels, found.shape), rtol=rtol)
    upper = mixture.sf(mixture.ppf(1 - levels))
    np.testing.assert_allclose(upper, np.broadcast_to(1 - (1 - levels), found.shape), rtol=rtol)


@pytest.mark.parametrize("name", DISCRETE)
def test_a_discrete_quantile_is_the_least_integer_that_reaches_its_level(name: str) -> None:
    mixture = Mixture(WEIGHTS, DISCRETE[name])
    levels = np.concatenate([LEVELS, seeds.rng(1).random_sample(20)])[:, None]
    found = mixture.ppf(levels)
    np.testing.assert_array_equal(found, np.round(found))
    assert (mixture.cdf(found) >= levels).all()
    assert (mixture.cdf(found - 1) < levels).all()
    reached = mixture.cdf(found)  # the quantile of P(X <= x) is x
    np.testing.assert_array_equal(mixture.ppf(reached), found)


def test_quantiles_hold_where_those_of_the_components_are_wrong() -> None:
    student = stats.t(np.array([9.0, 4.0]), np.zeros(2), np.array([1.0, 3.0]))
    mixture = Mixture(np.array([0.6, 0.4]), student)
    for level in (1e-300, 1e-200, 1e-30):  # scipy has +inf for 9 degrees of freedom at 1e-300
        np.testing.assert_allclose(mixture.cdf(mixture.ppf(level)), level, rtol=1e-10)


def test_ends_and_levels_that_are_none() -> None:
    mixture = Mixture(WEIGHTS, CONTINUOUS["gamma"])
    np.testing.assert_array_equal(mixture.ppf([[0.0], [1.0]]), [[0.0] * 2, [np.inf] * 2])
    assert np.isnan(mixture.ppf([[-0.1], [1.1], [np.nan]])).all()


def test_a_regime_of_weight_0_does_not_count() -> None:
    heavy = stats.t(np.array([0.8, 5.0]), np.array([1e9, 0.0]), np.array([1e9, 1.0]))
    mixture, alone = Mixture(np.array([0.0, 1.0]), heavy), stats.t(5.0)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(mixture, name)(), getattr(alone, name)(), atol=1e-15)
    np.testing.assert_allclose(mixture.ppf(0.01), alone.ppf(0.01), rtol=1e-14)
    single = Mixture(np.array([1.0]), stats.t(np.array([5.0]), np.zeros(1), np.ones(1)))
    np.testing.assert_allclose(mixture.tail_mean(0.01), single.tail_mean(0.01), rtol=1e-14)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_moments_are_those_of_the_components_together(name: str) -> None:
    components = CONTINUOUS[name]
    mixture, means = Mixture(WEIGHTS, components), components.mean()
    np.testing.assert_allclose(mixture.mean(), WEIGHTS @ means, rtol=1e-12)
    second = WEIGHTS @ (components.var() + means**2)
    np.testing.assert_allclose(mixture.var(), second - (WEIGHTS @ means) ** 2, rtol=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("level", [0.01, 0.05, 0.5])
def test_tail_means_are_integrals_of_densities(name: str, level: float) -> None:
    components = CONTINUOUS[name]
    mixture = Mixture(WEIGHTS[1], components)
    end, total = float(mixture.ppf(level)), 0.0
    nodes, shares = np.polynomial.legendre.leggauss(40)
    places = np.concatenate([components.ppf(PANELS), components.isf(PANELS[::-1])])
    for k, weight in enumerate(WEIGHTS[1]):
        own = np.append(places[places[:, k] < end, k], end)
        halves, middles = np.diff(own) / 2, (own[1:] + own[:-1]) / 2
        x = middles[:, None] + halves[:, None] * nodes
        density = components.pdf(x[..., None])[..., k]
        total += weight * float(halves @ ((end - x) * density) @ shares)
    # Numbers of 1e6 have 1e-7 of a scale of 1e-3, in the nodes of the test too.
    rtol = 1e-6 if name == "far apart" else 1e-8
    np.testing.assert_allclose(mixture.mean_gap(end), total, rtol=rtol)
    np.testing.assert_allclose(mixture.tail_mean(level), end - total / level, rtol=rtol)


def test_a_tail_mean_of_a_gaussian_is_the_textbooks() -> None:
    mixture = Mixture(np.array([1.0]), stats.norm(np.array([0.5]), np.array([2.0])))
    expected = 0.5 - 2.0 * stats.norm.pdf(stats.norm.ppf(0.025)) / 0.025
    np.testing.assert_allclose(mixture.tail_mean(0.025), expected, rtol=1e-13)
    student = Mixture(np.array([1.0]), stats.t(np.array([4.0]), np.array([0.5]), np.array([2.0])))
    z = stats.t.ppf(0.025, 4)
    expected = 0.5 - 2.0 * stats.t.pdf(z, 4) / 0.025 * (4 + z**2) / 3
    np.testing.assert_allclose(student.tail_mean(0.025), expected, rtol=1e-13)


def test_a_tail_mean_that_is_infinite_and_one_of_integers() -> None:
    heavy = stats.t(np.array([1.0, 5.0]), np.zeros(2), np.ones(2))
    np.testing.assert_array_equal(Mixture(np.array([0.1, 0.9]), heavy).tail_mean(0.05), -np.inf)
    with pytest.raises(ValueError, match="got one of integers"):
        Mixture(WEIGHTS, DISCRETE["poisson"]).tail_mean(0.05)


def test_a_mixture_of_mixtures_is_one_of_all_components() -> None:
    rng = seeds.rng(2)
    inner, outer = rng.dirichlet(np.ones(4), 3), rng.dirichlet(np.ones(3), 5)
    means, scales = rng.randn(3, 4), np.exp(3 * rng.randn(3, 4))
    nested = Mixture(outer, Mixture(inner, stats.norm(means, scales)))
    flat = Mixture(
        (outer[..., None] * inner).reshape(5, 12), stats.norm(means.ravel(), scales.ravel())
    )
    levels = LEVELS[:, None]
    np.testing.assert_allclose(nested.ppf(levels), flat.ppf(levels), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(nested.tail_mean(0.01), flat.tail_mean(0.01), rtol=1e-9)
    np.testing.assert_allclose(nested.logpdf(0.3), flat.logpdf(0.3), rtol=1e-12)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(nested, name)(), getattr(flat, name)(), rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-6, 6), st.floats(-6, 6), st.floats(1.5, 30), st.floats(1e-9, 0.5), st.floats(0, 1)
)
def test_the_unit_is_a_factor(
    log_unit: float, log_ratio: float, freedom: float, level: float, weight: float
) -> None:
    unit, scales = 10**log_unit, np.array([1.0, 10**log_ratio])
    means, weights = np.array([0.3, -0.2]), np.array([weight, 1 - weight])
    for kind, own in ((stats.norm, ()), (stats.t, (np.array([freedom, 3.0]),))):
        plain = Mixture(weights, kind(*own, means, scales))
        other = Mixture(weights, kind(*own, unit * means, unit * scales))
        span = np.abs(plain.ppf(level)) + 1e-12
        for p in (level, 1 - level):
            assert abs(other.ppf(p) / unit - plain.ppf(p)) <= 1e-9 * span
        assert abs(other.tail_mean(level) / unit - plain.tail_mean(level)) <= 1e-9 * (
            np.abs(plain.tail_mean(level)) + 1e-12
        )
