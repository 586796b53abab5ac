"""Properties of the distribution that hold whatever the sizes, layouts and dtypes."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.properties.strategies import PROPERTY, Chain, batches, chains, layouts

TOLERANCE = dict(rtol=1e-9, atol=1e-9)


@PROPERTY
@given(st.data(), chains())
def test_states_may_be_renamed(data: st.DataObject, chain: Chain) -> None:
    order = torch.tensor(data.draw(st.permutations(range(chain.num_states))))
    renamed = Chain(
        chain.initial[order],
        chain.transition[..., order, :][..., order],
        chain.loc[order],
        chain.covariance[order],
        chain.value,
    )
    hmm, other = chain.hmm(), renamed.hmm()
    assert_close(other.log_prob(chain.value), hmm.log_prob(chain.value), **TOLERANCE)
    found, expected = other.posterior(chain.value), hmm.posterior(chain.value)
    assert_close(found.smoothed_probs, expected.smoothed_probs[..., order], **TOLERANCE)
    assert_close(found.filtered_probs, expected.filtered_probs[..., order], **TOLERANCE)
    moved = expected.expected_transitions[..., order, :][..., order]
    assert_close(found.expected_transitions, moved, **TOLERANCE)
    assert torch.equal(order[other.viterbi(chain.value)], hmm.viterbi(chain.value))


@PROPERTY
@given(st.data(), chains(least_steps=2))
def test_a_sequence_may_be_split(data: st.DataObject, chain: Chain) -> None:
    """log p(x) is that of the first part and of the rest given the first."""
    at = data.draw(st.integers(1, chain.num_steps - 1))
    varies = chain.transition.dim() > 2
    first, rest = chain.value[:at], chain.value[at:]
    moves = chain.transition.log_softmax(-1)
    before = chain._replace(transition=moves[: at - 1] if varies and at > 1 else moves[:1]
                            if varies else moves, value=first)  # fmt: skip
    filtered = before.hmm().filter(first).logits  # of its last state
    step = moves[at - 1] if varies else moves
    predicted = (filtered.unsqueeze(-1) + step).logsumexp(-2)
    if varies:
        later = moves[at:] if len(rest) > 1 else moves[:1]
    else:
        later = moves
    after = chain._replace(initial=predicted, transition=later, value=rest)
    both = before.hmm().log_prob(first) + after.hmm().log_prob(rest)
    assert_close(both, chain.hmm().log_prob(chain.value), **TOLERANCE)
    whole = chain.hmm().posterior(chain.value)
    assert_close(after.hmm().posterior(rest).smoothed_probs, whole.smoothed_probs[at:], **TOLERANCE)


@PROPERTY
@given(st.data(), chains(batch=batches))
def test_a_batch_is_a_loop(data: st.DataObject, chain: Chain) -> None:
    shape = chain.value.shape[:-2]
    drawn = [data.draw(st.integers(1, chain.num_steps)) for _ in range(shape.numel())]
    lengths = torch.tensor(drawn, dtype=torch.long).reshape(shape)
    hmm = chain.hmm(lengths)
    log_prob, path = hmm.log_prob(chain.value), hmm.viterbi(chain.value)
    smoothed = hmm.posterior(chain.value).smoothed_probs
    assert log_prob.shape == shape and path.shape == shape + (chain.num_steps,)
    for index in itertools.product(*map(range, shape)):
        steps = int(lengths[index])
        alone = chain.value[index][:steps]
        own = chain
        if chain.transition.dim() > 2:
            own = chain._replace(transition=chain.transition[: max(steps - 1, 1)])
        assert_close(log_prob[index], own.hmm().log_prob(alone), **TOLERANCE)
        posterior = own.hmm().posterior(alone)
        assert_close(smoothed[index][:steps], posterior.smoothed_probs, **TOLERANCE)
        assert (smoothed[index][steps:] == 0).all() and (path[index][steps:] == -1).all()
        assert torch.equal(path[index][:steps], own.hmm().viterbi(alone))


@PROPERTY
@given(st.data(), chains(batch=batches))
def test_strides_do_not_matter(data: st.DataObject, chain: Chain) -> None:
    other = Chain(*(data.draw(layouts(part)) for part in chain))
    assert all(torch.equal(one, two) for one, two in zip(chain, other, strict=True))
    found, expected = other.hmm().log_prob(other.value), chain.hmm().log_prob(chain.value)
    assert_close(found, expected, rtol=1e-13, atol=1e-13)
    found = other.hmm().posterior(other.value).smoothed_probs
    expected = chain.hmm().posterior(chain.value).smoothed_probs
    assert_close(found, expected, rtol=1e-13, atol=1e-13)


@PROPERTY
@given(chains(batch=batches))
def test_float32_is_float64_to_its_own_rounding(chain: Chain) -> None:
    single = chain.to(torch.float32)
    exact = single.to(torch.float64)  # the very numbers
    found, expected = single.hmm().log_prob(single.value), exact.hmm().log_prob(exact.value)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    found = single.hmm().posterior(single.value).smoothed_probs
    expected = exact.hmm().posterior(exact.value).smoothed_probs
    assert_close(found.double(), expected.double(), rtol=0.0, atol=2e-3)


@PROPERTY
@given(chains())
def test_expectations_are_consistent(chain: Chain) -> None:
    """Each gamma sums to 1, and is the marginal of xi from either side."""
    posterior = chain.hmm().posterior(chain.value)
    gamma, xi = posterior.smoothed_probs, posterior.expected_transitions
    assert_close(gamma.sum(-1), torch.ones(chain.num_steps).double(), **TOLERANCE)
    if chain.transition.dim() > 2:
        xi = xi.sum(-3)
    assert_close(xi.sum(-1), gamma[:-1].sum(0), **TOLERANCE)
    assert_close(xi.sum(-2), gamma[1:].sum(0), **TOLERANCE)


@PROPERTY
@given(st.data(), chains(batch=batches))
def test_probabilities_alone_are_those_of_the_posterior(data: st.DataObject, chain: Chain) -> None:
    """On padding too, and with their gradients."""
    shape = chain.value.shape[:-2]
    drawn = [data.draw(st.integers(1, chain.num_steps)) for _ in range(shape.numel())]
    lengths = torch.tensor(drawn, dtype=torch.long).reshape(shape)
    loc = chain.loc.clone().requires_grad_()
    hmm = chain._replace(loc=loc).hmm(data.draw(st.sampled_from([None, lengths])))
    posterior = hmm.posterior(chain.value)
    for kind in ("smoothed_probs", "filtered_probs"):
        found, expected = getattr(hmm, kind)(chain.value), getattr(posterior, kind)
        assert_close(found, expected, **TOLERANCE)
        weight = torch.linspace(0, 1, found.numel()).double().reshape(found.shape)
        (one,) = torch.autograd.grad((weight * found).sum(), loc)
        (other,) = torch.autograd.grad((weight * expected).sum(), loc, retain_graph=True)
        assert_close(one, other, rtol=1e-8, atol=1e-8)
