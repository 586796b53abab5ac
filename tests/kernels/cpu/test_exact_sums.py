"""Exact at every dynamic range: logits that lie up to 1e300 apart, against rational sums."""

from __future__ import annotations

import functools
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

pytestmark = pytest.mark.usefixtures("filled_buffers")

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
    best: int | None
    weights: dict[tuple[int, ...], int]


# Every finite number of float64 is a multiple of 2^-1074: as integers, sums are exact and fast.
UNIT = 1 << 1074


def exact(logit: float) -> int | None:
    """A logit in units of 2^-1074; None for minus infinity."""
    return None if logit == -INF else int(Fraction(logit) * UNIT)


def weigh(case: Case, steps: int) -> list[dict[tuple[int, ...], int]]:
    """log p(x_1:t, q) of every possible path of t = 1 ... steps steps, exactly."""
    pi, a, b = case[:3]
    initial = [exact(each) for each in pi.tolist()]
    moves = [[[exact(each) for each in row] for row in part] for part in a.tolist()]
    seen = [[exact(each) for each in row] for row in b.tolist()]
    paths = {
        (state,): first + there
        for state, (first, there) in enumerate(zip(initial, seen[0], strict=True))
        if first is not None and there is not None
    }
    weights = [paths]
    for t in range(1, steps):
        matrix = moves[t - 1 if len(moves) > 1 else 0]
        paths = {
            (*path, state): weight + move + there
            for path, weight in paths.items()
            for state, (move, there) in enumerate(zip(matrix[path[-1]], seen[t], strict=True))
            if move is not None and there is not None
        }
        weights.append(paths)
    return weights


def shares(weights: dict[tuple[int, ...], int]) -> tuple[int, float, dict]:
    """The largest weight, the sum of all relative to it, and each path's probability."""
    peak = max(weights.values())
    # Below -1e4 the exponential is 0, and the quotient may be too large for a float.
    sizes = {
        path: math.exp(max(each - peak, -10_000 * UNIT) / UNIT) for path, each in weights.items()
    }
    total = math.fsum(sizes.values())
    return peak, total, {path: size / total for path, size in sizes.items() if size > 0.0}


def enumerate_exactly(case: Case, steps: int) -> Answers:
    num_states = case.observation.shape[-1]
    filtered = torch.zeros(steps, num_states, dtype=torch.float64)
    weights = weigh(case, steps)
    for t, seen in enumerate(weights):
        if seen:
            for path, share in shares(seen)[2].items():
                filtered[t, path[-1]] += share
    sizes = (steps * num_states, (steps - 1) * num_states**2)
    mean = torch.zeros(sum(sizes), dtype=torch.float64)
    square = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    value, best = -INF, None
    if weights[-1]:
        best, total, each = shares(weights[-1])
        value = float(Fraction(best, UNIT) + Fraction(math.log(total)))
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
        weights[-1],
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
    gaps: list[str]


@functools.cache
def batches_of(size: tuple[int, int]) -> list[Batch]:
    """The chains with A constant, whole and ragged, and those with A varying, of all gaps."""
    groups: dict[int, list[tuple[str, Case, int]]] = {}
    for name, gaps in GAPS.items():
        seen: dict[int, int] = {}
        for case in cases(*size, gaps):
            slices = case.transition.shape[0]
            number = seen[slices] = seen.get(slices, -1) + 1
            steps = size[1] - number % min(2, size[1])
            groups.setdefault(slices, []).append((name, case, steps))
    found = []
    for group in groups.values():
        names, chains, lengths = map(list, zip(*group, strict=True))
        stacked = Case(
            *(torch.stack(parts) for parts in list(zip(*chains))[:3]), torch.tensor(lengths)
        )
        answers = [enumerate_exactly(*each) for each in zip(chains, lengths, strict=True)]
        found.append(Batch(stacked, answers, names))
    return found


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


def assert_close(actual: Tensor, expected: Tensor, gaps: str) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=1e-11, atol=1e-12, msg=lambda text: f"gaps of {gaps}: {text}"
    )


