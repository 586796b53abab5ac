"""The questions of Pyro's own suite for ``DiscreteHMM``, put to RegimeHMM and to ``DiscreteHMM``.

Each test names the case of pyro-ppl 1.9's ``tests/distributions/test_hmm.py`` whose question it
asks: its shapes, arguments and properties. The code is our own, and the answers are compared, in
float64 to 1e-10, where that suite looks at shapes only.

Pyro's chain makes one transition before its first observation, ours none (the first observation
is emitted by the initial state). Two bridges cross that:

*ours first*: what the case calls the initial logits are ours. Pyro is given T transition slices of
which slice 0 holds our initial logits in every row.

*Pyro's first*: Pyro is given the case's arguments as they are. Ours is the initial distribution
after its transition slice 0, and the slices from 1 on.

On either bridge T transition slices of the case become T - 1 of ours; a constant transition stays
constant. All other shapes are as in the case.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.kernels import ops, reference
from tests import seeds
from tests.distributions.test_against_enumeration import assert_equal

Shape = tuple[int, ...]

BRIDGES = ["ours first", "Pyro's first"]
STATE_DIMS = [2, 3]
EVENT_SHAPES: list[Shape] = [(), (5,), (2, 3)]

#: ``test_discrete_hmm_shape``, ok: initial batch, transition batch and T, observation batch and T
GOOD_SHAPES: list[tuple[Shape, Shape, Shape]] = [
    ((), (), (1,)),
    ((), (1,), (1,)),
    ((), (), (7,)),
    ((), (7,), (7,)),
    ((), (1,), (7,)),
    ((), (7,), (11, 7)),
    ((), (11, 7), (7,)),
    ((), (11, 7), (11, 7)),
    ((11,), (7,), (7,)),
    ((11,), (7,), (11, 7)),
    ((11,), (11, 7), (7,)),
    ((11,), (11, 7), (11, 7)),
    ((4, 1, 1), (3, 1, 7), (2, 7)),
]

#: ``test_discrete_hmm_shape``, not ok; and what our error says
BAD_SHAPES: list[tuple[Shape, Shape, Shape, str]] = [
    ((), (1,), (), r"expected value to have shape \(\.\.\., T\)"),
    ((), (7,), (), r"expected value to have shape \(\.\.\., T\)"),
    ((), (7,), (1,), "expected value to have 7 time steps"),
    ((), (7,), (6,), "expected equal numbers of time steps, got 7 .*6 "),
    ((3,), (4, 7), (7,), r"expected batch shapes that broadcast, got .*\(3,\).*\(4,\)"),
    ((3,), (7,), (4, 7), r"expected batch shapes that broadcast, got .*\(3,\).*\(4,\)"),
    ((), (3, 7), (4, 7), r"expected batch shapes that broadcast, got .*\(3,\).*\(4,\)"),
]

#: ``test_discrete_hmm_homogeneous_trick``: T comes with the data
HOMOGENEOUS_SHAPES: list[tuple[Shape, Shape, Shape]] = [
    ((), (), ()),
    ((), (1,), ()),
    ((), (), (1,)),
    ((), (1,), (7, 1)),
    ((), (7, 1), (1,)),
    ((), (7, 1), (7, 1)),
    ((7,), (1,), (1,)),
    ((7,), (1,), (7, 1)),
    ((7,), (7, 1), (1,)),
    ((7,), (7, 1), (7, 1)),
    ((4, 1, 1), (3, 1, 1), (2, 1)),
]


def bernoulli(rows: Shape, event_shape: Shape, parameter) -> dist.TorchDistribution:
    return dist.Bernoulli(logits=parameter(*rows, *event_shape)).to_event(len(event_shape))


def diag_normal(rows: Shape, event_shape: Shape, parameter) -> dist.TorchDistribution:
    loc, log_scale = parameter(*rows, *event_shape), parameter(*rows, *event_shape)
    return dist.Normal(loc, log_scale.exp()).to_event(len(event_shape))


def multivariate_normal(rows: Shape, event_shape: Shape, parameter) -> dist.TorchDistribution:
    size = event_shape[0]
    factor = parameter(*rows, size, size)
    covariance = factor @ factor.mT + torch.eye(size, dtype=factor.dtype)
    return dist.MultivariateNormal(parameter(*rows, size), covariance)


def categorical(rows: Shape, event_shape: Shape, parameter) -> dist.TorchDistribution:
    return dist.Categorical(logits=parameter(*rows, *event_shape, 4)).to_event(len(event_shape))


#: The suite's tables are of Bernoulli; the others are its further cases, and MultivariateNormal.
FAMILIES = {
    "Bernoulli": (bernoulli, EVENT_SHAPES),
    "Normal": (diag_normal, [(), (5,)]),
    "MultivariateNormal": (multivariate_normal, [(2,)]),
    "Categorical": (categorical, [(), (2,)]),
}
FAMILY_EVENTS = [
    pytest.param(make, event_shape, id=f"{name}{event_shape}")
    for name, (make, event_shapes) in FAMILIES.items()
    for event_shape in event_shapes
]


class Question(NamedTuple):
    """A case's own arguments, and every leaf behind them."""

    initial: Tensor  # init_shape + (K,)
    transition: Tensor  # trans_shape + (K, K), trans_shape ending in T, in 1 or empty
    observation_dist: dist.TorchDistribution  # obs_shape + (K,)
    leaves: list[Tensor]


