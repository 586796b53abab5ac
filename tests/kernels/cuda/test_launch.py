"""The Triton kernels against the reference: natively on a GPU, interpreted where there is none."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_regimes.kernels import dispatch, ops, reference
from pyro_regimes.kernels.cuda import availability, launch, tiling
from tests import seeds
from tests.kernels.cases import CASES, INF, Case, random_chain

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU, or TRITON_INTERPRET=1 set before Triton is imported",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# How each way through the kernels is forced on sequences too short for it to pay.
REGIMES = {
    "one block": {"_MIN_BLOCKS": 1 << 30},
    "blocks": {"_MIN_BLOCKS": 2, "_MIN_BLOCK_SIZE": 2},
    "groups of blocks": {"_MIN_BLOCKS": 2, "_MIN_BLOCK_SIZE": 2, "_MAX_SCAN": 1},
}


@pytest.fixture(autouse=True)
def nan_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer starts as NaN, so that an element nobody writes is seen."""
    monkeypatch.setattr(
        launch,
        "_empty",
        lambda shape, dtype, device: torch.full(shape, math.nan, dtype=dtype, device=device),
    )


@pytest.fixture(params=REGIMES.values(), ids=REGIMES.keys())
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in request.param.items():
        monkeypatch.setattr(tiling, name, value)


def force(monkeypatch: pytest.MonkeyPatch, **constants: int) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(tiling, f"_{name.upper()}", value)


def flatten(case: Case) -> Case:
    """One batch dim, as the door hands arguments over; a shared A or start stays shared."""
    parts = (case.initial, case.transition, case.observation)
    batch = torch.broadcast_shapes(
        *(part.shape[:-dim] for part, dim in zip(parts, (1, 3, 2), strict=True)),
        () if case.lengths is None else case.lengths.shape,
    )
    flat = []
    for part, dim in zip(parts, (1, 3, 2), strict=True):
        events = part.shape[part.dim() - dim :]
        if part.dim() == dim and dim != 2:
            flat.append(part.unsqueeze(0).to(DEVICE))
        else:
            flat.append(part.expand(batch + events).reshape((batch.numel(),) + events).to(DEVICE))
    lengths = None
    if case.lengths is not None:
        lengths = case.lengths.expand(batch).reshape(batch.numel()).to(DEVICE)
    return Case(*flat, lengths)


def to(case: Case, dtype: torch.dtype) -> Case:
    return Case(*(part.to(dtype) for part in case[:3]), case.lengths)


def expected_of(case: Case) -> tuple[Tensor, ...]:
    """What the reference finds, in float64 and on the CPU."""
    parts = [None if part is None else part.cpu() for part in to(case, torch.float64)]
    value, smoothed, moved = reference.expectations(*parts)
    return value, smoothed, moved.unsqueeze(1) if case.transition.shape[1] == 1 else moved


def assert_equal(
    actual: Tensor, expected: Tensor, rtol: float = 1e-10, atol: float = 1e-12
) -> None:
    torch.testing.assert_close(actual.cpu(), expected.to(actual.dtype), rtol=rtol, atol=atol)


def assert_agrees(case: Case, **tolerance: float) -> None:
    expected = expected_of(case)
    actual = launch.expectations(*case)
    assert actual[0].dtype == torch.float64
    assert actual[1].dtype == actual[2].dtype == case.observation.dtype
    for ours, other in zip(actual, expected, strict=True):
        assert ours.shape == other.shape
        assert_equal(ours, other, **tolerance)
    if case.observation.dtype == torch.float64:  # the forward sweep alone
        assert_equal(launch.log_likelihood(*case), expected[0], **tolerance)


def flags_of(case: Case) -> Tensor:
    """Which sequences the scaled sweeps gave up."""
    problem = launch._Problem(*case)
    count, steps, states = case.observation.shape
    size = problem.num_blocks * problem.block_size
    problem.solve(
        problem.empty(count, steps, states),
        problem.empty(count, problem.num_blocks, states, states, dtype=torch.float64),
        problem.empty(count * size * states, dtype=torch.float64),
    )
    return problem.flags.cpu() != 0


