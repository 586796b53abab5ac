r"""Sparse Jacobians of locations in the parameters in which they are affine.

In a switching regression the location of a state depends only on the coefficients of that state.
So the blocks of an argument (entries, or vectors of correlated series) are grouped by the columns
that they depend on, and each group stores a dense matrix of these columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.statistics import WeightedSum

#: The most numbers that the Jacobian of one argument may hold: 512 MiB of them.
MOST = 2**26


class Row(NamedTuple):
    """One entry of each block, with the columns that it depends on."""

    places: Tensor  #: of these among the columns of the group
    values: Tensor  #: ``(B, columns)``


class Group(NamedTuple):
    """Blocks of the argument that depend on the same columns."""

    blocks: Tensor  #: ``(B,)``
    columns: Tensor  #: ``(C,)``
    matrix: Tensor  #: ``(B, block size, C)``, float64
    #: The same without zeros, where each series has coefficients of its own, as in a vector
    #: autoregression; empty otherwise.
    rows: tuple[Row, ...]

    @classmethod
    def of(
        cls, blocks: Tensor, columns: Tensor, matrix: Tensor, others: Sequence[Group] = ()
    ) -> Group:
        """The blocks with this derivative in these columns.

        :param others: some of which may have the same matrix.
        """
        for other in others:
            if other.matrix is matrix:
                return cls(blocks, columns, matrix, other.rows)
        return cls(blocks, columns, matrix, _rows(matrix))

    def __matmul__(self, vector: Tensor) -> Tensor:
        """``J v``, ``(B, block size)``."""
        if not self.rows:
            return self.matrix @ vector
        return torch.stack([row.values @ vector[row.places] for row in self.rows], -1)


def _rows(matrix: Tensor) -> tuple[Row, ...]:
    """The rows of blocks, if products of two of them are to be fewer than those of the blocks."""
    places = [each.nonzero().squeeze(-1) for each in (matrix != 0).any(0)]
    size, num_columns = matrix.shape[1:]
    if size == 1 or sum(map(len, places)) ** 2 >= size * num_columns**2:
        return ()
    return tuple(
        Row(own, matrix[:, number].index_select(-1, own)) for number, own in enumerate(places)
    )


class Jacobian(NamedTuple):
    """The derivative of an argument's entries in a vector of parameters."""

    groups: tuple[Group, ...]
    num_blocks: int
    block_size: int
    num_columns: int

    @property
    def num_entries(self) -> int:
        """Of the argument."""
        return self.num_blocks * self.block_size

    def __matmul__(self, vector: Tensor) -> Tensor:
        """``J v``, ``(entries,)``."""
        out = vector.new_zeros(self.num_blocks, self.block_size)
        for group in self.groups:
            out[group.blocks] = group @ vector[group.columns]
        return out.flatten()

    def transposed_times(self, cotangent: Tensor) -> Tensor:
        """``J^T c`` for ``(entries,)``, ``(columns,)``."""
        cotangent = cotangent.reshape(self.num_blocks, self.block_size)
        out = cotangent.new_zeros(self.num_columns)
        for blocks, columns, matrix, _ in self.groups:
            out[columns] += (matrix * cotangent[blocks].unsqueeze(-1)).sum((0, 1))
        return out

    def column_sizes(self) -> Tensor:
        """The sum of absolute entries of each column."""
        found = [(columns, matrix.abs().sum((0, 1))) for _, columns, matrix, _ in self.groups]
        device = found[0][0].device if found else torch.device("cpu")
        out = torch.zeros(self.num_columns, dtype=torch.float64, device=device)
        for columns, sizes in found:
            out[columns] += sizes
        return out

    def select(self, kept: Tensor) -> Jacobian:
        """With some of the columns only.

        :param kept: their numbers, in ascending order.
        """
        place = torch.full((self.num_columns,), -1, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        groups = []
        for blocks, columns, matrix, _ in self.groups:
            new = place.to(columns.device)[columns]
            if bool((new >= 0).any()):
                groups.append(Group.of(blocks, new[new >= 0], matrix[..., new >= 0]))
        return self._replace(groups=tuple(groups), num_columns=len(kept))

    def among(self, first: int, num_columns: int) -> Jacobian:
        """The same columns among more, from the place ``first``."""
        groups = tuple(each._replace(columns=each.columns + first) for each in self.groups)
        return self._replace(groups=groups, num_columns=num_columns)


class Differential:
    """An argument, ready to be differentiated forwards in one parameter.

    By differentiating the product with a cotangent in that cotangent.
    """

    def __init__(self, value: Tensor, leaf: Tensor) -> None:
        self._cotangent = torch.zeros_like(value).requires_grad_()
        self._leaf = leaf
        pulled: Tensor | None = None
        if value.requires_grad:
            (pulled,) = torch.autograd.grad(
                value, leaf, self._cotangent, create_graph=True, allow_unused=True
            )
        self._pulled = pulled

    def along(self, vector: Tensor) -> Tensor:
        """The derivative along a direction, ``(entries,)``, float64."""
        zero = torch.zeros_like(self._cotangent, dtype=torch.float64).flatten()
        if self._pulled is None or not self._pulled.requires_grad:
            return zero
        (found,) = torch.autograd.grad(
            self._pulled, self._cotangent, vector.to(self._pulled), True, allow_unused=True
        )
        return zero if found is None else found.detach().double().flatten()


def differentiate(value: Tensor, leaf: Tensor, restarts: int) -> Tensor | None:
    """All derivatives, ``(restarts, entries of a restart, parameter's entries of a restart)``.

    :param restarts: the size of the first dim of both, or 1.
    :return: None if entries of a restart depend on other entries than those of that restart.
    """
    differential, size = Differential(value, leaf), leaf.numel() // restarts
    columns = []
    for unit in torch.eye(size, dtype=leaf.dtype, device=leaf.device):
        along = differential.along(unit.expand(restarts, size).reshape(leaf.shape))
        columns.append(along.reshape(restarts, -1))
    found = torch.stack(columns, -1)
    if restarts > 1:
        generator = torch.Generator().manual_seed(3)
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64, device="cpu")
        direction = direction.to(leaf)
        actual = differential.along(direction).reshape(restarts, -1)
        own = direction.double().reshape(restarts, 1, size)
        expected, size_of = (found * own).sum(-1), (found * own).abs().sum(-1)
        precision = torch.finfo(leaf.dtype).eps ** 0.5
        if not bool(((actual - expected).abs() <= precision * (1 + size_of)).all()):
            return None
    return found


