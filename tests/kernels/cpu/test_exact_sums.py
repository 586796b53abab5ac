"""Exact at every dynamic range: logits that lie up to 1e300 apart, against rational sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu import scaled
from tests import seeds
from tests.kernels.cases import INF, Case

SIZES = [(1, 3), (2, 1), (2, 8), (3, 6), (4, 5)]  # K, T
GAPS: dict[str, tuple[float, ...]] = {
    "1e3": (1e3,),
    "1e8": (1e8,),
    "1e16": (1e16,),
    "1e17 / 3": (1e17 / 3,),
    "1e100": (1e100,),
    "1e300": (1e300,),
    "1e8 and 1e16": (1e8, 1e16),
    "1e16 and 1e300": (1e16, 1e300),
    "many": (1e5, 1e16, 1e33, 1e60, 1e120, 1e300),
}


class Answers(NamedTuple):
    """Of one sequence; what the exact sum over its paths says."""

    log_likelihood: float
    filtered: Tensor  # (T, K), probabilities
    smoothed: Tensor  # (T, K)
    moved: Tensor  # (T-1, K, K)
    hessian: Tensor  # of the logits of all steps and moves, flat
    best: Fraction | None
    weights: dict[tuple[int, ...], Fraction]


def weigh(case: Case, steps: int) -> dict[tuple[int, ...], Fraction]:
    """log p(x, q) of every possible path, as a rational number."""
    pi, a, b = (part.tolist() for part in case[:3])
    weights = {}
    for path in itertools.product(range(len(pi)), repeat=steps):
        moves = [a[t if len(a) > 1 else 0][path[t]][path[t + 1]] for t in range(steps - 1)]
        terms = [pi[path[0]], *moves, *(b[t][path[t]] for t in range(steps))]
        if -INF not in terms:
            weights[path] = sum(map(Fraction, terms))
    return weights


def shares(weights: dict[tuple[int, ...], Fraction]) -> tuple[Fraction, float, dict]:
    """The largest weight, the sum of all relative to it, and each path's probability."""
    peak = max(weights.values())
    # Below -1e4 the exponential is 0, and a rational number may be too large for a float.
    sizes = {path: math.exp(max(each - peak, -10_000)) for path, each in weights.items()}
    total = math.fsum(sizes.values())
    return peak, total, {path: size / total for path, size in sizes.items() if size > 0.0}


def enumerate_exactly(case: Case, steps: int) -> Answers:
    num_states = case.observation.shape[-1]
    filtered = torch.zeros(steps, num_states, dtype=torch.float64)
    for t in range(steps):
        seen = weigh(case, t + 1)
        if seen:
            for path, share in shares(seen)[2].items():
                filtered[t, path[-1]] += share
    sizes = (steps * num_states, (steps - 1) * num_states**2)
    mean = torch.zeros(sum(sizes), dtype=torch.float64)
    square = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    weights, value, best = weigh(case, steps), -INF, None
    if weights:
        best, total, each = shares(weights)
        value = float(best + Fraction(math.log(total)))
        for path, share in each.items():
            on = [t * num_states + state for t, state in enumerate(path)]
            on += [
                sizes[0] + (t * num_states + path[t]) * num_states + path[t + 1]
                for t in range(steps - 1)
            ]
            mean[on] += share
            index = torch.tensor(on)
            square[index.unsqueeze(-1), index] += share
    smoothed, moved = mean.split(sizes)
    return Answers(
        value,
        filtered,
        smoothed.view(steps, num_states),
        moved.view(steps - 1, num_states, num_states),
        square - mean.outer(mean),
        best,
        weights,
    )


