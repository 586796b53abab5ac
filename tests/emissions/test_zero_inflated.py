"""EM of distributions with additional zeros, over bases of all kinds."""

from __future__ import annotations

import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import AffineTransform
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.distributions import Columns, ZeroInflatedContinuous, observation
from tests import seeds

K, N, T = 2, 3, 80
POSITIVE, REAL, UNIT = constraints.positive, constraints.real, constraints.unit_interval


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


#: The base, and the arguments of the two states of which data are drawn.
BASES: dict[str, tuple[Any, dict[str, Tensor]]] = {
    "Gamma": (dist.Gamma, {"concentration": tensor(2.0, 6.0), "rate": tensor(2.0, 1.0)}),
    "LogNormal": (dist.LogNormal, {"loc": tensor(0.0, 1.5), "scale": tensor(0.5, 0.7)}),
    "Weibull": (dist.Weibull, {"scale": tensor(1.0, 5.0), "concentration": tensor(1.5, 3.0)}),
    "Exponential": (dist.Exponential, {"rate": tensor(2.0, 0.2)}),
    "HalfNormal": (dist.HalfNormal, {"scale": tensor(0.5, 3.0)}),
    "StudentT": (
        dist.StudentT, {"df": tensor(4.0, 9.0), "loc": tensor(1.0, 4.0), "scale": tensor(0.5, 1.0)}
    ),
    "Normal": (dist.Normal, {"loc": tensor(1.0, 4.0), "scale": tensor(0.5, 1.0)}),
}  # fmt: skip
every_base = pytest.mark.parametrize("name", BASES)
GATE = tensor(0.2, 0.5)


def constraint_of(name: str) -> Any:
    return {"loc": REAL, "gate": UNIT}.get(name, POSITIVE)


def hmm(emission: Any, **settings: Any) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=tensor(0.6, 0.4), transition_probs=tensor([0.9, 0.1], [0.2, 0.8]),
        observation_dist=emission, **settings,
    )  # fmt: skip


def simulate(name: str, *event: int) -> Tensor:
    """Sequences ``(N, T, *event)`` of the two states in turn."""
    build, given = BASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed(3))
        drawn = ZeroInflatedContinuous(build(**given), gate=GATE).sample((N, T, *event))
    return of_states(drawn)


def of_states(drawn: Tensor) -> Tensor:
    """Of ``(N, T, ..., K)`` what the state of each step draws."""
    states = (torch.arange(T) // 10 % K).reshape((T,) + (1,) * (drawn.dim() - 2))
    return drawn.gather(-1, states.expand(drawn.shape[:-1] + (1,))).squeeze(-1)


def start(name: str, *event: int) -> dict[str, Tensor]:
    """Near the truth, for each column."""
    found = {}
    for index, (each, value) in enumerate({**BASES[name][1], "gate": GATE}.items()):
        value = value.reshape((K,) + (1,) * len(event)).expand((K, *event))
        noise = torch.rand(value.shape, generator=seeds.generator(index), dtype=torch.float64)
        found[each] = value + 0.3 * noise if each == "loc" else value * (0.8 + 0.4 * noise)
    return found


def fit(name: str, x: Tensor, *event: int, **settings: Any) -> tuple[EM, Any]:
    def model(x: Tensor) -> None:
        params = {
            each: pyro.param(each, value.clone(), constraint=constraint_of(each))
            for each, value in start(name, *event).items()
        }
        gate = params.pop("gate")
        emission = ZeroInflatedContinuous(BASES[name][0](**params), gate=gate)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(emission.to_event(len(event)), **settings), obs=x)

    em = EM(model)
    return em, em.run(x, num_steps=3000, tol=1e-9)


