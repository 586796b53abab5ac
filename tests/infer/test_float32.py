"""EM on float32 data: its loss is float64, whatever the data are."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.kernels import ops
from tests import seeds

UNIT = 3e6  # with which each of the observations costs some 17 nats


def data(num_steps: int = 60_000) -> Tensor:
    generator = seeds.generator(0)
    high = (torch.arange(num_steps) // 8 % 2).float()
    return UNIT * (torch.randn(num_steps, generator=generator) + 1.5 * high)


def model(x: Tensor) -> None:
    like = {"dtype": x.dtype}
    pi = pyro.param("pi", lambda: torch.full((2,), 0.5, **like), constraint=constraints.simplex)
    a = pyro.param("a", lambda: torch.full((2, 2), 0.5, **like), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: UNIT * torch.tensor([0.0, 1.0], **like))
    scale = pyro.param(
        "scale", lambda: UNIT * torch.tensor([1.0, 2.0], **like), constraint=constraints.positive
    )
    emission = dist.Normal(loc, scale)
    hmm = RegimeHMM(initial_probs=pi, transition_probs=a, observation_dist=emission)
    pyro.sample("x", hmm, obs=x)


def exact_loss(x: Tensor) -> float:
    """In float64, at the parameters of the store."""
    store = pyro.get_param_store()
    pi, a, loc, scale = (store[name].detach().double() for name in ("pi", "a", "loc", "scale"))
    hmm = RegimeHMM(
        initial_probs=pi / pi.sum(-1),
        transition_probs=a / a.sum(-1, keepdim=True),
        observation_dist=dist.Normal(loc, scale),
    )
    return -float(hmm.log_prob(x.double()))


@pytest.fixture(params=[True, False], ids=["fused", "tensors"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(ops, "has_fused_em", lambda value, num_states: False)


@pytest.mark.usefixtures("engine")
def test_history_is_that_of_float64():
    x = data()
    found = EM(model).run(x, num_steps=6, tol=None)
    assert 9e5 < found.history[-1] < 1.2e6  # where float32 numbers are 0.06 apart
    assert found.history[-1] == pytest.approx(exact_loss(x), rel=4e-9)
    assert any((each * 16) % 1 for each in found.history)


@pytest.mark.usefixtures("engine")
def test_tol_does_not_stop_on_rounding():
    x = data()
    single = EM(model).run(x, num_steps=200, tol=1e-4)
    with pyro.get_param_store().scope():
        double = EM(model).run(x.double(), num_steps=200, tol=1e-4)
    assert single.converged and double.converged
    # Parameters and densities are float32: they move the loss by some 1e-3, and no more.
    assert single.history[-1] == pytest.approx(double.history[-1], abs=1e-2)


def test_steps_return_the_float64_loss():
    x = data()
    em = EM(model)
    for _ in range(3):
        before = None if not em_started() else exact_loss(x)
        loss = em.step(x)
        if before is not None:
            assert loss == pytest.approx(before, rel=4e-9)


def em_started() -> bool:
    return "loc" in pyro.get_param_store()


def test_a_subclass_keeps_its_own_log_prob():
    """Another density than a RegimeHMM's is asked by its public name."""

    class Tempered(RegimeHMM):
        def log_prob(self, value: Tensor) -> Tensor:
            return 0.5 * super().log_prob(value)

    from pyro_regimes.infer.em.e_step import _log_prob

    hmm = Tempered(torch.zeros(2), torch.zeros(2, 2), dist.Normal(torch.zeros(2), 1.0))
    x = torch.randn(5)
    assert _log_prob(hmm)(x) == hmm.log_prob(x)
