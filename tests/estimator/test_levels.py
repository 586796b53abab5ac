"""Log-probabilities of both tails beside those of mpmath, and normal quantiles of them."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_ndtr

from pyro_regimes.estimator.emissions import levels
from pyro_regimes.estimator.emissions.directions import angle_levels

mp = mpmath.mp.clone()
mp.dps = 50


def quantile(log_probability: Any) -> float:
    """The normal quantile of a small probability, as far as it matters for a residual."""
    return float(levels.normal_quantile(float(log_probability), -0.0))


@pytest.mark.parametrize("freedom", [0.7, 2.0, 4.5, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [0.0, 0.3, 2.0, 40.0, 1e3, 1e6, 1e50, 1e150, 1e200])
def test_student_t(freedom, size):
    found = levels.student_t_levels(np.array([size, -size]), np.zeros(2), np.array(freedom))
    u, nu = mp.mpf(size), mp.mpf(freedom)
    log_density = (
        mp.loggamma((nu + 1) / 2) - mp.loggamma(nu / 2) - mp.log(mp.pi * nu) / 2
        - (nu + 1) / 2 * mp.log1p(u**2 / nu)
    )  # fmt: skip
    np.testing.assert_allclose(found.density, float(log_density), rtol=1e-9, atol=1e-9)
    # Half the incomplete beta function, by its series about 0.
    w = nu / (nu + u**2)
    beta = mp.hyp2f1(nu / 2, 0.5, nu / 2 + 1, w) / (nu / 2 * mp.beta(nu / 2, 0.5))
    expected = quantile(nu / 2 * mp.log(w) + mp.log(beta / 2))
    for log_tail in (found.above[0], found.up_to[1]):
        assert quantile(log_tail) == pytest.approx(expected, rel=2e-4, abs=1e-9)
        assert np.isfinite(log_tail)


def log_gamma_tail(x: float, upper: bool, shape: float = 3.5, rate: float = 2.0) -> Any:
    ends = (rate * mp.mpf(x), mp.inf) if upper else (0, rate * mp.mpf(x))
    return mp.log(mp.gammainc(mp.mpf(shape), *ends, regularized=True))


def log_poisson_tail(number: int, upper: bool, rate: float = 700.0) -> Any:
    """P(X > number) or P(X <= number) as an incomplete gamma function."""
    ends = (0, mp.mpf(rate)) if upper else (mp.mpf(rate), mp.inf)
    return mp.log(mp.gammainc(number + 1, *ends, regularized=True))


def log_binomial_tail(number: int, upper: bool, total: float = 40.0, p: float = 0.4) -> Any:
    """Negative binomial counts as an incomplete beta function."""
    ends = (0, mp.mpf(p)) if upper else (mp.mpf(p), 1)
    first, second = (number + 1, total) if upper else (number + 1, total)
    return mp.log(mp.betainc(first, second, *ends, regularized=True))


@pytest.mark.parametrize(
    ("distribution", "log_tail", "values"),
    [
        (stats.gamma(3.5, scale=0.5), log_gamma_tail, [1e-120, 1e-5, 1.0, 50.0, 400.0, 3e4, 1e9]),
        (stats.poisson(700.0), log_poisson_tail, [0, 10, 60, 650, 700, 900, 2_000, 40_000]),
        (stats.nbinom(40.0, 0.6), log_binomial_tail, [0, 3, 26, 200, 800, 3_000, 50_000]),
    ],
)
def test_tails_of_marginals(distribution, log_tail, values):
    found = levels.marginal_levels(distribution, np.array(values, dtype=np.float64))
    for row, value in enumerate(values):
        for log_probability, upper in ((found.above[row, 0], True), (found.up_to[row, 0], False)):
            expected = log_tail(value, upper)
            if expected > -0.1:  # nearly one, so the other tail decides
                continue
            assert quantile(log_probability) == pytest.approx(quantile(expected), rel=5e-4)


def test_integers_have_a_probability_between_both_ends():
    found = levels.marginal_levels(stats.poisson([2.0, 700.0]), np.array([0.0, 3.0, 2_500.0]))
    for below, up_to, density in zip(found.below, found.up_to, found.density, strict=True):
        # A tail near 0 is a geometric series, not quite that of the integers.
        np.testing.assert_allclose(np.logaddexp(below, density), up_to, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(
        np.logaddexp(found.above, found.density), found.from_on, rtol=1e-6, atol=1e-12
    )
    assert found.below[0].tolist() == [-np.inf, -np.inf] and (found.from_on[0] == 0).all()


@pytest.mark.parametrize("concentration", [0.5, 30.0, 3e3])
def test_angles(concentration):
    """Counted from -pi; of concentrated angles far from their mean the tail of the density."""
    mean = 0.4
    values = np.array([-3.1, -3.0, -2.7, -1.0, 0.3, 0.5, 1.0, 3.0])
    found = angle_levels(values, np.array([mean]), np.array([concentration]))
    kappa = mp.mpf(concentration)
    total = 2 * mp.pi * mp.besseli(0, kappa)

    def tail(first: Any, last: Any) -> float:
        points = [first, *(p for p in (mean - 0.2, mean, mean + 0.2) if first < p < last), last]
        area = mp.quad(lambda x: mp.exp(kappa * mp.cos(x - mean)) / total, points)
        return quantile(mp.log(area))

    for row, value in enumerate(values):
        for log_probability, ends in (
            (found.up_to[row, 0], (-mp.pi, value)), (found.above[row, 0], (value, mp.pi)),
        ):  # fmt: skip
            if log_probability < -0.1:
                assert quantile(log_probability) == pytest.approx(tail(*ends), rel=0.02)


@pytest.mark.parametrize("size", [0.0, 1e-8, 1.0, 8.0, 40.0, 1e5, 1e100])
def test_normal_quantiles_of_log_probabilities(size):
    for sign in (1.0, -1.0):
        found = levels.normal_quantile(log_ndtr(sign * size), log_ndtr(-sign * size))
        assert found == pytest.approx(sign * size, rel=1e-12, abs=1e-15)


def test_averages_by_hand():
    parts = np.log([[0.2, 0.6]])
    each = levels.Levels.continuous(parts, np.log1p(-np.exp(parts)), np.log([[2.0, 4.0]]))
    found = each.averaged(np.log([[3.0, 1.0]]))
    assert np.exp(found.up_to) == pytest.approx(0.3) and np.exp(found.above) == pytest.approx(0.7)
    assert np.exp(found.density) == pytest.approx(2.5)
    # 3 : 1 before, 6 : 4 after the first series.
    first, second = levels.averaged_in_turn([each, each], np.log([[3.0, 1.0]]))
    assert np.exp(first.up_to) == pytest.approx(0.3)
    assert np.exp(second.up_to) == pytest.approx(0.6 * 0.2 + 0.4 * 0.6)
