"""Chains with lagged states against the same chain without structure, and in log space."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes.kernels import lagged, lagged_reference, ops
from tests import seeds

SIZES = [(2, 4, 60), (3, 2, 20), (2, 1, 7), (4, 1, 1), (5, 1, 2), (1, 2, 5)]  # K, p, T


def random_chain(num_states: int, order: int, num_steps: int) -> list[Tensor]:
    draw = seeds.generator(100 * num_states + order)
    num_tuples = num_states ** (order + 1)
    shapes = ((2, num_tuples), (2, num_states, num_states), (2, num_steps, num_tuples))
    return [3 * torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


def dense(transition: Tensor, num_tuples: int) -> Tensor:
    """The transition logits of all tuples, ``(N, 1, S, S)``."""
    num_states = transition.shape[-1]
    full = transition.new_full((len(transition), num_tuples, num_tuples), -torch.inf)
    old = torch.arange(num_tuples)
    for state in range(num_states):
        new = old % (num_tuples // num_states) * num_states + state
        here = torch.arange(len(transition)).unsqueeze(-1)
        full = full.index_put((here, old, new), transition[:, old % num_states, state])
    return full.unsqueeze(-3)


@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_chain_without_structure(sizes):
    chain = [each.requires_grad_() for each in random_chain(*sizes)]
    initial, transition, observation = chain
    value = lagged.log_likelihood(*chain)
    matrix = dense(transition, observation.shape[-1])
    other = ops.log_likelihood(initial, matrix, observation)
    assert_close(value, other, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(value.sum(), chain)
    wanted = torch.autograd.grad(other.sum(), chain)
    assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    filtered = ops.posterior(initial, matrix, observation).filtered_probs
    plain = [each.detach() for each in chain]
    assert_close(lagged.filter_probs(*plain), filtered.detach(), rtol=1e-10, atol=1e-12)
    assert_close(lagged.log_likelihood(*plain), other.detach(), rtol=1e-10, atol=1e-10)
    path = ops.viterbi(initial.detach(), matrix.detach(), plain[2])
    assert torch.equal(lagged_reference.viterbi(*plain), path)
    assert torch.equal(lagged.viterbi(*plain), path)


@pytest.mark.parametrize("sizes", SIZES)
def test_kernel_equals_reference(sizes):
    chain = random_chain(*sizes)
    found = lagged.expectations(*chain)
    assert_close(found, lagged_reference.expectations(*chain), rtol=1e-10, atol=1e-12)
    with ops.backend("reference"):
        assert_close(found, lagged.expectations(*chain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(2, 4, 60), (3, 1, 40)])
def test_paths_of_equal_probability(sizes):
    """The kernel takes the same path as the reference, where many have the same probability."""
    chain = [each.round().clamp(-1, 1) for each in random_chain(*sizes)]
    chain[2][0, 20:30] = 0.0
    chain[2][1, 10] = -torch.inf  # no path is possible
    wanted = lagged_reference.viterbi(*chain)
    assert torch.equal(lagged.viterbi(*chain), wanted)
    with ops.backend("reference"):
        assert torch.equal(lagged.viterbi(*chain), wanted)


def of_time(chain: list[Tensor], num_slices: int) -> list[Tensor]:
    """The chain with other transitions at each step."""
    draw = seeds.generator(chain[2].shape[-1])
    shape = (2, num_slices) + chain[1].shape[-2:]
    noise = torch.randn(shape, generator=draw, dtype=torch.float64)
    return [chain[0], chain[1].unsqueeze(1) + noise, chain[2]]


@pytest.mark.parametrize("sizes", SIZES)
def test_transitions_that_vary_in_time(sizes):
    chain = of_time(random_chain(*sizes), sizes[2] - 1)
    for each in chain:
        each.requires_grad_()
    initial, transition, observation = chain
    value, smoothed, moved = lagged.expectations(*chain)
    matrix = dense(transition.flatten(0, 1), observation.shape[-1])
    matrix = matrix.unflatten(0, transition.shape[:2]).squeeze(-3)
    other = ops.log_likelihood(initial, matrix, observation)
    assert_close(value, other, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(value.sum(), chain)
    wanted = torch.autograd.grad(other.sum(), chain)
    assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert_close(moved, found[1], rtol=1e-10, atol=1e-12)
    assert_close(smoothed, found[2], rtol=1e-10, atol=1e-12)
    plain = [each.detach() for each in chain]
    filtered = ops.posterior(initial, matrix, observation).filtered_probs.detach()
    assert_close(lagged.filter_probs(*plain), filtered, rtol=1e-10, atol=1e-12)
    path = ops.viterbi(initial.detach(), matrix.detach(), plain[2])
    assert torch.equal(ops.lagged_viterbi(*plain), path)


def test_one_step_has_no_transitions():
    chain = of_time(random_chain(2, 2, 1), 0)
    value, smoothed, moved = lagged.expectations(*chain)
    assert moved.shape == (2, 0, 2, 2)
    first = chain[0] + chain[2][:, 0]
    assert_close(value, first.logsumexp(-1), rtol=1e-12, atol=1e-12)
    assert_close(smoothed[:, 0], first.softmax(-1), rtol=1e-12, atol=1e-12)
    assert torch.equal(ops.lagged_viterbi(*chain)[:, 0], first.argmax(-1))


def test_derivatives():
    chain = [each.requires_grad_() for each in random_chain(2, 2, 4)]
    assert torch.autograd.gradcheck(lagged.log_likelihood, chain)
    assert torch.autograd.gradcheck(lagged.expectations, chain)
    assert torch.autograd.gradgradcheck(lagged.log_likelihood, chain)
    assert torch.autograd.gradcheck(lagged.filter_probs, chain)
    varying = [each.detach().requires_grad_() for each in of_time(chain, 3)]
    assert torch.autograd.gradcheck(lagged.log_likelihood, varying)
    assert torch.autograd.gradcheck(lagged.expectations, varying)


def adversarial(name: str) -> list[Tensor]:
    initial, transition, observation = random_chain(2, 2, 40)
    if name == "faded":  # one tuple fades, and is then the only possible one
        observation[:, 10] = -1000.0
        observation[:, 10, 0] = 0.0
        observation[:, 11] = -torch.inf
        observation[:, 11, -1] = 0.0
        observation[:, 11, 1] = -900.0
    elif name == "slowly faded":
        observation[:] = torch.linspace(-200.0, 0.0, 8)
        observation[:, 20:] = observation[:, 20:].flip(-1)
    elif name == "tiny transition":
        transition[:, 0, 1] = -800.0
    elif name == "one tiny transition":
        transition = transition.unsqueeze(1).repeat(1, 39, 1, 1)
        transition[:, 20, 0, 1] = -800.0
        transition[:, 21, 1] = -torch.inf
    elif name == "no transition":
        transition[:, 0, 1] = -torch.inf
    elif name == "large":
        observation *= 1e5
    elif name == "far apart":  # each step has one possible tuple, up to e^-2000
        observation *= 1000.0
    elif name == "impossible":
        observation[0, 17] = -torch.inf
    else:
        observation[0, 17, 2] = math.nan
    return [initial, transition, observation]


@pytest.mark.parametrize(
    "name",
    [
        "faded",
        "slowly faded",
        "tiny transition",
        "one tiny transition",
        "no transition",
        "large",
        "far apart",
        "impossible",
        "nan",
    ],
)
def test_where_scaling_fails_log_space_is_used(name):
    chain = adversarial(name)
    wanted = lagged_reference.expectations(*chain)
    found = lagged.expectations(*chain)
    assert_close(found, wanted, rtol=1e-8, atol=1e-9, equal_nan=True)
    filtered = lagged_reference.filter_probs(*chain)
    assert_close(lagged.filter_probs(*chain), filtered, rtol=1e-8, atol=1e-12, equal_nan=True)
    if name == "impossible":
        assert found[0][0] == -torch.inf and (found[1][0] == 0).all()
    if name == "nan":
        assert found[0][0].isnan() and found[0][1].isfinite()
    else:
        steps = lagged_reference.steps_of(chain[1])
        matrix = dense(steps.flatten(0, 1), 8).unflatten(0, steps.shape[:2]).squeeze(-3)
        other = ops.log_likelihood(chain[0], matrix, chain[2])
        assert_close(found[0], other, rtol=1e-10, atol=1e-9)


def test_transforms_and_no_sequences():
    initial, transition, observation = random_chain(2, 1, 6)
    wanted = lagged.expectations(initial, transition, observation)[1]
    grad = torch.func.grad(lambda b: lagged.log_likelihood(initial, transition, b).sum())
    assert_close(grad(observation), wanted, rtol=1e-10, atol=1e-12)
    empty = lagged.expectations(initial[:0], transition[:0], observation[:0])
    assert [len(each) for each in empty] == [0, 0, 0]
