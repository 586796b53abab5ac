"""Derivatives of RegimeHMM: right to second order, never NaN; the caller's tensors stay as is."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Distribution

from pyro_regimes.distributions import RegimeHMM
from tests import seeds
from tests.distributions.test_against_enumeration import assert_equal

INF, NAN = math.inf, math.nan
K, T = 3, 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def log_prob_from_logits(initial, transition, loc, log_scale, value, **options):
    observed = dist.Normal(loc, log_scale.exp())
    return RegimeHMM(initial, transition, observed, **options).log_prob(value)


def log_prob_from_probs(initial, transition, loc, log_scale, value, **options):
    return RegimeHMM(
        initial_probs=initial.softmax(-1),
        transition_probs=transition.softmax(-1),
        observation_dist=dist.Normal(loc, log_scale.exp()),
        **options,
    ).log_prob(value)


LEAVES = {
    "one sequence": [(2,), (2, 2), (2,), (2,), (3,)],
    "batch, all vary in time": [(2, 2), (2, 2, 2, 2), (3, 2), (1, 2), (2, 3)],
    "T=1": [(K,), (0, K, K), (K,), (K,), (1,)],
}


def leaves(name):
    return [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(LEAVES[name])]


@pytest.mark.parametrize(
    "name, log_prob",
    [
        ("one sequence", log_prob_from_logits),
        ("one sequence", log_prob_from_probs),
        ("batch, all vary in time", log_prob_from_logits),
        ("T=1", log_prob_from_probs),
    ],
)
def test_gradients_of_first_and_second_order(name, log_prob):
    inputs = leaves(name)
    assert gradcheck(log_prob, inputs)
    assert gradgradcheck(log_prob, inputs)


def test_gradients_with_lengths():
    inputs, lengths = leaves("batch, all vary in time"), torch.tensor([2, 1])
    assert gradcheck(lambda *args: log_prob_from_logits(*args, lengths=lengths), inputs)
    total = log_prob_from_logits(*inputs, lengths=lengths).sum()
    (of_value,) = torch.autograd.grad(total, inputs[-1])
    assert torch.equal(of_value != 0, torch.arange(3) < lengths.unsqueeze(-1))


def test_the_gradient_is_the_e_step():
    """Fisher's identity, by the chain rule: of a location, gamma-weighted residuals."""
    initial, transition, loc, log_scale, value = leaves("one sequence")
    observed = dist.Normal(loc, log_scale.exp())
    hmm = RegimeHMM(initial, transition, observed)
    posterior = hmm.posterior(value)
    of_start, of_moves, of_loc = torch.autograd.grad(
        hmm.log_prob(value), [initial, transition, loc]
    )
    weights, moves = posterior.smoothed_probs, posterior.expected_transitions
    residuals = (value.unsqueeze(-1) - loc) / log_scale.exp() ** 2
    assert_equal(of_loc, (weights * residuals).sum(0))
    assert_equal(of_start, weights[0] - initial.softmax(-1))
    assert_equal(of_moves, moves - moves.sum(-1, keepdim=True) * transition.softmax(-1))


def test_the_posterior_is_differentiable():
    inputs = leaves("one sequence")

    def fields(initial, transition, loc, log_scale, value):
        hmm = RegimeHMM(initial, transition, dist.Normal(loc, log_scale.exp()))
        return tuple(hmm.posterior(value)) + (hmm.filter(value).probs,)

    assert gradcheck(fields, inputs)


def test_function_transforms():
    initial, transition, loc, log_scale, _ = (leaf.detach() for leaf in leaves("one sequence"))
    values = normal(5, T, seed=9)

    def log_prob(location, value):
        observed = dist.Normal(location, log_scale.exp(), validate_args=False)
        return RegimeHMM(initial, transition, observed, validate_args=False).log_prob(value)

    each = torch.func.vmap(torch.func.grad(log_prob), in_dims=(None, 0))(loc, values)
    location = loc.clone().requires_grad_()
    for actual, value in zip(each, values, strict=True):
        (expected,) = torch.autograd.grad(log_prob(location, value), location)
        assert_equal(actual, expected)


