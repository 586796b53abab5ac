"""Pools expected statistics over everything that shares a parameter."""

from __future__ import annotations

from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from pyro_regimes.chain.stationary import StationaryCounts, counts_at
from pyro_regimes.emissions.base import Argument, Arguments, Pooled, Stats, add, apply, blocks
from pyro_regimes.emissions.sizes import Deviations
from pyro_regimes.emissions.statistics import Counts
from pyro_regimes.infer.em.e_step import Expected, SiteData, SiteStatistics
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.em.recognise.factors import MatrixUse, SizeUse
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan, Use
from pyro_regimes.infer.em.recognise.powers import PowerUse, Shares
from pyro_regimes.infer.em.recognise.priors import Prior
from pyro_regimes.infer.tracing import Site, Slot, num_own_dims


class Expectation(Protocol):
    """The interface of a site for the M-step, with statistics of the data or averages."""

    @property
    def data(self) -> SiteData:
        """The data of the site that do not change between steps."""

    @property
    def arguments(self) -> Arguments:
        """The current arguments."""

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the statistics."""

    def statistics(self, names: frozenset[str]) -> SiteStatistics:
        """The statistics that are needed to update some arguments."""

    def retake(self, arguments: Arguments, names: frozenset[str]) -> Stats | None:
        """Statistics of the observations at other arguments; None if there are no data."""


class Collected:
    """The statistics of all sites, with the arguments that the M-step updates.

    :param ranks: over which pooled statistics are added.
    """

    def __init__(
        self,
        plan: Plan,
        expected: dict[str, Expectation],
        params: dict[str, Tensor],
        ranks: Ranks | None = None,
    ) -> None:
        self.expected, self.ranks = expected, ranks
        self.params = dict(params)  #: at which the arguments are
        self.arguments = {name: dict(each.arguments) for name, each in expected.items()}
        self._found = {
            name: each.statistics(plan.updated(name)) for name, each in expected.items()
        }
        self._plan = plan

    def set(self, name: str, value: Tensor, prior: Prior | None) -> None:
        """Note a new value of a parameter, which may be the data of its prior's parameters."""
        self.params[name] = value
        each = None if prior is None else self.expected.get(prior.site)
        if isinstance(each, Expected):
            data = each.data
            data = data._replace(value=value.detach().to(data.value).reshape(data.value.shape))
            each = each._replace(data=data)
            self.expected[each.data.site.name] = each
            names = self._plan.updated(each.data.site.name)
            self._found[each.data.site.name] = each.statistics(names)

    def reduce(
        self, site: str, argument: Argument, weighted: bool, joint: bool = False
    ) -> Pooled:
        """The pooled statistics of every block of one argument, at the current arguments.

        :param joint: whether those for its maximisation together with another argument.
        """
        found, given = self._found[site], self.arguments[site]
        family = self.expected[site].data.site.family
        if family is None or argument not in family.arguments:
            return argument.reduce(found.chain, given, weighted)
        accurate: Tensor | bool = argument.name in found.names
        accurate = accurate and family.is_accurate(found.emission, given, argument.name)
        some = bool(accurate.any()) if isinstance(accurate, Tensor) else accurate
        if not (bool(accurate.all()) if isinstance(accurate, Tensor) else accurate):
            again = self.expected[site].retake(given, frozenset({argument.name}))
            if again is not None:
                if some and isinstance(accurate, Tensor):  # no block depends on the others
                    again = family.merge(accurate, found.emission, again)
                found = found._replace(
                    emission=family.renew(found.emission, again),
                    names=found.names | {argument.name},
                )
                self._found[site] = found
        if joint and argument.joint is not None:
            return argument.joint.reduce(found.emission, given)
        return argument.reduce(found.emission, given, weighted)


