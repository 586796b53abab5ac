"""Wrappers of observation distributions, and their removal."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

#: Wrappers that :func:`unwrap` removes; exact types, as a subclass may override the density.
WRAPPERS = (Independent, dist.Independent, ExpandedDistribution, MaskedDistribution)


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
