"""The recursions against the sum over all paths, and against their own derivatives."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyro_regimes.kernels import ops, reference
from pyro_regimes.kernels.cpu import scaled
from tests.kernels.cases import CASES, INF, Case, random_chain
from tests.oracles import Enumerated, enumerate_paths

_ANSWERS: dict[int, tuple[Case, torch.Size, list[Enumerated]]] = {}


def enumerate_case(case: Case) -> tuple[torch.Size, list[Enumerated]]:
    """The oracle for every sequence of a batch, in order; worked out once a case."""
    if id(case) not in _ANSWERS:
        _ANSWERS[id(case)] = (case, *_enumerate_case(case))  # held, so that its id stays its own
    return _ANSWERS[id(case)][1:]


def _enumerate_case(case: Case) -> tuple[torch.Size, list[Enumerated]]:
    batch = torch.broadcast_shapes(
        case.initial.shape[:-1],
        case.transition.shape[:-3],
        case.observation.shape[:-2],
        () if case.lengths is None else case.lengths.shape,
    )
    initial = case.initial.expand(batch + case.initial.shape[-1:])
    transition = case.transition.expand(batch + case.transition.shape[-3:])
    observation = case.observation.expand(batch + case.observation.shape[-2:])
    count = math.prod(batch)
    initial = initial.reshape((count,) + initial.shape[-1:])
    transition = transition.reshape((count,) + transition.shape[-3:])
    observation = observation.reshape((count,) + observation.shape[-2:])
    lengths = (
        [None] * count
        if case.lengths is None
        else case.lengths.expand(batch).reshape(count).tolist()
    )
    return batch, [
        enumerate_paths(*chain) for chain in zip(initial, transition, observation, lengths)
    ]


def stacked(batch: torch.Size, values: list, like: torch.Tensor) -> torch.Tensor:
    if not values:
        return like
    values = [torch.as_tensor(value, dtype=torch.result_type(like, 0)) for value in values]
    return torch.stack(values).reshape(like.shape)


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(
        actual, expected.to(actual.dtype), rtol=1e-10, atol=1e-13, equal_nan=False
    )


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


WAYS = {
    "reference": ("reference", reference, {}),
    # The scan over blocks also on sequences too short for it to pay.
    "reference in blocks": ("reference", reference, {"_MIN_BLOCKED_STEPS": 1}),
    "cpu": ("cpu", scaled, {}),
    "cpu, E computed twice": ("cpu", scaled, {"_REMEMBERED": 0}),
    "cpu in log space": ("cpu", scaled, {"MAX_STATES": 0}),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run by each kernel, and by each way through it."""
    name, module, constants = request.param
    for constant, value in constants.items():
        monkeypatch.setattr(module, constant, value)
    with ops.backend(name):
        yield


@pytest.mark.usefixtures("every_way")
def test_log_likelihood_equals_enumeration(case):
    batch, answers = enumerate_case(case)
    actual = ops.log_likelihood(*case)
    assert actual.shape == batch
    assert_equal(actual, stacked(batch, [each.log_likelihood for each in answers], actual))


@pytest.mark.usefixtures("every_way")
def test_expectations_equal_enumeration(case):
    batch, answers = enumerate_case(case)
    expected = ops.expectations(*case)
    num_steps, num_states = case.observation.shape[-2:]
    assert expected.smoothed_probs.shape == batch + (num_steps, num_states)
    assert_equal(
        expected.smoothed_probs,
        stacked(batch, [each.smoothed_probs for each in answers], expected.smoothed_probs),
    )
    moved = [each.transitions for each in answers]
    if case.transition.shape[-3] == 1:
        moved = [each.sum(0) for each in moved]
        assert expected.expected_transitions.shape == batch + (num_states, num_states)
    assert_equal(
        expected.expected_transitions, stacked(batch, moved, expected.expected_transitions)
    )


@pytest.mark.usefixtures("every_way")
def test_filter_and_prediction_equal_enumeration(case):
    batch, answers = enumerate_case(case)
    filtered = ops.filter_logits(*case).exp()
    predicted = ops.predict_probs(case.initial, case.transition, filtered)
    lengths = case.lengths if case.lengths is not None else torch.tensor(filtered.shape[-2])
    valid = (torch.arange(filtered.shape[-2]) < lengths.unsqueeze(-1)).unsqueeze(-1)
    expected = stacked(batch, [each.filtered_probs for each in answers], filtered)
    assert_equal(filtered.masked_fill(~valid, 0.0), expected)
    if case is CASES["unnormalised"]:  # the oracle knows p(q_t) up to the transitions' own weight
        return
    expected = stacked(batch, [each.predicted_probs for each in answers], predicted)
    if case is CASES["impossible"] or case is CASES["impossible by transitions"]:
        # one step after the sequence became impossible the oracle has nothing left to condition on
        possible = filtered.sum(-1, keepdim=True).roll(1, -2) > 0
        possible[..., 0, :] = True
        expected = expected * possible
    assert_equal(predicted.masked_fill(~valid, 0.0), expected)


def test_gamma_is_the_marginal_of_xi():
    """Equation 22, time by time."""
    case = random_chain(6, 3, slices=5, seed=30)
    expected = ops.expectations(*case)
    pair, single = expected.expected_transitions, expected.smoothed_probs
    assert_equal(pair.sum(-1), single[:-1])
    assert_equal(pair.sum(-2), single[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "empty batch"])
