"""Spreads that are products of a parameter and of a constant or of other parameters.

:mod:`pyro_regimes.emissions.sizes` has their closed form; :mod:`.multiples` finds them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Pooled, Scaling, apply, blocks
from pyro_regimes.emissions.links import Link
from pyro_regimes.emissions.statistics import Spread
from pyro_regimes.infer.tracing import Slot


class SizeUse(NamedTuple):
    """Where a parameter is a factor of the sizes of an argument's blocks."""

    site: str
    argument: str
    cells: Tensor  #: a cell that each block depends on, or -1: ``(blocks,)``
    pairs: Tensor  #: all of them: blocks and cells, ``(pairs, 2)``
    labels: Tensor  #: the cell that is a factor of each size, or -1: ``(blocks, m)``, on the CPU
    scaling: Scaling

    @property
    def whole(self) -> bool:
        """No block equals a cell."""
        return False

    def pooled(self, found: Pooled, value: Tensor, num_cells: int) -> Pooled:
        """The statistics of the cells, with the present sizes as units.

        :param found: the statistics of the blocks.
        :param value: the blocks.
        """
        labels = self.labels.to(value.device)
        same = labels.unsqueeze(-1) == labels.unsqueeze(-2)
        where = labels.flatten()
        kept = where >= 0

        def by_cells(part: Tensor) -> Tensor:
            cells = part.new_zeros(num_cells)
            return cells.index_add(0, where[kept], part.flatten()[kept])

        return apply(by_cells, self.scaling.pooled(found, value, same))

    def stretched(self, value: Tensor, link: Link, before: Tensor, after: Tensor) -> Tensor:
        """The blocks after a change of the parameter."""
        old, new = (link.forward(each.detach().double().flatten()) for each in (before, after))
        ratio = torch.cat([new / old, new.new_ones(1)])  # the last one where the label is -1
        return self.scaling.stretch(value, ratio[self.labels.to(ratio.device)].to(value.dtype))

    def units(self, value: Tensor, held: Tensor) -> Tensor:
        """For each cell, the size at which the least eigenvalue of some block would be 1.

        :param held: the cells now.
        """
        root = self.scaling.variance(value).sqrt()
        block, cell = self.pairs.to(value.device).unbind(-1)
        units = torch.zeros_like(held)
        return units.scatter_reduce(0, cell, held[cell] / root[block].to(held), "amax")


class MatrixUse(NamedTuple):
    """Where an argument's blocks are multiples of a parameter's matrices."""

    site: str
    argument: str
    cells: Tensor  #: the cell that each block is a multiple of, or -1: ``(blocks,)``
    scaling: Scaling

    @property
    def whole(self) -> bool:
        """A block is a multiple of a cell, and need not equal it."""
        return False

    @property
    def pairs(self) -> Tensor:
        """All blocks with their cells, ``(pairs, 2)``."""
        block = (self.cells >= 0).nonzero().squeeze(-1)
        return torch.stack([block, self.cells[block]], -1)

    def ratios(self, value: Tensor, held: Tensor) -> Tensor:
        """The factors of standard deviations, ``(blocks,)``; 1 for a block of no cell.

        :param value: the blocks.
        :param held: the matrices of the cells in the parametrisation of the argument.
        """
        cells = self.cells.to(value.device)
        own = self.scaling.sizes(held)[cells.clamp(min=0), 0]
        return torch.where(cells >= 0, self.scaling.sizes(value)[:, 0] / own, 1.0)

    def pooled(self, found: Spread, value: Tensor, held: Tensor) -> Spread:
        """The statistics of the cells from those of the blocks."""
        where = self.cells.to(value.device)
        kept = where >= 0
        ratio = self.ratios(value, held).to(found.scatter)
        scatter = found.scatter / ratio[:, None, None] ** 2

        def by_cells(part: Tensor) -> Tensor:
            cells = part.new_zeros((len(held),) + part.shape[1:])
            return cells.index_add(0, where[kept], part[kept])

        return Spread(by_cells(found.weight), by_cells(scatter))

    def stretched(self, value: Tensor, link: Link, before: Tensor, after: Tensor) -> Tensor:
        """The blocks after a change of the parameter."""
        old, new = (link.forward(blocks(each.detach(), 2)) for each in (before, after))
        cells = self.cells.to(value.device)
        ratio = self.ratios(value, old).unsqueeze(-1).expand(value.shape[:-1])
        found = self.scaling.stretch(new[cells.clamp(min=0)], ratio).to(value.dtype)
        same = (old == new).flatten(1).all(-1)[cells.clamp(min=0)]  # without rounding
        return torch.where((cells < 0)[:, None, None] | same[:, None, None], value, found)

    def floor(self, value: Tensor, held: Tensor, floor: float) -> float:
        """The floor of the cells' eigenvalues that keeps those of the blocks above a floor."""
        kept = self.cells.to(value.device) >= 0
        least = self.ratios(value, held)[kept].square().amin() if bool(kept.any()) else 1.0
        return floor / float(least)


