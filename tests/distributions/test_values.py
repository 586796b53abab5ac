"""Values of every dtype, and batches without sequences."""

import pyro.distributions as dist
import pytest
import torch

from pyro_regimes.distributions import RegimeHMM

LOC = torch.tensor([-1.0, 1.0])

#: name: (observation_dist, a value of integers)
INTEGERS = {
    "Normal": (lambda: dist.Normal(LOC, 1.0), [0, 1, 1, 0]),
    "MultivariateNormal": (
        lambda: dist.MultivariateNormal(LOC.unsqueeze(-1).expand(2, 2), torch.eye(2)),
        [[0, 1], [1, 1], [1, 0]],
    ),
    "StudentT": (lambda: dist.StudentT(3.0, LOC, 1.0), [0, 1, 1, 0]),
    "Bernoulli": (lambda: dist.Bernoulli(LOC.sigmoid()), [0, 1, 1, 0]),
    "Categorical": (lambda: dist.Categorical(torch.ones(2, 3)), [0, 1, 1, 0]),
    "OneHotCategorical": (lambda: dist.OneHotCategorical(torch.ones(2, 2)), [[0, 1], [1, 0]]),
    "Multinomial": (lambda: dist.Multinomial(2, torch.ones(2, 3)), [[0, 1, 1], [1, 1, 0]]),
    "Poisson": (lambda: dist.Poisson(LOC.exp()), [0, 1, 1, 0]),
    "ZeroInflatedPoisson": (
        lambda: dist.ZeroInflatedPoisson(LOC.exp(), gate=LOC.sigmoid()),
        [0, 1, 2],
    ),
    "BetaBinomial": (lambda: dist.BetaBinomial(LOC.exp(), LOC.exp(), 4), [0, 1, 1]),
}
METHODS = {
    "log_prob": lambda hmm, x: hmm.log_prob(x),
    "filter": lambda hmm, x: hmm.filter(x).probs,
    "posterior": lambda hmm, x: hmm.posterior(x).smoothed_probs,
    "smoothed_probs": lambda hmm, x: hmm.smoothed_probs(x),
    "filtered_probs": lambda hmm, x: hmm.filtered_probs(x),
    "viterbi": lambda hmm, x: hmm.viterbi(x),
    "forecast": lambda hmm, x: hmm.forecast(x, 2).mixture_distribution.probs,
}


def make_hmm(observation_dist, **changes):
    return RegimeHMM(torch.zeros(2), torch.eye(2), observation_dist, **changes)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.float64]
)
@pytest.mark.parametrize("name", INTEGERS)
def test_every_dtype_counts_the_same(name, dtype):
    make, value = INTEGERS[name]
    hmm = make_hmm(make())
    value = torch.tensor(value).clamp(max=1 if dtype == torch.bool else None, min=0)
    for method in METHODS.values():
        expected = method(hmm, value.float())
        found = method(hmm, value.to(dtype))
        torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.Poisson(torch.tensor([100.0, 300.0])),
        lambda: dist.NegativeBinomial(10.0, torch.tensor([0.9, 0.95])),
        lambda: dist.Geometric(torch.tensor([0.01, 0.005])),
        lambda: dist.BetaBinomial(LOC.exp(), LOC.exp(), 300),
    ],
    ids=["Poisson", "NegativeBinomial", "Geometric", "BetaBinomial"],
)
def test_a_count_may_fill_its_dtype(make, dtype):
    value = torch.tensor([255, 254, 0, 255])
    expected = make_hmm(make()).log_prob(value.double())
    found = make_hmm(make()).log_prob(value.to(dtype))
    torch.testing.assert_close(found, expected, check_dtype=False, rtol=1e-5, atol=0)
    if dtype == torch.uint8:
        beyond = make_hmm(make()).log_prob(torch.tensor([300, 254, 0, 255]).to(torch.int16))
        assert beyond != found


