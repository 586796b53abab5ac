r"""Observations of which entries are missing: densities and statistics of those that are not.

A row of which everything is missing has the density 1 and no weight, whatever its distribution.
Single missing entries take a marginal density. There are two kinds of families that have one:

- Families of **independent entries** (``Poisson(...).to_event(1)``), whose density is a product
  over the entries: that of a missing one is replaced by 1, and its weight by 0. Their entries are
  evaluated here as if each were a series with weights of its own, for all such families alike.
- Families that **marginalise** entries themselves (:attr:`.Family.marginalises`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Arguments, Family, Observed, Stats, apply
from pyro_regimes.kernels import ops


def parts_of(missing: Tensor, event_dim: int) -> tuple[Tensor, Tensor | None]:
    """Which rows are missing as a whole, ``(..., T)``, and which entries are in other rows.

    :param missing: the missing entries, ``(..., T, *event)``.
    :return: the entries are None if there are none of these, as far as Python can see.
    """
    rows = ~_any(~missing, event_dim)
    if not event_dim:
        return rows, None
    entries = missing & ~rows.reshape(rows.shape + (1,) * event_dim)
    if ops.can_be_seen(entries) and not bool(entries.any()):
        return rows, None
    return rows, entries


def is_independent(family: Family) -> bool:
    """Whether the density of an observation is a product over its entries."""
    return family.max_event_dim == math.inf and all(
        argument.elementwise for argument in family.arguments
    )


def log_prob(
    family: Family, value: Tensor, given: Arguments, event_dim: int, missing: Tensor | None
) -> Tensor:
    """The log density of what is not missing, ``(..., T, K)``; 0 where a whole row is.

    :param missing: in the shape of the value, which is any number of the support there.
    :raises ValueError: if single entries are missing that the family cannot leave out.
    """
    if missing is None:
        return family.log_prob(value, given, event_dim)
    if not (family.marginalises or is_independent(family)):
        density = family.log_prob(value, given, event_dim)
        return of_whole_rows(density, missing, event_dim, family.distributions[0].__name__)
    rows, entries = parts_of(missing, event_dim)
    infinite = value.isinf()  # not a number in a product with 0
    value = torch.where(infinite, 0.0, value)
    if entries is None:
        density = family.log_prob(value, given, event_dim)
    elif family.marginalises:
        density = family.log_prob_of_seen(value, entries, given, event_dim)
    else:
        density = log_prob_by_entry(family, value, entries, given, event_dim)
    density = torch.where(_any(infinite, event_dim).unsqueeze(-1), -torch.inf, density)
    return _without_rows(density, rows)


def statistics(
    family: Family, observed: Observed, given: Arguments, names: frozenset[str]
) -> Stats:
    """The expected statistics of what is not missing, see :meth:`.Family.statistics`."""
    if observed.missing is None or family.marginalises:
        return family.statistics(observed, given, names)
    return statistics_by_entry(family, observed, given, names)


def statistics_by_entry(
    family: Family, observed: Observed, given: Arguments, names: frozenset[str]
) -> Stats:
    """The statistics of independent entries, each taken by itself; missing ones have no weight."""
    event_dim, num_lead = observed.event_dim, observed.weights.dim()
    weights, missing = observed.weights, observed.missing
    value = _entries_first(observed.value, event_dim, 0, num_lead)
    if missing is not None:
        weights = torch.where(_entries_first(missing, event_dim, 0, num_lead), 0.0, weights)
    weights = weights.expand(value.shape[:event_dim] + weights.shape[-num_lead:])
    each = Observed(value, weights, observed.varies)
    own = _arguments_by_entry(family, given, event_dim, num_lead)
    found = family.statistics(each, own, names)
    front, back = range(event_dim), range(num_lead, num_lead + event_dim)
    return apply(lambda part: part.movedim(tuple(front), tuple(back)), found)


def of_whole_rows(density: Tensor, missing: Tensor, event_dim: int, name: str) -> Tensor:
    """The density without missing rows, of a distribution that does not marginalise entries.

    In a traced graph, NaN stands for the error.

    :raises ValueError: if single entries of an observation are missing.
    """
    rows, entries = parts_of(missing, event_dim)
    if entries is not None:
        if ops.can_be_seen(entries):
            raise ValueError(
                "expected whole observations to be missing, got some with single missing entries, "
                f"which {name} does not marginalise; independent columns do, and Gaussian and "
                "Student-t vectors"
            )
        density = torch.where(_any(entries, event_dim).unsqueeze(-1), torch.nan, density)
    return _without_rows(density, rows)


def of_seen(each: Tensor, missing: Tensor, event_dim: int) -> Tensor:
    """The sum of the log densities of the entries that are not missing.

    :param each: of each entry, ``(..., T, K, *event)``.
    """
    each = torch.where(missing.unsqueeze(-1 - event_dim), 0.0, each)
    return each.sum(list(range(-event_dim, 0))) if event_dim else each


def log_prob_by_entry(
    family: Family, value: Tensor, missing: Tensor | None, given: Arguments, event_dim: int
) -> Tensor:
    """The log density of independent entries, each evaluated by itself; 0 for missing ones."""
    leads = [
        given[argument.name].dim() - event_dim - argument.event_dim
        for argument in family.arguments
        if argument.name in given
    ]
    num_lead = max(value.dim() - event_dim + 1, *leads)
    value = _entries_first(value.unsqueeze(-1 - event_dim), event_dim, 0, num_lead)
    own = _arguments_by_entry(family, given, event_dim, num_lead)
    density = family.log_prob(value.squeeze(-1), own, 0)
    if missing is not None:
        missing = _entries_first(missing.unsqueeze(-1 - event_dim), event_dim, 0, num_lead)
        density = torch.where(missing, 0.0, density)
    return density.sum(list(range(event_dim)))


def _arguments_by_entry(
    family: Family, given: Arguments, event_dim: int, num_lead: int
) -> Arguments:
    """The arguments of a family, with the dims of the event before all others."""
    return {
        argument.name: _entries_first(
            given[argument.name], event_dim, argument.event_dim, num_lead
        )
        for argument in family.arguments
        if argument.name in given
    }


def _entries_first(part: Tensor, event_dim: int, own_dim: int, num_lead: int) -> Tensor:
    """``(..., T, K, *event, *block)`` as ``(*event, ..., T, K, *block)``.

    :param num_lead: the number of dims before those of the event, which the result has.
    """
    part = part[(None,) * (num_lead + event_dim + own_dim - part.dim())]
    front, back = range(event_dim), range(num_lead, num_lead + event_dim)
    return part.movedim(tuple(back), tuple(front))


def _any(mask: Tensor, event_dim: int) -> Tensor:
    """Whether any entry of each observation is True, ``(..., T)``."""
    return mask.reshape(mask.shape[: mask.dim() - event_dim] + (-1,)).any(-1)


def _without_rows(density: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows.unsqueeze(-1), 0.0, density)
