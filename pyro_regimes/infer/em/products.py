r"""The M-step of products of powers where chains start from their stationary distribution.

With the shares :math:`\theta` of :mod:`pyro_regimes.chain.shares`,

.. math:: Q(\theta) = \sum_{ij} c_{ij} \log A_{ij}(\theta) + \sum_i g_i \log \pi_i(A(\theta))

has no closed form. Hamilton's p and q with a stationary start (Hamilton 1989) are of this kind. The
counts n of :func:`.stationary.counts_at` give :math:`\sum_{ij} n_{ij} \log A_{ij}(\theta)` the
derivative that Q has at the present shares. Its maximiser :math:`\theta^*` is a ratio of pooled
counts m, and Q rises on the way there: the derivative along :math:`\theta^* - \theta` is
:math:`M \sum_j (\theta^*_j - \theta_j)^2 / \theta_j`, with M the sum of m in a group. A step that
lowers Q is halved, and steps are repeated, so that Q never falls. It is a Newton step for the first
term of Q, so that in long sequences two or three suffice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.chain import stationary
from pyro_regimes.emissions.base import Pooled, blocks
from pyro_regimes.emissions.statistics import Counts, Trials
from pyro_regimes.infer.em.grouping import Groups
from pyro_regimes.infer.em.pooling import Collected, pool, pooled_blocks
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan
from pyro_regimes.infer.em.recognise.powers import PowerUse, Products, Shares
from pyro_regimes.infer.tracing import Slot

_MOST_STEPS = 30
_MOST_HALVINGS = 12

Cells = dict[str, Tensor]


class _Argument(NamedTuple):
    """One argument that is a product."""

    product: Products
    slot: Slot
    old: Tensor  #: its value before the M-step
    pooled: Counts | stationary.StationaryCounts  #: of its blocks, before
    restarts: Tensor  #: the restart of each block, ``(blocks,)``


def maximise_products(
    plan: Plan, collected: Collected, pseudo: dict[str, Pooled], groups: Groups
) -> Cells:
    """New cells of all parameters of products, if some of these have a stationary start.

    :param collected: at the present parameters, which it keeps.
    :param pseudo: terms of conjugate priors.
    """
    if not (plan.stationary and plan.products):
        return {}
    found = [each for each in plan.order if isinstance(each.uses[0], PowerUse)]
    given = [_read(each, plan, collected, groups) for each in plan.products]
    if not any(isinstance(each.pooled, stationary.StationaryCounts) for each in given):
        return {}
    return _Ascent(found, given, collected, pseudo, groups).run()


def _read(product: Products, plan: Plan, collected: Collected, groups: Groups) -> _Argument:
    site, name = product.site, product.argument
    slot = collected.expected[site].data.site.slots[name]
    pooled = pooled_blocks(site, name, collected, False)
    old = collected.arguments[site][name]
    restarts = torch.zeros(slot.lead.numel(), dtype=torch.long, device=old.device)
    for each in plan.assignments:
        for use in each.uses:
            if isinstance(use, PowerUse) and (use.site, use.argument) == (site, name):
                block, cell = use.pairs.to(old.device).unbind(-1)
                restarts[block] = groups.cells[each.name][cell]
    return _Argument(product, slot, old, pooled, restarts)


class _Ascent:
    """Steps of all parameters together, each restart with a step size of its own."""

    def __init__(
        self,
        found: list[Assignment],
        given: list[_Argument],
        collected: Collected,
        pseudo: dict[str, Pooled],
        groups: Groups,
    ) -> None:
        self._found, self._given, self._groups = found, given, groups
        self._collected, self._pseudo = collected, pseudo
        self._old = {each.name: collected.params[each.name] for each in found}

    def run(self) -> Cells:
        """The cells where Q is largest, or no step raises it any more."""
        now = {
            each.name: each.link.forward(blocks(self._old[each.name].double(), each.event_dim))
            for each in self._found
        }
        value = self._value(now)
        eps = max(torch.finfo(old.dtype).eps for old in self._old.values())
        moving = torch.ones_like(value, dtype=torch.bool)
        for _ in range(_MOST_STEPS):
            best, gain = self._best(now)
            moving = moving & (gain > eps * (1 + value.abs()))
            if not bool(moving.any()):
                break
            size, todo = torch.ones_like(value), moving
            for _ in range(_MOST_HALVINGS):
                tried = {
                    name: cells + self._of_cells(name, size, cells) * (best[name] - cells)
                    for name, cells in now.items()
                }
                there = self._value(tried)
                better = todo & (there >= value)
                now = {
                    name: torch.where(self._of_cells(name, better, cells), tried[name], cells)
                    for name, cells in now.items()
                }
                value = torch.where(better, there, value)
                todo = todo & ~better
                if not bool(todo.any()):
                    break
                size = torch.where(todo, size / 2, size)
            moving = moving & ~todo
        return now

    def _of_cells(self, name: str, values: Tensor, cells: Tensor) -> Tensor:
        """The values of the restarts, for each cell of a parameter."""
        own = values[self._groups.cells[name]]
        return own.reshape((-1,) + (1,) * (cells.dim() - 1))

    def _params(self, cells: Cells) -> dict[str, Tensor]:
        return {
            each.name: each.link.inverse(cells[each.name]).reshape(self._old[each.name].shape)
            for each in self._found
        }

    def _value(self, cells: Cells) -> Tensor:
        """Q of each restart, ``(R,)``, float64."""
        params = self._params(cells)
        device = next(iter(cells.values())).device
        total = torch.zeros(self._groups.num_restarts, dtype=torch.float64, device=device)
        for each in self._given:
            probs = each.product.entries(each.slot, each.old, params)
            probs = blocks(probs, each.slot.event_dim)
            wide = type(each.pooled)(*(part.double() for part in each.pooled))
            if isinstance(wide, stationary.StationaryCounts):
                own = stationary.objective(wide, probs)
            else:
                own = torch.xlogy(wide.counts, probs).sum(-1)
            total = total.index_add(0, each.restarts, own)
        for assigned in self._found:
            if assigned.name in self._pseudo:
                held = Shares(assigned.argument, assigned.link).of(params[assigned.name])
                counts = _counts_of(self._pseudo[assigned.name]).double().expand(held.shape)
                own = torch.xlogy(counts, held).sum(-1)
                total = total.index_add(0, self._groups.cells[assigned.name], own)
        return total

    def _best(self, now: Cells) -> tuple[Cells, Tensor]:
        """The ratios of the counts at some cells, and the gain that each restart may expect."""
        params, arguments = self._params(now), self._collected.arguments
        for part in self._given:
            product = part.product
            new = product.write(part.slot, part.old, params)
            arguments[product.site][product.argument] = new
        best, gain = {}, torch.zeros(self._groups.num_restarts, dtype=torch.float64)
        for each in self._found:
            cells, argument = now[each.name], each.argument
            pooled = pool(each, self._collected, self._pseudo)
            pooled = type(pooled)(*(part.double() for part in pooled))
            rounded = cells.to(self._old[each.name].dtype)
            found = argument.maximise(pooled, rounded, 0.0).double().reshape(cells.shape)
            best[each.name] = torch.where(found.isnan(), cells, found)
            score = argument.natural.score(pooled, cells)
            own = argument.natural.gain(score, pooled, cells, 0.0).reshape(len(cells))
            gain = gain.to(own.device).index_add(0, self._groups.cells[each.name], own)
        for part in self._given:
            arguments[part.product.site][part.product.argument] = part.old
        return best, gain


def _counts_of(pseudo: Counts | Trials) -> Tensor:
    """The terms of a prior as counts of the shares, ``(cells, width)``."""
    if isinstance(pseudo, Trials):
        return torch.stack([pseudo.successes, pseudo.failures], -1)
    return pseudo.counts
