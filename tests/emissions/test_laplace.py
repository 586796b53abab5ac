"""Laplace observations: the weighted median, found in passes over the data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.emissions import laplace
from tests import seeds

K, N, T, D = 2, 3, 150, 2
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def hmm(observation_dist: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


def data(*event: int) -> Tensor:
    torch.manual_seed(seeds.seed(1))
    each = dist.Laplace(0.0, 1.0).sample((N, T) + event).double()
    return each + 4.0 * (torch.arange(T) // 10 % 2).reshape((T,) + (1,) * len(event))


def median(values: Tensor, weights: Tensor) -> Tensor:
    """By sorting: half of the weight, or less, lies on either side."""
    order = values.flatten().argsort()
    total = weights.flatten()[order].cumsum(0)
    return values.flatten()[order][(total >= 0.5 * total[-1]).nonzero()[0, 0]]


SCALE = torch.tensor([[0.7, 1.5], [2.0, 1.1]]).double()
SHARINGS = {
    "own": (K, D),
    "of each state": (K, 1),
    "of each series": (D,),
    "one for all": (),
    "of each sequence": (N, 1, K, D),
}


@pytest.mark.parametrize("name", SHARINGS)
def test_it_is_the_weighted_median(name: str) -> None:
    """Also of states, series and sequences that share a location, with scales of their own."""
    x, shape = data(D), SHARINGS[name]
    start = torch.randn(shape, generator=seeds.generator(2), dtype=torch.float64) + 1.0

    def distribution(loc: Tensor) -> dist.Distribution:
        each = dist.Laplace(loc, SCALE)
        return each.expand(torch.broadcast_shapes(each.batch_shape, (K, D))).to_event(1)

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", start.clone())
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(distribution(loc)), obs=x)

    gamma = hmm(distribution(start)).posterior(x).smoothed_probs
    weights = gamma.unsqueeze(-1) / SCALE  # (N, T, K, D)
    values = x.unsqueeze(-2).expand(weights.shape)
    EM(model).step(x)
    found = pyro.param("loc").detach().expand((N, 1, K, D) if len(shape) == 4 else (K, D))
    for index in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        own: list[slice | int] = [slice(None)] * 4
        for dim, size in enumerate(((1, 1) + shape)[-4:] if len(shape) == 2 else shape):
            if len(shape) == 2 and size > 1:
                own[dim] = index[dim - 2]
            elif len(shape) == 4 and size > 1:
                own[dim] = index[dim]
        if len(shape) == 1:
            own = [slice(None)] * 3 + [index[-1]]
        expected = median(values[tuple(own)], weights[tuple(own)])
        assert_close(found[tuple(index)], expected, rtol=1e-13, atol=1e-13)


def model(x: Tensor) -> None:
    loc = pyro.param("loc", doubles(1.0, 2.0))
    scale = pyro.param("scale", doubles(1.0, 1.0), constraint=constraints.positive)
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", hmm(dist.Laplace(loc, scale)), obs=x)


def test_a_step_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, statistics = [], laplace.LaplaceFamily.statistics

    def counted(self, *args):  # type: ignore[no-untyped-def]
        passes.append(None)
        return statistics(self, *args)

    monkeypatch.setattr(laplace.LaplaceFamily, "statistics", counted)
    x = data()
    EM(model).step(x)
    assert len(passes) <= 20
    EM(model).run(x, num_steps=300, tol=1e-9)
    passes.clear()
    EM(model).run(x, num_steps=10, tol=None, check=False)
    assert len(passes) <= 11


def test_rounded_values_and_ties() -> None:
    """Many observations are equal, and a median is one of them."""
    x = data().round()
    result = EM(model).run(x, num_steps=300, tol=1e-9)
    assert result.converged and not result.unconfirmed
    found = pyro.param("loc").detach()
    assert_close(found, found.round(), rtol=1e-15, atol=1e-15)
    history = result.history
    assert all(b <= a + 1e-10 * abs(a) for a, b in zip(history, history[1:]))


@pytest.mark.parametrize("level, spread", [(1e6, 1e-3), (0.0, 1e-12), (-1e9, 1e3)])
def test_levels_and_spreads(level: float, spread: float) -> None:
    x = data()

    def far(x: Tensor) -> None:
        loc = pyro.param("loc", level + spread * doubles(1.0, 2.0))
        scale = pyro.param("scale", spread * doubles(1.0, 1.0), constraint=constraints.positive)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Laplace(loc, scale)), obs=x)

    EM(model).run(x, num_steps=20, tol=None)
    expected = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    EM(far).run(level + spread * x, num_steps=20, tol=None)
    found = (pyro.param("loc").detach() - level) / spread
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("held", ["scale", "rate"])
def test_conjugate_priors_of_a_scale(held: str) -> None:
    x, loc = data(), doubles(0.0, 4.0)
    prior = dist.InverseGamma if held == "scale" else dist.Gamma

    def bayesian(x: Tensor) -> None:
        with pyro.plate("states", K):
            value = pyro.sample("value", prior(doubles(30.0, 30.0), doubles(10.0, 10.0)))
        scale = value if held == "scale" else 1 / value
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Laplace(loc, scale)), obs=x)

    start = doubles(1.0, 1.0)
    gamma = hmm(dist.Laplace(loc, start)).posterior(x).smoothed_probs
    weight = gamma.sum((0, 1))
    distance = (gamma * (x.unsqueeze(-1) - loc).abs()).sum((0, 1)) + 10.0
    expected = distance / (weight + 31.0) if held == "scale" else (weight + 29.0) / distance
    guide = AutoDelta(bayesian, init_loc_fn=init_to_value(values={"value": start}))
    em = EM(bayesian, guide)
    em.step(x)
    assert_close(pyro.param("AutoDelta.value").detach(), expected, rtol=1e-10, atol=0.0)
    result = em.run(x, num_steps=300, tol=1e-8)
    assert result.converged and not result.unconfirmed
