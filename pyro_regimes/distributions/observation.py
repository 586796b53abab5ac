"""Log densities of the observations in every state, by one kernel where the family has one.

Gaussian observations, constant in time, on the CPU: :class:`MultivariateNormal` and
``Normal.to_event(1)``, expanded or not. Whatever else there is measures itself.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyro_regimes.kernels import dispatch, gaussian

# Exactly these: a subclass may have a density of its own.
_MULTIVARIATE = (MultivariateNormal, dist.MultivariateNormal)
_UNIVARIATE = (Normal, dist.Normal)
_INDEPENDENT = (Independent, dist.Independent)


def log_prob(observation_dist: Distribution, value: Tensor) -> Tensor:
    r""":math:`\log b_k(x_t)` for all states.

    :param observation_dist: batch shape ``(K,)`` or ``(..., 1 or T, K)``.
    :param value: ``(..., T) + observation_dist.event_shape``.
    :return: ``(..., T, K)``.
    :raises ValueError: if ``observation_dist`` validates and does not support the value.
    """
    beside_states = value.unsqueeze(-1 - len(observation_dist.event_shape))
    batch_shape = observation_dist.batch_shape
    family = _unwrap(observation_dist)
    if (
        family is None
        or batch_shape[-2:-1] not in ((), (1,))
        or value.device.type != "cpu"
        or not value.is_floating_point()
        or dispatch.choose(value) not in ("cpu", "")
    ):
        density: Tensor = observation_dist.log_prob(beside_states)
        return density
    if family._validate_args:
        family._validate_sample(beside_states)
    loc = gaussian.without_time(family.loc.expand(batch_shape + observation_dist.event_shape), 2)
    if isinstance(family, MultivariateNormal):
        # Whichever matrix was given; from another, torch has computed this one, differentiably.
        factor = gaussian.without_time(family._unbroadcasted_scale_tril, 3)
        density = gaussian.log_prob(value, loc, factor)
    else:
        scale = family.scale.expand(batch_shape + observation_dist.event_shape)
        scale = gaussian.without_time(scale, 2)
        density = gaussian.log_prob_diagonal(value, loc, scale)
    if _broadcasts_to(batch_shape, density.shape):
        return density
    return density.expand(torch.broadcast_shapes(density.shape, batch_shape))


def _broadcasts_to(shape: torch.Size, wanted: torch.Size) -> bool:
    """What ``torch.broadcast_shapes`` takes longer to say than a short series takes to measure."""
    if len(shape) > len(wanted):
        return False
    return all(one in (1, other) for one, other in zip(reversed(shape), reversed(wanted)))


def _unwrap(observation_dist: Distribution) -> MultivariateNormal | Normal | None:
    """The Gaussian beneath, whose arguments broadcast to the outer batch shape; or None."""
    inner: Any = observation_dist
    if type(inner) is dist.ExpandedDistribution:
        inner = inner.base_dist
    if type(inner) in _MULTIVARIATE:
        return inner
    if type(inner) not in _INDEPENDENT or inner.reinterpreted_batch_ndims != 1:
        return None
    inner = inner.base_dist
    return inner if type(inner) in _UNIVARIATE else None
