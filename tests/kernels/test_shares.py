"""Probabilities from expected counts."""

import pytest
import torch

from pyro_regimes.kernels import ops
from tests import seeds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_divided_by_their_sums(dtype):
    counts = torch.rand(50, 7, dtype=torch.float64, generator=seeds.generator(1))
    old = torch.full((50, 7), 1 / 7, dtype=dtype)
    found = ops.shares_of(counts, old)
    assert found.dtype == dtype
    torch.testing.assert_close(found, (counts / counts.sum(-1, keepdim=True)).to(dtype))
    assert torch.equal(found, ops.shares_of(counts.T.contiguous().T, old))


@pytest.mark.parametrize("grad", [False, True])  # the kernel, and tensor operations
def test_a_zero_stays_and_what_underflows_does_not_become_one(grad):
    tiny = torch.finfo(torch.float32).tiny
    counts = torch.tensor(
        [[0.0, 0.0, 1.0], [1e-60, 0.0, 1.0], [0.0, 0.0, 0.0], [torch.nan, 1.0, 1.0]],
        dtype=torch.float64,
        requires_grad=grad,
    )
    old = torch.tensor([0.5, 0.0, 0.5]).expand(4, 3)
    found = ops.shares_of(counts, old).detach()
    want = torch.tensor([[tiny, 0.0, 1.0], [tiny, 0.0, 1.0], [torch.nan] * 3, [torch.nan] * 3])
    assert torch.equal(found.nan_to_num(-1.0), want.nan_to_num(-1.0))


def test_no_rows():
    assert ops.shares_of(torch.empty(0, 3), torch.empty(0, 3)).shape == (0, 3)
