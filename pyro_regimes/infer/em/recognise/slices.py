r"""The derivative of an argument in one parameter, read without its zeros.

In a switching regression the location of a state depends only on the coefficients of that state,
its *slice* of the parameter. One forward derivative along the same column of all slices serves all
of them at once. Which slice a block of the argument depends on follows from two derivatives: in the
direction r of every slice, and in that direction times the number of the slice. Their ratio is that
number wherever a block depends on one slice alone. Slices with equal derivatives, as those with the
same covariates, share one matrix.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.infer.em.recognise.jacobian import MOST, Differential, Group

#: The most slices of a parameter that are told apart.
_MOST_SLICES = 1024


class Slices(NamedTuple):
    """The derivative of an argument's entries in one parameter, in which it is affine."""

    groups: list[Group]  #: one for each slice on which blocks depend; columns of the parameter
    owners: Tensor  #: the group of each block, or -1, ``(blocks,)``
    block_size: int
    num_columns: int  #: of the parameter

    def along(self, direction: Tensor) -> Tensor:
        """The derivative along a direction in the parameter's shape, ``(entries,)``, float64."""
        vector = direction.to(self.owners.device, torch.float64).flatten()
        out = vector.new_zeros(len(self.owners), self.block_size)
        for group in self.groups:
            out[group.blocks] = group @ vector[group.columns]
        return out.flatten()

    def largest(self) -> Tensor:
        """The largest absolute entry of each column, ``(columns,)``."""
        found = torch.zeros(self.num_columns, dtype=torch.float64, device=self.owners.device)
        for _, columns, matrix, _ in self.groups:
            size = torch.maximum(matrix.amax((0, 1)), -matrix.amin((0, 1)))
            found[columns] = found[columns].maximum(size)
        return found


def read_slices(value: Tensor, leaf: Tensor, block_size: int) -> Slices | None:
    """Differentiate an argument in a parameter; None where it would hold too many numbers.

    :param value: the argument, or a function of it.
    :param block_size: the number of entries of a block.
    """
    differential = Differential(value, leaf)
    for merged in _subsets(leaf):
        numbers = _numbers(leaf, merged)
        owners = _owners(differential, leaf, numbers, block_size)
        if owners is not None:
            found = _read(differential, leaf, numbers, owners, block_size)
            if found is None or _agree(found, value, leaf):
                return found
    numbers = torch.zeros(leaf.numel(), dtype=torch.long, device=leaf.device)
    owners = torch.zeros(value.numel() // max(1, block_size), dtype=torch.long, device=leaf.device)
    return _read(differential, leaf, numbers, owners, block_size)


def _agree(found: Slices, value: Tensor, leaf: Tensor) -> bool:
    """Whether every column has been found in all blocks: by a random mixture of its entries.

    The ratio of two derivatives may be a whole number by rounding, if columns differ in units.
    """
    generator = torch.Generator().manual_seed(5)
    drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64, device="cpu") - 0.5
    drawn = drawn.to(value)
    (actual,) = torch.autograd.grad(value, leaf, drawn, retain_graph=True, materialize_grads=True)
    drawn = drawn.double().reshape(-1, found.block_size)
    expected = torch.zeros(found.num_columns, dtype=torch.float64, device=leaf.device)
    size = torch.zeros_like(expected)
    for blocks, columns, matrix, _ in found.groups:
        flat, own = matrix.flatten(0, 1), drawn[blocks].flatten()
        expected[columns] += flat.mT @ own
        size[columns] += flat.abs().mT @ own.abs()
    precision = torch.finfo(leaf.dtype).eps ** 0.6
    return bool(((actual.double().flatten() - expected).abs() <= precision * size).all())


def _subsets(leaf: Tensor) -> list[tuple[int, ...]]:
    """The sets of dims that may tell slices, those of the most slices first."""
    dims = [dim for dim, size in enumerate(leaf.shape) if size > 1]
    every = [each for count in range(len(dims)) for each in combinations(dims, count + 1)]
    sizes = {each: torch.Size([leaf.shape[dim] for dim in each]).numel() for each in every}
    few = [each for each in every if sizes[each] <= _MOST_SLICES]
    return sorted(few, key=lambda each: -sizes[each])


def _numbers(leaf: Tensor, merged: tuple[int, ...]) -> Tensor:
    """The slice of each entry of a parameter, ``(columns,)``."""
    numbers = torch.zeros(leaf.shape, dtype=torch.long, device=leaf.device)
    for dim in merged:
        index = torch.arange(leaf.shape[dim], device=leaf.device)
        shape = [-1 if each == dim else 1 for each in range(leaf.dim())]
        numbers = numbers * leaf.shape[dim] + index.reshape(shape)
    return numbers.flatten()


def _columns_of(numbers: Tensor) -> Tensor:
    """The entries of each slice in order, ``(slices, C)``."""
    return numbers.argsort(stable=True).reshape(int(numbers.max()) + 1, -1)


