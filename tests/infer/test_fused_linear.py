"""One kernel for densities that are linear in functions of the observation, against tensors."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.infer.em.engines import fused_linear
from pyro_regimes.infer.em.engines.fused import FusedEngine
from tests import seeds
from tests.emissions.battery import CASES, Case, D, K
from tests.emissions.test_battery import Model, in_event
from tests.infer.fused import both_engines, spy

pytestmark = pytest.mark.usefixtures("filled_buffers")


def is_linear(case: Case) -> bool:
    """Whether the family of a case has a linear form."""
    family = emissions.find_family(case.build(**case.start(), **case.known), len(case.event))
    assert family is not None
    return family.linear is not None


LINEAR = {name: case for name, case in CASES.items() if is_linear(case)}
compare = partial(both_engines, history=1e-12, values=1e-10, module=fused_linear)
INITIAL = torch.tensor([1.0, 0.0, 0.0]).double()
LEFT_TO_RIGHT = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]]).double()
ROWS = torch.softmax(2 * torch.eye(3).double(), -1)
RATES = torch.tensor([[1.0, 4.0], [3.0, 2.0], [6.0, 5.0]]).double()
SYMBOLS = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.7, 0.2]]).double()


def param(name: str, start: Tensor, constraint: Any) -> Tensor:
    return pyro.param(name, start.clone(), constraint=constraint)


def chain_of(data: Tensor, observation: Any, dtype: Any = torch.float64, **more: Any) -> None:
    """The sequences of a chain from left to right, with every probability a parameter."""
    hmm = RegimeHMM(
        initial_probs=param("initial", INITIAL.to(dtype), constraints.simplex),
        transition_probs=param("transition", LEFT_TO_RIGHT.to(dtype), constraints.simplex),
        observation_dist=observation,
        **more,
    )
    with pyro.plate("sequences", len(data)):
        pyro.sample("x", hmm, obs=data)


def poisson(data: Tensor, rates: Tensor = RATES, **more: Any) -> None:
    rate = param("rate", rates, constraints.positive)
    chain_of(data, dist.Poisson(rate).to_event(1), **more)


def categorical(data: Tensor, start: Tensor = SYMBOLS, **more: Any) -> None:
    chain_of(data, dist.Categorical(param("probs", start, constraints.simplex)), **more)


def counts(count: int = 4, num_steps: int = 40) -> Tensor:
    state = torch.arange(num_steps) * 3 // num_steps
    rates = RATES[state].expand(count, num_steps, 2).contiguous()
    return torch.poisson(rates, generator=seeds.generator(5))


def symbols(count: int = 4, num_steps: int = 40) -> Tensor:
    state = torch.arange(num_steps) * 3 // num_steps
    drawn = SYMBOLS[state].multinomial(count, replacement=True, generator=seeds.generator(6))
    return drawn.mT.contiguous()


def run(model: Callable[..., None], *args: Any, num_steps: int = 25, **more: Any) -> Callable:
    return lambda: EM(model).run(*args, num_steps=num_steps, tol=None, **more)


def test_which_families_are_served() -> None:
    names = {name.removesuffix(" by logits") for name in LINEAR}
    assert names == {
        "Poisson", "Bernoulli", "Geometric", "Categorical", "OneHotCategorical", "Exponential"
    }  # fmt: skip


@pytest.mark.parametrize("is_vector", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("name", LINEAR)
def test_equals_the_iterations_on_tensors(name: str, is_vector: bool) -> None:
    case = LINEAR[name]
    event = (D,) if is_vector and not case.event else ()
    start = case.start(in_event(case, K, *event))
    fast, _ = compare(run(Model(case, start, event), case.sample(*event)))
    assert fast.num_steps == 25


@pytest.mark.parametrize("name", LINEAR)
def test_parameters_behind_links(name: str) -> None:
    case = LINEAR[name]
    held = [(parameter, link) for parameter, links in case.links.items() for link in links]
    for parameter, link in held:
        if link.link == "log of probability":
            continue  # the M-step is checked against it
        pyro.clear_param_store()
        links = {parameter: link}
        compare(run(Model(case, case.start(), links=links), case.sample(), num_steps=8))


@pytest.mark.parametrize("model, data", [(poisson, counts()), (categorical, symbols())])
class TestLeftToRight:
    def test_zeros_stay(self, model: Callable[..., None], data: Tensor) -> None:
        compare(run(model, data))
        assert_close(pyro.param("transition") == 0, LEFT_TO_RIGHT == 0)

    def test_lengths(self, model: Callable[..., None], data: Tensor) -> None:
        compare(run(partial(model, lengths=torch.tensor([40, 33, 2, 38])), data))

    def test_one_sequence(self, model: Callable[..., None], data: Tensor) -> None:
        compare(run(model, data[:1]))

    def test_missing_rows(self, model: Callable[..., None], data: Tensor) -> None:
        data = data.double().clone()
        data[1, 3:9] = torch.nan
        data[2, 0] = torch.nan
        compare(run(partial(model, missing="marginalise"), data))

    def test_float32(self, model: Callable[..., None], data: Tensor, monkeypatch: Any) -> None:
        exact = EM(model).run(data, num_steps=8, tol=None)
        pyro.clear_param_store()
        found = spy(monkeypatch, module=fused_linear)
        start = (RATES if model is poisson else SYMBOLS).float()
        single = EM(partial(model, dtype=torch.float32)).run(
            data if model is categorical else data.float(), start, num_steps=8, tol=None
        )
        assert isinstance(found[0], FusedEngine)
        assert_close(single.restart_history, exact.restart_history, rtol=5e-6, atol=0.0)
        assert all(value.dtype == torch.float32 for value in pyro.get_param_store().values())

    def test_the_plan_says_so(self, model: Callable[..., None], data: Tensor) -> None:
        em = EM(model)
        em.run(data, num_steps=2, tol=None)
        name = "Poisson" if model is poisson else "Categorical"
        assert f"compiled iterations of a model of {name} observations" in str(em.plan)

    def test_callback_sees_every_step_in_the_store(
        self, model: Callable[..., None], data: Tensor
    ) -> None:
        name, seen = "rate" if model is poisson else "probs", []
        result = EM(model).run(
            data,
            num_steps=4,
            tol=None,
            callback=lambda number, loss: seen.append((loss, pyro.param(name).detach().clone())),
        )
        assert [loss for loss, _ in seen] == result.history[1:]
        assert all(not torch.equal(one[1], other[1]) for one, other in zip(seen, seen[1:]))

    def test_converges_where_the_tensors_do(
        self, model: Callable[..., None], data: Tensor
    ) -> None:
        fast, slow = compare(lambda: EM(model).run(data, num_steps=300, tol=1e-5))
        assert fast.converged and fast.stop_reason == slow.stop_reason
        assert fast.num_steps == slow.num_steps

    def test_priors_of_the_chain(self, model: Callable[..., None], data: Tensor) -> None:
        concentration = torch.full((3, 3), 1.5).double() + 3 * torch.eye(3).double()

        def sticky(data: Tensor) -> None:
            prior = dist.Dirichlet(concentration).to_event(1)
            hmm = RegimeHMM(
                initial_probs=torch.full((3,), 1 / 3).double(),
                transition_probs=pyro.sample("transition", prior),
                observation_dist=(
                    dist.Poisson(param("rate", RATES, constraints.positive)).to_event(1)
                    if model is poisson
                    else dist.Categorical(param("probs", SYMBOLS, constraints.simplex))
                ),
            )
            with pyro.plate("sequences", len(data)):
                pyro.sample("x", hmm, obs=data)

        def fit() -> Any:
            guide = AutoDelta(sticky, init_loc_fn=init_to_value(values={"transition": ROWS}))
            return EM(sticky, guide).run(data, num_steps=10, tol=None)

        compare(fit)


def test_some_states_are_constant() -> None:
    def model(data: Tensor) -> None:
        own = param("rate", RATES[1:], constraints.positive)
        chain_of(data, dist.Poisson(torch.cat([RATES[:1], own])).to_event(1))

    compare(run(model, counts()))


def test_observations_that_no_parameter_changes() -> None:
    compare(run(lambda data: chain_of(data, dist.Poisson(RATES).to_event(1)), counts()))


def test_states_that_share_a_rate_are_left_to_tensors(monkeypatch: Any) -> None:
    def model(data: Tensor) -> None:
        own = param("rate", RATES[:2], constraints.positive)
        chain_of(data, dist.Poisson(own[[0, 1, 0]]).to_event(1))

    found = spy(monkeypatch, module=fused_linear)
    EM(model).run(counts(), num_steps=2, tol=None)
    assert found == ["states share a location or probabilities"]


def test_an_impossible_observation_is_left_to_tensors(monkeypatch: Any) -> None:
    data = counts()
    data[0, 3] = 1.5
    found = spy(monkeypatch, module=fused_linear)
    with pyro.validation_enabled(False):
        result = EM(poisson).run(data, num_steps=2, tol=None)
    assert found == ["some observations are impossible, or some of their entries are missing"]
    assert result.history[0] == torch.inf


def test_symbols_that_a_state_never_emits() -> None:
    start = SYMBOLS.clone()
    start[2] = torch.tensor([0.0, 0.7, 0.3])
    data = symbols()
    compare(run(lambda data: categorical(data, start), data))
    assert pyro.param("probs")[2, 0] == 0


def test_a_rate_of_zero_is_handed_over() -> None:
    """No number is multiplied by an infinite one."""
    data = counts()
    data[..., 0] *= torch.arange(40) < 20  # nothing is counted at the end

    def model(data: Tensor) -> None:
        rates = RATES.clone()
        rates[2, 0] = 0.0
        own = param("rate", rates[:2], constraints.positive)
        chain_of(data, dist.Poisson(torch.cat([own, rates[2:]])).to_event(1))

    em = EM(model)
    with pytest.MonkeyPatch.context() as patch:
        spy(patch, allowed=False, module=fused_linear)
        expected = em.run(data, num_steps=6, tol=None)
    pyro.clear_param_store()
    found = em.run(data, num_steps=6, tol=None)
    assert found.history == expected.history
    assert "then tensor operations" in str(em.plan)


def restarts(starts: Tensor, is_poisson: bool) -> Callable[[Tensor], None]:
    count = len(starts)

    def model(data: Tensor) -> None:
        shape = (count, 1, 3)
        hmm = RegimeHMM(
            initial_probs=param("initial", INITIAL.expand(count, 3), constraints.simplex),
            transition_probs=param(
                "transition", LEFT_TO_RIGHT.expand(*shape, 3), constraints.simplex
            ),
            observation_dist=(
                dist.Poisson(param("rate", starts, constraints.positive)).to_event(1)
                if is_poisson
                else dist.Categorical(param("probs", starts, constraints.simplex))
            ),
        )
        with pyro.plate("restarts", count):
            pyro.sample("x", hmm, obs=data)

    return model


@pytest.mark.parametrize("is_poisson", [True, False], ids=["Poisson", "Categorical"])
def test_a_batch_is_a_loop_to_the_bit(is_poisson: bool) -> None:
    data = (counts if is_poisson else symbols)(1, 500)[0]
    start = (RATES if is_poisson else SYMBOLS).unsqueeze(0)
    factor = torch.rand((5, *start.shape), generator=seeds.generator(7), dtype=torch.float64)
    starts = start * (0.5 + factor)
    if not is_poisson:
        starts = starts / starts.sum(-1, keepdim=True)
    settings: dict[str, Any] = dict(num_steps=60, tol=1e-4)
    batch = EM(restarts(starts, is_poisson)).run(data, **settings)
    together = {name: value.detach() for name, value in pyro.get_param_store().items()}
    for r in range(len(starts)):
        pyro.clear_param_store()
        em = EM(restarts(starts[[r]], is_poisson))
        alone = em.run(data, **settings)
        assert "compiled iterations" in str(em.plan)
        own = alone.restart_history[:, 0]
        assert torch.equal(batch.restart_history[: len(own), r], own)
        for name, value in pyro.get_param_store().items():
            assert torch.equal(together[name][[r]], value.detach()), name


def test_a_state_without_data_is_handed_over() -> None:
    """Categorical rows of a state that nothing reaches keep their values, as on tensors."""
    case: Case = CASES["Categorical"]
    chain = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double()

    def model(data: Tensor) -> None:
        hmm = RegimeHMM(
            initial_probs=torch.tensor([1.0, 0.0]).double(),
            transition_probs=param("transition", chain, constraints.simplex),
            observation_dist=dist.Categorical(
                param("probs", case.start()["probs"], constraints.simplex)
            ),
        )
        with pyro.plate("sequences", len(data)):
            pyro.sample("x", hmm, obs=data)

    em = EM(model)
    em.run(case.sample(), num_steps=3, tol=None)
    assert "then tensor operations" in str(em.plan)
    assert_close(pyro.param("probs")[1].detach(), case.start()["probs"][1])