def coordinates(scaling: Scaling, matrices: Tensor) -> Tensor:
    """The logarithms of sizes, and the correlations, ``(blocks, D + D D)``, float64."""
    assert scaling.shape is not None
    matrices = matrices.double()
    return torch.cat([scaling.sizes(matrices).log(), scaling.shape(matrices).flatten(1)], -1)


def same_derivative(
    slot: Slot, parameter: Tensor, cells: Tensor, scaling: Scaling, link: Link
) -> bool:
    """Whether the derivatives of matrices in a parameter are those of multiples of its cells.

    A random cotangent of the coordinates is pulled back through the model, and through the link.
    """
    if not slot.value.requires_grad:
        return False
    target = coordinates(scaling, blocks(slot.argument.canonical(slot.value), 2))
    generator = torch.Generator().manual_seed(6)
    cotangent = torch.randn(target.shape, generator=generator, dtype=torch.float64, device="cpu")
    cotangent = cotangent.to(target)
    (actual,) = torch.autograd.grad(
        target, parameter, cotangent, retain_graph=True, materialize_grads=True
    )
    leaf = parameter.detach().double().requires_grad_()
    cells = cells.to(leaf.device)
    own = coordinates(scaling, link.forward(blocks(leaf, 2)))[cells.clamp(min=0)]
    weight = torch.where((cells >= 0).unsqueeze(-1), cotangent, 0.0)
    (expected,) = torch.autograd.grad(own, leaf, weight)
    actual = actual.to(expected)
    if link.is_lower or slot.argument.canonical is torch.tril and link.is_identity:
        actual, expected = actual.tril(), expected.tril()
    else:
        actual, expected = ((each + each.mT) / 2 for each in (actual, expected))
    scale = (leaf.detach().abs() * expected.abs()).amax()
    tolerance = torch.finfo(slot.value.dtype).eps ** 0.4
    return bool(((actual - expected).abs() * leaf.detach().abs() <= tolerance * scale).all())


@torch.enable_grad()
def is_multiple(
    slot: Slot, use: SizeUse | MatrixUse, link: Link, parameter: Tensor
) -> bool:
    """Whether the sizes of a later run have the parameter as a factor.

    A random cotangent is pulled back through the model, and through the product.
    """
    if isinstance(use, MatrixUse):
        return same_derivative(slot, parameter, use.cells, use.scaling, link)
    if not slot.value.requires_grad:
        return False
    logs = use.scaling.sizes(blocks(slot.value, slot.event_dim)).double().log()
    generator = torch.Generator().manual_seed(5)
    cotangent = torch.rand(logs.shape, generator=generator, dtype=torch.float64, device="cpu")
    cotangent = (cotangent + 0.5).to(logs)
    (actual,) = torch.autograd.grad(
        logs, parameter, cotangent, retain_graph=True, materialize_grads=True
    )
    leaf = parameter.detach().double().requires_grad_()
    labels = use.labels.to(leaf.device)
    own = torch.where(labels >= 0, link.forward(leaf.flatten()).log()[labels.clamp(min=0)], 0.0)
    (expected,) = torch.autograd.grad(own, leaf, cotangent)
    tolerance = 100 * torch.finfo(slot.value.dtype).eps ** 0.6
    return bool(((actual - expected).abs() <= tolerance * expected.abs().amax()).all())
