"""A family that lives in a user's own file works everywhere, with nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from tests import seeds
from tests.emissions.exponential import EXPONENTIAL, ExponentialFamily

K, N, T = 2, 4, 60
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
START = torch.tensor([0.8, 3.0]).double()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = list(emissions.FAMILIES)
    emissions.register(EXPONENTIAL)
    yield
    emissions.FAMILIES[:] = before


def data(*shape: int, seed: int = 0) -> Tensor:
    """Waiting times of two regimes in turn, with means 1 and 0.2."""
    generator = seeds.generator(seed)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    steps = torch.arange(shape[1] if len(shape) > 1 else shape[0])
    mean = torch.where(steps // 10 % 2 == 0, 1.0, 0.2).double()
    return -uniform.log() * mean.reshape((-1,) + (1,) * max(0, len(shape) - 2))


def hmm(observation_dist: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


def model(x: Tensor) -> None:
    rate = pyro.param("rate", START, constraint=constraints.positive)
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", hmm(dist.Exponential(rate)), obs=x)


def slope(name: str, x: Tensor, model=model) -> Tensor:  # type: ignore[no-untyped-def]
    """The derivative of the model's objective in one parameter of the store, unconstrained."""
    loss = pyro.poutine.trace(model).get_trace(x).log_prob_sum()
    (found,) = torch.autograd.grad(loss, pyro.param(name).unconstrained())
    return found


@pytest.mark.parametrize("event", [(), (3,)], ids=["numbers", "rows"])
def test_its_density_is_that_of_the_distribution(event: tuple[int, ...]) -> None:
    x, rate = data(N, T, *event), START.reshape((K,) + (1,) * len(event)).expand((K,) + event)
    given = dist.Exponential(rate).to_event(len(event))
    base = emissions.unwrap(given).base
    found = EXPONENTIAL.log_prob(x, EXPONENTIAL.read(base), len(event))
    assert_close(found, given.log_prob(x.unsqueeze(-1 - len(event))), rtol=1e-12, atol=1e-12)


def test_em_reaches_the_maximum() -> None:
    x = data(N, T)
    em = EM(model)
    result = em.run(x, num_steps=500, tol=1e-8)
    assert result.converged and not result.unconfirmed  # by the model's own gradient
    assert all(a >= b - 1e-9 * abs(a) for a, b in zip(result.history, result.history[1:]))
    assert em.plan.assignments[0].argument is ExponentialFamily.arguments[0]
    assert "weighted rate" in str(em.plan)
    assert slope("rate", x).abs().max() < 1e-2


@pytest.mark.parametrize("held", ["mean", "log of rate"])
def test_links(held: str) -> None:
    x = data(N, T)
    EM(model).run(x, num_steps=20, tol=None)
    expected = pyro.param("rate").detach().clone()
    pyro.clear_param_store()

    def linked(x: Tensor) -> None:
        if held == "mean":
            rate = 1 / pyro.param("p", 1 / START, constraint=constraints.positive)
        else:
            rate = pyro.param("p", START.log()).exp()
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(dist.Exponential(rate)), obs=x)

    em = EM(linked)
    em.run(x, num_steps=20, tol=None)
    assert f"as {held}" in str(em.plan)
    found = pyro.param("p").detach()
    assert_close(1 / found if held == "mean" else found.exp(), expected, rtol=1e-10, atol=0.0)


def test_one_rate_of_all_series_is_pooled() -> None:
    x = data(N, T, 3)

    def tied(x: Tensor) -> None:
        rate = pyro.param("rate", START, constraint=constraints.positive)
        each = dist.Exponential(rate.unsqueeze(-1).expand(K, 3)).to_event(1)
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(each), obs=x)

    gamma = hmm(dist.Exponential(START.unsqueeze(-1).expand(K, 3)).to_event(1)).posterior(x)
    weight = gamma.smoothed_probs.sum((0, 1))
    total = (gamma.smoothed_probs * x.sum(-1, keepdim=True)).sum((0, 1))
    EM(tied).step(x)
    assert_close(pyro.param("rate").detach(), 3 * weight / total, rtol=1e-10, atol=0.0)


def test_its_conjugate_prior() -> None:
    x = data(N, T)

    def bayesian(x: Tensor) -> None:
        with pyro.plate("states", K):
            rate = pyro.sample("rate", dist.Gamma(5.0, torch.tensor(2.0).double()))
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(dist.Exponential(rate)), obs=x)

    guide = AutoDelta(bayesian, init_loc_fn=init_to_value(values={"rate": START}))
    result = EM(bayesian, guide).run(x, num_steps=500, tol=1e-8)
    assert result.converged and not result.unconfirmed


def test_stochastic_em() -> None:
    x = data(40, T)

    def minibatches(x: Tensor) -> None:
        rate = pyro.param("rate", START, constraint=constraints.positive)
        with pyro.plate("sequences", 40, subsample_size=8) as index:
            pyro.sample("x", hmm(dist.Exponential(rate)), obs=x[index])

    EM(model).run(x, num_steps=200, tol=1e-8)
    expected = pyro.param("rate").detach().clone()
    pyro.clear_param_store()
    torch.manual_seed(seeds.seed(1))
    EM(minibatches).run(x, num_steps=200, tol=None)
    assert_close(pyro.param("rate").detach(), expected, rtol=0.05, atol=0.0)


def test_a_second_family_of_the_same_distribution_is_refused() -> None:
    emissions.register(EXPONENTIAL)  # once more is no matter
    with pytest.raises(ValueError, match="no other family has, got .*Exponential"):
        emissions.register(ExponentialFamily())
