"""Observations that are several steps apart, against the model with missing rows between them."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import RegimeHMM
from tests import seeds

K = 3
EXACT = dict(rtol=1e-10, atol=1e-10)


def generator(seed: int) -> torch.Generator:
    return seeds.generator(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def some_gaps(*shape: int, most: int = 6, seed: int = 9) -> Tensor:
    return torch.randint(1, most + 1, shape, generator=generator(seed))


def hmm(transition: Tensor | None = None, **settings) -> RegimeHMM:
    transition = draw(K, K, seed=2) if transition is None else transition
    return RegimeHMM(
        draw(K, seed=1), transition, dist.Normal(draw(K, seed=3), 1.0), **settings
    )


def explicit(x: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
    """The sequence with missing rows in the gaps, and the places of the observations."""
    places = torch.cat([torch.zeros(1, dtype=torch.long), gaps.cumsum(0)])
    whole = torch.full((int(places[-1]) + 1,), torch.nan, dtype=x.dtype)
    whole[places] = x
    return whole, places


@pytest.mark.parametrize("num_rows", [1, 2, 3, 20])
def test_the_same_as_missing_rows(num_rows):
    x, gaps = draw(num_rows, seed=5), some_gaps(num_rows - 1)
    whole, places = explicit(x, gaps)
    chain, other = hmm(gaps=gaps), hmm(missing="marginalise")
    assert chain.duration == num_rows
    assert_close(chain.log_prob(x), other.log_prob(whole), **EXACT)
    assert_close(chain.smoothed_probs(x), other.smoothed_probs(whole)[places], **EXACT)
    assert_close(chain.filtered_probs(x), other.filtered_probs(whole)[places], **EXACT)
    one, two = chain.posterior(x), other.posterior(whole)
    assert_close(one.predicted_probs, two.predicted_probs[places], **EXACT)
    assert_close(chain.filter(x).probs, other.filter(whole).probs, **EXACT)
    assert_close(chain.forecast(x, 3).mean, other.forecast(whole, 3).mean, **EXACT)


def test_the_gradient_is_that_of_missing_rows():
    """Also at a probability of 0, whose logarithm has the derivative 0."""
    x, gaps = draw(15, seed=5), some_gaps(14)
    whole, _ = explicit(x, gaps)
    for zeros in (0, 2):
        logits = draw(K, K, seed=2)
        logits.flatten()[:zeros] = -torch.inf
        found = []
        for value, settings in ((x, {"gaps": gaps}), (whole, {"missing": "marginalise"})):
            leaf = logits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(hmm(leaf, **settings).log_prob(value), leaf)
            found.append(gradient)
        assert_close(*found, **EXACT)
        assert found[0].isfinite().all()


def test_gradcheck():
    x, gaps = draw(6, seed=5), some_gaps(5)
    leaf = draw(K, K, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: hmm(each, gaps=gaps).log_prob(x), (leaf,))
    assert torch.autograd.gradgradcheck(lambda each: hmm(each, gaps=gaps).log_prob(x), (leaf,))


def test_batches_and_lengths():
    """Each sequence with gaps of its own, or all with the same; restarts in front."""
    x, gaps = draw(4, 8, seed=5), some_gaps(4, 7)
    lengths = torch.tensor([8, 3, 1, 5])
    for row, n in enumerate(lengths.tolist()):
        gaps[row, max(n - 1, 0) :] = -7  # what comes after the length may be anything
    chain = hmm(gaps=gaps, lengths=lengths)
    assert chain.batch_shape == (4,) and chain.event_shape == (8,)
    alone = [hmm(gaps=gaps[i, : n - 1]).log_prob(x[i, :n]) for i, n in enumerate(lengths.tolist())]
    assert_close(chain.log_prob(x), torch.stack(alone), **EXACT)

    shared = some_gaps(7)
    alone = torch.stack([hmm(gaps=shared).log_prob(each) for each in x])
    assert_close(hmm(gaps=shared).log_prob(x), alone, **EXACT)
    assert_close(hmm(gaps=shared).expand([4]).log_prob(x), alone, **EXACT)

    logits = draw(2, 1, 1, K, K, seed=8)
    gaps = some_gaps(4, 7)
    both = hmm(logits, gaps=gaps).log_prob(x)
    assert both.shape == (2, 4)
    for restart in range(2):
        for row in range(4):
            one = hmm(logits[restart, 0, 0], gaps=gaps[row]).log_prob(x[row])
            assert_close(both[restart, row], one, **EXACT)


def test_single_steps_are_no_gaps():
    x = draw(9, seed=5)
    assert torch.equal(hmm(gaps=torch.ones(8, dtype=torch.long)).log_prob(x), hmm().log_prob(x))


def test_the_path():
    x, gaps = draw(7, seed=5), some_gaps(6, most=3)
    matrix = hmm().transition_probs[0]
    slices = torch.stack([torch.linalg.matrix_power(matrix, int(g)) for g in gaps]).log()
    chain, other = hmm(gaps=gaps), hmm(slices)
    assert_close(chain.log_prob(x), other.log_prob(x), **EXACT)
    assert torch.equal(chain.viterbi(x), other.viterbi(x))
    assert_close(chain.posterior(x).expected_transitions, other.posterior(x).expected_transitions)


def test_very_long_gaps_forget():
    """After a million steps the state is that of the stationary distribution."""
    x, gaps = draw(2, seed=5), torch.tensor([1_000_003])
    chain = hmm(gaps=gaps)
    first, second = hmm(), hmm()
    stationary = torch.linalg.matrix_power(chain.transition_probs[0], 1000)[0]
    fresh = RegimeHMM(
        initial_probs=stationary, transition_logits=draw(K, K, seed=2),
        observation_dist=chain.observation_dist,
    )  # fmt: skip
    assert_close(chain.log_prob(x), first.log_prob(x[:1]) + fresh.log_prob(x[1:]), **EXACT)
    assert second.duration is None


def test_impossible_transitions_and_float32():
    """A ring: after two steps no state is where it was; after three it may be only there."""
    ring = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    loc = torch.tensor([-50.0, 0, 50])
    chain = RegimeHMM(
        initial_probs=torch.tensor([1.0, 0, 0]), transition_probs=ring.requires_grad_(),
        observation_dist=dist.Normal(loc, 1.0), gaps=torch.tensor([3, 2, 1]),
    )  # fmt: skip
    x = torch.tensor([-50.0, -50, 50, -50])
    value = chain.log_prob(x)
    assert value.dtype == torch.float32 and value.isfinite()
    assert torch.equal(chain.viterbi(x), torch.tensor([0, 0, 2, 0]))
    (gradient,) = torch.autograd.grad(value, ring)
    assert gradient.isfinite().all()
    small = torch.tensor([[1 - 1e-30, 1e-30], [0, 1.0]])
    rare = RegimeHMM(
        initial_probs=torch.tensor([1.0, 0]), transition_probs=small,
        observation_dist=dist.Normal(torch.tensor([0.0, 1000]), 1.0), gaps=torch.tensor([5]),
    )  # fmt: skip
    expected = 2 * dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) + torch.tensor(5e-30).log()
    assert_close(rare.log_prob(torch.tensor([0.0, 1000])), expected)


def test_samples_keep_to_the_gaps():
    torch.manual_seed(seeds.seed(0))
    ring = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    chain = RegimeHMM(
        initial_probs=torch.tensor([1.0, 0, 0]), transition_probs=ring,
        observation_dist=dist.Normal(torch.tensor([-100.0, 0, 100]), 1.0),
        gaps=torch.tensor([3, 2, 1]),
    )  # fmt: skip
    drawn = (chain.sample((5,)) / 100).round()
    assert torch.equal(drawn, torch.tensor([-1.0, -1, 1, -1]).expand(5, 4))


@pytest.mark.parametrize(
    "gaps, message",
    [
        ([1, 2], "gaps to be an integer tensor, got list"),
        (torch.tensor([1.0, 2.0]), "gaps to be an integer tensor, got dtype torch.float32"),
        (torch.tensor([True]), "gaps to be an integer tensor, got dtype torch.bool"),
        (torch.tensor(3), r"gaps of shape \(..., T-1\), got shape \(\)"),
        (torch.tensor([1, 0, 2]), r"gaps of at least 1 step, got 0 at \(1,\)"),
    ],
)
def test_wrong_ones_are_refused(gaps, message):
    with pytest.raises(ValueError, match=message):
        hmm(gaps=gaps)


def test_other_arguments_must_agree():
    with pytest.raises(ValueError, match="constant in time where there are gaps, got 4 slices"):
        hmm(draw(4, K, K), gaps=some_gaps(4))
    with pytest.raises(ValueError, match="equal numbers of time steps, .* last dimension of gaps"):
        hmm(gaps=some_gaps(4), duration=4)
    with pytest.raises(ValueError, match="batch shapes that broadcast, .* gaps"):
        hmm(draw(3, 1, K, K), gaps=some_gaps(2, 4))
    with pytest.raises(ValueError, match="expected value to have 5 time steps"):
        hmm(gaps=some_gaps(4)).log_prob(draw(4))