@pytest.mark.parametrize("filler", [NAN, INF, -INF, 1e300])
def test_padding_reaches_no_gradient(filler):
    shapes = [(K,), (K, K), (K, 2), (K, 2)]
    parameters = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    initial, transition, loc, log_scale = parameters
    value, lengths = normal(2, T, 2, seed=8), torch.tensor([2, 3])
    padding = (torch.arange(T) >= lengths.unsqueeze(-1)).unsqueeze(-1)

    def gradients(data):
        observed = dist.Normal(loc, log_scale.exp()).to_event(1)
        hmm = RegimeHMM(initial, transition, observed, lengths=lengths)
        return torch.autograd.grad(hmm.log_prob(data).sum(), parameters)

    actual = gradients(value.masked_fill(padding, filler))
    for one, other in zip(actual, gradients(value.masked_fill(padding, 0.0)), strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


def test_padding_may_lie_outside_a_support_that_moves():
    low = torch.arange(4.0, dtype=torch.float64).unsqueeze(-1)
    observed = dist.Uniform(low, low + torch.tensor([1.0, 2.0]).double(), validate_args=False)
    zeros = torch.zeros(2, 2).double()
    hmm = RegimeHMM(zeros[0], zeros, observed, lengths=torch.tensor([2, 4]))
    value = torch.tensor([[0.5, 1.5, NAN, -9.0], [0.5, 1.5, 2.5, 3.5]]).double()
    assert_equal(hmm.log_prob(value), torch.tensor([0.75**2, 0.75**4]).double().log())
    with pytest.raises(ValueError, match=r"(?s)to lie in the support .* got \[-5.5\] at 1 steps"):
        hmm.log_prob(value - torch.tensor([0.0, 0.0, 0.0, 9.0]))


ZEROS = torch.tensor([[0, 0, -INF], [-INF, 0, -INF], [0, -INF, 0]], dtype=torch.float64)


@pytest.mark.parametrize("log_prob", [log_prob_from_logits, log_prob_from_probs])
def test_zeros_give_no_nan(log_prob):
    shapes = [(K,), (K, K), (K,), (K,), (T,)]
    inputs = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    initial, transition, loc, log_scale, value = inputs
    start = torch.tensor([0.0, 0.0, -INF], dtype=torch.float64)
    total = log_prob(initial + start, transition + ZEROS, loc, log_scale, value)
    first = torch.autograd.grad(total, inputs, create_graph=True)
    for gradient in first:
        assert gradient.isfinite().all()
    assert first[0][-1] == 0
    assert (first[1][ZEROS == -INF] == 0).all()
    norm = sum((gradient**2).sum() for gradient in first)
    assert all(second.isfinite().all() for second in torch.autograd.grad(norm, inputs))
    free = (ZEROS == 0).nonzero(as_tuple=True)

    def of_entries(entries):
        matrix = (transition.detach() + ZEROS).index_put(free, entries)
        return log_prob(initial.detach() + start, matrix, loc, log_scale, value)

    assert gradcheck(of_entries, transition.detach()[free].requires_grad_())


def test_a_zero_probability_as_a_leaf_gives_no_nan():
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.0, 0.8]]).double()
    probs.requires_grad_()
    start = torch.tensor([1.0, 0.0, 0.0]).double().requires_grad_()
    loc = normal(K, seed=1).requires_grad_()
    hmm = RegimeHMM(
        initial_probs=start, transition_probs=probs, observation_dist=dist.Normal(loc, 1.0)
    )
    for gradient in torch.autograd.grad(hmm.log_prob(normal(T)), [start, probs, loc]):
        assert gradient.isfinite().all()
        assert (gradient != 0).any()


def test_probability_zero_has_gradient_zero():
    high = torch.tensor([1.0, 2.0]).double().requires_grad_()
    initial, transition = normal(2).requires_grad_(), normal(2, 2).requires_grad_()
    observed = dist.Uniform(torch.zeros(2).double(), high, validate_args=False)
    hmm = RegimeHMM(initial, transition, observed, validate_args=False)
    total = hmm.log_prob(torch.tensor([[0.5, 3.0, 0.5], [0.5, 1.5, 0.5]]).double())
    assert total[0] == -INF and total[1].isfinite()
    inputs = [initial, transition, high]
    for gradient in torch.autograd.grad(total[0], inputs, retain_graph=True):
        assert (gradient == 0).all()
    for both, alone in zip(
        torch.autograd.grad(total.sum(), inputs, retain_graph=True),
        torch.autograd.grad(total[1], inputs),
        strict=True,
    ):
        assert torch.equal(both, alone)
        assert (alone != 0).any()


def test_a_draw_leaves_the_gradient_of_lazy_logits_alone():
    probs = torch.full((2, 2), 0.5).double().requires_grad_()
    hmm = RegimeHMM(
        normal(2), None, dist.Normal(normal(2), 1.0), transition_probs=probs, duration=3
    )
    value = hmm.sample()  # computes transition_logits where gradients are off
    (gradient,) = torch.autograd.grad(hmm.log_prob(value), probs)
    assert (gradient != 0).any()


