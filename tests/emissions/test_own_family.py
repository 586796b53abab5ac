"""A family that lives in a user's own file works everywhere, with nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.emissions import Family, Observed, totals
from pyro_regimes.emissions.base import Arguments
from pyro_regimes.emissions.exponential import RATE
from pyro_regimes.emissions.statistics import Totals
from tests import seeds
from tests.emissions.pareto import ALPHA, PARETO, ParetoFamily

K, N, T = 2, 4, 60
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
ONE = torch.ones(()).double()
START = torch.tensor([0.8, 3.0]).double()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = list(emissions.FAMILIES)
    own = {dist.Pareto, dist.Gamma}  # of the families here
    emissions.FAMILIES[:] = [each for each in before if own.isdisjoint(each.distributions)]
    emissions.register(PARETO)
    yield
    emissions.FAMILIES[:] = before


def data(*shape: int, seed: int = 0) -> Tensor:
    """Excess times of two regimes in turn, with means 1 and 0.2."""
    generator = seeds.generator(seed)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    steps = torch.arange(shape[1] if len(shape) > 1 else shape[0])
    mean = torch.where(steps // 10 % 2 == 0, 1.0, 0.2).double()
    mean = mean.reshape((-1,) + (1,) * max(0, len(shape) - 2))
    return (-uniform.log() * mean).exp()


def hmm(observation_dist: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


def model(x: Tensor) -> None:
    alpha = pyro.param("alpha", START, constraint=constraints.positive)
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", hmm(dist.Pareto(ONE, alpha)), obs=x)


def slope(name: str, x: Tensor, model=model) -> Tensor:  # type: ignore[no-untyped-def]
    """The derivative of the model's objective in one parameter of the store, unconstrained."""
    loss = pyro.poutine.trace(model).get_trace(x).log_prob_sum()
    (found,) = torch.autograd.grad(loss, pyro.param(name).unconstrained())
    return found


@pytest.mark.parametrize("event", [(), (3,)], ids=["numbers", "rows"])
def test_its_density_is_that_of_the_distribution(event: tuple[int, ...]) -> None:
    x, alpha = data(N, T, *event), START.reshape((K,) + (1,) * len(event)).expand((K,) + event)
    given = dist.Pareto(ONE, alpha).to_event(len(event))
    base = emissions.unwrap(given).base
    found = PARETO.log_prob(x, PARETO.read(base), len(event))
    assert_close(found, given.log_prob(x.unsqueeze(-1 - len(event))), rtol=1e-12, atol=1e-12)


def test_em_reaches_the_maximum() -> None:
    x = data(N, T)
    em = EM(model)
    result = em.run(x, num_steps=500, tol=1e-8)
    assert result.converged and not result.unconfirmed  # by the model's own gradient
    assert all(a >= b - 1e-9 * abs(a) for a, b in zip(result.history, result.history[1:]))
    assert em.plan.assignments[0].argument is ParetoFamily.arguments[1]
    assert "weighted tail index" in str(em.plan)
    assert slope("alpha", x).abs().max() < 1e-2


@pytest.mark.parametrize("held", ["mean excess", "log of alpha"])
def test_links(held: str) -> None:
    x = data(N, T)
    EM(model).run(x, num_steps=20, tol=None)
    expected = pyro.param("alpha").detach().clone()
    pyro.clear_param_store()

    def linked(x: Tensor) -> None:
        if held == "mean excess":
            alpha = 1 / pyro.param("p", 1 / START, constraint=constraints.positive)
        else:
            alpha = pyro.param("p", START.log()).exp()
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(dist.Pareto(ONE, alpha)), obs=x)

    em = EM(linked)
    em.run(x, num_steps=20, tol=None)
    assert f"as {held}" in str(em.plan)
    found = pyro.param("p").detach()
    found = 1 / found if held == "mean excess" else found.exp()
    assert_close(found, expected, rtol=1e-10, atol=0.0)


def test_one_alpha_of_all_series_is_pooled() -> None:
    x = data(N, T, 3)

    def tied(x: Tensor) -> None:
        alpha = pyro.param("alpha", START, constraint=constraints.positive)
        each = dist.Pareto(ONE, alpha.unsqueeze(-1).expand(K, 3)).to_event(1)
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(each), obs=x)

    gamma = hmm(dist.Pareto(ONE, START.unsqueeze(-1).expand(K, 3)).to_event(1)).posterior(x)
    weight = gamma.smoothed_probs.sum((0, 1))
    total = (gamma.smoothed_probs * x.log().sum(-1, keepdim=True)).sum((0, 1))
    EM(tied).step(x)
    assert_close(pyro.param("alpha").detach(), 3 * weight / total, rtol=1e-10, atol=0.0)


def test_its_conjugate_prior() -> None:
    x = data(N, T)

    def bayesian(x: Tensor) -> None:
        with pyro.plate("states", K):
            alpha = pyro.sample("alpha", dist.Gamma(5.0, torch.tensor(2.0).double()))
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(dist.Pareto(ONE, alpha)), obs=x)

    guide = AutoDelta(bayesian, init_loc_fn=init_to_value(values={"alpha": START}))
    result = EM(bayesian, guide).run(x, num_steps=500, tol=1e-8)
    assert result.converged and not result.unconfirmed


def test_stochastic_em() -> None:
    x = data(40, T)

    def minibatches(x: Tensor) -> None:
        alpha = pyro.param("alpha", START, constraint=constraints.positive)
        with pyro.plate("sequences", 40, subsample_size=8) as index:
            pyro.sample("x", hmm(dist.Pareto(ONE, alpha)), obs=x[index])

    EM(model).run(x, num_steps=200, tol=1e-8)
    expected = pyro.param("alpha").detach().clone()
    pyro.clear_param_store()
    torch.manual_seed(seeds.seed(1))
    EM(minibatches).run(x, num_steps=200, tol=None)
    assert_close(pyro.param("alpha").detach(), expected, rtol=0.05, atol=0.0)


