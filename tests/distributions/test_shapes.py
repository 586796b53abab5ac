"""Good and bad shapes of RegimeHMM; its expansions and copies."""

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch

from pyro_regimes.distributions import Posterior, RegimeHMM
from tests import seeds

K = 3


def hmm_of(initial, transition, observation, event=(), **options):
    """A chain of zeros: leading shapes of the three arguments, time included."""
    observed = dist.Normal(torch.zeros(observation + (K,) + event), 1.0).to_event(len(event))
    return RegimeHMM(
        torch.zeros(initial + (K,)), torch.zeros(transition + (K, K)), observed, **options
    )


# (initial, transition, observation, duration) -> (batch shape, duration)
GOOD_SHAPES = [
    (((), (), (), None), ((), None)),
    (((), (1,), (1,), None), ((), None)),
    (((), (), (), 4), ((), 4)),
    (((), (), (), 1), ((), 1)),
    (((), (3,), (), None), ((), 4)),
    (((), (), (4,), None), ((), 4)),
    (((), (3,), (4,), None), ((), 4)),
    (((), (3,), (4,), 4), ((), 4)),
    (((), (3,), (1,), None), ((), 4)),
    (((), (1,), (4,), None), ((), 4)),
    (((), (1,), (2,), None), ((), 2)),
    (((), (0,), (), None), ((), 1)),
    (((), (0,), (1,), 1), ((), 1)),
    (((2,), (), (), None), ((2,), None)),
    (((), (2, 1), (), None), ((2,), None)),
    (((), (), (2, 1), None), ((2,), None)),
    (((2,), (2, 1), (2, 1), None), ((2,), None)),
    (((2,), (2, 3), (2, 4), None), ((2,), 4)),
    (((2,), (1, 3), (4,), None), ((2,), 4)),
    (((5, 1), (2, 3), (4,), None), ((5, 2), 4)),
    (((5, 1, 1), (2, 1, 1), (7, 1), 4), ((5, 2, 7), 4)),
    (((1,), (1, 1), (1, 1), None), ((1,), None)),
    (((0,), (), (), None), ((0,), None)),
]


@pytest.mark.parametrize("event", [(), (2,), (2, 2)], ids=["scalar", "vector", "matrix"])
@pytest.mark.parametrize("arguments, expected", GOOD_SHAPES)
def test_good_shapes(arguments, expected, event):
    *shapes, duration = arguments
    batch, steps = expected
    hmm = hmm_of(*shapes, event, duration=duration)
    assert hmm.state_dim == K
    assert hmm.duration == steps
    assert hmm.batch_shape == batch
    assert hmm.event_shape == (steps or 1,) + event
    assert hmm.event_dim == 1 + len(event)
    assert hmm.initial_logits.shape[-1:] == (K,)
    assert hmm.transition_logits.shape[-2:] == (K, K)
    assert hmm.transition_logits.dim() >= 3
    if 0 in batch and event:
        return  # torch's own check of the values' support refuses an empty batch of vectors

    steps = steps or 6
    for leading in ((), batch, (4,) + batch, (1,) * len(batch)):
        value = torch.zeros(leading + (steps,) + event)
        whole = torch.broadcast_shapes(leading, batch)
        assert hmm.log_prob(value).shape == whole
        assert hmm.viterbi(value).shape == whole + (steps,)
        assert hmm.sample_posterior(value, (2,)).shape == (2,) + whole + (steps,)
        posterior = hmm.posterior(value)
        assert isinstance(posterior, Posterior)
        for field in posterior[1:4]:
            assert field.shape == whole + (steps, K)
        varying = hmm.transition_logits.shape[-3] != 1
        moves = (steps - 1, K, K) if varying else (K, K)
        assert posterior.expected_transitions.shape == whole + moves
        if 0 not in batch:
            assert hmm.filter(value).batch_shape == whole
    if hmm.duration is not None:
        for sample_shape in ((), (2,), (2, 1)):
            drawn = hmm.sample(torch.Size(sample_shape))
            assert drawn.shape == hmm.shape(torch.Size(sample_shape))
            assert hmm.log_prob(drawn).shape == sample_shape + batch
            assert hmm(torch.Size(sample_shape)).shape == drawn.shape


# (initial, transition, observation, duration) and what the error says came
BAD_SHAPES = [
    (((), (3,), (3,), None), "4 from the time slices.*3 from dimension -2"),
    (((), (4,), (4,), None), "5 from the time slices.*4 from dimension -2"),
    (((), (3,), (), 3), "3 from duration, 4 from the time slices"),
    (((), (), (4,), 5), "5 from duration, 4 from dimension -2"),
    (((), (0,), (), 2), "2 from duration, 1 from the time slices"),
    (((), (0,), (2,), None), "1 from the time slices.*2 from dimension -2"),
    (((2,), (3, 1), (), None), r"initial \(2,\), transition \(3,\)"),
    (((2,), (), (3, 1), None), r"initial \(2,\).*observation_dist \(3,\)"),
    (((), (2, 1), (3, 1), None), r"transition \(2,\), observation_dist \(3,\)"),
    (((5,), (2,), (5, 1), 5), "5 from duration, 3 from the time slices"),
]


