"""Sums over time."""

import math

import pytest
import torch

from pyro_regimes.kernels import ops
from tests import seeds


@pytest.mark.parametrize("shape, dim", [((1000, 3), 0), ((2, 70_001, 2), -2), ((3, 5, 4, 2), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_fsum(shape, dim, dtype):
    part = torch.randn(shape, generator=seeds.generator(1), dtype=dtype)
    found = ops.sum_over(part, dim)
    lanes = part.movedim(dim, -1).double()
    want = [math.fsum(lane) for lane in lanes.reshape(-1, lanes.shape[-1]).tolist()]
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found.flatten(), lanes.new_tensor(want), rtol=0.0, atol=1e-15 * lanes.abs().sum().item()
    )


def test_no_digit_depends_on_the_batch_the_layout_or_the_threads():
    part = torch.randn(3, 100_003, 2, generator=seeds.generator(2), dtype=torch.float64)
    together, threads = ops.sum_over(part, 1), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for index in range(3):
                alone = ops.sum_over(part[index].T.contiguous().T, 0)
                assert torch.equal(alone, together[index])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_empty_sums_are_zero(shape):
    found = ops.sum_over(torch.ones(shape), 1)
    assert found.shape == (shape[0], 1, shape[2]) and not found.any()


def test_what_is_not_finite_is_passed_on():
    part = torch.tensor([[1.0, math.inf], [math.nan, 1.0]])
    assert ops.sum_over(part, 0)[0].isnan().tolist() == [True, False]
    assert ops.sum_over(part, 0)[0, 1] == math.inf


WRONG = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16))
@pytest.mark.parametrize("size", (1, 7, 4_096, 10_000))
def test_one_number_that_is_not_finite_is_found_wherever_it_is(size, dtype):
    value = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)  # the sum overflows
    assert ops.is_finite(value)
    for place in {0, size // 2, size - 1, min(size - 1, 4_095), min(size - 1, 4_096)}:
        for wrong in WRONG:
            other = value.clone()
            other[place] = wrong
            assert not ops.is_finite(other), (place, wrong)
            assert not ops.is_finite(other.reshape(1, -1, 1).expand(2, size, 3))


def test_a_view_is_finite_whatever_lies_between_its_entries():
    value = torch.zeros(6, 4, dtype=torch.float64)
    value[:, 1] = float("nan")
    assert ops.is_finite(value[:, ::2]) and ops.is_finite(value.T[2])
    assert not ops.is_finite(value[:, 1]) and not ops.is_finite(value.T)


def test_no_numbers_and_integers_are_finite():
    assert ops.is_finite(torch.empty(0, 3)) and ops.is_finite(torch.arange(3))


def test_every_thread_looks_at_its_numbers():
    value, threads = torch.zeros(2_500_000, dtype=torch.float64), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert ops.is_finite(value)
        for place in (0, 1_249_999, 1_250_000, 2_499_999):
            value[place] = float("nan")
            assert not ops.is_finite(value)
            value[place] = 0.0
    finally:
        torch.set_num_threads(threads)
