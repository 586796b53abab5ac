"""Derivatives of arguments in coefficients of covariates, and the memory that they take."""

from __future__ import annotations

from typing import Callable

import pytest
import torch
from torch import Tensor

from pyro_regimes.infer.em.recognise.jacobian import Jacobian
from pyro_regimes.infer.em.recognise.slices import join, read_slices
from tests import seeds

T, K, P = 50, 3, 4


def draw(*shape: int, n: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(950 + n), dtype=torch.float64)


X = draw(T, P)
DUMMIES = torch.nn.functional.one_hot(torch.arange(T) % P, P).double()
UNITS = torch.tensor([1e-9, 1.0, 1e9, 1e3]).double()

#: name: the argument as a function of the parameter, the parameter's shape, the size of a block
CASES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    "coefficients of each state": (lambda b: X @ b.mT, (K, P), 1),
    "covariates first": (lambda b: X @ b, (P, K), 1),
    "levels": (lambda b: b.expand(T, K), (K,), 1),
    "a slope for all": (lambda b: (X @ b).unsqueeze(-1).expand(T, K), (P,), 1),
    "one number": (lambda b: b * X[:, :1].expand(T, K), (), 1),
    "dummies": (lambda b: DUMMIES @ b.mT, (K, P), 1),
    "other units": (lambda b: (X * UNITS) @ b.mT, (K, P), 1),
    "loadings": (lambda b: torch.einsum("tp,kdp->tkd", X, b), (K, 2, P), 2),
    "transitions": (lambda b: torch.einsum("tp,ijp->tij", X, b), (K, K, P), K),
    "differences": (lambda b: X @ (b - b[:1]).mT, (K, P), 1),
    "restarts": (lambda b: torch.einsum("tp,rkp->rtk", X, b), (2, K, P), 1),
    "regimes that share": (lambda b: X @ b[torch.tensor([0, 1, 0])].mT, (2, P), 1),
    "constant": (lambda b: 0 * (X @ b.mT), (K, P), 1),
}


def jacobian_of(function: Callable[..., Tensor], leaves: list[Tensor], block_size: int) -> Jacobian:
    value = function(*leaves)
    slices = [read_slices(value, leaf, block_size) for leaf in leaves]
    groups = join(slices)
    assert groups is not None
    num_columns = sum(leaf.numel() for leaf in leaves)
    return Jacobian(tuple(groups), value.numel() // block_size, block_size, num_columns)


def dense(jacobian: Jacobian) -> Tensor:
    columns = torch.eye(jacobian.num_columns, dtype=torch.float64).unbind()
    return torch.stack([jacobian @ column for column in columns], -1)


@pytest.mark.parametrize("case", CASES)
def test_is_that_of_autograd(case: str) -> None:
    function, shape, block_size = CASES[case]
    leaf = draw(*shape, n=1).requires_grad_()
    expected = torch.autograd.functional.jacobian(function, leaf).reshape(-1, leaf.numel())
    found = dense(jacobian_of(function, [leaf], block_size))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slices = read_slices(function(leaf), leaf, block_size)
    direction = draw(*shape, n=2)
    torch.testing.assert_close(slices.along(direction), expected @ direction.flatten())
    torch.testing.assert_close(slices.largest(), expected.abs().amax(0))


def test_several_parameters() -> None:
    """Columns of one block stand together, whatever parameters they are of."""

    def function(level: Tensor, own: Tensor, common: Tensor, first: Tensor) -> Tensor:
        eta = level + X @ own.mT + (X @ common).unsqueeze(-1)
        return torch.cat([eta[:, :1] + (DUMMIES @ first).unsqueeze(-1), eta[:, 1:]], -1)

    leaves = [draw(*shape, n=3).requires_grad_() for shape in ((K,), (K, P), (P,), (P,))]
    parts = torch.autograd.functional.jacobian(function, tuple(leaves))
    expected = torch.cat([part.reshape(T * K, -1) for part in parts], -1)
    jacobian = jacobian_of(function, leaves, 1)
    torch.testing.assert_close(dense(jacobian), expected, rtol=1e-12, atol=1e-12)
    blocks = torch.cat([group.blocks for group in jacobian.groups])
    assert len(blocks) == len(blocks.unique())


@pytest.mark.parametrize("case", ["coefficients of each state", "covariates first", "transitions"])
def test_states_with_the_same_covariates_share_them(case: str) -> None:
    function, shape, block_size = CASES[case]
    jacobian = jacobian_of(function, [draw(*shape).requires_grad_()], block_size)
    assert len(jacobian.groups) == K
    assert len({group.matrix.data_ptr() for group in jacobian.groups}) == 1


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_regimes.infer.em.recognise import slices

    monkeypatch.setattr(slices, "MOST", T * P)
    leaf = draw(K, P).requires_grad_()
    assert read_slices(X @ leaf.mT, leaf, 1) is not None
    own = draw(T, K, P)  # covariates that differ between the states
    assert read_slices((own * leaf).sum(-1), leaf, 1) is None