@pytest.mark.parametrize("arguments, came", BAD_SHAPES)
def test_bad_shapes(arguments, came):
    *shapes, duration = arguments
    with pytest.raises(ValueError, match=f"expected .*, got .*{came}.*dimension -3.*unsqueeze"):
        hmm_of(*shapes, duration=duration)


EXPANSIONS = [
    ((), ()),
    ((), (2,)),
    ((), (4, 2)),
    ((2,), (2,)),
    ((1,), (2,)),
    ((2,), (4, 2)),
    ((2, 1), (5, 2, 3)),
    ((1,), (0,)),
]


@pytest.mark.parametrize("before, after", EXPANSIONS)
@pytest.mark.parametrize("holder", ["initial", "transition", "observation", "lengths"])
def test_expand(before, after, holder):
    torch.manual_seed(seeds.seed(0))
    shapes = dict.fromkeys(["initial", "transition", "observation", "lengths"], ())
    shapes[holder] = before
    hmm = RegimeHMM(
        torch.randn(shapes["initial"] + (K,)),
        torch.randn(shapes["transition"] + (1, K, K)),
        dist.Normal(torch.randn(shapes["observation"] + (1, K)), 1.0),
        duration=4,
        lengths=torch.full(shapes["lengths"], 3),
    )
    larger = hmm.expand(torch.Size(after))
    assert isinstance(larger, RegimeHMM)
    assert larger.batch_shape == after
    assert hmm.batch_shape == before
    assert larger.event_shape == hmm.event_shape
    assert larger.duration == 4
    assert larger.arguments is hmm.arguments
    assert larger.sample((5,)).shape == (5,) + after + (4,)
    value = torch.randn(after + (4,))
    assert torch.equal(larger.log_prob(value), hmm.log_prob(value).expand(after))
    assert torch.equal(larger.viterbi(value), hmm.viterbi(value))
    one = torch.randn(4)
    torch.testing.assert_close(
        larger.log_prob(one), hmm.log_prob(one).expand(after), rtol=1e-6, atol=0.0
    )
    assert larger.posterior(one).smoothed_probs.shape == after + (4, K)
    assert larger.expand(torch.Size((3,) + after)).batch_shape == (3,) + after
    assert hmm.expand_by((7,)).batch_shape == (7,) + before


@pytest.mark.parametrize("after", [(3,), (), (2, 1), (-1,), (2, -1)])
def test_expand_to_what_does_not_fit(after):
    with pytest.raises(ValueError, match=r"batch_shape to be one that \(2,\) expands to, got"):
        hmm_of((2,), (), ()).expand(after)


def test_a_subclass_expands_to_its_own_kind():
    class Named(RegimeHMM):
        """With nothing of its own."""

    hmm = Named(torch.zeros(K), torch.zeros(K, K), dist.Normal(torch.zeros(K), 1.0))
    assert type(hmm.expand((2,))) is Named


@pytest.mark.parametrize("probs", [False, True], ids=["logits", "probs"])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda hmm: pickle.loads(pickle.dumps(hmm))]
)
def test_copies(duplicate, probs):
    torch.manual_seed(seeds.seed(0))
    rows = torch.randn(K).softmax(-1), torch.randn(K, K).softmax(-1)
    names = (
        ("initial_probs", "transition_probs") if probs else ("initial_logits", "transition_logits")
    )
    hmm = RegimeHMM(
        **dict(zip(names, rows, strict=True)),
        observation_dist=dist.Normal(torch.randn(K), 1.0),
        lengths=torch.tensor([3, 4]),
        validate_args=False,
        duration=4,
    ).expand((5, 2))
    value = torch.randn(2, 4)
    again = duplicate(hmm)
    assert torch.equal(again.log_prob(value), hmm.log_prob(value))
    assert again.shape() == hmm.shape() == (5, 2, 4)
    assert again.sample().shape == (5, 2, 4)
    assert repr(again) == repr(hmm)
    assert again._validate_args is False
    assert list(again.arguments) == list(names)


def test_repr_shows_what_was_given():
    shown = repr(
        RegimeHMM(
            torch.zeros(K),
            transition_probs=torch.full((K, K), 1 / K),
            observation_dist=dist.Normal(torch.zeros(K), 1.0),
        )
    )
    assert shown.startswith("RegimeHMM(initial_logits: ")
    assert "transition_probs: torch.Size([1, 3, 3])" in shown


def test_both_forms_are_there_whichever_was_given():
    logits = torch.randn(K, generator=seeds.generator(0)).double()
    observed = dist.Normal(torch.zeros(K).double(), 1.0)
    by_logits = RegimeHMM(logits, logits.expand(K, K), observed)
    by_probs = RegimeHMM(
        initial_probs=logits.softmax(-1),
        transition_probs=logits.softmax(-1).expand(K, K),
        observation_dist=observed,
    )
    for name in ("initial_logits", "transition_logits", "initial_probs", "transition_probs"):
        one, other = getattr(by_logits, name), getattr(by_probs, name)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
        expected = logits.softmax(-1) if name.endswith("probs") else logits.log_softmax(-1)
        torch.testing.assert_close(one, expected.expand(one.shape), rtol=1e-12, atol=0.0)
    assert by_logits.arguments["initial_logits"] is logits