def every_way() -> Iterator[Any]:
    """Every case in every regime. The quick tests take each case once, the regimes in turn.

    Fewer than four steps are one block in all regimes.
    """
    for row, (name, case) in enumerate(CASES.items()):
        ways = list(REGIMES) if case.observation.shape[-2] >= 4 else ["one block"]
        for column, regime in enumerate(ways):
            quick = column == row % len(ways)
            yield pytest.param(name, regime, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize("name, regime_name", list(every_way()))
def test_equals_reference(name, regime_name, monkeypatch):
    for constant, value in REGIMES[regime_name].items():
        monkeypatch.setattr(tiling, constant, value)
    assert_agrees(flatten(CASES[name]))


# (T, K, N, slices of A): odd lengths, K beside a power of two, each tile of the launcher up to 32.
SIZES = [(99, 3, 2, 1), (35, 5, 3, 34), (35, 9, 2, 1), (19, 17, 2, 18), (19, 33, 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("num_blocks", ["one", "several"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_that_hurt(size, num_blocks, monkeypatch):
    num_steps, num_states, count, slices = size
    case = flatten(random_chain(num_steps, num_states, batch=(count,), slices=slices, seed=1))
    lengths = torch.tensor([num_steps, num_steps // 2, 1][:count], device=DEVICE)
    force(monkeypatch, min_blocks=2 if num_blocks == "several" else 1 << 30, min_block_size=8)
    assert_agrees(case._replace(lengths=lengths))
    # Only the results are rounded, to 6e-8 of themselves (seen: 6e-8).
    assert_agrees(to(case, torch.float32), rtol=2e-7, atol=1e-9)


def test_more_states_than_fit_on_chip_go_to_the_reference():
    case = flatten(random_chain(3, 130, batch=(2,), seed=2))
    with ops.backend("cuda"):
        found = ops.expectations(*case)
    with ops.backend("reference"):
        expected = ops.expectations(*case)
    for actual, other in zip(found, expected, strict=True):
        assert torch.equal(actual, other)


def adversarial(count: int, num_steps: int, num_states: int, gap: float, slices: int = 1) -> Case:
    """Chains on which scaled sums lose mass; one kind of A, and one of data, after another.

    :param gap: how many nats apart observation logits may lie.
    """
    generator = seeds.generator(num_states)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def chosen(share: float, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) < share

    initial = normal(count, num_states).log_softmax(-1)
    transition = normal(count, slices, num_states, num_states).log_softmax(-1)
    observation = normal(count, num_steps, num_states)
    halves = torch.arange(num_states) < num_states // 2
    gaps = torch.arange(num_states) * torch.linspace(-1, 1, num_steps).sign().unsqueeze(-1)
    for n in range(count):
        a, b = transition[n], observation[n]
        a_kind, b_kind = n % 8, n // 8 % 4
        if a_kind == 0:
            a.copy_(torch.eye(num_states).log())
        elif a_kind == 1:
            a.masked_fill_(halves.unsqueeze(-1) != halves, -INF)
        elif a_kind == 2:
            a.masked_fill_(~torch.ones(num_states, num_states).triu().bool(), -INF)
            initial[n, 1:] = -INF
        elif a_kind == 3:
            a.masked_fill_(chosen(0.4, a), math.log(1e-300))
        elif a_kind == 4:
            a.masked_fill_(chosen(0.5, a), -INF)
        elif a_kind == 5:
            a.copy_(-680 * torch.rand(a.shape, generator=generator))
            a.diagonal(dim1=-2, dim2=-1).zero_()
        elif a_kind == 6:
            b.masked_fill_(chosen(0.1, b), -INF)
            initial[n] *= 300
        if b_kind == 0:
            b.mul_(gap / 2)
        elif b_kind == 1:
            b.mul_(torch.where(chosen(0.1, b[:, :1]), gap / 2, 1.0))
        elif b_kind == 2:
            b.copy_(gaps * gap / 30)
    lengths = torch.randint(num_steps // 2, num_steps + 1, (count,), generator=generator)
    return flatten(Case(initial, transition, observation, lengths))


@pytest.mark.slow
@pytest.mark.parametrize("num_blocks", ["one", "several"])
@pytest.mark.parametrize("num_states, slices", [(2, 1), (3, 1), (4, 39)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adversarial_chains(dtype, num_states, slices, num_blocks, monkeypatch):
    single = dtype == torch.float32
    case = to(adversarial(32, 40, num_states, 200 if single else 800, slices), dtype)
    if num_blocks == "several":
        force(monkeypatch, min_blocks=2, min_block_size=6, max_scan=3)
    # As exact as other chains: what underflow could touch is done again in log space.
    assert_agrees(case, **({"rtol": 2e-7, "atol": 1e-7} if single else {"rtol": 1e-11}))


@pytest.mark.slow
@pytest.mark.parametrize("num_steps, min_blocks", [(260, 1 << 30), (1_000, 2)])
def test_mass_that_fades_over_many_steps_comes_back(num_steps, min_blocks, monkeypatch):
    """A = I with gaps of some nats: a scaled recursion alone is wrong by hundreds of nats here."""
    force(monkeypatch, min_blocks=min_blocks)
    half = num_steps // 2
    gaps = torch.cat([6 * torch.ones(half), -12 * torch.ones(half)]).double()
    observation = torch.stack([gaps, torch.zeros(num_steps)], -1)
    identity = torch.eye(2, dtype=torch.float64).log().unsqueeze(0)
    initial = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    case = flatten(Case(initial, identity, observation.unsqueeze(0)))
    value, smoothed, moved = launch.expectations(*case)
    expected = torch.tensor([-6.0 * half, 0.0]).double().logsumexp(0) + math.log(0.5)
    assert_equal(value, expected.reshape(1))
    assert_equal(smoothed, torch.tensor([0.0, 1.0]).expand(1, num_steps, 2))
    assert_equal(moved, torch.tensor([[[[0.0, 0.0], [0.0, num_steps - 1.0]]]]))


@pytest.mark.usefixtures("regime")
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_first_observation_far_from_the_initial_logits(num_steps):
    """Nothing has mixed them: 800 nats apart, neither may be exponentiated alone."""
    case = random_chain(num_steps, 3, batch=(4,), seed=6)
    case.initial[0] = torch.tensor([0.0, -800.0, -2_000.0])
    case.observation[0, 0] = torch.tensor([-3_000.0, -1_000.0, 0.0])
    case.initial[1] = torch.tensor([0.0, -2_000.0, -INF])
    case.observation[1, 0] = torch.tensor([-1_000.0, 0.0, 3_000.0])
    case.initial[2] = torch.tensor([-INF, -900.0, 0.0])
    case.observation[2, 0] = torch.tensor([0.0, 0.0, -INF])
    assert_agrees(flatten(case))


@pytest.mark.slow
@pytest.mark.usefixtures("regime")
def test_flags_are_for_those_who_need_them():
    """Chains that mix are never done again, nor those whose neighbours in a tile are."""
    case = random_chain(30, 3, batch=(6,), seed=3)
    case.observation[1] *= 100  # gaps far beyond float64's range
    case.initial[2, :2] = -700.0
    case.transition[3] = torch.eye(3).log()
    case.observation[3] = torch.tensor([[100.0, 0.0, 0.0]] * 15 + [[-200.0, 0.0, 0.0]] * 15)
    flags = flags_of(flatten(case))
    assert flags.tolist() == [False, False, False, True, False, False]


@pytest.mark.usefixtures("regime")
def test_impossible_sequence_leaves_its_neighbours_alone():
    case = random_chain(9, 3, batch=(3,), seed=4)
    case.observation[1, 4] = -INF
    value, smoothed, moved = launch.expectations(*flatten(case))
    assert value[1] == -INF
    assert (smoothed[1] == 0).all() and (moved[1] == 0).all()
    alone = launch.expectations(*flatten(Case(*(part[:1] for part in case[:3]))))
    for actual, other in zip((value, smoothed, moved), alone, strict=True):
        assert torch.equal(actual[:1], other)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("poison", [math.nan, INF])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_nan_and_infinity_give_nan(part, poison):
    case = random_chain(6, 3, batch=(2,), seed=5)
    entry = ((0, 1), (0, 0, 1, 2), (0, 3, 1))[part]
    case[part][entry] = poison
    value, smoothed, _ = launch.expectations(*flatten(case))
    assert value[0].isnan() and smoothed[0].isnan().any()
    assert value[1].isfinite() and smoothed[1].isfinite().all()


def test_blocks_cover_every_step():
    for count in (1, 3, 100, 5_000, 100_000):
        for num_steps in (1, 2, 63, 64, 256, 1_000, 1_000_003, 1 << 24):
            num_blocks, size = tiling.cut_time(count, num_steps, 32_768)
            assert (num_blocks - 1) * size < num_steps <= num_blocks * size
            assert num_blocks == 1 or (size >= 64 and num_blocks * count <= 32_768)
    for num_blocks in (1, 2, 256, 257, 1_000, 32_768):
        groups, size = tiling.group_blocks(num_blocks)
        assert (groups - 1) * size < num_blocks <= groups * size
        assert groups == 1 or groups < num_blocks


def test_old_triton_is_refused(monkeypatch):
    import triton

    availability.why_not.cache_clear()
    assert availability.why_not() == ""
    try:
        availability.why_not.cache_clear()
        monkeypatch.setattr(triton, "__version__", "3.5.1+git1234")
        assert availability.why_not() == "Triton 3.5.1+git1234 is older than 3.6"
        availability.why_not.cache_clear()
        monkeypatch.setitem(sys.modules, "triton", None)
        assert availability.why_not() == "Triton is not installed"
    finally:
        availability.why_not.cache_clear()


def test_slow_recursions_are_told_of_once(monkeypatch):
    monkeypatch.setattr(dispatch, "_warned", set())
    for device, num_states, why in [
        ("xpu", 3, "no kernels for xpu devices"),
        ("cuda", 129, "at most 128 states"),
    ]:
        with pytest.warns(RuntimeWarning, match=f"plain tensor code, .* {why}") as caught:
            assert dispatch._of_device(device, num_states) == "reference"
        assert [each.filename for each in caught] == [__file__]
        assert dispatch._of_device(device, num_states) == "reference"  # warnings are errors
    assert dispatch._of_device("cuda", 128) == "cuda"


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.usefixtures("regime")
def test_the_host_never_waits():
    case = flatten(adversarial(8, 20, 3, 800))
    launch.expectations(*case)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        launch.expectations(*case)
        launch.log_likelihood(*case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["plain", "lengths", "varying A"])
def test_through_the_door_with_derivatives(name):
    """First derivatives are the kernel's expectations, second ones the tangent recursion."""
    case = to(CASES[name], torch.float64)
    leaves = [part.to(DEVICE).requires_grad_() for part in case[:3]]
    lengths = None if case.lengths is None else case.lengths.to(DEVICE)
    results = []
    for backend in ("cuda", "reference"):
        with ops.backend(backend):
            value = ops.log_likelihood(*leaves, lengths)
            first = torch.autograd.grad(value.sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum((each**2).sum() for each in first), leaves)
            results.append((value.detach(), *(each.detach() for each in first), *second))
    for actual, expected in zip(*results, strict=True):
        assert_equal(actual, expected.cpu())


@pytest.mark.usefixtures("regime")
@pytest.mark.parametrize("varying", [False, True])
def test_probabilities_sum_to_one_whatever_the_logits(varying):
    """States that never exchange, favoured in turn; both explain the whole equally well."""
    gaps = torch.tensor([1e3, 1e8, 1e16, 1e300], dtype=torch.float64)
    observation = torch.zeros(4, 6, 2, dtype=torch.float64)
    observation[:, ::2, 0] = observation[:, 1::2, 1] = -gaps.unsqueeze(-1)
    identity = torch.eye(2, dtype=torch.float64).log().expand(1, 5 if varying else 1, 2, 2)
    case = Case(torch.zeros(1, 2, dtype=torch.float64), identity, observation)
    _, gamma, xi = launch.expectations(*(part.to(DEVICE) for part in case[:3]))
    half = torch.full((4, 6, 2), 0.5, dtype=torch.float64)
    torch.testing.assert_close(gamma.cpu(), half, rtol=0.0, atol=1e-12)
    moves = 2.5 * torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    torch.testing.assert_close(xi.cpu().sum(1), moves, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.usefixtures("regime")
def test_lengths_out_of_range_give_nan_and_leave_the_neighbours_alone(varying):
    case = random_chain(9, 3, batch=(4,), slices=8 if varying else 1, seed=77)
    lengths = torch.tensor([4, 0, 10**9, 9])
    given = [part.to(DEVICE) for part in case[:3]]
    value, gamma, xi = launch.expectations(*given, lengths.to(DEVICE))
    for part in (value, gamma, xi, launch.log_likelihood(*given, lengths.to(DEVICE))):
        assert part[1:3].isnan().all()
    good = torch.tensor([0, 3])
    expected = expected_of(Case(*(part[good] for part in case[:3]), lengths[good]))
    assert value.dtype == torch.float64
    for actual, other in zip((value, gamma, xi), expected, strict=True):
        actual = actual[good.to(DEVICE)].cpu()
        torch.testing.assert_close(actual, other.reshape(actual.shape), rtol=1e-9, atol=1e-11)
