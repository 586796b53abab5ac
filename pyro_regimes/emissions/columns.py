r"""The family of ``Columns``: parts of other families, each on its own columns.

Given the state, the parts of an observation are independent,

.. math:: \log b_k(x_t) = \sum_i \log b_{ki}(x_{ti}),

so the expected log-likelihood is a sum with one term for each part, and each part has the updates
of its own family. The statistics are a tuple of theirs. Arguments are named by the place of their
part: ``parts.0.loc``.

If the columns of a part are missing in a row, the part contributes nothing there. If only some of
them are missing, the part's own family handles them (:mod:`.entries`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes.emissions import entries, nested
from pyro_regimes.emissions.base import Argument, Arguments, Family, Observed, Stats
from pyro_regimes.emissions.own_density import OwnDensity
from pyro_regimes.emissions.wrappers import unwrap
from pyro_regimes.observed.columns import Columns, Places, take


class PartStats(NamedTuple):
    """Expected statistics of each part; None of those that are not needed."""

    parts: tuple[Optional[Stats], ...]


class _Part(NamedTuple):
    family: Family
    places: Places
    event_dim: int

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one observation of the part."""
        return () if isinstance(self.places, int) else (len(self.places),)


# ---- the arguments of a part -------------------------------------------------------------------


def _prefix(index: int) -> str:
    return f"parts.{index}."


def _own(given: Arguments, index: int) -> Arguments:
    """The arguments of a part, by the names of its family."""
    return nested.own(given, _prefix(index))


def _of_part_alone(stats: PartStats, index: int) -> Stats:
    return stats.parts[index]


@lru_cache(maxsize=None)
def in_part(argument: Argument, index: int, event_dim: int) -> Argument:
    """An argument of a part as one of the whole; the same object at every call.

    :param event_dim: number of dims of one observation of the part.
    """
    return nested.of_whole(
        argument,
        _prefix(index),
        partial(_of_part_alone, index=index),
        elementwise=False,
        num_own_dims=argument.num_own_dims + (event_dim if argument.elementwise else 0),
        rebuild=(in_part, (argument, index, event_dim)),
    )


def _arguments(part: _Part, index: int) -> tuple[Argument, ...]:
    found = []
    for argument in part.family.arguments:
        # Those without an update may be made anew for each distribution: no cache holds them.
        make = in_part if argument.links else in_part.__wrapped__
        found.append(make(argument, index, part.event_dim))
    return tuple(found)


# ---- the family --------------------------------------------------------------------------------


def build(
    base: Distribution,
    event_dim: int,
    find_family: Callable[[Distribution, int], Optional[Family]],
) -> Family | None:
    """The family of ``Columns``; None if no part has one.

    :param event_dim: number of event dims of the observation distribution that contains it.
    :param find_family: finds the families of the parts.
    """
    if type(base) is not Columns or event_dim != 1:
        return None
    families = []
    for each in base.parts:
        inner, mask = unwrap(each)
        known = find_family(inner, len(each.event_shape)) if mask is None else None
        families.append(known or OwnDensity(each))
    if all(isinstance(each, OwnDensity) for each in families):
        return None
    dims = (len(each.event_shape) for each in base.parts)
    return ColumnsFamily(list(map(_Part, families, base.columns, dims)))