@every_base
@pytest.mark.parametrize("event", [(), (2,)], ids=["one", "rows"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_em_climbs_to_an_optimum(name: str, event: tuple[int, ...], share: float):
    """The check of convergence differentiates the model's own likelihood."""
    x = simulate(name, *event)
    settings = {}
    if share:
        gone = torch.rand(x.shape, generator=seeds.generator(9)) < share
        x, settings = x.masked_fill(gone, torch.nan), {"missing": "marginalise"}
    em, result = fit(name, x, *event, **settings)
    assert result.converged and not result.unconfirmed
    assert len(em.plan.assignments) == 1 + len(BASES[name][1])
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


@every_base
def test_zeros_say_nothing_of_the_base(name: str):
    """With known states the base has the estimate of the observations that are not 0."""
    x, build = simulate(name), BASES[name][0]
    states = torch.nn.functional.one_hot(torch.arange(T) // 10 % K, K).bool()
    params = list(BASES[name][1])

    def model(x: Tensor, is_inflated: bool, mask: Any) -> None:
        given = {
            each: pyro.param(each, value.clone(), constraint=constraint_of(each))
            for each, value in start(name).items()
            if each != "gate"
        }
        emission = build(**given)
        if is_inflated:
            emission = ZeroInflatedContinuous(emission, gate=pyro.param("gate", GATE, UNIT))
        chain = hmm(emission.expand((N, T, K)).mask(mask), allowed_states=states)
        with pyro.plate("sequences", N):
            pyro.sample("x", chain, obs=x)

    ends = []
    for is_inflated, mask in ((True, torch.tensor(True)), (False, (x != 0).unsqueeze(-1))):
        pyro.clear_param_store()
        value = x if is_inflated else torch.where(x == 0, 0.5, x)
        EM(model).run(value, is_inflated, mask, num_steps=500, tol=1e-12, check=False)
        ends.append({each: pyro.param(each).detach().clone() for each in params})
        if is_inflated:
            share = torch.stack([(x[:, states[:, k]] == 0).double().mean() for k in range(K)])
            assert_close(pyro.param("gate").detach(), share, rtol=1e-9, atol=1e-12)
    for each in params:
        rtol = 1e-2 if each == "df" else 1e-4
        assert_close(ends[0][each], ends[1][each], rtol=rtol, atol=rtol)


@every_base
def test_gradients(name: str):
    build, given = BASES[name]
    leaves = [value.clone().requires_grad_() for value in (*given.values(), GATE)]
    x = torch.cat([simulate(name)[0, :6], tensor(0.0, 2.0)])

    def density(*values: Tensor) -> Tensor:
        base = build(**dict(zip(given, values[:-1], strict=True)), validate_args=False)
        return observation.log_prob(ZeroInflatedContinuous(base, gate=values[-1]), x, True)

    assert torch.autograd.gradcheck(density, leaves)
    whole = ZeroInflatedContinuous(build(**given), gate=GATE)
    assert_close(density(*leaves).detach(), whole.log_prob(x.unsqueeze(-1)), rtol=1e-9, atol=1e-9)


def test_in_columns_and_pickled():
    x = torch.stack([simulate("Gamma")[0], simulate("LogNormal")[0]], -1)

    def model(x: Tensor) -> None:
        def read(name: str, *value: float) -> Tensor:
            return pyro.param(name, tensor(*value), constraint=constraint_of(name))

        gamma = dist.Gamma(read("concentration", 2.0, 5.0), read("rate", 2.0, 1.0))
        gate = read("gate", 0.3, 0.4)
        steps = ZeroInflatedContinuous(gamma, gate=gate)
        rain = dist.LogNormal(read("loc", 0.0, 1.0), read("scale", 0.5, 1.0))
        emission = Columns([(steps, 0), (ZeroInflatedContinuous(rain, gate=gate), 1)])
        pyro.sample("x", hmm(emission), obs=x)

    em = EM(model)
    result = em.run(x, num_steps=2000, tol=1e-9)
    assert result.converged and not result.unconfirmed
    assert "x.parts.0.base_dist.concentration" in str(em.plan) and "pooled in 2" in str(em.plan)
    again = pickle.loads(pickle.dumps(em.plan))
    for one, two in zip(em.plan.assignments, again.assignments, strict=True):
        assert one.argument is two.argument


def test_bases_without_a_family():
    for base in (dist.Cauchy(tensor(0.0, 1.0), 1.0), dist.Gamma(GATE, 1.0).mask(True)):
        assert emissions.find_family(ZeroInflatedContinuous(base, gate=GATE)) is None


@pytest.mark.parametrize("kind", ["Poisson", "Binomial", "Geometric"])
def test_counts_of_other_kinds(kind: str):
    """Pyro's ZeroInflatedDistribution of any family of counts."""
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed(4))
        drawn = dist.ZeroInflatedPoisson(tensor(1.0, 3.0), gate=GATE).sample((N, T))
    x = of_states(drawn.clamp(max=8))

    def model(x: Tensor) -> None:
        if kind == "Poisson":
            base = dist.Poisson(pyro.param("rate", tensor(1.0, 4.0), constraint=POSITIVE))
        else:
            probs = pyro.param("probs", tensor(0.3, 0.6), constraint=UNIT)
            base = dist.Binomial(8, probs) if kind == "Binomial" else dist.Geometric(probs)
        gate = pyro.param("gate", tensor(0.1, 0.3), constraint=UNIT)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.ZeroInflatedDistribution(base, gate=gate)), obs=x)

    result = EM(model).run(x, num_steps=5000, tol=1e-8)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


def test_a_base_of_negative_numbers_has_the_fit_of_its_mirror_image():
    """What stands for a zero is in the support of the base."""
    x = simulate("Gamma")

    def run(sign: float) -> Any:
        def model(x: Tensor) -> None:
            rate = pyro.param("rate", tensor(0.5, 2.0), constraint=POSITIVE)
            gate = pyro.param("gate", tensor(0.3, 0.6), constraint=UNIT)
            base: Any = dist.Gamma(2.0, rate)
            if sign < 0:
                base = dist.TransformedDistribution(base, [AffineTransform(0.0, sign)])
            with pyro.plate("sequences", N):
                pyro.sample("x", hmm(ZeroInflatedContinuous(base, gate=gate)), obs=x)

        pyro.clear_param_store()
        return EM(model).run(sign * x, num_steps=5, tol=None)

    assert_close(tensor(*run(-1.0).history), tensor(*run(1.0).history), rtol=1e-9, atol=0)
