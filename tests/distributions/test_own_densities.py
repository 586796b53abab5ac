"""Subclasses with a ``log_prob`` of their own, and observations that may be missing."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_regimes.distributions import RegimeHMM

NAN = math.nan
INITIAL = torch.tensor([0.7, 0.3], dtype=torch.float64)
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
LOC = torch.tensor([-1.0, 1.0], dtype=torch.float64)
LOCS = torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, 2.0]], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.2, 0.0], [-0.3, 0.1, 0.7]], dtype=torch.float64)
SERIES = torch.tensor([0.3, NAN, -1.2, 2.0, NAN], dtype=torch.float64)
VECTORS = torch.tensor(
    [[0.3, NAN, 0.1], [NAN, NAN, NAN], [1.0, 0.5, -2.0], [0.2, 0.7, NAN]], dtype=torch.float64
)


class Halved(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) / 2


class HalvedVector(dist.MultivariateNormal):
    def log_prob(self, value):
        return super().log_prob(value) / 2


def make_hmm(observation_dist, **changes):
    return RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=observation_dist,
        **changes,
    )


OWN = {
    "Normal": (lambda: Halved(LOC, 1.0), SERIES[:1]),
    "to_event": (lambda: Halved(LOCS, 1.0).to_event(1), VECTORS[2:3]),
    "expand": (lambda: Halved(LOC, 1.0).expand([1, 2]), SERIES[:1]),
    "mask": (lambda: Halved(LOC, 1.0).mask(torch.tensor([True, True])), SERIES[:1]),
    "MultivariateNormal": (lambda: HalvedVector(LOCS, scale_tril=FACTOR), VECTORS[2:3]),
    "NanMaskedNormal": (lambda: dist.NanMaskedNormal(LOC, 1.0), SERIES),
    "NanMaskedNormal.to_event": (lambda: dist.NanMaskedNormal(LOCS, 1.0).to_event(1), VECTORS),
    "NanMaskedNormal.expand": (lambda: dist.NanMaskedNormal(LOC, 1.0).expand([1, 2]), SERIES),
    "NanMaskedNormal.mask": (
        lambda: dist.NanMaskedNormal(LOC, 1.0).mask(torch.tensor([True, True])),
        SERIES,
    ),
    "NanMaskedMultivariateNormal": (
        lambda: dist.NanMaskedMultivariateNormal(LOCS, scale_tril=FACTOR),
        VECTORS,
    ),
}


@pytest.mark.parametrize("validate_args", [None, True, False])
@pytest.mark.parametrize("name", OWN)
def test_every_method_uses_the_class_own_density(name, validate_args):
    make, value = OWN[name]
    hmm = make_hmm(make(), validate_args=validate_args)
    density = make().log_prob(value.unsqueeze(-1 - make().event_dim))
    alpha = INITIAL * density[0].exp()
    for each in density[1:]:
        alpha = alpha @ TRANSITION * each.exp()
    torch.testing.assert_close(hmm.log_prob(value), alpha.sum().log())
    torch.testing.assert_close(hmm.filter(value).probs, alpha / alpha.sum())
    posterior = hmm.posterior(value)
    torch.testing.assert_close(posterior.smoothed_probs[-1], alpha / alpha.sum())
    assert (hmm.viterbi(value) >= 0).all()
    assert hmm.forecast(value, 2).sample().shape == (2,) + value.shape[1:]


@pytest.mark.parametrize("validate_args", [None, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.Normal(LOC, 1.0),
        lambda: dist.StudentT(3.0, LOC, 1.0),
        lambda: Halved(LOC, 1.0),
        lambda: dist.Cauchy(LOC, 1.0),
        lambda: dist.MixtureOfDiagNormals(
            LOCS.reshape(2, 3, 1), torch.ones(2, 3, 1).double(), torch.zeros(2, 3).double()
        ).to_event(0),
        lambda: dist.Poisson(LOC.exp()),
    ],
    ids=["Normal", "StudentT", "subclass", "Cauchy", "mixture", "Poisson"],
)
def test_nan_is_refused_where_the_distribution_does_not_take_it(make, validate_args):
    value = torch.tensor([0.0, NAN, 1.0], dtype=torch.float64)
    if make().event_dim:
        value = value.unsqueeze(-1)
    with pytest.raises(ValueError, match="expected value to lie in the support .* got .*nan"):
        make_hmm(make(), validate_args=validate_args).log_prob(value)


def test_a_missing_value_beside_a_wrong_one():
    observation_dist = dist.NanMaskedNormal(LOC, 1.0)
    assert make_hmm(observation_dist).log_prob(SERIES).isfinite()
    lengths = torch.tensor([2, 5])
    log_prob = make_hmm(observation_dist, lengths=lengths).log_prob(SERIES.expand(2, 5))
    torch.testing.assert_close(log_prob[1], make_hmm(observation_dist).log_prob(SERIES))
    torch.testing.assert_close(log_prob[0], make_hmm(observation_dist).log_prob(SERIES[:2]))


class Tempered(RegimeHMM):
    """With an ``__init__`` and a density of its own."""

    def __init__(self, temperature, *args, **kwargs):
        self.temperature = temperature
        super().__init__(*args, **kwargs)

    def log_prob(self, value):
        return super().log_prob(value) / self.temperature


class Plain(RegimeHMM):
    def log_prob(self, value):
        return super().log_prob(value) / 4.0


@pytest.mark.parametrize("kind", [Tempered, Plain])
def test_a_subclass_keeps_its_class_when_expanded(kind):
    first = (4.0,) if kind is Tempered else ()
    hmm = kind(*first, INITIAL.log(), TRANSITION.log(), dist.Normal(LOC, 1.0))
    value = SERIES[[0, 2, 3]]
    expanded = hmm.expand((2, 3))
    assert type(expanded) is kind
    assert expanded.batch_shape == (2, 3)
    expected = make_hmm(dist.Normal(LOC, 1.0)).log_prob(value) / 4.0
    torch.testing.assert_close(expanded.log_prob(value), expected.expand(2, 3))
    torch.testing.assert_close(hmm.to_event(0).log_prob(value), expected)
    torch.testing.assert_close(hmm.mask(True).log_prob(value), expected)


def test_a_forecast_takes_what_one_state_can_emit():
    low = torch.tensor([0.0, 2.0], dtype=torch.float64)
    hmm = make_hmm(dist.Uniform(low, low + 1.0))
    mixture = hmm.forecast(torch.tensor([0.5, 2.5], dtype=torch.float64), 3)
    log_prob = mixture.log_prob(torch.tensor([0.2, 2.2, 0.3], dtype=torch.float64))
    weights = mixture.mixture_distribution.probs
    torch.testing.assert_close(log_prob, weights[range(3), [0, 1, 0]].log())
    assert mixture.expand((2, 3)).log_prob(mixture.sample()).isfinite().all()
    with pytest.raises(ValueError, match="within the support"):
        mixture.log_prob(torch.tensor([0.2, 1.5, 0.3], dtype=torch.float64))
    uniform = dist.Uniform(low, low + 1.0, validate_args=False)
    unchecked = make_hmm(uniform, validate_args=False)
    mixture = unchecked.forecast(torch.tensor([0.5, 2.5], dtype=torch.float64), 1)
    assert mixture.log_prob(torch.tensor([1.5], dtype=torch.float64)).item() == -math.inf