def question(shapes: tuple[Shape, Shape, Shape], state_dim: int, make, event_shape) -> Question:
    generator = seeds.generator(state_dim)
    leaves: list[Tensor] = []

    def parameter(*shape: int) -> Tensor:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        leaves.append(value.requires_grad_())
        return leaves[-1]

    initial, transition, observed = (shape + (state_dim,) for shape in shapes)
    return Question(
        parameter(*initial),
        parameter(*transition, state_dim),
        make(observed, event_shape, parameter),
        leaves,
    )


def without_first_slice(transition: Tensor) -> Tensor:
    """T slices to T - 1; constant transitions stay as they are."""
    if transition.dim() == 2 or transition.shape[-3] == 1:
        return transition
    return transition[..., 1:, :, :]


def with_first_slice(initial: Tensor, later: Tensor, num_steps: int) -> Tensor:
    """T slices, slice 0 holding the initial logits in every row."""
    later = later if later.dim() > 2 else later.unsqueeze(-3)
    square = later.shape[-2:]
    batch = torch.broadcast_shapes(initial.shape[:-1], later.shape[:-3])
    first = initial[..., None, None, :].expand(batch + (1,) + square)
    return torch.cat([first, later.expand(batch + (num_steps - 1,) + square)], -3)


def both(asked: Question, bridge: str, num_steps: int) -> tuple[RegimeHMM, dist.DiscreteHMM]:
    """The two that must agree, for data of that many steps."""
    initial, transition, observation_dist, _ = asked
    later = without_first_slice(transition)
    if bridge == "ours first":
        slices = with_first_slice(initial, later, num_steps)
        theirs = dist.DiscreteHMM(slices.new_zeros(slices.shape[-1]), slices, observation_dist)
        return RegimeHMM(initial, later, observation_dist), theirs
    first = transition if transition.dim() == 2 else transition[..., 0, :, :]
    moved = (initial.log_softmax(-1).unsqueeze(-1) + first.log_softmax(-1)).logsumexp(-2)
    theirs = dist.DiscreteHMM(initial, transition, observation_dist)
    return RegimeHMM(moved, later, observation_dist), theirs


def draw(observation_dist: dist.TorchDistribution, shape: Shape) -> Tensor:
    """Data of ``shape + event``, from state 0."""
    torch.manual_seed(seeds.seed(0))
    whole = observation_dist.expand(shape + observation_dist.batch_shape[-1:]).sample()
    return whole.select(len(shape), 0)


def assert_both_say_the_same(
    ours: RegimeHMM, theirs: dist.DiscreteHMM, data: Tensor, leaves: list[Tensor]
) -> None:
    """log_prob, its gradient in every leaf and in the data, and the filter."""
    data = data.clone().requires_grad_(not ours.support.is_discrete)
    actual, expected = ours.log_prob(data), theirs.log_prob(data)
    assert_equal(actual, expected)
    weights = torch.linspace(0.5, 1.5, actual.numel(), dtype=torch.float64).reshape(actual.shape)
    inputs = leaves + [data] * data.requires_grad
    gradients = [
        torch.autograd.grad((value * weights).sum(), inputs, retain_graph=True, allow_unused=True)
        for value in (actual, expected)
    ]
    assert_gradients_equal(*gradients, inputs)
    assert_equal(ours.filter(data).probs, theirs.filter(data).probs)