def test_a_second_family_of_the_same_distribution_is_refused() -> None:
    class Other(ParetoFamily):
        pass

    with pytest.raises(ValueError, match="no other family has, got .*Pareto"):
        emissions.register(Other())


def test_a_family_of_the_same_class_replaces_the_first() -> None:
    """As a notebook cell does that is run again."""
    number, again = len(emissions.FAMILIES), ParetoFamily()
    emissions.register(again)
    assert len(emissions.FAMILIES) == number
    assert emissions.find_family(dist.Pareto(ONE, 1.0)) is again


class Erlang(dist.Gamma):
    """A distribution of the user's own."""


class ErlangFamily(Family):
    r"""``Erlang(concentration, rate)``: :math:`\lambda = a n / s`."""

    distributions = (Erlang,)
    max_event_dim = 0
    arguments = (
        emissions.without_update("concentration"),
        replace(RATE, kind="rate of an Erlang", priors={}),
    )

    def read(self, distribution: Erlang) -> Arguments:
        return {"concentration": distribution.concentration, "rate": distribution.rate}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        shape, rate, value = given["concentration"], given["rate"], value.unsqueeze(-1)
        return shape * rate.log() + (shape - 1) * value.log() - rate * value - shape.lgamma()

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Totals:
        weight, total = totals.take(observed)
        return Totals(weight * given["concentration"], total)


def erlang(x: Tensor, shape: Tensor | None = None) -> None:
    if shape is None:
        shape = pyro.param("shape", torch.full((K,), 1.5).double(), constraint=constraints.positive)
    rate = pyro.param("rate", START, constraint=constraints.positive)
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", hmm(Erlang(shape, rate)), obs=x)


def test_an_argument_that_is_known() -> None:
    x, shape = data(N, T).log(), torch.tensor([2.0, 0.7]).double()
    emissions.register(ErlangFamily())
    found = hmm(dist.Gamma(shape, START)).posterior(x).smoothed_probs
    em = EM(erlang)
    em.step(x, shape)
    expected = found.sum((0, 1)) * shape / (found * x.unsqueeze(-1)).sum((0, 1))
    assert_close(pyro.param("rate").detach(), expected, rtol=1e-10, atol=0.0)
    result = em.run(x, shape, num_steps=500, tol=1e-8)
    assert result.converged and not result.unconfirmed


def test_an_argument_without_an_update_goes_to_the_optimiser() -> None:
    x = data(N, T).log()
    emissions.register(ErlangFamily())
    with pytest.raises(ValueError, match="shape: an argument without a closed form, concentration"):
        EM(erlang).run(x)
    em = EM(erlang, optim=pyro.optim.Adam({"lr": 0.02}))
    result = em.run(x, num_steps=2000, tol=1e-6)
    assert result.converged and list(em.plan.gradient) == ["shape"]
    assert slope("shape", x, erlang).abs().max() < 0.1


def test_read_may_not_return_what_is_no_argument() -> None:
    class Forgetful(ErlangFamily):
        arguments = ErlangFamily.arguments[1:]

    emissions.register(Forgetful())
    with pytest.raises(ValueError, match=r"Forgetful.read .*got \['concentration'\] too"):
        EM(erlang).run(data(N, T), torch.ones(K).double())


def test_a_wrong_density_is_found() -> None:
    """The likelihood of RegimeHMM is the family's too, so the loss alone does not show it."""

    class Halved(ParetoFamily):
        def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
            return super().log_prob(value, given, event_dim) - 0.5

    emissions.FAMILIES.remove(PARETO)
    emissions.register(Halved())
    with pytest.warns(RuntimeWarning, match="log_prob of the family Halved .*by up to 0.5 nats"):
        result = EM(model).run(data(N, T), num_steps=500)
    assert not result.converged and result.unconfirmed == [0]


def test_a_wrong_update_does_not_count_as_converged() -> None:
    class Upside(ParetoFamily):
        arguments = (
            ParetoFamily.arguments[0],
            replace(ALPHA, maximise=lambda p, now, floor: 2 * p.weight / p.total),
        )

    def chain_too(x: Tensor) -> None:
        alpha = pyro.param("alpha", 3 * START, constraint=constraints.positive)
        rows = pyro.param("rows", TRANSITION, constraint=constraints.simplex)
        each = dist.Pareto(ONE, alpha)
        with pyro.plate("sequences", len(x)):
            found = RegimeHMM(
                initial_probs=INITIAL, transition_probs=rows, observation_dist=each
            )
            pyro.sample("x", found, obs=x)

    emissions.FAMILIES.remove(PARETO)
    emissions.register(Upside())
    with pytest.warns(RuntimeWarning, match="families whose maximise is wrong"):
        result = EM(chain_too).run(data(N, T), num_steps=500)
    assert not result.converged and result.unconfirmed == [0]


def test_what_is_no_family_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a Family, got .*instance, not the class"):
        emissions.register(ParetoFamily)  # type: ignore[arg-type]

    class Bare(Family):
        distributions = (dist.Cauchy,)
        arguments = ()
        read = log_prob = statistics = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Bare to have the attribute max_event_dim"):
        emissions.register(Bare())


def test_statistics_must_be_a_named_tuple() -> None:
    class Plain(ParetoFamily):
        def statistics(self, *args):  # type: ignore[no-untyped-def]
            return tuple(super().statistics(*args))

    emissions.FAMILIES.remove(PARETO)
    emissions.register(Plain())
    with pytest.raises(TypeError, match="Plain.statistics to return a NamedTuple .*got tuple"):
        EM(model).step(data(N, T))
