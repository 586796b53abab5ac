"""The normal equations of vectors, against sums over blocks one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes.emissions.statistics import WeightedSum
from pyro_regimes.infer.em.recognise.jacobian import Group, Jacobian, gram
from tests import seeds

B, D, C = 20, 3, 4


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(41 + len(shape)), dtype=torch.float64)


def matrices(kind: str) -> Tensor:
    """``(B, D, D * C)``."""
    if kind == "dense":
        return draw(B, D, D * C)
    values = draw(B, 1, C).expand(B, D, C) if kind == "same covariates" else draw(B, D, C)
    found = torch.zeros(B, D, D, C, dtype=torch.float64)
    found[:, torch.arange(D), torch.arange(D)] = values
    if kind == "a series without any":
        found[:, 1] = 0.0
    return found.flatten(2)


def precisions(kind: str) -> Tensor:
    square = draw(B, D, D)
    each = square @ square.mT
    if kind == "one, weighted":
        return each[0] * draw(B)[:, None, None].square()
    return each


@pytest.mark.parametrize("precision", ["one, weighted", "of every row"])
@pytest.mark.parametrize(
    "kind", ["dense", "same covariates", "other covariates", "a series without any"]
)
def test_sums_over_blocks(kind, precision):
    """Every second block has this derivative; the others depend on nothing."""
    matrix, weight = matrices(kind), precisions(precision)
    blocks, columns = torch.arange(0, 2 * B, 2), torch.randperm(
        D * C, generator=seeds.generator(40)
    )
    group = Group.of(blocks, columns, matrix)
    assert bool(group.rows) == (kind != "dense")
    jacobian = Jacobian((group,), 2 * B, D, D * C)
    whole = torch.zeros(2 * B, D, D, dtype=torch.float64)
    whole[blocks] = weight
    total, constant = draw(2 * B, D), draw(2 * B * D)
    vector = draw(D * C)
    normal, right = gram(jacobian, WeightedSum(whole[..., 0], total, whole), constant)
    expected_normal = torch.zeros(D * C, D * C, dtype=torch.float64)
    expected_right, along = torch.zeros(D * C, dtype=torch.float64), torch.zeros(2 * B, D).double()
    for b in range(B):
        j = torch.zeros(D, D * C, dtype=torch.float64)
        j[:, columns] = matrix[b]
        fixed = constant.reshape(2 * B, D)[2 * b]
        expected_normal += j.mT @ weight[b] @ j
        expected_right += j.mT @ (total[2 * b] - weight[b] @ fixed)
        along[2 * b] = j @ vector
    assert_close(normal, expected_normal, rtol=1e-12, atol=1e-12)
    assert_close(right, expected_right, rtol=1e-12, atol=1e-12)
    assert_close(jacobian @ vector, along.flatten(), rtol=1e-12, atol=1e-12)
