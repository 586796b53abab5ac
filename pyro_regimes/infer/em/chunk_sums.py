"""Expected statistics of a site that are sums over chunks of the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Arguments, Family, Stats, apply
from pyro_regimes.infer.em.e_step import Expected, SiteData, SiteStatistics
from pyro_regimes.infer.em.gradient import add_over_ranks, differentiate, log_terms
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.tracing import Site, num_own_dims

#: Takes statistics again at other arguments, in a pass over all chunks:
#: ``(site, arguments, names) -> statistics``.
Retake = Callable[[str, Arguments, frozenset[str]], Stats]


class SumOfChunks(NamedTuple):
    """A site for the M-step, whose statistics are those of all chunks."""

    data: SiteData  #: of the first chunk, without its values
    arguments: Arguments
    sums: SiteStatistics
    batch_shape: torch.Size  #: of the sums
    take_again: Retake

    @classmethod
    def of(cls, expected: Expected, sums: SiteStatistics, retake: Retake) -> SumOfChunks:
        """The sums of the first chunk."""
        shape = sums.chain.initial.shape[:-1]
        return cls(without_values(expected.data), expected.arguments, sums, shape, retake)

    def statistics(self, names: frozenset[str]) -> SiteStatistics:
        """The sums."""
        return self.sums

    def retake(self, arguments: Arguments, names: frozenset[str]) -> Stats | None:
        """Statistics at other arguments, by another pass over all chunks."""
        family = self.data.site.family
        if family is None or names.isdisjoint(each.name for each in family.arguments):
            return None
        return self.take_again(self.data.site.name, arguments, names)


class SumOfGradients:
    """The gradients of minus the log joint of all chunks, by Fisher's identity.

    :param names: of the parameters.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._sums: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Begin anew."""
        self._sums = {}

    def add(self, expected: dict[str, Expected], priors: list[Tensor]) -> None:
        """Add those of one chunk.

        :param expected: of the sites of a connected run.
        :param priors: log densities that no other chunk counts.
        """
        found = differentiate(log_terms(expected, priors), self._names)
        known = self._sums
        self._sums = {n: each + known[n] if n in known else each for n, each in found.items()}
        self._sums = known | self._sums

    def over(self, ranks: Ranks | None) -> dict[str, Tensor]:
        """The sums over the chunks of all ranks; empty if nothing depends on the parameters."""
        return self._sums if ranks is None else add_over_ranks(self._sums, self._names, ranks)


def without_values(data: SiteData) -> SiteData:
    """The parts of a site that the M-step needs, without arrays of the length of the data."""
    nothing = data.value.new_empty(0)
    chain = (nothing, nothing, nothing)
    site = data.site._replace(value=nothing)
    return data._replace(site=site, value=nothing, chain=chain, missing=None)


def sum_of_chunk(expected: Expected, names: frozenset[str]) -> SiteStatistics:
    """The statistics of one chunk, summed over its sequences, float64.

    Dims of the batch along which an argument differs, such as restarts, are kept.

    :param names: the arguments that are to be updated.
    """
    kept = kept_dims(expected)
    found = with_batch_dims(expected).statistics(names)
    chain = apply(lambda part: _over_sequences(part, kept), found.chain)
    return SiteStatistics(chain, _sum(expected, found.emission, kept), found.names)


def sum_of_retaken(
    expected: Expected, arguments: Arguments, names: frozenset[str]
) -> Stats | None:
    """The statistics of the observations of one chunk at other arguments, summed likewise."""
    own = with_batch_dims(expected, arguments)
    return _sum(expected, own.retake(own.arguments, names), kept_dims(expected))


def add(site: Site, one: SiteStatistics, other: SiteStatistics) -> SiteStatistics:
    """The sum of the statistics of two chunks."""
    emission = one.emission
    if emission is not None:
        assert site.family is not None
        emission = site.family.add(emission, other.emission)
    return SiteStatistics(apply(torch.add, one.chain, other.chain), emission, one.names)


def kept_dims(expected: Expected) -> list[bool]:
    """For each dim of the batch, whether an argument of the site differs along it."""
    site, num_dims = expected.data.site, len(expected.batch_shape)
    kept = [False] * num_dims
    for slot in site.slots.values():
        lead = slot.lead[: max(0, len(slot.lead) - num_own_dims(slot.argument, site))]
        for dim, size in enumerate(lead, num_dims - len(lead)):
            kept[dim] = kept[dim] or size > 1
    return kept


def with_batch_dims(expected: Expected, arguments: Arguments | None = None) -> Expected:
    """The same with arguments that have all dims of the batch, so that statistics have them too.

    :param arguments: others than the site's own.
    """
    site, num_dims = expected.data.site, len(expected.batch_shape)
    given = dict(expected.arguments if arguments is None else arguments)
    for name, slot in site.slots.items():
        if site.family is not None and slot.argument in site.family.arguments:
            whole = num_dims + num_own_dims(slot.argument, site) + slot.event_dim
            given[name] = given[name][(None,) * (whole - given[name].dim())]
    return expected._replace(arguments=given)


def _sum(expected: Expected, stats: Stats | None, kept: list[bool]) -> Stats | None:
    """The sum of statistics over the dims of the batch that are not kept, float64."""
    if stats is None:
        return None
    family = expected.data.site.family
    assert family is not None
    stats = apply(lambda part: part.double(), stats)
    for dim, is_kept in enumerate(kept):
        size = expected.batch_shape[dim]
        if not is_kept and size > 1:
            stats = _halve(family, stats, dim, size)
    return stats


def _halve(family: Family, stats: Stats, dim: int, size: int) -> Stats:
    """The sum along a dim, by repeated halving, since statistics may have different origins."""

    def part(of: Any, begin: int, count: int, whole: int) -> Any:
        return apply(
            lambda each: each if each.shape[dim] != whole else each.narrow(dim, begin, count), of
        )

    rest = None
    while size > 1:
        half = size // 2
        if size % 2:
            last = part(stats, size - 1, 1, size)
            rest = last if rest is None else family.add(rest, last)
        first, second = part(stats, 0, half, size), part(stats, half, half, size)
        stats, size = family.add(first, second), half
    return stats if rest is None else family.add(stats, rest)


def _over_sequences(part: Tensor, kept: list[bool]) -> Tensor:
    dims = [dim for dim, is_kept in enumerate(kept) if not is_kept]
    part = part.double()
    return part.sum(dims, keepdim=True) if dims else part
