"""``ZeroInflatedContinuous``: a point mass at 0 beside a density."""

from __future__ import annotations

import pickle

import pyro.distributions as dist
import pytest
import scipy.integrate
import torch
from pyro.distributions.transforms import AffineTransform
from torch.testing import assert_close

from pyro_regimes.distributions import ZeroInflatedContinuous
from tests import seeds

GATE = torch.tensor([0.7, 0.0, 1.0]).double()
BASE = dist.Gamma(torch.tensor([2.0, 0.5, 3.0]).double(), 0.5)


@pytest.mark.parametrize("given", ["gate", "gate_logits"])
def test_probabilities_sum_to_one(given: str):
    gate = torch.tensor(0.3).double()
    gate = gate if given == "gate" else gate.logit()
    rain = ZeroInflatedContinuous(dist.Gamma(torch.tensor(2.0).double(), 0.5), **{given: gate})
    mass = float(rain.log_prob(torch.tensor(0.0).double()).exp())

    def density(x: float) -> float:
        return float(rain.log_prob(torch.tensor(x).double()).exp())

    assert mass == pytest.approx(0.3)
    assert mass + scipy.integrate.quad(density, 1e-12, 100)[0] == pytest.approx(1.0, abs=1e-7)


def test_a_gate_of_zero_or_one():
    rain = ZeroInflatedContinuous(BASE, gate=GATE)
    x = torch.tensor([[0.0], [2.0]]).double()
    found = rain.log_prob(x)
    assert_close(found[0].exp(), GATE)
    assert found[1, 2] == -torch.inf and found[1, 1] == BASE.log_prob(x[1])[1]


def test_samples_and_moments():
    rain = ZeroInflatedContinuous(BASE, gate=GATE)
    torch.manual_seed(seeds.seed(1))
    x = rain.sample((100_000,))
    assert bool(rain.support.check(x).all()) and not rain.has_rsample
    share = (x == 0).double().mean(0)
    assert_close(share, GATE, rtol=0, atol=5 * 0.5 / 100_000**0.5)
    error = (rain.variance / 100_000).sqrt()
    assert bool(((x.mean(0) - rain.mean).abs() <= 5 * error).all())
    assert_close(x.var(0), rain.variance, rtol=0.1, atol=1e-12)


def test_batch_shapes():
    logits = torch.zeros(4, 1).double()
    rain = ZeroInflatedContinuous(BASE, gate_logits=logits)
    assert rain.batch_shape == (4, 3) and rain.mean.shape == (4, 3)
    whole = rain.expand((2, 4, 3))
    x = whole.sample((5,))
    assert x.shape == (5, 2, 4, 3) and set(vars(whole)) & {"gate", "gate_logits"} == {"gate_logits"}
    assert_close(whole.log_prob(x), rain.log_prob(x))
    again = pickle.loads(pickle.dumps(rain))
    assert_close(again.log_prob(x), rain.log_prob(x))
    assert rain.gate.shape == (4, 1)
    assert ZeroInflatedContinuous(BASE, gate=torch.tensor(0.5)).gate_logits == 0
    assert rain.to_event(1).log_prob(x).shape == (5, 2, 4)


def test_what_is_refused():
    with pytest.raises(ValueError, match="distribution of numbers, got Independent of event shape"):
        ZeroInflatedContinuous(BASE.to_event(1), gate=GATE)
    with pytest.raises(ValueError, match="distribution of numbers, got Tensor"):
        ZeroInflatedContinuous(GATE, gate=GATE)
    for counts in (dist.Poisson(2.0), dist.Bernoulli(0.5).mask(True), dist.Categorical(GATE)):
        with pytest.raises(ValueError, match="continuous.*, got .*; for counts use .*ZeroInflated"):
            ZeroInflatedContinuous(counts, gate=GATE)
    with pytest.raises(ValueError, match="exactly one of gate and gate_logits, got neither"):
        ZeroInflatedContinuous(BASE)
    with pytest.raises(ValueError, match="exactly one of gate and gate_logits, got both"):
        ZeroInflatedContinuous(BASE, gate=GATE, gate_logits=GATE)
    with pytest.raises(ValueError, match=r"broadcasts with the batch shape \(3,\)"):
        ZeroInflatedContinuous(BASE, gate=torch.zeros(2))
    with pytest.raises(ValueError, match="gate"):
        ZeroInflatedContinuous(BASE, gate=2 * GATE, validate_args=True)
    rain = ZeroInflatedContinuous(BASE, gate=GATE)
    with pytest.raises(ValueError, match="within the support"):
        rain.log_prob(torch.tensor(-1.0).double())


def test_a_base_of_negative_numbers():
    """What stands for a zero is in the support of the base; the mirrored density is the same."""
    rate = torch.tensor([0.5, 2.0]).double().requires_grad_()
    gate, x = torch.tensor([0.3, 0.2]).double(), torch.tensor([[0.0], [2.0], [0.4]]).double()
    base = dist.Gamma(torch.tensor(2.0).double(), rate)
    mirrored = dist.TransformedDistribution(base, [AffineTransform(0.0, -1.0)])
    expected = ZeroInflatedContinuous(base, gate=gate).log_prob(x)
    found = ZeroInflatedContinuous(mirrored, gate=gate).log_prob(-x)
    assert_close(found, expected)
    slopes = [torch.autograd.grad(each.sum(), rate)[0] for each in (found, expected)]
    assert_close(*slopes)