def make(num_states: int, num_steps: int, gaps: tuple[float, ...], slices: int, seed: int) -> Case:
    """Logits of a few nats among multiples of the gaps, so that many paths tie but for the nats."""
    generator = seeds.generator(seed)

    def logits(*shape: int) -> Tensor:
        small = torch.randn(shape, generator=generator, dtype=torch.float64)
        gap = torch.tensor(gaps, dtype=torch.float64)
        gap = gap[torch.randint(len(gaps), shape, generator=generator)]
        large = gap * torch.randint(-2, 2, shape, generator=generator)
        kind = torch.rand(shape, generator=generator)
        return torch.where(kind < 0.5, small, torch.where(kind < 0.93, large, -INF))

    return Case(
        logits(num_states),
        logits(slices, num_states, num_states),
        logits(num_steps, num_states),
    )


def cases(num_states: int, num_steps: int, gaps: tuple[float, ...]) -> Iterator[Case]:
    for seed in range(4):
        slices = num_steps - 1 if seed % 2 and num_steps > 1 else 1
        yield make(num_states, num_steps, gaps, slices, seed)
    # States that never exchange, favoured in turn.
    observation = torch.zeros(num_steps, num_states, dtype=torch.float64)
    for t in range(num_steps):
        observation[t, t % num_states] = -gaps[t % len(gaps)]
    identity = torch.eye(num_states, dtype=torch.float64).log().unsqueeze(0)
    yield Case(torch.arange(num_states).double(), identity, observation)


class Batch(NamedTuple):
    """Chains of one shape, as one batch of kernels' arguments, with the answers for each."""

    case: Case
    answers: list[Answers]


_BATCHES: dict[tuple[int, int, str], list[Batch]] = {}


def batches_of(size: tuple[int, int], gaps: str) -> list[Batch]:
    """One batch with A constant, whole and ragged; one with A varying."""
    key = (*size, gaps)
    if key not in _BATCHES:
        groups: dict[int, list[Case]] = {}
        for case in cases(*size, GAPS[gaps]):
            groups.setdefault(case.transition.shape[0], []).append(case)
        found = []
        for group in groups.values():
            lengths = torch.tensor([size[1] - i % min(2, size[1]) for i in range(len(group))])
            stacked = Case(*(torch.stack(parts) for parts in list(zip(*group))[:3]), lengths)
            found.append(
                Batch(stacked, [enumerate_exactly(*each) for each in zip(group, lengths.tolist())])
            )
        _BATCHES[key] = found
    return _BATCHES[key]


