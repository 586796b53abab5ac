"""The compiled filter and paths against the tensor code: sizes that hurt, chains that lose mass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu import launch, log_space, sampling, viterbi
from tests import seeds
from tests.frequencies import assert_binomial
from tests.kernels import adversarial
from tests.kernels.cases import CASES, INF, Case, random_chain
from tests.kernels.test_reference import assert_equal

pytestmark = pytest.mark.usefixtures("filled_buffers")


def by(name: str, function, *args):  # type: ignore[no-untyped-def]
    with ops.backend(name):
        return function(*args)


def assert_same(case: Case) -> None:
    """The filter to rounding, and the very same most likely path."""
    actual, expected = (by(name, ops.filter_logits, *case) for name in ("cpu", "reference"))
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert torch.equal(actual == -INF, expected == -INF)
    assert_equal(actual, expected)
    actual, expected = (by(name, ops.viterbi, *case) for name in ("cpu", "reference"))
    assert actual.dtype == expected.dtype == torch.long
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_tensor_code(name):
    assert_same(CASES[name])


def test_the_compiled_kernel_is_what_runs(monkeypatch):
    """Without a gradient to come, whatever its leaves ask for; otherwise the tensor code."""
    ran = []
    for name in ("filter_logits", "viterbi", "sample_posterior", "sample_prior"):
        monkeypatch.setattr(
            launch,
            name,
            lambda *args, _name=name, _run=getattr(launch, name): ran.append(_name) or _run(*args),
        )
    case = random_chain(5, 3, seed=70)
    leaves = [part.clone().requires_grad_() for part in case[:3]]
    assert ops.filter_logits(*leaves).requires_grad
    assert not ran
    with torch.no_grad():
        assert_equal(ops.filter_logits(*leaves), by("reference", ops.filter_logits, *leaves))
    ops.viterbi(*leaves)
    ops.sample_posterior(*leaves)
    ops.sample_prior(*leaves[:2], 5, torch.Size([]))
    assert ran == ["filter_logits", "viterbi", "sample_posterior", "sample_prior"]
    with torch.inference_mode():
        ops.viterbi(*(part + 0 for part in case[:3]))
    each = torch.func.vmap(ops.filter_logits)(*random_chain(5, 3, (2,), seed=71)[:3])
    assert each.shape == (2, 5, 3)
    assert len(ran) == 5


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize(
    "num_steps, num_states, slices, count",
    [
        (1, 1, 1, 1),
        (2, 1, 1, 3),
        (63, 2, 1, 5),
        (257, 3, 256, 2),
        (100, 7, 1, 3),
        (100, 9, 99, 2),
        (60, 16, 1, 3),
        (60, 17, 1, 3),
        (50, 40, 1, 2),
        (20, 40, 19, 2),
        (9, 130, 1, 1),
        (4, 300, 1, 2),
    ],
)
def test_equals_the_tensor_code_at_other_sizes(num_steps, num_states, slices, count, ragged):
    case = random_chain(num_steps, num_states, (count,), slices, seed=num_steps + num_states)
    if ragged:
        generator = seeds.generator(count)
        lengths = torch.randint(1, num_steps + 1, (count,), generator=generator)
        case = case._replace(lengths=lengths)
    assert_same(case)


@pytest.mark.parametrize("num_states", [2, 3, 8, 16, 40])
def test_ties_are_broken_as_in_the_tensor_code(num_states):
    """Logits of few values make ties at nearly every step, exact ones and ones up to rounding."""
    generator = seeds.generator(72)

    def few(*shape: int) -> Tensor:
        return torch.randint(-2, 1, shape, generator=generator).double() / 10

    assert_same(
        Case(few(6, num_states), few(6, 1, num_states, num_states), few(6, 400, num_states))
    )


@pytest.mark.parametrize(
    "name", ["plain", "varying A", "lengths", "impossible", "batch in A alone"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_read_as_they_are(name, dtype):
    """All arithmetic is float64; the filter is rounded at the end."""
    case = CASES[name]
    assert_same(Case(*(part.to(dtype) for part in case[:3]), case.lengths))


def test_non_contiguous_and_expanded_input():
    case = random_chain(60, 3, (4,), seed=73)
    assert_same(
        Case(
            case.initial.repeat_interleave(2, -1)[..., ::2],
            case.transition.mT.contiguous().mT,
            case.observation.transpose(0, 1).contiguous().transpose(0, 1).flip(0),
        )
    )
    assert_same(case._replace(observation=case.observation[:1].expand(4, 60, 3)))


@pytest.mark.parametrize("name", ["lengths", "batch", "padding holds anything", "impossible"])
def test_threads_agree(name, monkeypatch):
    monkeypatch.setattr(launch, "_GRAIN", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert_same(CASES[name])
        torch.manual_seed(seeds.seed(0))
        spread = ops.sample_posterior(*CASES[name], sample_shape=torch.Size([7]))
    finally:
        torch.set_num_threads(threads)
    torch.manual_seed(seeds.seed(0))
    assert torch.equal(spread, ops.sample_posterior(*CASES[name], sample_shape=torch.Size([7])))


@pytest.mark.slow
@pytest.mark.parametrize("gap", [1.0, 800.0])
def test_a_state_that_faded_for_thousands_of_steps_comes_back(gap):
    """A = I: in state 1 the first half is unlikely, the second all the more likely."""
    half = 1_500
    gaps = gap * torch.cat([torch.ones(half), -2.0 * torch.ones(half)]).double()
    case = Case(
        torch.tensor([0.5, 0.5], dtype=torch.float64).log(),
        torch.eye(2, dtype=torch.float64).log().unsqueeze(0),
        torch.stack([gaps, torch.zeros(2 * half).double()], -1),
    )
    assert_same(case)
    assert ops.filter_logits(*case)[half - 1, 1] == -gap * half
    assert (ops.viterbi(*case) == 1).all()
    assert (ops.sample_posterior(*case, sample_shape=torch.Size([5])) == 1).all()


def test_a_state_far_below_the_smallest_number_keeps_its_logarithm():
    """Every state can follow every other: nothing is lost for good, and nothing from one entry."""
    case = random_chain(50, 3, seed=74)
    case = case._replace(observation=500 * case.observation)
    assert_same(case)
    logits = ops.filter_logits(*case)
    assert logits.isfinite().all() and logits.min() < -1_000


@pytest.mark.parametrize("num_steps, num_states", [(1_500, 3), (200, 40)])
def test_left_to_right(num_steps, num_states):
    chain = random_chain(num_steps, num_states, (3,), seed=75)
    initial = torch.full((num_states,), -INF, dtype=torch.float64)
    initial[0] = 0.0
    above = torch.ones(num_states, num_states).triu().bool()
    transition = chain.transition.masked_fill(~above, -INF).log_softmax(-1)
    assert_same(Case(initial, transition, chain.observation))
    lengths = torch.tensor([num_steps, 1, num_steps // 2])
    assert_same(Case(initial, transition, chain.observation, lengths))


def left_behind(num_steps: int, back: int) -> Case:
    """Two regimes that never exchange: the second falls 800 a step behind, for ``back`` steps."""
    gaps = torch.where(torch.arange(num_steps) < back, 800.1, -800.3).double()
    observation = torch.stack([gaps, torch.zeros_like(gaps)], -1)
    transition = torch.eye(2, dtype=torch.float64).log().unsqueeze(0)
    return Case(torch.tensor([0.5, 0.5], dtype=torch.float64).log(), transition, observation)


@pytest.mark.parametrize("back, redone", [(400, False), (300, False), (200, True)])
@pytest.mark.parametrize("num_states", [2, 20])  # in registers, and not
def test_exact_sums_serve_only_where_a_state_comes_back(back, redone, num_states, monkeypatch):
    """A state that stays behind, however far, costs nothing."""
    case, count = left_behind(400, back), []
    more = num_states - 2  # states that cannot be reached
    case = Case(
        torch.nn.functional.pad(case.initial, (0, more), value=-INF),
        torch.nn.functional.pad(case.transition, (0, more, 0, more), value=-INF),
        torch.nn.functional.pad(case.observation, (0, more)),
    )
    for module, name in ((log_space, "filter_sweep"), (viterbi, "exact_viterbi")):
        kernel = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, _name=name, _run=kernel: count.append(_name) or _run(*args),
        )
    assert_same(case)
    assert count == (["filter_sweep", "exact_viterbi"] if redone else [])


@pytest.mark.slow
def test_adversarial_chains():
    """Chains on which mass fades and comes back; some of each kind."""
    for label, case in adversarial.batches(torch.float64):
        case = Case(*(part[:3, :600] for part in case[:3]))
        expected = by("reference", ops.filter_logits, *case)
        actual = by("cpu", ops.filter_logits, *case)
        assert torch.equal(actual == -INF, expected == -INF), label
        assert adversarial.error(actual, expected) < 1e-11, label
        assert torch.equal(ops.viterbi(*case), by("reference", ops.viterbi, *case)), label


@pytest.mark.parametrize("slices", [1, 399], ids=["constant A", "varying A"])
def test_paths_through_states_that_had_faded(slices):
    """Left to right, held in the first state until the last observation demands the last one.

    While it waits, the others' shares fall to e^-1200; the frequencies must be gamma all the same.
    """
    num_steps, draws = 400, 4_000
    transition = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]]).double().log()
    observation = torch.zeros(num_steps, 3, dtype=torch.float64)
    observation[:300, 1:] = -4.0
    observation[300:, 0] = -16.0
    observation[-1, :2] = -INF
    initial = torch.tensor([0.0, -INF, -INF], dtype=torch.float64)
    case = Case(initial, transition.expand(slices, 3, 3), observation)
    torch.manual_seed(seeds.seed(0))
    paths = ops.sample_posterior(*case, sample_shape=torch.Size([draws]))
    assert (paths.diff(dim=-1) >= 0).all()
    gamma = by("reference", ops.expectations, *case).smoothed_probs
    assert_binomial(torch.nn.functional.one_hot(paths, 3).sum(0), draws, gamma)


def test_a_draw_that_sums_below_the_smallest_number_is_made_from_logarithms():
    """Into state 2 lead two states alone, equally likely and both of them below e^-1000."""
    third = -math.log(3.0)
    transition = torch.tensor([[0.0, -INF, -INF], [third] * 3, [third] * 3], dtype=torch.float64)
    observation = torch.tensor([[0.0, -1_000.0, -1_000.0], [-INF, -INF, 0.0]], dtype=torch.float64)
    case = Case(torch.full((3,), third).double(), transition.unsqueeze(0), observation)
    assert_same(case)
    paths = ops.sample_posterior(*case, sample_shape=torch.Size([4_000]))
    assert (paths[:, 1] == 2).all() and (paths[:, 0] > 0).all()
    assert_binomial((paths[:, 0] == 1).sum(), 4_000, 0.5)


def test_many_paths_come_in_turns(monkeypatch):
    """The uniform numbers' memory is bounded, and the draws are the same ones."""
    case = CASES["lengths"]

    def draw() -> list[Tensor]:
        torch.manual_seed(seeds.seed(3))
        posterior = ops.sample_posterior(*case, sample_shape=torch.Size([11]))
        return [posterior, ops.sample_prior(*case[:2], 5, torch.Size([11, 4]))]

    whole = draw()
    for room in (1, 35):
        monkeypatch.setattr(sampling, "_UNIFORMS", room)
        for actual, expected in zip(draw(), whole, strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_the_outermost_uniform_numbers_avoid_states_of_probability_zero(uniform):
    for weights in ([0.0, 0.3, 0.0, 0.7, 0.0], [0.0, 1e-300, 0.0], [0.1] * 3 + [0.0]):
        weights = np.array(weights)
        state = sampling._pick(weights, weights.sum(), uniform)
        possible = np.flatnonzero(weights)
        assert state == (possible[0] if uniform == 0.0 else possible[-1])


def test_back_pointers_are_of_the_smallest_integers():
    for num_states, width, dtype in [
        (1, 4, np.uint8),
        (3, 4, np.uint8),
        (16, 16, np.uint8),
        (17, 17, np.uint8),
        (256, 256, np.uint8),
        (257, 257, np.uint16),
    ]:
        room = viterbi.back_pointers(5, num_states)
        assert room.shape == (5, width) and room.dtype == dtype


@pytest.mark.parametrize("num_states", [1, 3, 4, 20])
@pytest.mark.parametrize("step", [0, 2, 5])
def test_nan_stays_within_its_sequence_and_its_bounds(num_states, step):
    case = random_chain(6, num_states, (2,), seed=77)
    case.observation[0, step] = math.nan
    logits, path = ops.filter_logits(*case), ops.viterbi(*case)
    assert logits[0, step:].isnan().all() and logits[0, :step].isfinite().all()
    assert logits[1].isfinite().all()
    drawn = ops.sample_posterior(*case, sample_shape=torch.Size([50]))
    for states in (path, drawn):
        assert ((states >= 0) & (states < num_states)).all()