def gram(jacobian: Jacobian, pooled: WeightedSum, constant: Tensor) -> tuple[Tensor, Tensor]:
    """The normal equations of one argument, with the weighted statistics of its blocks.

    :param pooled: weighted with the blocks' precisions.
    :param constant: c, ``(entries,)``.
    :return: ``J^T W J`` and ``J^T (s - W c)``.
    """
    normal = constant.new_zeros(jacobian.num_columns, jacobian.num_columns)
    right = constant.new_zeros(jacobian.num_columns)
    constant = constant.reshape(jacobian.num_blocks, jacobian.block_size)
    correlated = pooled.precision is not None
    weight = (pooled.weight if pooled.precision is None else pooled.precision).to(constant)
    total = pooled.total.to(constant).reshape(constant.shape)
    for group in jacobian.groups:
        blocks, columns, matrix, _ = group
        own, fixed = weight[blocks], constant[blocks]
        if correlated:
            square = _quadratic(group, own)
            shift = (own @ fixed.unsqueeze(-1)).squeeze(-1)
        else:
            own = own.reshape(-1, 1)
            square = matrix.flatten(0, 1).mT @ (own.unsqueeze(-1) * matrix).flatten(0, 1)
            shift = own * fixed
        normal[columns.unsqueeze(-1), columns] += square
        right[columns] += _transposed(group, total[blocks] - shift)
    return normal, right


def _transposed(group: Group, cotangent: Tensor) -> Tensor:
    """``sum_b J_b^T c_b``, ``(C,)``."""
    if not group.rows:
        return group.matrix.flatten(0, 1).mT @ cotangent.flatten()
    found = cotangent.new_zeros(len(group.columns))
    for row, own in zip(group.rows, cotangent.unbind(-1), strict=True):
        found[row.places] += row.values.mT @ own
    return found


def _quadratic(group: Group, precision: Tensor) -> Tensor:
    """``sum_b J_b^T P_b J_b``, ``(C, C)``.

    :param precision: ``(B, D, D)``, symmetric.
    """
    matrix, rows = group.matrix, group.rows
    if not rows:
        return matrix.flatten(0, 1).mT @ (precision @ matrix).flatten(0, 1)
    found = matrix.new_zeros(matrix.shape[-1], matrix.shape[-1])
    shared = _shared([row.values for row in rows], precision)
    for one, other in combinations_with_replacement(range(len(rows)), 2):
        if shared is None:
            weighted = precision[:, one, other].unsqueeze(-1) * rows[other].values
            part = rows[one].values.mT @ weighted
        else:
            part = shared[1][one, other] * shared[0]
        found[rows[one].places.unsqueeze(-1), rows[other].places] += part
        if one != other:
            found[rows[other].places.unsqueeze(-1), rows[one].places] += part.mT
    return found


def _shared(rows: list[Tensor], precision: Tensor) -> tuple[Tensor, Tensor] | None:
    """The one product of all rows, and its factors, where all series have the same covariates.

    The precisions of the blocks then are to be multiples ``n_b P`` of one, up to rounding.

    :param rows: of J, ``(B, columns)`` each.
    :return: ``sum_b n_b z_b z_b^T`` and ``P``; None where they are not.
    """
    first = rows[0]
    if not all(torch.equal(first, each) for each in rows[1:]):
        return None
    weight = precision[:, 0, 0]
    largest = weight.argmax()
    factors = precision[largest] / weight[largest]
    limits = torch.finfo(precision.dtype)
    apart = (precision - weight[:, None, None] * factors).abs()
    if not bool((apart <= 16 * limits.eps * precision.abs() + limits.tiny).all()):
        return None
    return first.mT @ (weight.unsqueeze(-1) * first), factors
