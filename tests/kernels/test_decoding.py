"""Paths against the list of all paths."""

import math
from collections.abc import Iterator

import pytest
import torch

from pyro_regimes.kernels import ops
from tests import seeds
from tests.frequencies import assert_binomial
from tests.kernels.cases import CASES, random_chain
from tests.kernels.test_reference import assert_equal, enumerate_case, stacked


@pytest.fixture(autouse=True, params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.backend(request.param):
        yield request.param


@pytest.mark.parametrize("name", CASES)
def test_viterbi_equals_enumeration(name):
    case = CASES[name]
    batch, answers = enumerate_case(case)
    path = ops.viterbi(*case)
    assert path.dtype == torch.long
    assert path.shape == batch + case.observation.shape[-2:-1]
    best = [
        each.best_path if each.log_likelihood > -math.inf else [-1] * len(each.best_path)
        for each in answers
    ]
    assert torch.equal(path, stacked(batch, best, path))


@pytest.mark.parametrize("name", CASES)
def test_complete_log_likelihood_equals_the_sum_along_the_path(name):
    """Equations 4 and 5."""
    case = CASES[name]
    batch, answers = enumerate_case(case)
    path = ops.viterbi(*case)
    actual = ops.complete_log_likelihood(*case[:3], path.clamp(min=0), case.lengths)
    assert actual.shape == batch
    expected = [
        max(each.paths.values()) if each.log_likelihood > -math.inf else each.paths[(0,) * 3]
        for each in answers
    ]
    assert_equal(actual, stacked(batch, expected, actual))


def test_the_lowest_state_wins_a_tie():
    zeros = torch.zeros(4, 3)
    assert ops.viterbi(zeros[0], torch.zeros(1, 3, 3), zeros).tolist() == [0, 0, 0, 0]


@pytest.mark.slow
def test_viterbi_keeps_its_precision_over_long_float32_sequences():
    case = random_chain(20_000, 3, seed=40)
    case = case._replace(observation=case.observation - 1e3)
    single = ops.viterbi(*(part.float() for part in case[:3]))
    double = ops.viterbi(*(part.float().double() for part in case[:3]))
    assert torch.equal(single, double)


@pytest.mark.parametrize(
    "name", ["plain", "varying A", "lengths", "structural zeros", "shared A and start", "T=1"]
)
def test_posterior_paths_have_the_posterior_frequencies(name):
    case = CASES[name]
    torch.manual_seed(seeds.seed(0))
    draws = 20_000
    paths = ops.sample_posterior(*case, sample_shape=torch.Size([draws]))
    batch, answers = enumerate_case(case)
    assert paths.shape == (draws,) + batch + case.observation.shape[-2:-1]
    paths = paths.reshape(draws, -1, paths.shape[-1])
    for sequence, each in enumerate(answers):
        length = sum(state >= 0 for state in each.best_path)
        drawn, counts = paths[:, sequence, :length].unique(dim=0, return_counts=True)
        assert (paths[:, sequence, length:] == -1).all()
        count = dict(zip(map(tuple, drawn.tolist()), counts.tolist(), strict=True))
        assert count.keys() <= each.paths.keys()
        assert_binomial(
            [count.get(path, 0) for path in each.paths],
            draws,
            [math.exp(weight - each.log_likelihood) for weight in each.paths.values()],
        )


def test_impossible_sequences_have_no_paths():
    assert (ops.sample_posterior(*CASES["impossible"]) == -1).all()
    assert (ops.viterbi(*CASES["impossible"]) == -1).all()


@pytest.mark.parametrize("slices", [1, 2], ids=["constant A", "varying A"])
def test_prior_paths_have_the_prior_frequencies(slices):
    case = random_chain(3, 2, slices=slices, seed=41)
    torch.manual_seed(seeds.seed(0))
    draws = 20_000
    paths = ops.sample_prior(case.initial, case.transition, 3, torch.Size([draws]))
    _, (answer,) = enumerate_case(case._replace(observation=torch.zeros(3, 2).double()))
    for path, weight in answer.paths.items():
        count = (paths == torch.tensor(path)).all(-1).sum()
        assert_binomial(count, draws, math.exp(weight))


@pytest.mark.parametrize("slices", [1, 2], ids=["constant A", "varying A"])
def test_each_chain_of_a_batch_draws_from_its_own_prior(slices):
    """Batches of the start and of A that broadcast with each other and with the shape."""
    case = random_chain(3, 2, batch=(3,), slices=slices, seed=42)
    transition = random_chain(3, 2, batch=(2, 1), slices=slices, seed=43).transition
    torch.manual_seed(seeds.seed(0))
    draws = 20_000
    paths = ops.sample_prior(case.initial, transition, 3, torch.Size([draws, 2, 3]))
    assert paths.shape == (draws, 2, 3, 3)
    zeros = torch.zeros(3, 2).double()
    _, answers = enumerate_case(case._replace(transition=transition, observation=zeros))
    for own, each in zip(paths.reshape(draws, 6, 3).unbind(1), answers, strict=True):
        for path, weight in each.paths.items():
            count = (own == torch.tensor(path)).all(-1).sum()
            assert_binomial(count, draws, math.exp(weight))


def test_states_of_probability_zero_are_never_drawn():
    case = CASES["structural zeros"]
    paths = ops.sample_prior(case.initial, case.transition, 20, torch.Size([2_000]))
    assert (paths[:, 0] != 2).all()
    moves = torch.stack([paths[:, :-1], paths[:, 1:]], -1).reshape(-1, 2)
    assert not (moves == torch.tensor([0, 0])).all(-1).any()
    assert not (moves == torch.tensor([1, 2])).all(-1).any()


def test_empty_shapes_of_paths():
    case = CASES["batch"]
    assert ops.sample_posterior(*case, sample_shape=torch.Size([0])).shape == (0, 2, 4)
    assert ops.sample_prior(*case[:2], 4, torch.Size([0, 2])).shape == (0, 2, 4)
    assert ops.sample_prior(*case[:2], 4, torch.Size([3, 2])).shape == (3, 2, 4)
    alone = CASES["T=1, no transitions"]
    assert ops.sample_prior(*alone[:2], 1, torch.Size([])).shape == (1,)
    nothing = CASES["empty batch"]
    assert ops.sample_posterior(*nothing, sample_shape=torch.Size([5])).shape == (5, 0, 4)
    assert ops.sample_prior(*nothing[:2], 4, torch.Size([5, 0])).shape == (5, 0, 4)


def test_the_seed_decides_the_paths():
    case = CASES["lengths"]

    def draw() -> list[torch.Tensor]:
        return [
            ops.sample_posterior(*case, sample_shape=torch.Size([6])),
            ops.sample_prior(*case[:2], 5, torch.Size([6, 4])),
        ]

    torch.manual_seed(1)
    first = draw()
    torch.manual_seed(1)
    for paths, again, other in zip(first, draw(), draw(), strict=True):
        assert torch.equal(paths, again)
        assert not torch.equal(paths, other)


def test_paths_need_no_gradient_and_ask_for_none():
    case = CASES["plain"]
    leaves = [part.clone().requires_grad_() for part in case[:3]]
    assert torch.equal(ops.viterbi(*leaves), ops.viterbi(*case))
    assert ops.sample_posterior(*leaves).shape == ops.viterbi(*case).shape
    assert ops.sample_prior(*leaves[:2], 4, torch.Size([])).shape == (4,)
