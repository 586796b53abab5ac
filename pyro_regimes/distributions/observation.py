"""Log densities of the observations in every state.

Where EM has a family for the distribution (:mod:`pyro_regimes.emissions`), the density is the
family's: the likelihood that SVI differentiates is the one that EM maximises. Other distributions
use their own ``log_prob``, which for discrete ones is that of :mod:`.exact`.

Gaussian observations that are constant in time have kernels for the whole chain on the CPU
(:func:`as_gaussian`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyro_regimes import emissions
from pyro_regimes.distributions import provenance
from pyro_regimes.distributions.exact import exact_copy
from pyro_regimes.kernels import ops

# Exactly these: a subclass may have a density of its own.
_MULTIVARIATE = (MultivariateNormal, dist.MultivariateNormal)
_UNIVARIATE = (Normal, dist.Normal)
_INDEPENDENT = (Independent, dist.Independent)


class Gaussian(NamedTuple):
    """Gaussian observations, constant in time."""

    loc: Tensor  #: ``(..., K or 1, D)``
    #: the lower Cholesky factor ``(..., K or 1, D, D)``, or standard deviations ``(..., K, D, 1)``
    factor: Tensor


def as_gaussian(
    observation_dist: Distribution, value: Tensor, is_checked: bool = False
) -> Gaussian | None:
    """The arguments of the Gaussian kernels, where one serves them and the value.

    :param is_checked: whether the value needs no check by ``observation_dist``.
    :raises ValueError: if ``observation_dist`` validates and does not support the value.
    """
    family = _unwrap(observation_dist)
    batch_shape = observation_dist.batch_shape
    if (
        family is None
        or batch_shape[-2:-1] not in ((), (1,))
        or not ops.has_gaussian_kernel(value)
    ):
        return None
    if family._validate_args and not is_checked:
        family._validate_sample(_beside_states(observation_dist, value))
    loc = ops.without_time(_expand(family.loc, batch_shape + observation_dist.event_shape), 2)
    if isinstance(family, MultivariateNormal):
        # Whichever matrix was given; from another, torch has computed this one, differentiably.
        return Gaussian(loc, ops.without_time(family._unbroadcasted_scale_tril, 3))
    scale = _expand(family.scale, batch_shape + observation_dist.event_shape)
    return Gaussian(loc, ops.without_time(scale, 2).unsqueeze(-1))


def log_prob(observation_dist: Distribution, value: Tensor, is_checked: bool = False) -> Tensor:
    r""":math:`\log b_k(x_t)` for all states.

    :param observation_dist: batch shape ``(K,)`` or ``(..., 1 or T, K)``.
    :param value: ``(..., T) + observation_dist.event_shape``.
    :param is_checked: whether the value needs no check by ``observation_dist``, which would refuse
        one that only some of the states can emit.
    :return: ``(..., T, K)``.
    :raises ValueError: if ``observation_dist`` validates and does not support the value.
    """
    found = as_gaussian(observation_dist, value, is_checked)
    if found is not None:
        density: Tensor = provenance.call(ops.gaussian_log_prob, value, *found)
    else:
        by_family = _by_family(observation_dist, value, is_checked)
        if by_family is None:
            # None leaves the setting as it is.
            exact = exact_copy(observation_dist, validate_args=False if is_checked else None)
            density = exact.log_prob(_beside_states(observation_dist, value))
            return density
        density = by_family
    batch_shape = observation_dist.batch_shape
    if _broadcasts_to(batch_shape, density.shape):
        return density
    return density.expand(torch.broadcast_shapes(density.shape, batch_shape))


def _by_family(
    observation_dist: Distribution, value: Tensor, is_checked: bool
) -> Tensor | None:
    """The density of the family that EM knows the distribution by; None where there is none."""
    base, mask = emissions.unwrap(observation_dist)
    event_dim = len(observation_dist.event_shape)
    family = emissions.find_family(base, event_dim)
    if family is None:
        return None
    if base._validate_args and not is_checked:
        base._validate_sample(_beside_states(observation_dist, value))
    given = family.read(base)

    def compute(value: Tensor, *arguments: Tensor) -> Tensor:
        return family.log_prob(value, dict(zip(given, arguments, strict=True)), event_dim)

    density = provenance.call(compute, value, *given.values())
    return density if mask is None else scale_and_mask(density, mask=mask)


def _beside_states(observation_dist: Distribution, value: Tensor) -> Tensor:
    """``(..., T, 1) + event``: to be measured against the K components."""
    return value.unsqueeze(-1 - len(observation_dist.event_shape))


def _expand(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor if tensor.shape == shape else tensor.expand(shape)


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
