"""NaN, infinities and malformed arguments, through every kernel."""

from __future__ import annotations

import math
import os

import pytest
import torch

from pyro_regimes.kernels import ops
from tests import seeds

NAN, INF = math.nan, math.inf
BACKENDS = ["reference", "cpu"] + ["cuda"] * ("TRITON_INTERPRET" in os.environ)


def chain(num_states=3, num_steps=6, slices=1, probs=None):
    generator = seeds.generator(0)
    if probs is None:
        probs = torch.rand(slices, num_states, num_states, generator=generator).double()
    observation = torch.randn(num_steps, num_states, generator=generator).double()
    return [torch.zeros(num_states).double().log_softmax(-1), probs.log(), observation]


def identity_whose_slice_is_nan():
    """A state fades before the NaN comes, which sends the sequence to log space."""
    initial, transition, observation = chain(2, probs=torch.eye(2).double().expand(5, 2, 2))
    observation[0, 0] = -800.0
    transition = transition.clone()
    transition[3, 0, 0] = NAN
    return initial, transition, observation


def identity_whose_observation_is_nan():
    initial, transition, observation = chain(2, probs=torch.eye(2).double().unsqueeze(0))
    observation[0, 0], observation[3, 0] = -800.0, NAN
    return initial, transition, observation


def infinite_transition():
    initial, transition, observation = chain()
    transition[0, 0, 1] = INF
    return initial, transition, observation


def nan_among_many_states():
    initial, transition, observation = chain(129, 4)
    transition[0, 3, 3] = NAN
    return initial, transition, observation


CASES = [
    identity_whose_slice_is_nan,
    identity_whose_observation_is_nan,
    infinite_transition,
    nan_among_many_states,
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in Triton's interpreter
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_what_is_no_number_shows(make, backend):
    given = make()
    with ops.backend(backend):
        assert ops.log_likelihood(*given).isnan()
        found = ops.expectations(*given)
    assert found.log_likelihood.isnan()
    assert found.smoothed_probs.isnan().any()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivatives_at_nan_are_nan(backend):
    initial, transition, observation = chain(3, 4)
    observation[2, 1] = NAN
    observation.requires_grad_()
    with ops.backend(backend):
        value = ops.log_likelihood(initial, transition, observation)
        (first,) = torch.autograd.grad(value, observation, create_graph=True)
        (second,) = torch.autograd.grad(first[0].square().sum(), observation)
    assert second.isnan().any()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_single_step_has_no_transition_to_be_nan(backend):
    initial, transition, observation = chain(2, 1)
    observation[0, 0] = NAN
    with ops.backend(backend):
        found = ops.expectations(initial, transition, observation)
    assert found.log_likelihood.isnan()
    assert torch.equal(found.expected_transitions, torch.zeros(2, 2).double())


@pytest.mark.parametrize(
    "initial, num_steps, shape, message",
    [
        (torch.zeros(2, 3), 4, (5,), r"shape to be one that the batch shape \(2,\) expands to"),
        (torch.zeros(2, 3), 4, (), r"shape to be one that the batch shape \(2,\) expands to"),
        (torch.tensor(0.0), 4, (), "initial_logits"),
        (torch.zeros(3), 0, (), "num_steps to be a positive integer, got 0"),
        (torch.zeros(3), True, (), "num_steps to be a positive integer, got True"),
    ],
)
def test_wrong_calls_of_sample_prior(initial, num_steps, shape, message):
    with pytest.raises(ValueError, match=message):
        ops.sample_prior(initial, torch.zeros(1, 3, 3), num_steps, torch.Size(shape))


@pytest.mark.parametrize(
    "path, message",
    [
        (torch.zeros(5, dtype=torch.long), r"path to have a shape .* \(6,\), got \(5,\)"),
        (torch.tensor(0), r"got \(\)"),
        (torch.zeros(6), "path to be a tensor of torch.long, got torch.float32"),
        ([0] * 6, "got list"),
        (torch.full((6,), 3), "states of path from 0 to 2, got from 3 to 3"),
        (torch.full((6,), -1), "got from -1 to -1"),
    ],
)
def test_wrong_paths(path, message):
    with pytest.raises(ValueError, match=message):
        ops.complete_log_likelihood(*chain(), path)