def assert_gradients_equal(actual, expected, inputs) -> None:
    """With None as 0: where there is one step, no transition takes part."""
    for one, other, leaf in zip(actual, expected, inputs, strict=True):
        none = torch.zeros_like(leaf)
        assert_equal(none if one is None else one, none if other is None else other)


def assert_expands(hmm: RegimeHMM, data: Tensor) -> None:
    """``check_expand``."""
    shape = (2,) + hmm.batch_shape
    wider = hmm.expand(shape)
    assert wider.batch_shape == shape
    value = wider.log_prob(data)
    assert value.shape == shape
    assert_equal(value, hmm.log_prob(data).expand(shape))
    again = wider.log_prob(data.expand(shape + data.shape[data.dim() - hmm.event_dim :]))
    assert again.shape == shape
    assert_equal(again, value)


def assert_samples(hmm: RegimeHMM) -> None:
    """``check_sample_shape``."""
    for sample_shape in [(), (2,), (3,)]:
        sample = hmm.sample(torch.Size(sample_shape))
        assert sample.shape == sample_shape + hmm.batch_shape + hmm.event_shape
        assert hmm.log_prob(sample).shape == sample_shape + hmm.batch_shape


@pytest.mark.parametrize("state_dim", STATE_DIMS)
@pytest.mark.parametrize("make, event_shape", FAMILY_EVENTS)
@pytest.mark.parametrize("shapes", GOOD_SHAPES, ids=str)
def test_good_shapes(shapes, make, event_shape, state_dim):
    """``test_discrete_hmm_shape``, its good shapes: 13 x 2 state dims x 3 events of Bernoulli."""
    asked = question(shapes, state_dim, make, event_shape)
    initial, transition, observed = shapes
    data = draw(asked.observation_dist, observed)
    num_steps = observed[-1]
    batch = torch.broadcast_shapes(initial, transition[:-1], observed[:-1])
    for bridge in BRIDGES:
        ours, theirs = both(asked, bridge, num_steps)
        assert ours.batch_shape == theirs.batch_shape == batch
        assert ours.event_shape == (num_steps,) + event_shape
        assert ours.support.event_dim == ours.event_dim == 1 + len(event_shape)
        assert ours.log_prob(data).shape == batch
        assert_both_say_the_same(ours, theirs, data, asked.leaves)

    assert_expands(ours, data)
    final = ours.filter(data)
    assert isinstance(final, dist.Categorical)
    assert final.batch_shape == batch
    assert final.event_shape == ()
    assert final.support.upper_bound == state_dim - 1

    # The suite samples where T is known of the arguments: 1 is not, there or here.
    if num_steps > 1:
        assert ours.duration == theirs.duration == num_steps
        assert_samples(ours)
    fixed = RegimeHMM(*ours.arguments.values(), ours.observation_dist, duration=num_steps)
    assert fixed.duration == num_steps
    assert fixed.event_shape == (num_steps,) + event_shape
    assert_samples(fixed)


@pytest.mark.parametrize("state_dim", STATE_DIMS)
@pytest.mark.parametrize("event_shape", EVENT_SHAPES, ids=str)
@pytest.mark.parametrize("initial, transition, observed, came", BAD_SHAPES)
def test_bad_shapes(initial, transition, observed, came, event_shape, state_dim):
    """``test_discrete_hmm_shape``, its bad shapes: 7 x 2 state dims x 3 events; both refuse.

    T transition slices are T - 1 here too: ``(7,)`` beside observations ``(6,)`` are 6 slices
    beside 6 steps.
    """
    asked = question((initial, transition, observed), state_dim, bernoulli, event_shape)
    data = draw(asked.observation_dist, observed)
    with pytest.raises(ValueError):
        dist.DiscreteHMM(asked.initial, asked.transition, asked.observation_dist).log_prob(data)
    later = without_first_slice(asked.transition)
    for validate_args in (None, False):
        with pytest.raises(ValueError, match=came):
            hmm = RegimeHMM(asked.initial, later, asked.observation_dist, validate_args)
            hmm.log_prob(data)