EVENTS = {
    "Normal": (lambda: dist.Normal(LOC, 1.0), ()),
    "Normal.to_event": (lambda: dist.Normal(LOC.unsqueeze(-1), 1.0).to_event(1), (1,)),
    "StudentT.to_event": (lambda: dist.StudentT(3.0, LOC.unsqueeze(-1)).to_event(1), (1,)),
    "torch's Independent": (
        lambda: torch.distributions.Independent(
            torch.distributions.StudentT(3.0, LOC.reshape(2, 1, 1)), 2
        ),
        (1, 1),
    ),
    "MultivariateNormal": (
        lambda: dist.MultivariateNormal(LOC.unsqueeze(-1), torch.eye(1)),
        (1,),
    ),
    "Bernoulli.to_event": (lambda: dist.Bernoulli(LOC.sigmoid().unsqueeze(-1)).to_event(1), (1,)),
    "Categorical": (lambda: dist.Categorical(torch.ones(2, 3)), ()),
    "Multinomial": (lambda: dist.Multinomial(2, torch.ones(2, 3)), (3,)),
}


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
@pytest.mark.parametrize("name", EVENTS)
def test_a_batch_of_no_sequences(name, batch):
    make, event = EVENTS[name]
    value = torch.zeros(batch + (4,) + event)
    for lengths in (None, torch.ones(batch, dtype=torch.long)):
        hmm = make_hmm(make(), lengths=lengths)
        for each in (hmm, hmm.expand((3,) + batch)):
            shape = each.expand((3,) + batch).batch_shape if each is not hmm else batch
            assert each.log_prob(value).shape == shape
            assert each.filter(value).probs.shape == shape + (2,)
            assert each.posterior(value).smoothed_probs.shape == shape + (4, 2)
            assert each.viterbi(value).shape == shape + (4,)
            assert each.sample_posterior(value).shape == shape + (4,)
            mixture = each.forecast(value, 3)
            drawn = mixture.sample()
            assert drawn.shape == shape + (3,) + event
            assert mixture.log_prob(drawn).shape == shape + (3,)


def test_independent_of_no_dims():
    normal = torch.distributions.Independent(dist.StudentT(3.0, LOC), 0)
    value = torch.tensor([0.3, -1.0, 2.0])
    torch.testing.assert_close(
        make_hmm(normal).log_prob(value), make_hmm(dist.StudentT(3.0, LOC)).log_prob(value)
    )


def test_sparse_and_complex_tensors_are_refused():
    hmm = make_hmm(dist.Normal(LOC, 1.0))
    for method in METHODS.values():
        with pytest.raises(ValueError, match="expected value to be a dense tensor, got layout"):
            method(hmm, torch.eye(3).to_sparse())
        with pytest.raises(ValueError, match="expected value to hold real numbers, got dtype"):
            method(hmm, torch.ones(3, dtype=torch.complex64))
    vectors = make_hmm(dist.MultivariateNormal(LOC.unsqueeze(-1), torch.eye(1)))
    with pytest.raises(ValueError, match="expected value to hold real numbers, got dtype"):
        vectors.log_prob(torch.ones(3, 1, dtype=torch.complex64))
    with pytest.raises(ValueError, match="expected transition_probs to be a dense tensor, got"):
        RegimeHMM(
            initial_probs=torch.tensor([0.5, 0.5]),
            transition_probs=torch.eye(2).to_sparse(),
            observation_dist=dist.Normal(LOC, 1.0),
        )


def test_probabilities_alone_of_a_sequence_of_probability_zero():
    """Possible at the first step only."""
    hmm = RegimeHMM(
        initial_probs=torch.tensor([1.0, 0.0]),
        transition_probs=torch.eye(2),
        observation_dist=dist.Bernoulli(torch.tensor([1.0, 0.0])),
    )
    value = torch.tensor([1.0, 0.0, 1.0])
    assert hmm.smoothed_probs(value).tolist() == [[0.0, 0.0]] * 3
    assert hmm.filtered_probs(value).tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