@pytest.mark.usefixtures("every_way")
def test_gradients_of_first_and_second_order(name):
    """Only finite entries are varied: a finite difference about -inf means nothing."""
    case = CASES[name]
    free = [part.isfinite() for part in case[:3]]
    leaves = [
        part[mask].clone().requires_grad_() for part, mask in zip(case[:3], free, strict=True)
    ]

    def value(*entries: torch.Tensor) -> torch.Tensor:
        parts = [
            part.masked_scatter(mask, entry)
            for part, mask, entry in zip(case[:3], free, entries, strict=True)
        ]
        total = ops.log_likelihood(*parts, case.lengths)
        return total[total.isfinite()]

    if value(*leaves).numel():
        scale = max(1.0, case.observation[free[2]].abs().max().item() / 10)
        assert gradcheck(value, leaves, atol=1e-6 * scale)
        assert gradgradcheck(value, leaves, atol=1e-6 * scale)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("every_way")
def test_no_derivative_is_nan(name):
    case = CASES[name]
    leaves = [part.clone().requires_grad_() for part in case[:3]]
    total = ops.log_likelihood(*leaves, case.lengths)
    first = torch.autograd.grad(total.sum(), leaves, create_graph=True, allow_unused=True)
    for gradient, part in zip(first, case[:3], strict=True):
        if gradient is not None:
            assert not gradient.isnan().any()
            assert (gradient[part == -INF] == 0).all()
    mixed = sum((gradient**2).sum() for gradient in first if gradient is not None)
    second = torch.autograd.grad(mixed, leaves, allow_unused=True)
    assert not any(gradient.isnan().any() for gradient in second if gradient is not None)


@pytest.mark.usefixtures("every_way")
def test_posteriors_are_differentiable():
    case = random_chain(5, 2, seed=31)
    leaves = [part.requires_grad_() for part in case[:3]]
    assert gradcheck(lambda *parts: ops.expectations(*parts)[1:], leaves)
    assert gradcheck(lambda *parts: ops.filter_logits(*parts), leaves)


def test_impossible_sequence_leaves_its_neighbours_alone():
    case = random_chain(6, 3, batch=(2,), seed=32)
    case.observation[0, 3] = -INF
    leaves = [part.clone().requires_grad_() for part in case[:3]]
    total = ops.log_likelihood(*leaves)
    assert total[0] == -INF
    gradients = torch.autograd.grad(total.sum(), leaves)
    alone = [part[1].clone().requires_grad_() for part in case[:3]]
    expected = torch.autograd.grad(ops.log_likelihood(*alone), alone)
    for gradient, other in zip(gradients, expected, strict=True):
        assert (gradient[0] == 0).all()
        assert_equal(gradient[1], other)


@pytest.mark.slow
@pytest.mark.parametrize("num_states", [4, 9], ids=["blocked", "sequential"])
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_float32_keeps_gamma_over_thousands_of_steps(num_states, name):
    """A loss of 6e-8 a step would be 4e-4 after those of the slow tensor code."""
    case = random_chain(20_000 if name == "cpu" else 6_000, num_states, seed=33)
    with ops.backend(name):
        exact = ops.expectations(*case).smoothed_probs
        single = ops.expectations(*(part.float() for part in case[:3]))
    assert single.smoothed_probs.dtype == torch.float32
    assert single.log_likelihood.dtype == torch.float64
    # The inputs' own rounding remains: 6e-8 of logits of size 10, over the few steps remembered.
    torch.testing.assert_close(single.smoothed_probs.double(), exact, rtol=0.0, atol=1e-4)


@pytest.mark.slow
def test_blocks_agree_with_the_plain_loop(monkeypatch):
    case = random_chain(1_000, 4, batch=(2,), slices=999, seed=34)
    case = case._replace(lengths=torch.tensor([1_000, 517]))
    with ops.backend("reference"):
        scanned = ops.expectations(*case)
        filtered = ops.filter_logits(*case)
        monkeypatch.setattr(reference, "_MAX_BLOCKED_STATES", 0)
        for actual, expected in zip(scanned, ops.expectations(*case), strict=True):
            assert_equal(actual, expected)
        assert_equal(filtered, ops.filter_logits(*case))


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_mass_that_fades_over_thousands_of_steps_comes_back(name):
    """A = I with gaps of one nat: a scaled recursion is wrong by hundreds of nats here."""
    half = 1_500
    gaps = torch.cat([torch.ones(half), -2.0 * torch.ones(half)]).double()
    observation = torch.stack([gaps, torch.zeros(2 * half).double()], -1)
    identity = torch.eye(2, dtype=torch.float64).log().unsqueeze(0)
    initial = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    expected = torch.tensor([-1_500.0, 0.0]).double().logsumexp(-1) + math.log(0.5)
    with ops.backend(name):
        assert_equal(ops.log_likelihood(initial, identity, observation), expected)
        assert_equal(ops.expectations(initial, identity, observation).log_likelihood, expected)


def test_works_without_gradients_and_in_inference_mode():
    case = random_chain(30, 3, seed=35)
    expected = ops.expectations(*case)
    with torch.no_grad():
        assert_equal(ops.expectations(*case).smoothed_probs, expected.smoothed_probs)
    with torch.inference_mode():
        inside = ops.expectations(*(part + 0 for part in case[:3]))
    assert_equal(inside.smoothed_probs, expected.smoothed_probs)
    assert not case.initial.requires_grad and case.initial.grad is None