@pytest.mark.parametrize("shapes", [each for each in GOOD_SHAPES if 7 in each[1][-1:]], ids=str)
def test_as_many_slices_as_observations(shapes):
    """The good shapes with T slices, untranslated: time is never guessed."""
    asked = question(shapes, 3, bernoulli, ())
    with pytest.raises(ValueError, match="expected equal numbers of time steps, got 8 .*7 "):
        RegimeHMM(asked.initial, asked.transition, asked.observation_dist)


@pytest.mark.parametrize("state_dim", STATE_DIMS)
@pytest.mark.parametrize("event_shape", EVENT_SHAPES, ids=str)
@pytest.mark.parametrize("shapes", HOMOGENEOUS_SHAPES, ids=str)
def test_homogeneous(shapes, event_shape, state_dim):
    """``test_discrete_hmm_homogeneous_trick``: 11 shapes x 2 state dims x 3 events x 3 lengths."""
    asked = question(shapes, state_dim, bernoulli, event_shape)
    initial, transition, observed = shapes
    batch = torch.broadcast_shapes(initial, transition[:-1], observed[:-1])
    for num_steps, bridge in itertools.product([1, 2, 3], BRIDGES):
        ours, theirs = both(asked, bridge, num_steps)
        assert ours.batch_shape == theirs.batch_shape == batch
        assert ours.event_shape == (1,) + event_shape
        assert ours.duration is None
        assert ours.support.event_dim == ours.event_dim
        data = draw(asked.observation_dist, batch + (num_steps,))
        assert data.shape == batch + (num_steps,) + event_shape
        assert ours.log_prob(data).shape == batch
        assert_both_say_the_same(ours, theirs, data, asked.leaves)
        with pytest.raises(ValueError, match="expected duration"):
            ours.sample()


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize(
    "shapes", [((0,), (), (7,)), ((), (0, 1), (7,)), ((0,), (0, 7), (0, 7)), ((), (7,), (3, 0, 7))]
)
def test_no_sequences(shapes, bridge):
    """Not in that suite: its table with batches of size 0."""
    # Of scalars, as torch's Independent and MultivariateNormal refuse to be empty.
    asked = question(shapes, 2, diag_normal, ())
    ours, theirs = both(asked, bridge, 7)
    initial, transition, observed = shapes
    batch = torch.broadcast_shapes(initial, transition[:-1], observed[:-1])
    assert ours.batch_shape == theirs.batch_shape == batch
    data = torch.zeros(7, dtype=torch.float64)
    actual, expected = ours.log_prob(data), theirs.log_prob(data)
    assert actual.shape == expected.shape == batch
    for value in (actual, expected):
        gradients = torch.autograd.grad(
            value.sum(), asked.leaves, retain_graph=True, allow_unused=True
        )
        assert all(one is None or (one == 0).all() for one in gradients)
    assert ours.filter(data).batch_shape == batch
    assert ours.sample().shape == batch + (7,)


def enumerated_loss(
    initial: Tensor, transition: Tensor, observation_dist_of, data: Tensor, event_dim: int
) -> Tensor:
    """The model written out, a sample statement for each state; all of them summed over."""

    @config_enumerate
    def model() -> None:
        state = pyro.sample("state_0", dist.Categorical(logits=initial))
        for t in range(data.shape[-1 - event_dim]):
            if t:
                rows = Vindex(transition)[t - 1, state]
                state = pyro.sample(f"state_{t}", dist.Categorical(logits=rows))
            pyro.sample(f"x_{t}", observation_dist_of(t, state), obs=data[t])

    return TraceEnum_ELBO().differentiable_loss(model, lambda: None)