WAYS = {
    "reference": ("reference", {}),
    "cpu": ("cpu", {}),
    "cpu in log space": ("cpu", {"MAX_STATES": 0}),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name, constants = request.param
    for constant, value in constants.items():
        monkeypatch.setattr(scaled, constant, value)
    with ops.backend(name):
        yield name


@pytest.fixture(params=GAPS)
def gaps(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


def assert_value(actual: Tensor, expected: float) -> None:
    if math.isinf(expected):
        assert float(actual) == expected
    else:
        assert float(actual) == pytest.approx(expected, rel=1e-14, abs=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_expectations_are_those_of_the_rational_sum(size, gaps):
    for case, answers in batches_of(size, gaps):
        forward = ops.log_likelihood(*case)
        found = ops.expectations(*case)
        moved = found.expected_transitions
        for n, expected in enumerate(answers):
            steps = int(case.lengths[n])
            assert_value(forward[n], expected.log_likelihood)
            assert_value(found.log_likelihood[n], expected.log_likelihood)
            assert_close(found.smoothed_probs[n, :steps], expected.smoothed)
            assert not found.smoothed_probs[n, steps:].any()
            if moved.dim() > 3:
                assert_close(moved[n, : steps - 1], expected.moved)
            else:
                assert_close(moved[n], expected.moved.sum(0))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gamma_is_the_marginal_of_xi(size, gaps):
    """Each gamma sums to 1, whatever the logits; so does each xi, to gamma before and after."""
    for case, answers in batches_of(size, gaps):
        num_states, num_steps = size
        wide = case.transition.expand(-1, max(num_steps - 1, 1), -1, -1)
        _, gamma, xi = ops.expectations(case.initial, wide, case.observation, case.lengths)
        for n, expected in enumerate(answers):
            steps = int(case.lengths[n])
            if expected.best is None:
                assert not gamma[n].any()
                continue
            assert_close(gamma[n, :steps].sum(-1), torch.ones(steps, dtype=torch.float64))
            if num_steps > 1:
                moves = xi[n].view(-1, num_states, num_states)[: steps - 1]
                assert_close(moves.sum(-1), gamma[n, : steps - 1])
                assert_close(moves.sum(-2), gamma[n, 1:steps])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_filter_is_that_of_the_rational_sum(size, gaps):
    for case, answers in batches_of(size, gaps):
        found = ops.filter_logits(*case).exp()
        for n, expected in enumerate(answers):
            assert_close(found[n, : int(case.lengths[n])], expected.filtered)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_viterbi_path_has_the_largest_rational_weight(size, gaps):
    for case, answers in batches_of(size, gaps):
        paths = ops.viterbi(*case)
        for n, expected in enumerate(answers):
            steps = int(case.lengths[n])
            path = paths[n, :steps].tolist()
            if expected.best is None:
                assert path == [-1] * steps
            else:
                assert float(expected.best - expected.weights[tuple(path)]) < 1e-9


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [(2, 4), (3, 3)], ids=str)
def test_both_derivatives_are_those_of_the_rational_sum(size, gaps):
    """The second are covariances of what a path passes through."""
    num_states, num_steps = size
    for case, answers in batches_of(size, gaps):
        wide = case.transition.expand(-1, num_steps - 1, -1, -1)
        leaves = [
            part.clone().requires_grad_() for part in (case.initial, wide, case.observation)
        ]
        value = ops.log_likelihood(*leaves, case.lengths)
        possible = value > -INF
        first = torch.autograd.grad(value[possible].sum(), leaves, create_graph=True)
        for n, expected in enumerate(answers):
            steps = int(case.lengths[n])
            gradient = [part[n] for part in first]
            assert_close(gradient[0], expected.smoothed[0])
            assert_close(gradient[1][: steps - 1], expected.moved)
            assert_close(gradient[2][:steps], expected.smoothed)
            count = steps * num_states
            for row, entry in enumerate(gradient[2][:steps].flatten()):
                second = torch.autograd.grad(entry, leaves, retain_graph=True)
                assert not any(part.isnan().any() for part in second)
                along = torch.cat(
                    [second[2][n, :steps].flatten(), second[1][n, : steps - 1].flatten()]
                )
                assert_close(along, expected.hessian[row])
            for row, entry in enumerate(gradient[1][: steps - 1].flatten()):
                second = torch.autograd.grad(entry, leaves, retain_graph=True)
                along = torch.cat(
                    [second[2][n, :steps].flatten(), second[1][n, : steps - 1].flatten()]
                )
                assert_close(along, expected.hessian[count + row])


@pytest.mark.slow
@pytest.mark.usefixtures("way")
def test_posterior_paths_are_drawn_from_the_rational_sum(gaps):
    for case, answers in batches_of((2, 8), gaps):
        torch.manual_seed(seeds.seed(0))
        paths = ops.sample_posterior(*case, sample_shape=torch.Size([2_000]))
        for n, expected in enumerate(answers):
            steps = int(case.lengths[n])
            if expected.best is None:
                assert (paths[:, n] == -1).all()
                continue
            drawn = torch.nn.functional.one_hot(paths[:, n, :steps], 2).double().mean(0)
            # Five standard errors of a proportion.
            torch.testing.assert_close(drawn, expected.smoothed, rtol=0.0, atol=0.06)


@pytest.mark.usefixtures("way")
def test_two_regimes_that_never_exchange():
    """An observation far on either side: each regime explains the whole equally well."""
    identity = torch.eye(2, dtype=torch.float64).log().unsqueeze(0)
    observation = torch.tensor([[0.0, -1e16], [-1e16, 0.0]], dtype=torch.float64)
    found = ops.expectations(torch.zeros(2, dtype=torch.float64), identity, observation)
    half = torch.full((2, 2), 0.5, dtype=torch.float64)
    assert_close(found.smoothed_probs, half)
    assert_close(found.expected_transitions, half * identity[0].exp())
