"""Packed sequences against a loop over them, for every function, device kernel and derivative."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes.kernels import ops
from tests import seeds
from tests.kernels.cases import INF, Case, random_chain

LENGTHS = [3, 1, 7, 2, 2, 1, 9, 1, 4]
PACKING = ops.Packing(torch.tensor(LENGTHS))
NUM_STEPS = sum(LENGTHS)
TOLERANCE = dict(rtol=1e-11, atol=1e-11)

BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu"])


def _impossible() -> Case:
    """The third sequence has probability 0, and the others do not notice."""
    case = random_chain(NUM_STEPS, 3, seed=3)
    case.observation[6] = -INF
    return case


CASES = {
    "constant": random_chain(NUM_STEPS, 3, seed=1),
    "varying": random_chain(NUM_STEPS, 3, slices=NUM_STEPS - 1, seed=2),
    "batch": random_chain(NUM_STEPS, 2, batch=(2,), seed=4),
    "batch of models": random_chain(NUM_STEPS, 2, batch=(3,), seed=5)._replace(
        observation=random_chain(NUM_STEPS, 2, seed=6).observation
    ),
    "varying, batch": random_chain(NUM_STEPS, 2, batch=(2,), slices=NUM_STEPS - 1, seed=7),
    "one state": random_chain(NUM_STEPS, 1, seed=8),
    "float32": random_chain(NUM_STEPS, 3, seed=9, dtype=torch.float32),
    "impossible": _impossible(),
}

ALL = pytest.mark.parametrize("name", CASES)


def sequences(case: Case, lengths: list[int] = LENGTHS) -> Iterator[tuple[slice, Case]]:
    """The steps of each sequence, and its own chain."""
    first = 0
    for size in lengths:
        rows = slice(first, first + size)
        transition = case.transition
        if transition.shape[-3] > 1:
            transition = transition[..., first : first + size - 1, :, :]
        yield rows, Case(case.initial, transition, case.observation[..., rows, :])
        first += size


@ALL
@BACKENDS
def test_sums_over_paths(name: str, backend: str) -> None:
    case = CASES[name]
    tolerance = TOLERANCE if case.initial.dtype == torch.float64 else dict(rtol=1e-5, atol=1e-5)
    with ops.backend(backend):
        each = [(rows, ops.posterior(*alone)) for rows, alone in sequences(case)]
        chain = (*case[:3], PACKING)
        found = ops.posterior(*chain)
        value, smoothed, moved = ops.expectations(*chain)
        assert_close(ops.log_likelihood(*chain), value, rtol=1e-12, atol=1e-12)
        assert_close(ops.filter_probs(*chain), (value, found.filtered_probs), **tolerance)
        logits = ops.filter_logits(*chain)
    total = torch.stack([own.log_likelihood for _, own in each]).sum(0)
    assert value.dtype == torch.float64
    assert_close(value, total, **tolerance)
    assert_close(found, (value, found.filtered_probs, smoothed, moved), **tolerance)
    varying = case.transition.shape[-3] > 1
    for rows, own in each:
        assert_close(found.filtered_probs[..., rows, :], own.filtered_probs, **tolerance)
        assert_close(logits[..., rows, :].exp(), own.filtered_probs, **tolerance)
        assert_close(smoothed[..., rows, :], own.smoothed_probs, **tolerance)
        if varying:
            steps = moved[..., rows.start : rows.stop - 1, :, :]
            assert_close(steps, own.expected_transitions.reshape(steps.shape), **tolerance)
    if varying:  # nothing moves from one sequence to the next
        assert (moved[..., PACKING.firsts[1:] - 1, :, :] == 0).all()
    else:
        assert_close(moved, sum(own.expected_transitions for _, own in each), **tolerance)


@ALL
@BACKENDS
def test_paths(name: str, backend: str) -> None:
    case = CASES[name]
    chain = (*case[:3], PACKING)
    shape = torch.broadcast_shapes(case.initial.shape[:-1], case.observation.shape[:-2])
    with ops.backend(backend):
        path = ops.viterbi(*chain)
        drawn = ops.sample_posterior(*chain, sample_shape=torch.Size([4]))
        alone = [(rows, own, ops.viterbi(*own)) for rows, own in sequences(case)]
    assert path.shape == shape + (NUM_STEPS,) and drawn.shape == (4,) + path.shape
    assert_close(path, torch.cat([each for _, _, each in alone], -1))
    assert_close(drawn < 0, (path < 0).expand(drawn.shape))
    given = drawn.clamp(min=0)
    value = ops.complete_log_likelihood(*case[:3], given, PACKING)
    parts = [ops.complete_log_likelihood(*own[:3], given[..., rows]) for rows, own, _ in alone]
    assert_close(value, torch.stack(parts).sum(0), rtol=1e-5, atol=1e-5)


@ALL
def test_predictions(name: str) -> None:
    case = CASES[name]
    filtered = ops.filter_probs(*case[:3], PACKING).filtered_probs
    found = ops.predict_probs(*case[:2], filtered, PACKING)
    for rows, own in sequences(case):
        expected = ops.predict_probs(*own[:2], filtered[..., rows, :])
        assert_close(found[..., rows, :], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["constant", "varying"])
def test_draws_have_the_frequencies_of_each_sequence(name: str) -> None:
    """Draws from the prior and the posterior, against the marginal probabilities."""
    case, draws = CASES[name], 4_000
    torch.manual_seed(seeds.seed(70))
    prior = ops.sample_prior(*case[:2], NUM_STEPS, torch.Size([draws]), PACKING)
    nothing = torch.zeros_like(case.observation)
    for paths, observation in (
        (prior, nothing),
        (ops.sample_posterior(*case[:3], PACKING, torch.Size([draws])), case.observation),
    ):
        assert paths.shape == (draws, NUM_STEPS)
        expected = ops.expectations(*case[:2], observation, PACKING).smoothed_probs
        found = torch.nn.functional.one_hot(paths, 3).double().mean(0)
        deviation = (expected * (1 - expected) / draws).sqrt() + 1 / draws
        assert ((found - expected).abs() < 5.5 * deviation).all()


@pytest.mark.parametrize("name", ["constant", "varying", "batch of models"])
@pytest.mark.parametrize("derivative", ["gradcheck", "gradgradcheck"])
def test_derivatives(name: str, derivative: str) -> None:
    lengths = [2, 1, 3]
    case = CASES[name]
    slices = 5 if case.transition.shape[-3] > 1 else 1
    chain = (case.initial, case.transition[..., :slices, :, :], case.observation[..., :6, :])
    inputs = [each.clone().requires_grad_() for each in chain]
    value = partial(ops.log_likelihood, lengths=ops.Packing(torch.tensor(lengths)))
    assert getattr(torch.autograd, derivative)(value, inputs)


def test_the_gradient_is_the_e_step() -> None:
    case = CASES["constant"]
    inputs = [each.clone().requires_grad_() for each in case[:3]]
    found = torch.autograd.grad(ops.log_likelihood(*inputs, PACKING), inputs)
    expected = ops.expectations(*case[:3], PACKING)
    first = expected.smoothed_probs[PACKING.firsts].sum(0)
    assert_close(found[0], first, **TOLERANCE)
    assert_close(found[1], expected.expected_transitions.unsqueeze(0), **TOLERANCE)
    assert_close(found[2], expected.smoothed_probs, **TOLERANCE)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, in jvp
def test_transforms() -> None:
    case = CASES["batch"]
    value = partial(ops.log_likelihood, lengths=PACKING)
    assert_close(torch.func.vmap(value)(*case[:3]), value(*case[:3]), **TOLERANCE)
    alone = [each[0] for each in case[:3]]
    along = [torch.randn(each.shape, generator=seeds.generator(71)).double() for each in alone]
    _, slope = torch.func.jvp(value, tuple(alone), tuple(along))
    gradient = torch.func.grad(value, argnums=(0, 1, 2))(*alone)
    expected = sum((one * other).sum() for one, other in zip(gradient, along, strict=True))
    assert_close(slope, expected, **TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_padding_takes_less_than_half_as_much_again(seed: int) -> None:
    lengths = torch.randint(1, 2_000, (300,), generator=seeds.generator(seed))
    packing = ops.Packing(torch.cat([lengths, torch.tensor([100_000])]))
    sizes = [batch.steps.numel() for batch in packing.batches]
    assert sum(sizes) < 1.5 * packing.num_steps
    assert len(sizes) < 2 + math.log(2_000) / math.log(1.5)
    every = torch.cat([batch.steps.flatten() for batch in packing.batches])
    assert torch.equal(every[packing.places], torch.arange(packing.num_steps))


@pytest.mark.parametrize(
    "lengths, message",
    [
        ([3, 1], "expected lengths to be an integer tensor, got list"),
        (torch.tensor([2.0]), "expected lengths to be an integer tensor, got dtype torch.float32"),
        (torch.tensor([3, 0]), "expected lengths from 1, got from 0 to 3"),
        (torch.tensor(3), r"expected the lengths of packed sequences to have shape \(S,\)"),
        (torch.ones(2, 2).long(), r"with S at least 1, got shape \(2, 2\)"),
        (torch.ones(0).long(), r"got shape \(0,\)"),
    ],
)
def test_wrong_lengths_are_refused(lengths: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.Packing(lengths)


def test_another_number_of_steps_is_refused() -> None:
    case = random_chain(5, 2)
    with pytest.raises(ValueError, match="expected observation_logits to have the 4 steps of all"):
        ops.log_likelihood(*case[:3], ops.Packing(torch.tensor([1, 3])))
