"""The arguments of a chain as the arrays of its kernel, and the parameters they hold."""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.emissions import multivariate_normal as mvn
from pyro_regimes.emissions import normal
from pyro_regimes.emissions.base import Argument, blocks
from pyro_regimes.emissions.links import COVARIANCE
from pyro_regimes.infer.em.e_step import SiteData
from pyro_regimes.infer.em.problem import Params
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan
from pyro_regimes.infer.tracing import num_own_dims

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Map = Callable[[Tensor], Tensor]

_FACTOR = next(link for link in COVARIANCE if link.is_lower)


def _itself(value: Tensor) -> Tensor:
    return value


def _gram(factor: Tensor) -> Tensor:
    # Not by a matrix product of torch, which rounds by where in memory a matrix begins.
    lower = factor.tril().numpy()
    return torch.from_numpy(np.einsum("...ij,...kj->...ik", lower, lower))


class _Form(NamedTuple):
    """How the kernel takes an argument: probabilities, locations, covariances, variances, rates."""

    to_kernel: Map
    #: from the kernel's form to that of :meth:`Argument.maximise`, of which a link is the inverse
    from_kernel: Map


_FORMS: dict[Argument, _Form] = {
    mvn.COVARIANCE_MATRIX: _Form(_itself, _itself),
    mvn.SCALE_TRIL: _Form(_gram, _FACTOR.inverse),
    normal.SCALE: _Form(torch.square, torch.sqrt),
}


def _form(argument: Argument) -> _Form:
    """By default that of :meth:`Argument.maximise`, of which a probability has one for logits."""
    return _FORMS.get(argument) or _Form(argument.canonical, _itself)


class Held(NamedTuple):
    """A parameter in one argument."""

    assignment: Assignment
    cells: Labels  #: the cell that each block of the argument holds, or -1: ``(P * B,)``
    is_whole: bool  #: whether each holds the cell of its number


class Part:
    """One argument, with B blocks for each of P models.

    :param value: in the kernel's form, ``(P, *states and series, *block)``.
    :param held: the parameters in it.
    """

    def __init__(self, argument: Argument, value: Array, held: list[Held]) -> None:
        self.argument, self.value, self.held = argument, value, held
        labels, offset = np.full(value.size // _size(value, argument), -1), 0
        for each in held:
            labels = np.where(each.cells < 0, labels, each.cells + offset)
            offset += each.assignment.num_cells
        rows = _first(labels, offset)[labels].reshape(len(value), -1)  # of each model
        begin = rows.shape[1] * np.arange(len(value))[:, np.newaxis]
        owners = np.where(rows < 0, -1, rows - begin)
        #: For each block the first one that holds the same cell; -1 for a constant: ``(B,)``.
        self.owner: Labels = owners[0]
        self.is_alike = bool((owners == self.owner).all())

    @property
    def is_free(self) -> npt.NDArray[np.bool_]:
        """Which blocks hold a parameter, ``(B,)``."""
        free: npt.NDArray[np.bool_] = self.owner >= 0
        return free

    @property
    def is_shared(self) -> bool:
        """Whether some cell serves several blocks of a model."""
        return bool((self.is_free & (self.owner != np.arange(len(self.owner)))).any())

    def pseudo(self, counts: dict[str, Tensor]) -> Array:
        """What priors add to the expected counts of rows of probabilities, in the shape of them."""
        total = np.zeros((self.value.size // self.value.shape[-1], self.value.shape[-1]))
        for each in self.held:
            if each.assignment.name in counts:
                added = counts[each.assignment.name].detach().double().numpy()
                total += np.where(each.cells[:, None] < 0, 0.0, added[each.cells])
        return total.reshape(self.value.shape)

    def write(self, value: Array, like: Params) -> Params:
        """The parameters that give the argument a value, in the kernel's form."""
        params = {}
        form = _form(self.argument).from_kernel(torch.from_numpy(value))
        every = blocks(form, self.argument.event_dim)
        for each in self.held:
            name, link = each.assignment.name, each.assignment.link
            if each.is_whole:
                new = link.inverse(every).to(like[name].dtype)
            else:
                first = _first(each.cells, each.assignment.num_cells)[:-1]
                is_used = first >= 0  # others keep their values
                new = blocks(like[name], each.assignment.event_dim).clone()
                new[is_used] = link.inverse(every[first[is_used]]).to(new.dtype)
            params[name] = new.reshape(like[name].shape)
        return params


def _size(value: Array, argument: Argument) -> int:
    """The number of entries of a block in the kernel's form."""
    if argument is normal.SCALE or argument is normal.LOC:
        return 1
    return math.prod(value.shape[value.ndim - argument.event_dim :])


def _first(cells: Labels, count: int) -> Labels:
    """For each of so many cells the first block that holds it, or -1; and -1 for none, at -1."""
    first = np.full(count + 1, -1)
    first[cells[::-1]] = np.arange(len(cells) - 1, -1, -1)  # what is assigned last stays
    first[-1] = -1
    return first


def read(plan: Plan, data: SiteData, argument: Argument, num_models: int) -> Part | None:
    """An argument of a site; None if models share parts of it, or it varies in time."""
    slot, site = data.site.slots[argument.name], data.site
    states = (site.hmm.state_dim,) if argument.num_own_dims > 1 else ()  # not of a whole chain
    series = tuple(site.hmm.observation_dist.event_shape) if argument.elementwise else ()
    own = num_own_dims(argument, site)
    tail = ((1,) if own else ()) + states + series

    lead = torch.Size([1] * (own - len(slot.lead))) + slot.lead
    batch, rest = lead[: len(lead) - own], lead[len(lead) - own :]
    count = _num_models(batch, data.batch_shape, num_models)
    is_constant = all(size in (1, wanted) for size, wanted in zip(rest, tail, strict=True))
    if count is None or not is_constant:
        return None
    value = _form(argument).to_kernel(slot.value.detach().double()).numpy()

    def of_models(blocks: npt.NDArray[Any], block: tuple[int, ...]) -> npt.NDArray[Any]:
        blocks = blocks.reshape((count, *rest, *block))
        if blocks.shape != (num_models, *tail, *block):
            blocks = np.broadcast_to(blocks, (num_models, *tail, *block))
        return blocks.reshape((num_models, *states, *series, *block)).copy()

    held = []
    for each in plan.assignments:
        for use in each.uses:
            if use.argument == argument.name:
                cells = of_models(use.cells.numpy(), ()).reshape(-1)
                held.append(Held(each, cells, use.whole and len(cells) == each.num_cells))
    return Part(argument, of_models(value, value.shape[value.ndim - argument.event_dim :]), held)


def _num_models(batch: torch.Size, whole: torch.Size, num_models: int) -> int | None:
    """1 or ``num_models``: an argument has values for all models, or for each of them."""
    if batch.numel() == 1:
        return 1
    batch = torch.Size([1] * (len(whole) - len(batch))) + batch
    for split in range(len(batch) + 1):
        if batch == whole[:split] + torch.Size([1] * (len(batch) - split)):
            return num_models if batch.numel() == num_models else None
    return None
