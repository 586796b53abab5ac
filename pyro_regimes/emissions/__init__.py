"""Families of observation distributions that EM sets in closed form, one file a family.

:mod:`.base` has the contract. A family that lives elsewhere joins by :func:`register`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_regimes.emissions.base import Argument, Family, Natural, Observed
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.normal import NORMAL

#: In the order in which they are asked.
FAMILIES: list[Family] = [MULTIVARIATE_NORMAL, NORMAL]

#: What :func:`unwrap` takes off. Exactly these: a subclass may have a density of its own.
WRAPPERS = (Independent, dist.Independent, ExpandedDistribution, MaskedDistribution)


def register(family: Family) -> None:
    """Make a family known to EM.

    :param family: its distributions' types must not belong to another family yet.
    :raises ValueError: if they do.
    """
    for known in FAMILIES:
        both = set(known.distributions) & set(family.distributions)
        if both and known is not family:
            names = sorted(f"{each.__module__}.{each.__name__}" for each in both)
            raise ValueError(
                f"expected a family of distributions that no other family has, got {names}, which "
                f"{type(known).__module__} has"
            )
    if family not in FAMILIES:
        FAMILIES.append(family)


class Unwrapped(NamedTuple):
    """An observation distribution without what is wrapped around it."""

    base: Distribution
    mask: Tensor | bool | None  #: which observations count, ``(..., T, K)``


def unwrap(observation_dist: Distribution) -> Unwrapped:
    """Take off ``to_event``, ``expand`` and ``mask``.

    A mask inside ``to_event``, of single entries of an observation, stays on: it makes another
    likelihood, which no family here maximises.
    """
    mask: Tensor | bool | None = None
    batch_dim = len(observation_dist.batch_shape)
    inner: Any = observation_dist
    while type(inner) in WRAPPERS:
        if type(inner) is MaskedDistribution:
            if len(inner.batch_shape) > batch_dim:
                break
            more = inner._mask
            mask = more if mask is None else mask & more
        inner = inner.base_dist
    return Unwrapped(inner, mask)


def find_family(base: Distribution, event_dim: int = 0) -> Family | None:
    """The family of a distribution, or None.

    Types are matched exactly: a subclass may have a density of its own.

    :param event_dim: of the observation distribution that it stands in.
    """
    for family in FAMILIES:
        if type(base) in family.distributions and event_dim <= family.max_event_dim:
            return family
    return None


__all__ = [
    "FAMILIES",
    "WRAPPERS",
    "Argument",
    "Family",
    "Natural",
    "Observed",
    "Unwrapped",
    "find_family",
    "register",
    "unwrap",
]
