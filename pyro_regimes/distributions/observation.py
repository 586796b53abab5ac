"""Log densities of the observations in every state.

If EM has a family for the distribution (:mod:`pyro_regimes.emissions`), the density is computed by
the family. So SVI differentiates the same likelihood that EM maximises. Other distributions use
their own ``log_prob``, discrete ones that of :mod:`.exact`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes import emissions
from pyro_regimes.distributions import provenance
from pyro_regimes.distributions.exact import exact_copy
from pyro_regimes.emissions.base import Arguments, Family, Gaussian
from pyro_regimes.kernels import ops


class _Known(NamedTuple):
    """An observation distribution with the family that handles it."""

    family: Family
    given: Arguments
    event_dim: int
    mask: Tensor | bool | None


def as_gaussian(
    observation_dist: Distribution, value: Tensor, is_checked: bool = False
) -> Gaussian | None:
    """The arguments of a compiled kernel for the whole chain, or None if there is no such kernel.

    :param is_checked: whether the value needs no check by ``observation_dist``.
    :raises ValueError: if ``observation_dist`` validates and does not support the value.
    """
    if not ops.has_gaussian_kernel(value):
        return None
    known = _find(observation_dist, value, is_checked)
    if known is None or known.mask is not None:
        return None
    found = known.family.as_gaussian(value, known.given, known.event_dim)
    if found is None:
        return None
    num_states = observation_dist.batch_shape[-1]
    if found.loc.shape[-2] == num_states:
        return found
    every_state = found.loc.shape[:-2] + (num_states,) + found.loc.shape[-1:]
    return found._replace(loc=found.loc.expand(every_state))


def log_prob(
    observation_dist: Distribution,
    value: Tensor,
    is_checked: bool = False,
    missing: Tensor | None = None,
) -> Tensor:
    r""":math:`\log b_k(x_t)` for all states.

    :param observation_dist: batch shape ``(K,)`` or ``(..., 1 or T, K)``.
    :param value: ``(..., T) + observation_dist.event_shape``.
    :param is_checked: whether the value needs no check by ``observation_dist``, which would reject
        values that only some of the states can emit.
    :param missing: entries to marginalise, in the shape of ``value``, which is any value of the
        support there.
    :return: ``(..., T, K)``.
    :raises ValueError: if ``observation_dist`` validates and does not support the value, or does
        not marginalise some entries of an observation.
    """
    known = _find(observation_dist, value, is_checked)
    event_dim = len(observation_dist.event_shape)
    rows, entries = (None, None) if missing is None else missing_parts(missing, event_dim)
    if entries is not None and not (known is not None and known.family.marginalises):
        raise ValueError(
            "expected whole observations to be missing, got some with single missing entries, "
            f"which {type(observation_dist).__name__} does not marginalise; Normal and "
            "MultivariateNormal do"
        )
    if known is None:
        return _without_rows(own_log_prob(observation_dist, value, is_checked), rows)

    def compute(value: Tensor, *arguments: Tensor) -> Tensor:
        given = dict(zip(known.given, arguments, strict=True))
        return of_family(known.family, value, given, known.event_dim, missing)

    density: Tensor = provenance.call(compute, value, *known.given.values())
    if known.mask is not None:
        density = scale_and_mask(density, mask=known.mask)
    batch_shape = observation_dist.batch_shape
    if _broadcasts_to(batch_shape, density.shape):
        return density
    return density.expand(torch.broadcast_shapes(density.shape, batch_shape))


def of_family(
    family: Family, value: Tensor, given: Arguments, event_dim: int, missing: Tensor | None
) -> Tensor:
    """The log density of what is not missing, ``(..., T, K)``; 0 where a whole row is."""
    if missing is None:
        return family.log_prob(value, given, event_dim)
    rows, entries = missing_parts(missing, event_dim)
    if entries is None:
        return _without_rows(family.log_prob(value, given, event_dim), rows)
    return _without_rows(family.log_prob_of_seen(value, entries, given, event_dim), rows)


def missing_parts(missing: Tensor, event_dim: int) -> tuple[Tensor, Tensor | None]:
    """Which rows are missing as a whole, ``(..., T)``, and which entries are in other rows.

    :return: the entries are None if there are none of these.
    """
    flat = missing.reshape(missing.shape[: missing.dim() - event_dim] + (-1,))
    rows = flat.all(-1)
    entries = missing & ~rows.reshape(rows.shape + (1,) * event_dim)
    return rows, entries if bool(entries.any()) else None


def _without_rows(density: Tensor, rows: Tensor | None) -> Tensor:
    return density if rows is None else torch.where(rows.unsqueeze(-1), 0.0, density)


def own_log_prob(
    observation_dist: Distribution, value: Tensor, is_checked: bool = False
) -> Tensor:
    """The same by the distribution's own ``log_prob``."""
    # None leaves the setting as it is.
    exact = exact_copy(observation_dist, validate_args=False if is_checked else None)
    density: Tensor = exact.log_prob(_beside_states(observation_dist, value))
    return density


def _find(observation_dist: Distribution, value: Tensor, is_checked: bool) -> _Known | None:
    """Find the family of the distribution and read its arguments; check the value."""
    base, mask = emissions.unwrap(observation_dist)
    event_dim = len(observation_dist.event_shape)
    family = emissions.find_family(base, event_dim)
    if family is None:
        return None
    if base._validate_args and not is_checked:
        base._validate_sample(_beside_states(observation_dist, value))
    return _Known(family, family.read_for_density(base), event_dim, mask)


def _beside_states(observation_dist: Distribution, value: Tensor) -> Tensor:
    """Insert a dim for the K components: ``(..., T, 1) + event``."""
    return value.unsqueeze(-1 - len(observation_dist.event_shape))


def _broadcasts_to(shape: torch.Size, wanted: torch.Size) -> bool:
    """Whether shapes broadcast; ``torch.broadcast_shapes`` is slow for a short series."""
    if len(shape) > len(wanted):
        return False
    return all(one in (1, other) for one, other in zip(reversed(shape), reversed(wanted)))
