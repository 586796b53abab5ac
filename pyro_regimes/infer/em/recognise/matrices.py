"""Finds covariances, factors and precisions that are multiples of a parameter's matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes.emissions.base import Argument, Scaling, blocks
from pyro_regimes.emissions.links import Link
from pyro_regimes.infer.em.recognise.dependence import depends, is_of_sequences, slot_in
from pyro_regimes.infer.em.recognise.factors import MatrixUse, coordinates, same_derivative
from pyro_regimes.infer.em.recognise.plan import Assignment
from pyro_regimes.infer.em.recognise.priors import find_prior
from pyro_regimes.infer.tracing import Run, Slot, constraint_of

NO_FACTOR = "is no multiple of it"


def scaling_of(slot: Slot) -> Scaling:
    """How multiples of a slot's argument are set; the argument must have it."""
    assert slot.argument.scaling is not None
    return slot.argument.scaling


def holds_matrices(name: str, run: Run) -> bool:
    """Whether a parameter holds covariances, their Cholesky factors or precisions."""
    constraint = constraint_of(name)
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint in (constraints.positive_definite, constraints.lower_cholesky)


def find_matrices(name: str, runs: list[Run]) -> Assignment | str:
    """The assignment of a parameter of whose matrices all blocks are multiples."""
    uses: list[MatrixUse] = []
    links: tuple[Link, ...] = ()
    argument: Argument | None = None
    for slot in runs[0].slots:
        if not any(depends(slot_in(run, slot).value, run.params[name]) for run in runs):
            continue
        size = slot.value.shape[-1:]
        if slot.event_dim != 2 or runs[0].params[name].shape[-1:] != size:
            return f"{slot.label} {NO_FACTOR}"
        if runs[0].is_subsampled and is_of_sequences(runs[0], slot):
            return f"{slot.label} holds a value for each sequence of a subsampled plate"
        for link in links or slot.argument.links:
            cells = _match_matrices(slot, name, link, runs)
            if cells is not None:
                links = (link,)
                break
        else:
            return f"{slot.label} {NO_FACTOR}"
        argument = slot.argument
        uses.append(MatrixUse(slot.site, slot.name, cells, scaling_of(slot)))
    assert argument is not None
    prior = find_prior(name, argument, links[0], runs)
    if isinstance(prior, str):
        return prior
    num_cells = len(blocks(runs[0].params[name], 2))
    return Assignment(name, argument, uses, num_cells, links[0], False, prior)


def _match_matrices(slot: Slot, name: str, link: Link, runs: list[Run]) -> Tensor | None:
    """The cell that each block is a multiple of; None if not every block is one.

    It has the cell's correlations, and sizes with one ratio to the cell's, in value and derivative.
    """
    scaling = scaling_of(slot)
    cells: Tensor | None = None
    for run in [*runs[1:], runs[0]]:  # at a random point all cells differ
        there, parameter = slot_in(run, slot), run.params[name].detach()
        value = there.argument.canonical(there.value.detach())
        target, held = (
            coordinates(scaling, blocks(each, 2)) for each in (value, link.forward(parameter))
        )
        size = value.shape[-1]
        target, held = (
            torch.cat([each[:, :size] - each[:, :1], each[:, size:]], -1)
            for each in (target, held)
        )
        if not bool(held.isfinite().all() and target.isfinite().all()):
            return None
        if cells is None:
            cells = torch.cdist(target, held).argmin(-1)
        precision = torch.finfo(parameter.dtype).eps ** 0.4 * size
        if not bool(((target - held[cells]).abs() <= precision).all()):
            return None
        if not same_derivative(there, run.params[name], cells, scaling, link):
            return None
    return None if cells is None else cells.cpu()
