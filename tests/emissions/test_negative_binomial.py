"""The step in ``total_count``, alone and together with ``probs``."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import gammaln, psi
from scipy.stats import nbinom
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.emissions import counts, negative_binomial
from pyro_regimes.emissions.negative_binomial import NEGATIVE_BINOMIAL, TOTAL_COUNT
from tests import seeds

TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()


@pytest.mark.parametrize("start", [1e-3, 0.7, 31.9, 32.1, 1e3, 1e6, 1e12])
def test_gamma_functions_are_sums(start: float) -> None:
    steps = torch.tensor([0.0, 1.0, 2.0, 7.0, 300.0]).double()
    terms = [start + np.arange(int(number)) for number in steps]
    at = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    found = counts.log_ways(at, steps)
    expected = torch.tensor(
        [np.log(each / np.arange(1, len(each) + 1)).sum() for each in terms]
    )
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    first, second = counts.harmonic(at.detach(), steps)
    expected = torch.tensor([(1 / each).sum() for each in terms])
    assert_close(first, expected, rtol=1e-11, atol=0.0)
    assert_close(second, torch.tensor([(each**-2).sum() for each in terms]), rtol=1e-9, atol=0.0)
    slopes = torch.stack([torch.autograd.grad(each, at, retain_graph=True)[0] for each in found])
    assert_close(slopes, expected, rtol=1e-9, atol=0.0 if start < 1e6 else 1e-15)


@pytest.mark.parametrize("large", [1e6, 1e9, 1e12])
@pytest.mark.parametrize("small", [0.5, 1.0, 20.0, 3000.0])
def test_large_counts_keep_their_digits(small: float, large: float) -> None:
    """By Stirling's formula, in which Python's integers and fractions lose nothing."""
    def log_gamma_ratio(start: float, more: float) -> float:
        """log Gamma(a + h) - log Gamma(a) of a large a."""
        a, h = Fraction(start), Fraction(more)
        x = h / a  # log(1 + x) by its series, as x is small
        log1p = sum((-1) ** (n + 1) * x**n / n for n in range(1, 9))
        rest = Fraction(1, 12) / (a + h) - Fraction(1, 12) / a
        return float((a + h - Fraction(1, 2)) * log1p - h + rest)

    for r, x in ((small, large), (large, small - small % 1)):
        a, h = (x + 1, r - 1) if r < x else (r, x)
        rest = np.log(a) * h - gammaln(r if r < x else x + 1)
        found = counts.log_ways(*torch.tensor([r, x], dtype=torch.float64))
        assert float(found) == pytest.approx(log_gamma_ratio(a, h) + rest, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("is_joint", [False, True])
def test_no_step_passes_the_maximum(is_joint: bool) -> None:
    x = seeds.rng(0).negative_binomial(2.0, 0.3, size=500)
    value, weights = torch.tensor(x).double().reshape(-1, 1), torch.ones(500, 1).double()
    probs = torch.tensor([0.6], dtype=torch.float64)

    def q(r: float) -> float:
        p = x.mean() / (r + x.mean()) if is_joint else float(probs)
        return float(nbinom.logpmf(x, r, 1 - p).sum())

    found = minimize_scalar(lambda log_r: -q(np.exp(log_r)), (-2.0, 2.0), options={"xtol": 1e-9})
    best = float(np.exp(found.x))
    step = negative_binomial._profile_count if is_joint else TOTAL_COUNT.maximise
    for start in (1e-4, 0.1, 1.0, 1.9, 2.1, 5.0, 100.0, 1e5):
        r = start
        for _ in range(25):
            given = {"total_count": torch.tensor([r], dtype=torch.float64), "probs": probs}
            observed = negative_binomial.Observed(value, weights, False)
            stats = NEGATIVE_BINOMIAL.statistics(observed, given, frozenset({"total_count"}))
            pooled = TOTAL_COUNT.reduce(stats, given, False)
            new = float(step(pooled, given["total_count"], 0.0))
            assert (new - best) * np.sign(start - best) >= -1e-6 * best  # on the same side
            assert q(new) >= q(r) - 1e-9 * abs(q(r))
            r = new
        assert r == pytest.approx(best, rel=1e-6)


def fit(x: Tensor, counts_: Tensor, probs: Tensor, **settings: object) -> EM:
    def model(x: Tensor) -> None:
        r = pyro.param("r", counts_, constraint=constraints.positive)
        p = pyro.param("p", probs, constraint=constraints.unit_interval)
        observed = dist.NegativeBinomial(r, p).expand([2])
        hmm = RegimeHMM(TRANSITION[0].log(), TRANSITION.log(), observed)
        pyro.sample("x", hmm, obs=x)

    em = EM(model)
    result = em.run(x, num_steps=5000, tol=1e-8)
    history = result.history
    assert result.converged and not result.unconfirmed
    assert all(after <= now + 1e-9 * abs(now) for now, after in zip(history, history[1:]))
    objective = pyro.poutine.trace(model).get_trace(x).log_prob_sum()
    leaves = [pyro.param(name).unconstrained() for name in ("r", "p")]
    assert all(each.abs().max() < 1e-2 for each in torch.autograd.grad(objective, leaves))
    return em


@pytest.mark.parametrize(
    "r, p",
    [([2.0, 4.0], [0.5, 0.8]), ([2.0], [0.5, 0.8]), ([2.0, 8.0], [0.7]), ([3.0], [0.6])],
    ids=["own", "one count", "one probability", "one of each"],
)
def test_sharing(r: list[float], p: list[float]) -> None:
    rng, state = seeds.rng(3), np.arange(400) // 40 % 2
    x = rng.negative_binomial(np.array([1.5, 5.0])[state], np.array([0.4, 0.3])[state])
    fit(torch.tensor(x).double(), torch.tensor(r).double(), torch.tensor(p).double())


def test_together_they_need_few_steps() -> None:
    """Updated in turn they would need hundreds."""
    x = seeds.rng(0).negative_binomial(3.0, 0.3, size=1000)

    def model(x: Tensor) -> None:
        r = pyro.param("r", torch.tensor([1.0]).double(), constraint=constraints.positive)
        logits = pyro.param("logits", torch.tensor([0.0]).double())
        one = torch.zeros(1).double()
        hmm = RegimeHMM(one, one.unsqueeze(0), dist.NegativeBinomial(r, logits=logits))
        pyro.sample("x", hmm, obs=x)

    result = EM(model).run(torch.tensor(x).double(), num_steps=20, tol=1e-10)
    assert result.converged and len(result.history) <= 12

    def loss(free: np.ndarray) -> float:
        return -float(nbinom.logpmf(x, np.exp(free[0]), 1 / (1 + np.exp(free[1]))).sum())

    best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9})
    assert result.history[-1] == pytest.approx(best.fun, abs=1e-6)
    assert pyro.param("r").item() == pytest.approx(np.exp(best.x[0]), rel=1e-5)


@pytest.mark.parametrize("level", [1e4, 1e6])
@pytest.mark.parametrize("count", [50.0, 2000.0])
def test_counts_of_any_size_need_few_steps(level: float, count: float) -> None:
    """Where counts are large, the bounds of two large terms would allow small steps only."""
    rng = seeds.rng(4)
    x = rng.poisson(level * rng.gamma(count, size=800) / count).astype(np.float64)

    def model(x: Tensor) -> None:
        r = pyro.param("r", torch.tensor([1.0]).double(), constraint=constraints.positive)
        logits = pyro.param("logits", torch.tensor([np.log(level)]))
        one = torch.zeros(1).double()
        hmm = RegimeHMM(one, one.unsqueeze(0), dist.NegativeBinomial(r, logits=logits))
        pyro.sample("x", hmm, obs=x)

    result = EM(model).run(torch.tensor(x), num_steps=30, tol=1e-6)
    assert result.converged and not result.unconfirmed and len(result.history) <= 15

    def derivative(r: float) -> float:
        return float(np.mean(psi(r + x)) - psi(r) - np.log1p(x.mean() / r))

    assert pyro.param("r").item() == pytest.approx(brentq(derivative, 1.0, 1e5), rel=1e-3)