class ColumnsFamily(Family):
    """``Columns([(distribution, columns), ...])``; built anew for each distribution."""

    distributions = (Columns,)
    max_event_dim = 1
    marginalises = True

    def __init__(self, parts: list[_Part]) -> None:
        self._parts = parts
        self.arguments = tuple(
            argument for index, part in enumerate(parts) for argument in _arguments(part, index)
        )

    def read(self, distribution: Columns) -> Arguments:
        """The arguments of all parts."""
        return self._read(distribution, lambda family: family.read)

    def read_for_density(self, distribution: Columns) -> Arguments:
        """The same, for the densities."""
        return self._read(distribution, lambda family: family.read_for_density)

    def _read(
        self, distribution: Columns, reader: Callable[[Family], Callable[[Any], Arguments]]
    ) -> Arguments:
        found = {}
        for index, (part, each) in enumerate(zip(self._parts, distribution.parts, strict=True)):
            elements = {
                argument.name: argument.event_dim
                for argument in part.family.arguments
                if argument.elementwise
            }
            base = each if isinstance(part.family, OwnDensity) else unwrap(each).base
            for name, value in reader(part.family)(base).items():
                if part.event and name in elements:
                    value = _in_columns(value, part.event, elements[name])
                found[_prefix(index) + name] = value
        return found

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The sum of the densities of the parts."""
        return self._sum(value, None, given)

    def log_prob_of_seen(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> Tensor:
        """The sum of the marginal densities of the parts."""
        return self._sum(value, missing, given)

    def _sum(self, value: Tensor, missing: Tensor | None, given: Arguments) -> Tensor:
        densities = [
            entries.log_prob(
                part.family,
                take(value, part.places),
                _own(given, index),
                part.event_dim,
                None if missing is None else take(missing, part.places),
            )
            for index, part in enumerate(self._parts)
        ]
        density: Tensor = sum(densities[1:], densities[0])
        return density

    def statistics(
        self, observed: Observed, given: Arguments, names: frozenset[str]
    ) -> PartStats:
        """The statistics of each part that has an argument to update."""
        found: list[Stats | None] = []
        for index, part in enumerate(self._parts):
            wanted = nested.own_names(names, _prefix(index))
            if not wanted:
                found.append(None)
                continue
            own = _own(given, index)
            each = _of_part(observed, part, _varies(part, own))
            found.append(entries.statistics(part.family, each, own, wanted))
        return PartStats(tuple(found))

    def is_accurate(self, stats: PartStats, given: Arguments, name: str) -> Tensor | bool:
        """As the part's family says."""
        index, own = self._place(name)
        if stats.parts[index] is None:
            return False
        family = self._parts[index].family
        return family.is_accurate(stats.parts[index], _own(given, index), own)

    def merge(self, accurate: Tensor, stats: PartStats, again: PartStats) -> PartStats:
        """Merge the statistics of the part that were taken again."""
        return PartStats(
            tuple(
                old if new is None else part.family.merge(accurate, old, new)
                for part, old, new in zip(self._parts, stats.parts, again.parts, strict=True)
            )
        )

    def renew(self, stats: PartStats, again: PartStats) -> PartStats:
        """Keep the statistics of the other parts."""
        return PartStats(
            tuple(
                old if new is None else new if old is None else part.family.renew(old, new)
                for part, old, new in zip(self._parts, stats.parts, again.parts, strict=True)
            )
        )

    def add(self, one: PartStats, other: PartStats) -> PartStats:
        """The sums of the parts."""
        parts = zip(self._parts, one.parts, other.parts, strict=True)
        return PartStats(
            tuple(
                None if own is None else part.family.add(own, new) for part, own, new in parts
            )
        )

    def total(self, stats: PartStats, num_batch_dims: int, like: PartStats | None) -> PartStats:
        """The sum over all sequences."""
        return PartStats(
            tuple(
                None
                if own is None
                else part.family.total(
                    own, num_batch_dims, None if like is None else like.parts[index]
                )
                for index, (part, own) in enumerate(zip(self._parts, stats.parts, strict=True))
            )
        )

    def _place(self, name: str) -> tuple[int, str]:
        """The part of an argument, and its name there."""
        _, index, own = name.split(".", 2)
        return int(index), own


def _in_columns(value: Tensor, event: tuple[int, ...], own_dim: int) -> Tensor:
    """An argument with a block for each column of its part."""
    lead = max(0, value.dim() - own_dim - len(event))
    block = value.shape[value.dim() - own_dim :]
    return value.expand(value.shape[:lead] + event + block)


def _varies(part: _Part, own: Arguments) -> bool:
    """Whether the part's distribution varies in time."""
    for argument in part.family.arguments:
        if argument.name in own:
            event_dim = part.event_dim if argument.elementwise else 0
            value = own[argument.name]
            time = value.dim() - argument.event_dim - event_dim - argument.num_own_dims
            if time >= 0 and value.shape[time] > 1:
                return True
    return False


def _of_part(observed: Observed, part: _Part, varies: bool) -> Observed:
    """The data of a part; rows in which all of it is missing have no weight."""
    value = take(observed.value, part.places)
    each = Observed(value, observed.weights, varies)
    if observed.missing is None:
        return each
    missing = take(observed.missing, part.places)
    rows, gone = entries.parts_of(missing, part.event_dim)  # (..., T, 1)
    return each._replace(weights=torch.where(rows, 0.0, observed.weights), missing=gone)