def assert_value(actual: Tensor, expected: float, gaps: str) -> None:
    if math.isinf(expected):
        assert float(actual) == expected, gaps
    else:
        assert float(actual) == pytest.approx(expected, rel=1e-14, abs=1e-12), gaps


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_expectations_are_those_of_the_rational_sum(size):
    for case, answers, gaps in batches_of(size):
        forward = ops.log_likelihood(*case)
        found = ops.expectations(*case)
        moved = found.expected_transitions
        for n, expected in enumerate(answers):
            steps = int(case.lengths[n])
            assert_value(forward[n], expected.log_likelihood, gaps[n])
            assert_value(found.log_likelihood[n], expected.log_likelihood, gaps[n])
            assert_close(found.smoothed_probs[n, :steps], expected.smoothed, gaps[n])
            assert not found.smoothed_probs[n, steps:].any()
            if moved.dim() > 3:
                assert_close(moved[n, : steps - 1], expected.moved, gaps[n])
            else:
                assert_close(moved[n], expected.moved.sum(0), gaps[n])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gamma_is_the_marginal_of_xi(size):
    """Each gamma sums to 1, whatever the logits; so does each xi, to gamma before and after."""
    for case, answers, gaps in batches_of(size):
        num_states, num_steps = size
        wide = case.transition.expand(-1, max(num_steps - 1, 1), -1, -1)
        _, gamma, xi = ops.expectations(case.initial, wide, case.observation, case.lengths)
        for n, expected in enumerate(answers):
            steps = int(case.lengths[n])
            if expected.best is None:
                assert not gamma[n].any()
                continue
            assert_close(gamma[n, :steps].sum(-1), torch.ones(steps, dtype=torch.float64), gaps[n])
            if num_steps > 1:
                moves = xi[n].view(-1, num_states, num_states)[: steps - 1]
                assert_close(moves.sum(-1), gamma[n, : steps - 1], gaps[n])
                assert_close(moves.sum(-2), gamma[n, 1:steps], gaps[n])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_filter_is_that_of_the_rational_sum(size):
    for case, answers, gaps in batches_of(size):
        found = ops.filter_logits(*case).exp()
        for n, expected in enumerate(answers):
            assert_close(found[n, : int(case.lengths[n])], expected.filtered, gaps[n])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_viterbi_path_has_the_largest_rational_weight(size):
    for case, answers, _ in batches_of(size):
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
def test_both_derivatives_are_those_of_the_rational_sum(size):
    """The second are covariances of what a path passes through."""
    num_states, num_steps = size
    for case, answers, gaps in batches_of(size):
        wide = case.transition.expand(-1, num_steps - 1, -1, -1)
        leaves = [
            part.clone().requires_grad_() for part in (case.initial, wide, case.observation)
        ]
        value = ops.log_likelihood(*leaves, case.lengths)
        possible = value > -INF
        first = torch.autograd.grad(value[possible].sum(), leaves, create_graph=True)
        # Row by row, of all sequences at once: none has a derivative in another's logits.
        entries = [*first[2].flatten(1).unbind(1), *first[1].flatten(1).unbind(1)]
        rows = [torch.autograd.grad(each.sum(), leaves, retain_graph=True) for each in entries]
        assert not any(part.isnan().any() for second in rows for part in second)
        for n, expected in enumerate(answers):
            steps = int(case.lengths[n])
            assert_close(first[0][n], expected.smoothed[0], gaps[n])
            assert_close(first[1][n, : steps - 1], expected.moved, gaps[n])
            assert_close(first[2][n, :steps], expected.smoothed, gaps[n])
            after = num_steps * num_states  # of the first move's rows
            mine = rows[: steps * num_states] + rows[after : after + (steps - 1) * num_states**2]
            along = [
                torch.cat([row[2][n, :steps].flatten(), row[1][n, : steps - 1].flatten()])
                for row in mine
            ]
            assert_close(torch.stack(along), expected.hessian, gaps[n])


@pytest.mark.slow
@pytest.mark.usefixtures("way")
def test_posterior_paths_are_drawn_from_the_rational_sum():
    for case, answers, _ in batches_of((2, 8)):
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
    assert_close(found.smoothed_probs, half, "1e16")
    assert_close(found.expected_transitions, half * identity[0].exp(), "1e16")
