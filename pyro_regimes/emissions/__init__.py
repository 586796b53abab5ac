"""Closed-form maximisers, one file a family of observation distributions.

A family's module holds ``FAMILY``, the distribution classes; ``MAX_EVENT_DIM``, the most dims of
one observation; ``arguments(distribution)``, the tensors that may be parameters;
``log_prob(value, arguments, event_dim)``, the log density in every state; and ``UPDATES``, an
:class:`~.update.Update` for each tensor in the order in which they are maximised. A new family is
one such file and one entry in :data:`FAMILIES`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import pyro.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_regimes.emissions import multivariate_normal, normal

FAMILIES: tuple[ModuleType, ...] = (multivariate_normal, normal)


#: What :func:`unwrap` takes off. Exactly these: a subclass may have a density of its own.
WRAPPERS = (Independent, dist.Independent, ExpandedDistribution, MaskedDistribution)


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


def find_family(base: Distribution, event_dim: int = 0) -> ModuleType | None:
    """The module that knows how to maximise this distribution, or None.

    Types are matched exactly: a subclass may have a density of its own.

    :param event_dim: of the observation distribution that it stands in.
    """
    for family in FAMILIES:
        if type(base) in family.FAMILY and event_dim <= family.MAX_EVENT_DIM:
            return family
    return None


__all__ = ["FAMILIES", "WRAPPERS", "Unwrapped", "find_family", "unwrap"]
