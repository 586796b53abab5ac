"""Continuous ranked probability scores are the integrals, or the sums, that define them."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import beta
from scipy.stats import bernoulli, expon, gamma, lognorm, nbinom, norm, poisson, t

from pyro_regimes.estimator.crps import crps, crps_of_mixture
from pyro_regimes.estimator.predictive import Mixture
from tests import seeds


def integral(x, weights, components):
    """Of the squares of F below x and of 1 - F above, between points that divide the mass.

    Beyond the last points, the variable is a logarithm.
    """

    def below(z):
        return float(weights @ components.cdf(z)) ** 2

    def above(z):
        return float(weights @ components.sf(z)) ** 2

    levels = np.array([1e-4, 0.02, 0.2, 0.5, 0.8, 0.98, 1 - 1e-4])[:, None]
    points = np.unique(np.append(components.ppf(levels), x))
    total = 0.0
    for low, high in zip(points, points[1:]):
        function = below if high <= x else above
        total += quad(function, low, high, limit=100, epsabs=0, epsrel=1e-10)[0]
    width = points[-1] - points[0]

    def left(u):
        return below(points[0] - width * np.expm1(u)) * width * np.exp(u)

    def right(u):
        return above(points[-1] + width * np.expm1(u)) * width * np.exp(u)

    return total + sum(quad(each, 0, 40, limit=200, epsabs=1e-13)[0] for each in (left, right))


CONTINUOUS = {
    "t": t(np.array([3.0, 1.6, 40.0]), [0.3, -1.0, 5.0], [1.0, 2.5, 0.01]),
    "t of one scale": t(2.5, [0.3, -40.0, 5.0], 1.0),
    "gamma": gamma([0.5, 3.0, 80.0], scale=[2.0, 1.0, 0.01]),
    "expon": expon(scale=[0.5, 3.0, 20.0]),
    "lognorm": lognorm([0.2, 1.0, 0.7], scale=[1.0, 4.0, 0.1]),
    "norm": norm([0.2, 1.0, 0.7], [1.0, 4.0, 0.1]),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_of_densities_is_the_integral(name):
    components, rng = CONTINUOUS[name], seeds.rng(1)
    weights = rng.dirichlet(np.ones(3), 2)
    x = components.ppf(rng.uniform(0.05, 0.95, (2, 1)))[[0, 1], rng.randint(3, size=2)]
    wanted = [integral(*one, components) for one in zip(x, weights)]
    assert crps(x, weights, components) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize(
    "components",
    [poisson([0.3, 4.0, 60.0]), nbinom([0.3, 5.0, 9.0], [0.1, 0.5, 0.02]), bernoulli([0.1, 0.7])],
    ids=["poisson", "nbinom", "bernoulli"],
)
def test_of_integers_is_the_sum(components):
    rng = seeds.rng(4)
    weights = rng.dirichlet(np.ones(len(components.mean())), 5)
    x = np.array([0.0, 1.0, 3.0, 70.0, np.nan])
    numbers = np.arange(5000)
    below = weights @ components.cdf(numbers[:, None]).T
    wanted = np.square(below - (numbers >= x[:, None])).sum(1)
    found = crps(x, weights, components)
    assert found[:4] == pytest.approx(wanted[:4], rel=1e-9)
    assert np.isnan(found[4])


@pytest.mark.parametrize(
    "components",
    [
        poisson([0.3, 400.0, 2000.0, 1e5]),
        nbinom([0.05, 300.0, 1.0, 4e4], [1e-4, 0.5, 1e-3, 0.4]),
    ],
    ids=["poisson", "nbinom"],
)
def test_of_long_ranges_of_integers_is_the_sum(components):
    """The sum of hundreds of thousands of terms, of which few are computed."""
    numbers = np.arange(500_000)
    cdf = components.cdf(numbers[:, None])  # (numbers, K)
    for pair in ([0, 1], [1, 2], [2, 3], [0, 3]):
        one = np.eye(4)[pair].mean(0)[None]
        x = np.round(components.mean()[pair[1]])
        wanted = np.square(cdf @ one[0] - (numbers >= x)).sum()
        assert crps(np.array([x]), one, components)[0] == pytest.approx(wanted, rel=1e-8)


def test_of_a_bernoulli_variable_is_the_brier_score():
    chances = np.array([0.1, 0.7])
    weights = np.array([[0.25, 0.75], [0.5, 0.5]])
    found = crps(np.array([1.0, 0.0]), weights, bernoulli(chances))
    assert found == pytest.approx((weights @ chances - [1, 0]) ** 2)


def test_of_large_counts_is_that_of_the_normal_limit():
    rates, rng = np.array([1e9, 1.0001e9]), seeds.rng(5)
    weights, x = rng.dirichlet(np.ones(2), 4), np.round(1e9 + 5e4 * rng.standard_normal(4))
    normal = crps(x, weights, norm(rates, np.sqrt(rates)))
    assert crps(x, weights, poisson(rates)) == pytest.approx(normal, rel=1e-3)


@pytest.mark.parametrize("freedom", [1.01, 1.2, 2.0, 5.0, 300.0, 1e4])
def test_of_one_student_t_is_the_closed_form(freedom):
    """Jordan, Krueger and Lerch 2019, Appendix A; as a mixture of two alike, too."""
    x, one = np.array([-40.0, -1.0, 0.3, 1e5]), t([freedom], 0.0, 1.0)
    cdf, pdf = (function(x[:, None])[:, 0] for function in (one.cdf, one.pdf))
    spread = 2 * np.sqrt(freedom) / (freedom - 1)
    ratio = beta(0.5, freedom - 0.5) / beta(0.5, freedom / 2) ** 2
    wanted = x * (2 * cdf - 1) + 2 * pdf * (freedom + x**2) / (freedom - 1) - spread * ratio
    assert crps(x, np.ones((4, 1)), one) == pytest.approx(wanted, rel=1e-8)
    two = t([freedom, freedom], 0.0, [1.0, 1 + 1e-12])
    assert crps(x, np.full((4, 2), 0.5), two) == pytest.approx(wanted, rel=1e-8)


def test_of_student_t_is_that_of_the_normal_limit():
    rng = seeds.rng(8)
    weights, x = rng.dirichlet(np.ones(3), 4), 3 * rng.standard_normal(4)
    means, deviations = np.array([0.0, 5.0, -300.0]), np.array([1.0, 2.0, 0.01])
    found = crps(x, weights, t(1e7, means, deviations))
    assert found == pytest.approx(crps(x, weights, norm(means, deviations)), rel=1e-6)


def test_without_a_mean_is_nan_where_the_regime_counts():
    components = t([1.0, 5.0], [0.0, 0.0], [1.0, 1.0])
    found = crps(np.zeros(2), np.array([[0.5, 0.5], [0.0, 1.0]]), components)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(crps(np.zeros(1), np.ones((1, 1)), t([5.0], [0.0], [1.0]))[0])
    assert np.isnan(crps(np.full(1, np.nan), np.array([[0.0, 1.0]]), components)).all()


@pytest.mark.parametrize("unit", [1e-6, 1e6, 1e-150, 1e150])
def test_has_the_unit_of_the_data(unit):
    rng = seeds.rng(6)
    weights, x = rng.dirichlet(np.ones(3), 4), rng.standard_normal(4)
    freedom, loc, scale = np.array([3.0, 1.6, 40.0]), np.array([0.3, -1, 5]), [1, 2.5, 0.1]
    for one, other in (
        (t(freedom, loc, scale), t(freedom, unit * loc, unit * np.array(scale))),
        (norm(loc, scale), norm(unit * loc, unit * np.array(scale))),
        (gamma(freedom, scale=scale), gamma(freedom, scale=unit * np.array(scale))),
        (lognorm(scale, scale=freedom), lognorm(scale, scale=unit * freedom)),
    ):
        wanted = unit * crps(np.abs(x), weights, one)
        assert crps(unit * np.abs(x), weights, other) == pytest.approx(wanted, rel=1e-9, abs=0)


def test_of_mixtures_of_gaussians_within_regimes():
    rng = seeds.rng(6)
    means, deviations, x = rng.standard_normal((1, 2)), rng.gamma(2.0, size=(1, 2)), rng.randn(1)
    nested = Mixture(np.array([[0.5, 0.5]]), norm(means, deviations))
    alone = crps_of_mixture(x, np.full((1, 2), 0.5), means, deviations)
    assert crps(x, np.ones((1, 1)), nested) == pytest.approx(alone)
    alike = crps_of_mixture(x, np.ones((1, 1)), np.zeros((1, 1)), np.ones((1, 1)))
    assert alike == pytest.approx(  # of a standard normal distribution
        x * (2 * norm.cdf(x) - 1) + 2 * norm.pdf(x) - 1 / np.sqrt(np.pi)
    )