def pool(
    each: Assignment,
    collected: Collected,
    pseudo: dict[str, Pooled],
    weighted: bool = False,
    joint: bool = False,
) -> Pooled:
    """Sum the statistics of the blocks of each cell: fields ``(cells, *block)``.

    :param pseudo: terms that conjugate priors add.
    :param weighted: whether locations are weighted with precisions in any case.
    :param joint: whether for the maximisation together with another parameter.
    :return: of one dtype, which need not be that of the parameter.
    """
    # The precision of a prior is added to that of the data.
    weighted = weighted or each.shared or each.prior is not None
    total: Pooled = None
    for use in each.uses:
        found = pooled_blocks(use.site, use.argument, collected, weighted, joint)
        if isinstance(use, PowerUse):
            found = _of_shares(found, use, each, collected)
        elif isinstance(use, SizeUse):
            found = use.pooled(found, blocks_of(use, collected), each.num_cells)
        elif isinstance(use, MatrixUse):
            held = each.link.forward(blocks(collected.params[each.name], 2))
            found = use.pooled(found, blocks_of(use, collected), held)
        elif not use.whole:
            found = apply(lambda part, use=use: _by_cells(part, use, each.num_cells), found)
        total = found if total is None else add(total, found)
    if collected.ranks is not None:
        total = collected.ranks.add_fields(total)
    if isinstance(each.uses[0], SizeUse):
        total = _of_sizes(total, each, collected)
    return _of_one_dtype(add(total, pseudo[each.name]) if each.name in pseudo else total)


def blocks_of(use: SizeUse | MatrixUse, collected: Collected) -> Tensor:
    """The blocks of an argument now."""
    slot = collected.expected[use.site].data.site.slots[use.argument]
    return blocks(collected.arguments[use.site][use.argument], slot.event_dim)


def _of_sizes(total: Pooled, each: Assignment, collected: Collected) -> Pooled:
    """The statistics of factors of spreads or rates in the units of the parameter."""
    held = each.link.forward(collected.params[each.name].flatten().to(total[0].dtype))
    units = torch.zeros_like(held)
    for use in each.uses:
        assert isinstance(use, SizeUse)
        units = torch.maximum(units, use.units(blocks_of(use, collected), held))
        total = use.scaling.absolute(total, held) if use is each.uses[0] else total
    return total._replace(unit=units) if isinstance(total, Deviations) else total


def _of_shares(
    found: Counts | StationaryCounts, use: PowerUse, each: Assignment, collected: Collected
) -> Pooled:
    """The statistics of shares from the counts of an argument's entries.

    With a stationary start they are those with the derivative of Q at the present argument.
    """
    shares = Shares(each.argument, each.link)
    if isinstance(found, StationaryCounts):
        slot = collected.expected[use.site].data.site.slots[use.argument]
        now = collected.arguments[use.site][use.argument]
        probs = blocks(slot.argument.canonical(now).double(), slot.event_dim)
        found = Counts(counts_at(found, probs))
    counts = use.powers.counts(found.counts.flatten(), use.num_shares)
    return shares.pooled(counts.reshape(each.num_cells, -1))


def _of_one_dtype(pooled: Pooled) -> Pooled:
    """Priors and several sites may differ in dtype: all fields in the widest."""
    dtypes = [part.dtype for part in pooled if part is not None]
    if len(set(dtypes)) < 2:
        return pooled
    widest = reduce(torch.promote_types, dtypes)
    return apply(lambda part: part.to(widest), pooled)


def pooled_blocks(
    site: str, name: str, collected: Collected, weighted: bool, joint: bool = False
) -> Pooled:
    """The statistics of every block of an argument: fields ``(blocks, *block)``."""
    there = collected.expected[site]
    slot = there.data.site.slots[name]
    lead_dim = len(there.batch_shape) + num_own_dims(slot.argument, there.data.site)

    def to_lead(part: Tensor) -> Tensor:
        block = part.shape[lead_dim:]
        if part.numel() != slot.lead.numel() * block.numel():
            part = part.sum_to_size(slot.lead + block)
        return part.reshape((slot.lead.numel(),) + block)

    # A location that is constant in time may stand beside spreads that are not.
    weighted = weighted or _is_over_time(there.data.site, slot)
    return apply(to_lead, collected.reduce(site, slot.argument, weighted, joint))


def _is_over_time(site: Site, slot: Slot) -> bool:
    """Whether a block serves all steps of a distribution that varies in time."""
    if site.family is None or slot.argument not in site.family.arguments:
        return False
    own = num_own_dims(slot.argument, site)
    return (len(slot.lead) < own or slot.lead[len(slot.lead) - own] == 1) and site.varies


def _by_cells(part: Tensor, use: Use, num_cells: int) -> Tensor:
    """Sum one statistic of the blocks by cells."""
    where = use.cells.to(part.device)
    cells = part.new_zeros((num_cells,) + part.shape[1:])
    return cells.index_add(0, where[where >= 0], part[where >= 0])
