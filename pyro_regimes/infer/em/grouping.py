"""Groups sequences and parameters into the independent restarts of a batch.

Two sequences belong to one restart if they share a parameter, directly or through others. If all
parameters have a leading dim R there are R restarts. The objective of each must rise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.infer.em.recognise.plan import AnyUse, Plan, Use
from pyro_regimes.infer.tracing import Run, Site, num_own_dims
from pyro_regimes.kernels import ops


class Groups(NamedTuple):
    """The restart of each sequence and of each cell of each parameter."""

    num_restarts: int
    sequences: dict[str, Tensor]  #: by site: ``(...)`` of the site's batch
    cells: dict[str, Tensor]  #: by parameter: ``(cells,)``

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """Sums over the sequences of each restart, ``(R,)``, float64."""
        first = next(iter(values.values()))
        sums = torch.zeros(self.num_restarts, dtype=torch.float64, device=first.device)
        for name, value in values.items():
            sums.index_add_(0, self.sequences[name].flatten(), value.double().flatten())
        return sums

    def choose(
        self, name: str, which: npt.NDArray[np.bool_], there: Tensor, elsewhere: Tensor
    ) -> Tensor:
        """A parameter's value from ``there`` in some restarts, and from ``elsewhere`` in others."""
        if not which.any():
            return elsewhere
        labels = self.cells[name]
        chosen = torch.from_numpy(which).to(labels.device)[labels].unsqueeze(-1)
        one, other = (part.reshape(len(labels), -1) for part in (there, elsewhere))
        return torch.where(chosen, one, other).reshape(elsewhere.shape)

    def fits(self, run: Run) -> bool:
        """Whether the sites of a run have the batch shapes of this grouping."""
        shapes = {name: batch_shape(site) for name, site in run.sites.items()}
        return shapes == {name: labels.shape for name, labels in self.sequences.items()}


def batch_shape(site: Site) -> torch.Size:
    """The shape of the site's log-likelihood."""
    data = site.value.shape[: site.value.dim() - site.hmm.event_dim]
    return ops.broadcast(site.hmm.batch_shape, data)


def _by_sequence(values: Tensor, use: AnyUse, site: Site) -> Tensor:
    """The values of the blocks that each sequence uses, ``(sequences, uses)``.

    :param values: of all blocks of an argument.
    """
    slot = site.slots[use.argument]
    tail = num_own_dims(slot.argument, site)
    lead = torch.Size([1] * (tail - len(slot.lead))) + slot.lead
    shape = batch_shape(site)
    uses = lead[len(lead) - tail :]
    return values.reshape(lead).expand(shape + uses).reshape(shape.numel(), uses.numel())


def _sequences_and_cells(use: AnyUse, site: Site) -> tuple[Tensor, Tensor]:
    """All pairs of a sequence and a cell that it uses, with repetitions."""
    if isinstance(use, Use):
        table = _by_sequence(use.cells, use, site)
        sequence, column = (table >= 0).nonzero(as_tuple=True)
        return sequence, table[sequence, column]
    table = _by_sequence(torch.arange(len(use.cells), device="cpu"), use, site)
    order = table.flatten().argsort()
    block, first = table.flatten()[order], use.pairs[:, 0].contiguous()
    low = torch.searchsorted(block, first)
    count = torch.searchsorted(block, first, right=True) - low
    which = torch.repeat_interleave(torch.arange(len(first), device="cpu"), count)
    offset = torch.arange(len(which), device="cpu") - (count.cumsum(0) - count)[which]
    sequence = order[low[which] + offset] // table.shape[1]
    return sequence, use.pairs[which, 1]


def _one_group(plan: Plan, run: Run) -> Groups:
    sites = {
        name: torch.zeros(batch_shape(site), dtype=torch.long, device=site.value.device)
        for name, site in run.sites.items()
    }
    sizes = {each.name: each.num_cells for each in plan.assignments} | dict.fromkeys(
        plan.affine.names, 1
    )
    cells = {
        name: torch.zeros(size, dtype=torch.long, device=run.params[name].device)
        for name, size in sizes.items()
    }
    return Groups(1, sites, cells)


def find_groups(plan: Plan, run: Run) -> Groups:
    """Find the connected components of sequences and cells, by propagating the least label.

    If more than the likelihoods depends on the parameters, everything is one component, and so is
    a single sequence.
    """
    if plan.is_joint or sum(batch_shape(site).numel() for site in run.sites.values()) == 1:
        return _one_group(plan, run)
    labels, offset = {}, 0
    for name, site in run.sites.items():
        count = batch_shape(site).numel()
        labels[name] = torch.arange(offset, offset + count, device="cpu")
        offset += count
    cells = {
        each.name: torch.full((each.num_cells,), offset, device="cpu")
        for each in plan.assignments
    }
    links = []
    for each in plan.assignments:
        for use in each.uses:
            sequence, cell = _sequences_and_cells(use, run.sites[use.site])
            links.append((each.name, use.site, sequence, cell))
    moving = True
    while moving:
        moving = False
        for parameter, site_name, sequence, cell in links:
            least = cells[parameter].scatter_reduce(0, cell, labels[site_name][sequence], "amin")
            back = labels[site_name].scatter_reduce(0, sequence, least[cell], "amin")
            moving = moving or not torch.equal(back, labels[site_name])
            moving = moving or not torch.equal(least, cells[parameter])
            cells[parameter], labels[site_name] = least, back
    known = torch.cat(list(labels.values())).unique()

    def number(label: Tensor) -> Tensor:
        return torch.searchsorted(known, label).clamp(max=max(len(known) - 1, 0))

    return Groups(
        len(known),
        {
            name: number(labels[name]).reshape(batch_shape(site)).to(site.value.device)
            for name, site in run.sites.items()
        },
        {name: number(label).to(run.params[name].device) for name, label in cells.items()},
    )
