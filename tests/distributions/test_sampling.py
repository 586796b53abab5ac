"""Draws of RegimeHMM: their shapes, and their frequencies against the chain's own."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_regimes.distributions import RegimeHMM
from tests import seeds
from tests.frequencies import assert_binomial

#: far apart, so that a draw shows its state
LOC = torch.tensor([-100.0, 0.0, 100.0])
INITIAL = torch.tensor([0.2, 0.5, 0.3])
TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.6, 0.4], [0.3, 0.3, 0.4]])


def states_of(value):
    return (value.unsqueeze(-1) - LOC).abs().argmin(-1)


def chain(transition=TRANSITION, initial=INITIAL, **options):
    return RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.Normal(LOC, 1.0),
        **options,
    )


def check_frequencies(value, initial, matrices):
    """The marginal of every time, and of every pair of times that follow each other."""
    states, draws = states_of(value), len(value)
    marginal = initial.double()
    for step in range(value.shape[-1]):
        one_hot = torch.nn.functional.one_hot(states[:, step], 3)
        assert_binomial(one_hot.sum(0), draws, marginal)
        if step < len(matrices):
            pair = marginal.unsqueeze(-1) * matrices[step].double()
            following = torch.nn.functional.one_hot(states[:, step + 1], 3)
            pairs = one_hot.unsqueeze(-1) * following.unsqueeze(-2)
            assert_binomial(pairs.sum(0), draws, pair)
            marginal = marginal @ matrices[step].double()


def test_a_homogeneous_chain():
    torch.manual_seed(seeds.seed(0))
    value = chain(duration=4).sample((10_000,))
    assert value.shape == (10_000, 4)
    check_frequencies(value, INITIAL, [TRANSITION] * 3)


def test_transitions_that_vary_in_time():
    torch.manual_seed(seeds.seed(1))
    matrices = torch.stack([TRANSITION, TRANSITION.flip(0), torch.eye(3)])
    value = chain(matrices).sample((10_000,))
    check_frequencies(value, INITIAL, list(matrices))


def test_a_stationary_chain_stays_so():
    torch.manual_seed(seeds.seed(2))
    stationary = torch.linalg.matrix_power(TRANSITION.double(), 200)[0]
    stationary /= stationary.sum()  # the rows are of float32
    value = chain(initial=stationary.float(), duration=30).sample((4_000,))
    for step in (0, -1):
        assert_binomial(states_of(value[:, step]).bincount(minlength=3), 4_000, stationary)


def test_each_member_of_a_batch_has_its_own_chain():
    torch.manual_seed(seeds.seed(3))
    both = torch.stack([TRANSITION, TRANSITION.flip(-1)]).unsqueeze(-3)
    value = chain(both, duration=3).sample((10_000,))
    assert value.shape == (10_000, 2, 3)
    for member in range(2):
        check_frequencies(value[:, member], INITIAL, [both[member, 0]] * 2)


def test_members_of_an_expanded_batch_are_drawn_apart():
    torch.manual_seed(seeds.seed(4))
    value = chain(duration=3).expand((10_000,)).sample()
    assert value.shape == (10_000, 3)
    check_frequencies(value, INITIAL, [TRANSITION] * 2)


def test_observations_follow_their_state_and_time():
    torch.manual_seed(seeds.seed(5))
    loc = torch.tensor([[0.0, 1000.0], [1.0, 1001.0], [2.0, 1002.0]])
    scale = torch.tensor([0.1, 0.2])
    hmm = RegimeHMM(torch.zeros(2), torch.zeros(2, 2), dist.Normal(loc, scale))
    value = hmm.sample((8_000,))
    for step in range(3):
        for state, near in enumerate(((value < 500), (value > 500))):
            drawn = value[:, step][near[:, step]]
            error = scale[state] / math.sqrt(len(drawn))
            assert (drawn.mean() - loc[step, state]).abs() < 5 * error
            assert (drawn.std() / scale[state] - 1).abs() < 5 / math.sqrt(2 * len(drawn))


def test_the_pieces_of_an_observation_come_from_one_state():
    torch.manual_seed(seeds.seed(6))
    loc = torch.tensor([[0.0, 10.0, 20.0], [100.0, 110.0, 120.0]]).unsqueeze(-1).expand(2, 3, 2)
    hmm = RegimeHMM(
        torch.zeros(2), torch.zeros(2, 2), dist.Normal(loc, 0.1).to_event(2), duration=5
    )
    value = hmm.sample((40,))
    assert value.shape == (40, 5, 3, 2)
    shifted = value - loc[0]
    assert ((shifted.abs() < 1) | ((shifted - 100).abs() < 1)).all()
    assert torch.equal(shifted > 50, (shifted > 50)[..., :1, :1].expand(shifted.shape))


def test_a_draw_goes_on_after_its_length():
    value = chain(duration=4, lengths=torch.tensor([1, 4])).sample()
    assert value.shape == (2, 4)
    assert value.isfinite().all()


def test_seeds_decide():
    draws = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        draws.append(chain(duration=20).sample())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_without_a_number_of_steps():
    with pytest.raises(ValueError, match="expected duration, the number of steps to sample"):
        chain().sample()


def test_a_draw_carries_no_gradient():
    class Reparametrised(dist.Normal):
        """Its ``sample`` is differentiable, as a user's own may be."""

        def sample(self, sample_shape=()):
            return self.rsample(sample_shape)

    loc = LOC.clone().requires_grad_()
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=Reparametrised(loc, 1.0),
        duration=3,
    )
    assert hmm.observation_dist.sample().requires_grad
    assert not hmm.sample().requires_grad