METHODS = {
    "log_prob": lambda hmm, value: hmm.log_prob(value),
    "posterior": lambda hmm, value: hmm.posterior(value),
    "viterbi": lambda hmm, value: hmm.viterbi(value),
    "filter": lambda hmm, value: hmm.filter(value),
    "sample_posterior": lambda hmm, value: hmm.sample_posterior(value, (2,)),
    "forecast": lambda hmm, value: hmm.forecast(value, 2).log_prob(torch.zeros(2).double()),
    "sample": lambda hmm, value: hmm.sample((2,)),
    "expand": lambda hmm, value: hmm.expand((3, 2)).log_prob(value),
}


@pytest.mark.parametrize("requires_grad", [False, True], ids=["data", "parameters"])
@pytest.mark.parametrize("probs", [False, True], ids=["logits", "probs"])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_the_callers_changes(name, probs, requires_grad):
    initial, transition, loc, scale = normal(K), normal(K, K), normal(K), normal(K).exp()
    if probs:
        initial, transition = initial.softmax(-1), transition.softmax(-1)
    value, lengths = normal(2, T), torch.tensor([T, 2])
    value[1, 2:] = NAN
    given = [initial, transition, loc, scale, value]
    for tensor in given[:4]:
        tensor.requires_grad_(requires_grad)
    before = [(tensor.detach().clone(), tensor._version) for tensor in given + [lengths]]
    settings = torch.get_default_dtype(), Distribution._validate_args, torch.is_grad_enabled()
    store = list(pyro.get_param_store().keys())

    observed = ExpandedDistribution(dist.Normal(loc, scale), torch.Size([K]))
    names = (
        ("initial_probs", "transition_probs") if probs else ("initial_logits", "transition_logits")
    )
    hmm = RegimeHMM(
        **dict(zip(names, (initial, transition), strict=True)),
        observation_dist=observed,
        lengths=lengths,
        duration=T if name == "sample" else None,
    )
    METHODS[name](hmm, value)

    for tensor, (copy, version) in zip(given + [lengths], before, strict=True):
        assert torch.equal(tensor.nan_to_num(7.0), copy.nan_to_num(7.0))
        assert tensor._version == version
        assert tensor.is_leaf and tensor.grad is None
    assert [tensor.requires_grad for tensor in given] == [requires_grad] * 4 + [False]
    assert observed.batch_shape == (K,)
    assert hmm.arguments[names[0]] is initial and hmm.arguments[names[1]] is transition
    assert hmm.observation_dist is observed
    after = torch.get_default_dtype(), Distribution._validate_args, torch.is_grad_enabled()
    assert after == settings
    assert list(pyro.get_param_store().keys()) == store


EXPANDED = {
    "bare": lambda: ExpandedDistribution(dist.Normal(normal(K), 1.0), torch.Size([K])),
    "in Independent": lambda: dist.Independent(
        ExpandedDistribution(dist.Normal(normal(K, 1), 1.0), torch.Size([K, 2])), 1
    ),
    "in MaskedDistribution": lambda: MaskedDistribution(EXPANDED["bare"](), True),
    "in both": lambda: MaskedDistribution(EXPANDED["in Independent"](), True),
    "in a mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(logits=normal(K, 2)),
        ExpandedDistribution(dist.Normal(normal(K, 1), 1.0), torch.Size([K, 2])),
    ),
}


@pytest.mark.parametrize("name", EXPANDED)
def test_an_expanded_distribution_inside_keeps_its_shape(name):
    """Pyro's ExpandedDistribution.expand changes itself; a draw or forecast must not reach it."""
    observed = EXPANDED[name]()

    def shapes(distribution):
        found = [distribution.batch_shape]
        for inner in vars(distribution).values():
            found += shapes(inner) if isinstance(inner, Distribution) else []
        return found

    batch_shapes = shapes(observed)
    hmm = RegimeHMM(normal(K), normal(K, K), observed, duration=T)
    value = hmm.sample((2,))
    assert hmm.forecast(value, 3).sample().shape == (2, 3) + observed.event_shape
    assert shapes(observed) == batch_shapes
    assert hmm.log_prob(hmm.sample()).shape == ()


def test_states_with_supports_of_their_own_need_no_setting() -> None:
    """Only one state can emit each value; the other's own validation must not refuse it."""
    given = {
        "initial_probs": torch.tensor([0.5, 0.5]).double(),
        "transition_probs": torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64),
    }
    low = torch.tensor([0.0, 2.0]).double()
    hmm = RegimeHMM(observation_dist=dist.Uniform(low, low + 1.0), **given)
    value = torch.tensor([0.5, 0.1, 2.5]).double()
    expected = torch.tensor(0.5 * 0.9 * 0.1, dtype=torch.float64).log()
    torch.testing.assert_close(hmm.log_prob(value), expected, rtol=1e-12, atol=0.0)
    assert hmm.viterbi(value).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="expected value to lie in the support"):
        hmm.log_prob(torch.tensor([0.5, 1.5]).double())
