"""Log densities of the observations in every state.

If EM has a family for the distribution (:mod:`pyro_regimes.emissions`), the density is computed by
the family. So SVI differentiates the same likelihood that EM maximises. Other distributions use
their own ``log_prob``, discrete ones that of :mod:`.exact`.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes import emissions
from pyro_regimes.distributions import provenance, stand_in
from pyro_regimes.emissions import entries
from pyro_regimes.emissions.base import Arguments, Family, Gaussian
from pyro_regimes.emissions.exact import exact_copy
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.normal import NORMAL
from pyro_regimes.kernels import ops
from pyro_regimes.observed.columns import Columns, take

#: Distributions of Pyro that marginalise NaN by a loop over values; the families do it for them.
_NAN_MASKED: dict[type[Distribution], Family] = {
    dist.NanMaskedNormal: NORMAL,
    dist.NanMaskedMultivariateNormal: MULTIVARIATE_NORMAL,
}


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
    :return: ``(..., T, K)``; -inf, with gradient 0, for an observation with an infinite entry.
        Only a distribution without a family that has a finite density there keeps it.
    :raises ValueError: if ``observation_dist`` validates and does not support the value, or does
        not marginalise some entries of an observation.
    """
    rows = stand_in.infinite_rows(value, len(observation_dist.event_shape))
    if rows is None:
        return _log_prob(observation_dist, value, is_checked, missing)
    known = _find(observation_dist, value, is_checked or missing is not None)
    if known is None:
        with torch.no_grad():
            density = _log_prob(observation_dist, value, is_checked, missing)
        rows = rows & ~density.isfinite().any(-1)
    value = stand_in.without_rows(observation_dist, value, rows)
    density = _log_prob(observation_dist, value, True, missing)
    impossible, mask = rows.unsqueeze(-1), emissions.unwrap(observation_dist).mask
    if mask is not None:  # what is masked does not count, whatever it is
        impossible = impossible & torch.as_tensor(mask, device=value.device)
    return torch.where(impossible, -torch.inf, density)


def _log_prob(
    observation_dist: Distribution, value: Tensor, is_checked: bool, missing: Tensor | None
) -> Tensor:
    """:func:`log_prob` of finite observations."""
    base = emissions.unwrap(observation_dist).base
    family = None
    is_checked = is_checked or missing is not None  # only some states may emit what stands there
    if missing is not None and type(base) in _NAN_MASKED:
        family = _NAN_MASKED[type(base)]
        missing = missing | value.isinf()  # as Pyro does
        value = torch.where(value.isinf(), 0.0, value)
    known = _find(observation_dist, value, is_checked, family)
    if known is None:
        if missing is None:
            return own_log_prob(observation_dist, value, is_checked)
        return _own_log_prob_of_seen(observation_dist, value, is_checked, missing)

    def compute(value: Tensor, *arguments: Tensor) -> Tensor:
        given = dict(zip(known.given, arguments, strict=True))
        return entries.log_prob(known.family, value, given, known.event_dim, missing)

    density: Tensor = provenance.call(compute, value, *known.given.values())
    if known.mask is not None:
        density = scale_and_mask(density, mask=known.mask)
    batch_shape = observation_dist.batch_shape
    if _broadcasts_to(batch_shape, density.shape):
        return density
    return density.expand(torch.broadcast_shapes(density.shape, batch_shape))


def moments_of_missing(
    observation_dist: Distribution, value: Tensor, missing: Tensor
) -> tuple[Tensor, Tensor]:
    """Means and variances of missing entries in every state, given the observed ones of the row.

    :param value: ``(..., T, *event)``, finite.
    :param missing: in its shape.
    :return: ``(..., T, K, *event)`` each; any numbers where nothing is missing.
    :raises ValueError: if the distribution has none.
    """
    base = emissions.unwrap(observation_dist).base
    event_dim = len(observation_dist.event_shape)
    family = _NAN_MASKED.get(type(base)) or emissions.find_family(base, event_dim)
    if family is not None:
        given = {name: argument.detach() for name, argument in family.read(base).items()}
        found = family.moments_of_missing(value, missing, given, event_dim)
        if found is not None:
            return found
    if isinstance(base, Columns):
        parts = [
            moments_of_missing(part, take(value, places), take(missing, places))
            for part, places in zip(base.parts, base.columns, strict=True)
        ]
        return _assembled(base, [means for means, _ in parts], value), _assembled(
            base, [variances for _, variances in parts], value
        )
    if base.event_shape and entries.parts_of(missing, event_dim)[1] is not None:
        raise ValueError(
            "expected whole observations to be missing, got some with single missing entries, of "
            f"which {type(base).__name__} has no mean given the others"
        )
    try:
        return observation_dist.mean, observation_dist.variance
    except NotImplementedError as error:
        raise ValueError(
            "expected observation_dist to have a mean and a variance, by which missing entries are "
            f"imputed, got {type(base).__name__}, which has not"
        ) from error


