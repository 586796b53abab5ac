"""Families of observation distributions with closed-form updates, one file for each family.

:mod:`.base` defines the interface. Use :func:`register` to add a family from elsewhere.
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

#: The known families, in the order in which they are tried.
FAMILIES: list[Family] = [MULTIVARIATE_NORMAL, NORMAL]

#: Wrappers that :func:`unwrap` removes; exact types, as a subclass may override the density.
WRAPPERS = (Independent, dist.Independent, ExpandedDistribution, MaskedDistribution)


def register(family: Family) -> None:
    """Make a family known to EM.

    :param family: a family whose types of distributions no other family has.
    :raises ValueError: if another family has one of these types.
    """
    for known in FAMILIES:
        both = set(known.distributions) & set(family.distributions)
        if both and known is not family:
            names = sorted(f"{each.__module__}.{each.__name__}" for each in both)
            raise ValueError(
                f"expected family to have distributions that no other family has, got {names}, "
                f"which {type(known).__module__} has"
            )
    if family not in FAMILIES:
        FAMILIES.append(family)


class Unwrapped(NamedTuple):
    """An observation distribution without its wrappers."""

    base: Distribution
    mask: Tensor | bool | None  #: mask of the observations that count, ``(..., T, K)``


def unwrap(observation_dist: Distribution) -> Unwrapped:
    """Remove ``to_event``, ``expand`` and ``mask``.

    A mask inside ``to_event``, of single entries of an observation, is not removed: it changes the
    likelihood, and no family here maximises that.
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

    Types are matched exactly, as a subclass may override the density.

    :param event_dim: number of event dims of the observation distribution that contains it.
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
