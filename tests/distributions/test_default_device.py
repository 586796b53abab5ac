"""Tensors on one device while the default device is another.

The compiled kernels are tested for this by themselves; here the reference runs.
"""

import pyro.distributions as dist
import pytest
import torch

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.kernels import ops

PROBS = torch.tensor([0.4, 0.6])
TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
LOC = torch.tensor([-1.0, 1.0])
ONES = torch.ones(2)
ROWS = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.1, 0.8]])
SERIES = torch.linspace(-2.0, 2.0, 12).reshape(3, 4)
COUNTS = (SERIES > 0).float()
MISSING = torch.where(SERIES > 1.0, torch.nan, SERIES)
LENGTHS = torch.tensor([4, 2, 1])
VARYING = TRANSITION.expand(3, 2, 2)
EYE = torch.eye(1)

OBSERVATIONS = {
    "Normal": (lambda: dist.Normal(LOC, ONES), SERIES),
    "MultivariateNormal": (
        lambda: dist.MultivariateNormal(LOC.unsqueeze(-1), EYE),
        SERIES.unsqueeze(-1),
    ),
    "StudentT.to_event": (
        lambda: dist.StudentT(3 * ONES, LOC, ONES).expand([1, 2]).to_event(0),
        SERIES,
    ),
    "NanMaskedNormal": (lambda: dist.NanMaskedNormal(LOC, ONES), MISSING),
    "Categorical": (lambda: dist.Categorical(ROWS), COUNTS.long()),
    "OneHotCategorical": (lambda: dist.OneHotCategorical(ROWS), torch.eye(3).repeat(3, 1, 1)),
    "Multinomial": (lambda: dist.Multinomial(1, ROWS), torch.eye(3).repeat(3, 1, 1)),
    "Bernoulli": (lambda: dist.Bernoulli(PROBS), COUNTS),
    "Binomial": (lambda: dist.Binomial(2 * ONES, PROBS), COUNTS),
    "Geometric": (lambda: dist.Geometric(PROBS), COUNTS),
    "NegativeBinomial": (lambda: dist.NegativeBinomial(2 * ONES, PROBS), COUNTS),
    "ZeroInflatedPoisson": (lambda: dist.ZeroInflatedPoisson(ONES, gate=PROBS), COUNTS),
    "MixtureSameFamily": (
        lambda: dist.MixtureSameFamily(dist.Categorical(ROWS), dist.Normal(ROWS, 1 + ROWS)),
        SERIES,
    ),
}


@pytest.fixture
def elsewhere():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)  # a device would leave its mode on the stack


@pytest.mark.parametrize("varying", [False, True], ids=["", "transitions vary"])
@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_method_stays_on_its_device(elsewhere, name, lengths, varying):
    make, value = OBSERVATIONS[name]
    num_steps = value.shape[1]
    lengths = LENGTHS.clamp(max=num_steps) if lengths else None
    hmm = RegimeHMM(
        initial_probs=PROBS,
        transition_probs=VARYING[: num_steps - 1] if varying else TRANSITION,
        observation_dist=make(),
        duration=num_steps,
        lengths=lengths,
    )
    with ops.backend("reference"):
        results = [
            hmm.log_prob(value),
            hmm.expand((2, 3)).log_prob(value),
            hmm.filter(value).sample(),
            *hmm.posterior(value),
            hmm.viterbi(value),
            hmm.sample_posterior(value, torch.Size([2])),
            hmm.sample((2,)),
        ]
        if not varying:
            mixture = hmm.forecast(value, 2)
            results += [mixture.sample(), mixture.log_prob(mixture.sample())]
    assert {each.device.type for each in results} == {"cpu"}
    assert results[0].isfinite().all()
