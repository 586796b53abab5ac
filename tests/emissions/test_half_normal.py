"""The scale of a HalfNormal is that of a Normal."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from tests import seeds

T = 100
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
START = torch.tensor([0.8, 2.5]).double()


def hmm(observation_dist: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


def draws() -> Tensor:
    noise = torch.randn(T, generator=seeds.generator(3), dtype=torch.float64)
    return noise * torch.where(torch.arange(T) // 10 % 2 == 0, 0.5, 3.0)


def test_one_scale_of_both() -> None:
    """Absolute values beside signed ones: the maximum is that of twice the data."""
    z = draws()

    def model(both: bool) -> None:
        scale = pyro.param("scale", START.clone(), constraint=constraints.positive)
        zero = torch.zeros(2).double()
        pyro.sample("x", hmm(dist.Normal(zero, scale)), obs=z)
        other = dist.HalfNormal(scale) if both else dist.Normal(zero, scale)
        pyro.sample("y", hmm(other), obs=z.abs())

    found = []
    for both in (False, True):
        pyro.clear_param_store()
        result = EM(model).run(both, num_steps=300, tol=1e-9)
        assert result.converged and not result.unconfirmed
        found.append(pyro.param("scale").detach().clone())
    assert_close(found[0], found[1], rtol=1e-9, atol=0.0)


def test_the_prior_of_a_variance() -> None:
    z = draws().abs()

    def model() -> None:
        with pyro.plate("states", 2):
            variance = pyro.sample("variance", dist.InverseGamma(5.0, 2 * START / START))
        pyro.sample("x", hmm(dist.HalfNormal(variance.sqrt())), obs=z)

    gamma = hmm(dist.HalfNormal(START.sqrt())).posterior(z).smoothed_probs
    expected = ((gamma * z.square().unsqueeze(-1)).sum(0) + 4.0) / (gamma.sum(0) + 12.0)
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"variance": START}))
    em = EM(model, guide)
    em.step()
    assert_close(pyro.param("AutoDelta.variance").detach(), expected, rtol=1e-10, atol=0.0)
    result = em.run(num_steps=300, tol=1e-9)
    assert result.converged and not result.unconfirmed