def _owners(
    differential: Differential, leaf: Tensor, numbers: Tensor, block_size: int
) -> Tensor | None:
    """The slice that each block depends on, or -1; None if some depend on several."""
    columns = _columns_of(numbers)
    generator = torch.Generator().manual_seed(4)
    drawn = torch.rand(columns.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    direction = torch.zeros(leaf.numel(), dtype=torch.float64, device=leaf.device)
    direction[columns] = (0.5 + drawn).to(leaf.device).expand(columns.shape)
    one = differential.along(direction.reshape(leaf.shape))
    other = differential.along((direction * (numbers + 1)).reshape(leaf.shape))
    one, other = one.reshape(-1, block_size), other.reshape(-1, block_size)
    known = one != 0
    if bool((other[~known] != 0).any()):
        return None
    ratio = other / one.masked_fill(~known, 1.0)
    whole = ratio.round()
    if bool(((ratio - whole).abs() > 1e-3).any()):
        return None
    most = whole.amax(-1)
    if bool((known & (whole != most.unsqueeze(-1))).any()) or bool((most > len(columns)).any()):
        return None
    return most.long() - 1


def _read(
    differential: Differential, leaf: Tensor, numbers: Tensor, owners: Tensor, block_size: int
) -> Slices | None:
    """The derivative, given the slice of each column and of each block; None if it is too large."""
    groups = _read_groups(differential, leaf, numbers, owners, block_size)
    if groups is None:
        return None
    place = torch.full((len(numbers) + 1,), -1, device=leaf.device)
    present = owners[owners >= 0].unique()
    place[present] = torch.arange(len(present), device=leaf.device)
    return Slices(groups, place[owners], block_size, leaf.numel())


def _read_groups(
    differential: Differential, leaf: Tensor, numbers: Tensor, owners: Tensor, block_size: int
) -> list[Group] | None:
    """The derivative of the blocks of each slice; equal matrices are one."""
    columns = _columns_of(numbers)
    order = owners.argsort(stable=True)
    present, counts = owners.unique(return_counts=True)
    blocks = list(order.split(counts.tolist()))[int(bool((present < 0).any())) :]
    present = present[present >= 0].tolist()
    num_columns = columns.shape[1]
    matrices: list[Tensor] = []  # of the slices, with those of equal ones more than once
    room = MOST

    def new_matrix(own: Tensor) -> Tensor | None:
        nonlocal room
        room -= len(own) * block_size * num_columns
        if room < 0:
            return None
        return torch.zeros(
            (len(own), block_size, num_columns), dtype=torch.float64, device=leaf.device
        )

    for index in range(num_columns):
        direction = torch.zeros(leaf.numel(), dtype=leaf.dtype, device=leaf.device)
        direction[columns[:, index]] = 1.0
        dense = differential.along(direction.reshape(leaf.shape)).reshape(-1, block_size)
        for place, own in enumerate(blocks):
            values = dense[own]
            if len(matrices) == place:
                first = matrices[0] if matrices else None
                if first is None or first.shape[0] != len(own):
                    first = new_matrix(own)
                    if first is None:
                        return None
                matrices.append(first)
            is_shared = place > 0 and matrices[place] is matrices[0]
            if is_shared and not torch.equal(values, matrices[0][..., index]):
                apart = new_matrix(own)
                if apart is None:
                    return None
                apart[..., :index] = matrices[0][..., :index]
                matrices[place], is_shared = apart, False
            if not is_shared:
                matrices[place][..., index] = values
    groups: list[Group] = []
    for number, own, matrix in zip(present, blocks, matrices, strict=True):
        groups.append(Group.of(own, columns[number], matrix, groups))
    return groups


def join(slices: list[Slices]) -> list[Group] | None:
    """The groups of several parameters, whose columns follow each other.

    :return: None where they would hold too many numbers.
    """
    if len(slices) == 1:
        return slices[0].groups
    firsts = [0]
    for each in slices:
        firsts.append(firsts[-1] + each.num_columns)
    patterns, which = torch.stack([each.owners for each in slices], -1).unique(
        dim=0, return_inverse=True
    )
    groups: list[Group] = []
    room = MOST
    for number, pattern in enumerate(patterns.tolist()):
        if max(pattern) < 0:
            continue
        blocks = (which == number).nonzero().squeeze(-1)
        columns, parts = [], []
        for owner, each, first in zip(pattern, slices, firsts):
            if owner >= 0:
                group = each.groups[owner]
                columns.append(group.columns + first)
                rows = torch.searchsorted(group.blocks, blocks)
                parts.append(group.matrix if len(rows) == len(group.blocks) else group.matrix[rows])
        matrix = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        same = [g for g in groups if g.matrix.shape == matrix.shape]
        if same and torch.equal(same[0].matrix, matrix):
            matrix = same[0].matrix
        else:
            room -= matrix.numel()
            if room < 0:
                return None
        groups.append(Group.of(blocks, torch.cat(columns), matrix, groups))
    return groups