@pytest.mark.parametrize("num_steps", range(1, 10))
@pytest.mark.parametrize("family", ["Categorical", "diag Normal"])
def test_enumerated_model(family, num_steps):
    """``test_discrete_hmm_categorical`` and ``test_discrete_hmm_diag_normal``, 9 lengths each.

    The written-out model is of our convention. Pyro's own is on the bridge.
    """
    generator = seeds.generator(num_steps)

    def parameter(*shape: int) -> Tensor:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        return value.requires_grad_()

    initial, transition = parameter(3), parameter(num_steps, 3, 3)
    if family == "Categorical":
        logits = parameter(num_steps, 3, 4)
        observed, leaves, event_dim = dist.Categorical(logits=logits), [logits], 0
        data = torch.randint(4, (num_steps,), generator=generator)

        def observation_dist_of(t: int, state: Tensor) -> dist.TorchDistribution:
            return dist.Categorical(logits=Vindex(logits)[t, state])

    else:
        loc, log_scale = parameter(num_steps, 3, 2), parameter(num_steps, 3, 2)
        observed = dist.Normal(loc, log_scale.exp()).to_event(1)
        leaves, event_dim = [loc, log_scale], 1
        data = parameter(num_steps, 2).detach()

        def observation_dist_of(t: int, state: Tensor) -> dist.TorchDistribution:
            at = Vindex(loc)[t, state], Vindex(log_scale)[t, state].exp()
            return dist.Normal(*at).to_event(1)

    asked = Question(initial, transition, observed, [initial, transition] + leaves)
    ours, theirs = both(asked, "ours first", num_steps)
    assert_both_say_the_same(ours, theirs, data, asked.leaves)
    assert ours.log_prob(data).shape == ours.batch_shape == ()
    assert_expands(ours, data)
    if ours.duration is not None:
        assert_samples(ours)

    def marginal() -> None:
        pyro.sample("x", ours, obs=data)

    loss = Trace_ELBO().differentiable_loss(marginal, lambda: None)
    expected_loss = enumerated_loss(
        initial, transition[1:], observation_dist_of, data, event_dim
    )
    assert_equal(loss, expected_loss)
    gradients = [
        torch.autograd.grad(value, asked.leaves, allow_unused=True)
        for value in (loss, expected_loss)
    ]
    assert_gradients_equal(*gradients, asked.leaves)


def test_means_of_draws():
    """``test_discrete_hmm_distribution``: the means of two observations, worked out by hand.

    There, a noisy identity leads to the first observation, and a noisy flip to the second. Here
    the noisy identity is applied to the initial distribution.
    """
    torch.manual_seed(seeds.seed(0))
    same, flip = torch.tensor([[[0.9, 0.1], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]]]).double()
    hmm = RegimeHMM(
        initial_probs=torch.tensor([0.9, 0.1]).double() @ same,
        transition_probs=flip.unsqueeze(0),
        observation_dist=dist.Normal(torch.tensor([0.0, 1.0]).double(), 0.1),
        duration=2,  # one slice is constant in time here, and says nothing of T
    )
    draws = 1_000_000
    actual = hmm.sample((draws,)).mean(0)
    expected = torch.tensor([0.9 * 0.1 + 0.1 * 0.9, 0.9**3 + 3 * 0.9 * 0.1**2]).double()
    deviation = ((expected * (1 - expected) + 0.01) / draws).sqrt()
    assert ((actual - expected).abs() < 4 * deviation).all()


@pytest.mark.parametrize("num_steps", range(1, 20))
@pytest.mark.parametrize("state_dim", STATE_DIMS)
@pytest.mark.parametrize("batch_shape", [(), (5,), (2, 4)], ids=str)
def test_products_of_matrices(batch_shape, state_dim, num_steps, monkeypatch):
    """``test_sequential_logmatmulexp``, 19 x 2 x 3: products of matrices of logarithms by a scan.

    Ours has no such function. The entry (i, j) of the product is the likelihood of a chain that
    starts in i, ends in j and observes nothing else.
    """
    monkeypatch.setattr(reference, "_MIN_BLOCKED_STEPS", 1)  # a scan also for short sequences
    generator = seeds.generator(num_steps)
    shape = batch_shape + (num_steps, state_dim, state_dim)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    expected = functools.reduce(torch.matmul, logits.exp().unbind(-3)).log()
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits, retain_graph=True)

    one_hot = torch.eye(state_dim, dtype=torch.float64).log()
    starts = one_hot.unsqueeze(-2)  # (K, 1, K)
    ends = torch.zeros(state_dim, num_steps + 1, state_dim, dtype=torch.float64)
    ends[:, -1] = one_hot
    for backend in ("reference", "cpu"):
        with ops.backend(backend):
            actual = ops.log_likelihood(starts, logits[..., None, None, :, :, :], ends)
            (gradient,) = torch.autograd.grad(actual.sum(), logits)
        assert actual.shape == batch_shape + (state_dim, state_dim)
        assert_equal(actual, expected)
        assert_equal(gradient, expected_gradient)
