"""SQUAREM, DecayingAdam and L-BFGS: they come to where EM is, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes import RegimeHMM
from pyro_regimes.comparison import MethodRun, compare
from pyro_regimes.infer.isolation import PYRO_LOCK
from tests import seeds
from tests.infer.models import INITIAL, LOC, TRANSITION

NEW = ["EM, SQUAREM", "DecayingAdam", "L-BFGS"]


def draw(apart: float, num_steps: int = 200) -> Tensor:
    """Two regimes in runs of ten steps, of unit variance."""
    generator = seeds.generator(0)
    noise = torch.randn(num_steps, generator=generator, dtype=torch.float64)
    return apart * (torch.arange(num_steps) // 10 % 2 - 0.5) + noise


X = draw(3.0)


def chain(observed: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observed
    )


def whole(x: Tensor) -> None:
    """Everything but the initial probabilities is a parameter."""
    transition = pyro.param("transition", TRANSITION.clone(), constraint=constraints.simplex)
    loc = pyro.param("loc", LOC.clone().to(x))
    scale = pyro.param("scale", torch.ones_like(LOC).to(x), constraint=constraints.positive)
    hmm = RegimeHMM(
        initial_probs=INITIAL.to(x),
        transition_probs=transition.to(x),
        observation_dist=dist.Normal(loc, scale),
    )
    pyro.sample("x", hmm, obs=x)


SETTINGS: dict[str, Any] = dict(em_steps=5_000, tol=1e-9, svi_steps=1_500, learning_rates=[0.1])


def run(method: str, model: Any = whole, x: Tensor = X, **settings: Any) -> MethodRun:
    (found,) = compare(model, x, methods=[method], **{**SETTINGS, **settings}).runs
    return found


#: Nats. EM and SQUAREM stop at a gain of 1e-9 a step. The last rate of DecayingAdam is 0.001.
TOLERANCES = {"EM, SQUAREM": 1e-6, "L-BFGS": 1e-6, "DecayingAdam": 1e-4}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("method", NEW)
def test_a_rival_comes_to_the_optimum_of_em(method: str, jit_compile: bool) -> None:
    found = compare(whole, X, methods=["EM", method], jit_compile=jit_compile, **SETTINGS)
    em, rival = found.runs
    assert rival.values[0] == pytest.approx(em.values[0], rel=1e-12)
    assert rival.values[0] < em.log_likelihood - 10
    assert rival.log_likelihood == pytest.approx(em.log_likelihood, abs=TOLERANCES[method])
    assert rival.log_likelihood == pytest.approx(rival.values[-1], rel=1e-12)
    assert rival.distance_to_em is not None and rival.distance_to_em < 2e-3
    assert rival.gradient_norm is not None and rival.gradient_norm < 0.2
    assert rival.passes == sorted(rival.passes) and rival.times == sorted(rival.times)
    assert len(rival.values) == len(rival.passes) == len(rival.times) == rival.num_steps + 1
    assert 0.0 == rival.times[0] < rival.times[-1] <= rival.seconds


@pytest.mark.parametrize("method", NEW)
def test_the_callers_store_and_random_state_do_not_change(method: str) -> None:
    pyro.param("loc", torch.tensor(1.0))
    before, state = dict(pyro.get_param_store().named_parameters()), torch.get_rng_state()
    run(method, em_steps=5, svi_steps=5, tol=None)
    heard = []

    def fail(*step: Any) -> None:
        heard.append((step, PYRO_LOCK._is_owned(), list(pyro.get_param_store())))
        if step[1]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(method, em_steps=5, svi_steps=5, tol=None, progress=fail)
    assert len(heard) == 2 and heard[1][1:] == (False, ["loc"])
    store = dict(pyro.get_param_store().named_parameters())
    assert store.keys() == before.keys() and store["loc"] is before["loc"]
    assert store["loc"].item() == 1.0
    assert torch.equal(torch.get_rng_state(), state)


def test_squarem_counts_rejected_steps_and_needs_fewer_passes() -> None:
    x = draw(1.0, 1_000)
    em, fast = run("EM", x=x, tol=1e-7), run("EM, SQUAREM", x=x, tol=1e-7)
    assert em.passes == list(range(1, em.num_steps + 2))
    assert fast.passes[-1] == fast.num_passes >= fast.num_steps + 1
    assert (np.diff(fast.passes) >= 1).all() and (np.diff(fast.values) >= 0).all()
    assert fast.num_passes < em.num_passes


def test_the_rate_of_decaying_adam_falls_to_a_hundredth() -> None:
    """Against torch's own Adam, of which eps enters in another place."""
    loc = LOC.clone().requires_grad_()
    optim = torch.optim.Adam([loc], 0.1)
    expected = []
    for step in range(1, 41):
        optim.param_groups[0]["lr"] = 0.1 * 0.01 ** (step / 40)
        loss = -chain(dist.Normal(loc, 1.0)).log_prob(X)
        expected.append(-float(loss.detach()))
        optim.zero_grad()
        loss.backward()
        optim.step()

    def model(x: Tensor) -> None:
        pyro.sample("x", chain(dist.Normal(pyro.param("loc", LOC.clone()), 1.0)), obs=x)

    found = run("DecayingAdam", model, svi_steps=40)
    assert found.values[:-1] == pytest.approx(expected, rel=1e-8)
    torch.testing.assert_close(found.point["loc"], loc.detach(), rtol=1e-6, atol=0)


