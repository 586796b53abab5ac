"""Directions: accuracy at large concentrations, the circle, and the prior of a location."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.distributions import observation
from pyro_regimes.emissions import von_mises
from tests import seeds

K, N, T = 2, 3, 200
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def hmm(observation_dist: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


def data(loc: Tensor, concentration: Tensor) -> Tensor:
    torch.manual_seed(seeds.seed(1))
    each = dist.VonMises(loc, concentration).sample((N, T))
    return each[:, torch.arange(T), torch.arange(T) // 10 % 2]


def model(x: Tensor, loc: Tensor, concentration: Tensor) -> None:
    found = pyro.param("loc", loc.clone())
    kappa = pyro.param("kappa", concentration.clone(), constraint=constraints.positive)
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", hmm(dist.VonMises(found, kappa)), obs=x)


def test_bessel_ratios_have_all_digits() -> None:
    kappa = torch.logspace(-3, 6, 200, dtype=torch.float64)
    scaled = scipy.special.ive(0, kappa.numpy())
    assert_close(
        von_mises.log_scaled_bessel(kappa), torch.from_numpy(scaled).log(), rtol=1e-11, atol=1e-15
    )
    ratio = torch.from_numpy(scipy.special.ive(1, kappa.numpy()) / scaled)
    assert_close(1 - von_mises.mean_versed(kappa), ratio, rtol=1e-13, atol=0.0)
    large = torch.logspace(4, 15, 50, dtype=torch.float64)
    expected = 1 / (2 * large) + 1 / (8 * large**2) + 1 / (8 * large**3) + 25 / (128 * large**4)
    assert_close(von_mises.mean_versed(large), expected, rtol=1e-14, atol=0.0)


def test_the_solve_has_all_digits() -> None:
    kappa = torch.logspace(-3, 14, 200, dtype=torch.float64)
    found = von_mises.solve_concentration(von_mises.mean_versed(kappa))
    assert_close(found, kappa, rtol=1e-11, atol=0.0)
    hostile = von_mises.solve_concentration(doubles(0.0, 1.0, 1.7, torch.nan))
    assert hostile[0].isnan() and hostile[3].isnan() and (hostile[1:3] < 1e-20).all()


@pytest.mark.parametrize("kappa", [1e3, 1e6, 1e12])
def test_the_density_of_a_large_concentration(kappa: float) -> None:
    x = 2.0 + torch.linspace(-3, 3, 7, dtype=torch.float64) / kappa**0.5
    found = observation.log_prob(dist.VonMises(doubles(2.0), doubles(kappa)), x)[:, 0]
    expected = torch.from_numpy(scipy.stats.vonmises.logpdf(x.numpy(), kappa, 2.0))
    # scipy subtracts two numbers as large as kappa.
    assert_close(found, expected, rtol=0.0, atol=1e-11 + 1e-15 * kappa)
    normal = torch.from_numpy(scipy.stats.norm.logpdf(x.numpy(), 2.0, kappa**-0.5))
    assert_close(found, normal, rtol=0.0, atol=10 / kappa + 1e-4 * (kappa == 1e12))
    single = dist.VonMises(torch.tensor([2.0]), torch.tensor([kappa]))
    assert observation.log_prob(single, x.float()).isfinite().all()


def test_a_wide_concentration_is_uniform() -> None:
    tiny = dist.VonMises(doubles(1.0), doubles(1e-300))
    found = observation.log_prob(tiny, doubles(-3.0, 0.0, 2.0))
    assert_close(found, torch.full_like(found, -math.log(2 * math.pi)))


def test_tight_directions_keep_their_digits() -> None:
    x = data(doubles(0.5, 0.6), doubles(1e9, 1e9))
    EM(model).run(x, doubles(0.5001, 0.5999), doubles(1e7, 1e7), num_steps=5, tol=None)
    for k in range(K):
        own = x[:, torch.arange(T) // 10 % 2 == k]
        expected = 1 / float((own - own.mean()).square().mean())
        found = pyro.param("kappa")[k].detach()
        assert float(found) == pytest.approx(expected, rel=1e-6)
        assert float(pyro.param("loc")[k].detach()) == pytest.approx(float(own.mean()), rel=1e-12)


def test_the_cut_of_the_circle_does_not_matter() -> None:
    x = data(doubles(0.4, -1.5), doubles(4.0, 9.0))
    histories = []
    for turn in (0.0, 2.9):
        pyro.clear_param_store()
        turned = torch.remainder(x + turn + math.pi, 2 * math.pi) - math.pi
        start = doubles(0.0, -1.0) + turn
        em = EM(model)
        result = em.run(turned, start, doubles(1.0, 1.0), num_steps=500, tol=1e-9)
        assert result.converged and not result.unconfirmed
        histories.append(result.history)
        assert (pyro.param("loc").abs() <= math.pi).all()
    assert histories[0][-1] == pytest.approx(histories[1][-1], rel=1e-12)


def test_a_location_opposite_to_the_data_has_a_concentration_of_nearly_zero() -> None:
    x = data(doubles(0.0, 0.0), doubles(4.0, 4.0))

    def fixed(x: Tensor) -> None:
        kappa = pyro.param("kappa", doubles(1.0, 1.0), constraint=constraints.positive)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.VonMises(doubles(0.0, math.pi), kappa)), obs=x)

    result = EM(fixed).run(x, num_steps=300, tol=1e-9)
    assert result.converged and not result.unconfirmed
    assert pyro.param("kappa").isfinite().all()
    history = result.history
    assert all(b <= a + 1e-10 * abs(a) for a, b in zip(history, history[1:]))


def test_a_von_mises_prior_of_a_location() -> None:
    x = data(doubles(0.4, -1.5), doubles(4.0, 9.0))
    kappa = doubles(4.0, 9.0)

    def bayesian(x: Tensor) -> None:
        with pyro.plate("states", K):
            loc = pyro.sample("loc", dist.VonMises(doubles(1.0, -1.0), doubles(40.0, 40.0)))
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.VonMises(loc, kappa)), obs=x)

    start = doubles(0.3, -1.2)
    gamma = hmm(dist.VonMises(start, kappa)).posterior(x).smoothed_probs
    cosine = kappa * (gamma * x.cos().unsqueeze(-1)).sum((0, 1)) + 40 * doubles(1.0, -1.0).cos()
    sine = kappa * (gamma * x.sin().unsqueeze(-1)).sum((0, 1)) + 40 * doubles(1.0, -1.0).sin()
    guide = AutoDelta(bayesian, init_loc_fn=init_to_value(values={"loc": start}))
    em = EM(bayesian, guide)
    em.step(x)
    assert_close(
        pyro.param("AutoDelta.loc").detach(), torch.atan2(sine, cosine), rtol=1e-10, atol=0.0
    )
    result = em.run(x, num_steps=300, tol=1e-6)
    assert result.converged and not result.unconfirmed