def are_angles(observation_dist: Distribution, device: torch.device) -> Tensor:
    """Which entries of an observation are angles, whose mean is a direction: bool, ``(*event)``."""
    base = emissions.unwrap(observation_dist).base
    event_shape = observation_dist.event_shape
    if isinstance(base, Columns):
        return base.assemble([are_angles(part, device) for part in base.parts])
    family = emissions.find_family(base, len(event_shape))
    is_angle = family is not None and family.of_angles
    return torch.full(event_shape, is_angle, device=device)


def _assembled(columns: Columns, parts: list[Tensor], value: Tensor) -> Tensor:
    """Moments of the parts, with or without a dim for time, in their columns."""
    num_states = columns.batch_shape[-1]
    shape = torch.broadcast_shapes(
        value.shape[:-1] + (num_states,),
        *(part.shape[: part.dim() - len(each.event_shape)]
          for part, each in zip(parts, columns.parts, strict=True)),
    )
    return columns.assemble(
        [
            part.expand(shape + each.event_shape)
            for part, each in zip(parts, columns.parts, strict=True)
        ]
    )


def own_log_prob(
    observation_dist: Distribution, value: Tensor, is_checked: bool = False
) -> Tensor:
    """The same by the distribution's own ``log_prob``."""
    # None leaves the setting as it is.
    exact = exact_copy(observation_dist, validate_args=False if is_checked else None)
    density: Tensor = exact.log_prob(beside_states(observation_dist, value))
    return density


def restrict(logits: Tensor, allowed_states: Tensor | None) -> Tensor:
    """Log densities ``(..., T, K)``, with -inf for the states that are not allowed."""
    return logits if allowed_states is None else torch.where(allowed_states, logits, -torch.inf)


def own_rounding(observation_dist: Distribution, value: Tensor) -> Tensor | float:
    """How far rounding may move :func:`own_log_prob`, where that of the family has less of it."""
    known = _find(observation_dist, value, True)
    if known is None:
        return 0.0
    return known.family.own_rounding(value, known.given, known.event_dim)


def _own_log_prob_of_seen(
    observation_dist: Distribution, value: Tensor, is_checked: bool, missing: Tensor
) -> Tensor:
    """The same without what is missing: single entries, if a row is a product over its entries."""
    event_dim = len(observation_dist.event_shape)
    base, mask = emissions.unwrap(observation_dist)
    if base.event_shape or not event_dim:
        own = own_log_prob(observation_dist, value, is_checked)
        return entries.of_whole_rows(own, missing, event_dim, type(base).__name__)
    exact = exact_copy(base, validate_args=False if is_checked else None)
    each = exact.log_prob(beside_states(observation_dist, value))
    density = entries.of_seen(each, missing, event_dim)
    if mask is not None:
        density = scale_and_mask(density, mask=mask)
    return density.expand(torch.broadcast_shapes(density.shape, observation_dist.batch_shape))


def _find(
    observation_dist: Distribution, value: Tensor, is_checked: bool, family: Family | None = None
) -> _Known | None:
    """Find the family of the distribution and read its arguments; check the value.

    :param family: the family to take.
    """
    base, mask = emissions.unwrap(observation_dist)
    event_dim = len(observation_dist.event_shape)
    family = family or emissions.find_family(base, event_dim)
    if family is None:
        return None
    if base._validate_args and not is_checked:
        base._validate_sample(beside_states(observation_dist, value))
    return _Known(family, family.read_for_density(base), event_dim, mask)


def beside_states(observation_dist: Distribution, value: Tensor) -> Tensor:
    """Insert a dim for the K components: ``(..., T, 1) + event``."""
    return value.unsqueeze(-1 - len(observation_dist.event_shape))


def _broadcasts_to(shape: torch.Size, wanted: torch.Size) -> bool:
    """Whether shapes broadcast; ``torch.broadcast_shapes`` is slow for a short series."""
    if len(shape) > len(wanted):
        return False
    return all(one in (1, other) for one, other in zip(reversed(shape), reversed(wanted)))