def test_a_pass_of_lbfgs_is_a_run_of_the_model() -> None:
    """Also of points that its line search rejects."""
    calls = []

    def counted(x: Tensor) -> None:
        calls.append(x)
        whole(x)

    found, numbers = [], []
    for num_steps in (2, 12):
        calls.clear()
        found.append(run("L-BFGS", counted, svi_steps=num_steps, tol=None))
        numbers.append(len(calls))
    short, long = found
    assert (short.num_steps, long.num_steps) == (2, 12)
    assert numbers[1] - numbers[0] == long.num_passes - short.num_passes >= 10
    assert long.values[:3] == short.values and long.passes[:3] == short.passes
    assert short.passes[0] == 1 and long.passes[-1] == long.num_passes


def test_lbfgs_recovers_where_the_model_fails() -> None:
    """Its first step has the length 1, and the maximum is nearer."""
    start, refused = torch.tensor([-1.3, 1.3], dtype=torch.float64), []

    def sound(x: Tensor) -> None:
        loc = pyro.param("loc", start.clone())
        pyro.sample("x", chain(dist.Normal(loc, 1.0)), obs=x)

    def fragile(x: Tensor) -> None:
        loc = pyro.param("loc", start.clone())
        if (loc - start).norm() > 0.95:
            refused.append(loc.detach().clone())
            raise ValueError("expected loc nearby")
        sound(x)

    em, found = run("EM", sound), run("L-BFGS", fragile)
    assert refused and not found.diverged
    assert found.log_likelihood == pytest.approx(em.log_likelihood, abs=1e-6)
    assert found.num_passes >= len(found.passes) + len(refused)


def test_lbfgs_keeps_the_dtype_of_the_parameters() -> None:
    found = run("L-BFGS", x=X.float(), tol=1e-3)
    assert found.point["loc"].dtype == torch.float32
    assert found.log_likelihood == pytest.approx(run("EM").log_likelihood, abs=0.01)


def test_lbfgs_refuses_what_it_cannot_start_from() -> None:
    def none(x: Tensor) -> None:
        pyro.sample("x", chain(dist.Normal(LOC, 1.0)), obs=x)

    with pytest.raises(ValueError, match=r"expected model to have parameters \(pyro.param\)"):
        run("L-BFGS", none)

    def wrong(x: Tensor) -> None:
        pyro.param("loc", LOC.clone())
        raise ValueError("expected more")

    with pytest.raises(ValueError, match="expected more"):
        run("L-BFGS", wrong)

    def impossible(x: Tensor) -> None:
        rate = pyro.param("rate", LOC.abs(), constraint=constraints.positive)
        zero = torch.zeros(2, dtype=torch.float64)
        pyro.sample("x", chain(dist.Poisson(zero * rate)), obs=x)

    for method in ("Adam", "L-BFGS"):
        with pytest.raises(ValueError, match=r"finite objective at its start, got (-inf|nan);"):
            run(method, impossible, torch.ones(5, dtype=torch.float64))
