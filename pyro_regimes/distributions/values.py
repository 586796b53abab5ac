"""Observed values of :class:`.RegimeHMM`: their checks, padding and missing entries."""

from __future__ import annotations

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes.distributions import checks, observation, stand_in
from pyro_regimes.emissions.exact import exact_copy
from pyro_regimes.kernels import ops


def check_shape(
    value: Tensor,
    device: torch.device,
    batch_shape: torch.Size,
    event_shape: torch.Size,
    num_steps: int | None,
    num_slices: int,
) -> None:
    """Check that a value is a tensor of sequences ``(..., T) + event_shape``.

    :param device: that of the arguments.
    :param event_shape: that of one observation.
    :param num_steps: T, or None if it is not known in advance.
    :param num_slices: the number of slices of the transitions.
    :raises ValueError: if it is not.
    """
    if not isinstance(value, Tensor):
        raise ValueError(
            f"expected value to be a tensor, got {type(value).__name__}: use "
            "torch.as_tensor(value)"
        )
    checks.plain("value", value)
    checks.on_device(device, value)
    if value.is_complex():
        raise ValueError(f"expected value to hold real numbers, got dtype {value.dtype}")
    came = f"got shape {tuple(value.shape)}"
    event_dim = 1 + len(event_shape)
    after_time = value.shape[value.dim() - len(event_shape) :]
    if value.dim() < event_dim or after_time != event_shape:
        raise ValueError(f"expected value to have shape (..., T) + {tuple(event_shape)}, {came}")
    found = value.shape[-event_dim]
    if found < 1 or num_steps not in (None, found):
        slip = "" if num_steps is None else _time_slip(found, num_slices)
        raise ValueError(
            f"expected value to have {num_steps or 'one or more'} time steps at dimension "
            f"-{event_dim}, {came}{slip}"
        )
    try:
        ops.broadcast(batch_shape, value.shape[:-event_dim])
    except RuntimeError as error:
        raise ValueError(
            f"expected value to have a batch shape that broadcasts with {tuple(batch_shape)}, "
            f"{came}{checks.TIME_SLIP}"
        ) from error


def _time_slip(num_steps: int, num_slices: int) -> str:
    """The likely mistake, at the end of an error about the number of steps."""
    if num_slices == num_steps > 1:
        return (
            f"; {num_steps} observations have {num_steps - 1} transitions between them: leave "
            "out the first slice of a DiscreteHMM's transitions"
        )
    return checks.TIME_SLIP


def without_padding(
    value: Tensor, lengths: Tensor | None, event_dim: int
) -> tuple[Tensor, Tensor | None]:
    """Replace padding by the first step; also return the mask of valid steps, ``(..., T)``.

    Padding must not reach an observation distribution: the gradient of a log density at NaN is NaN,
    even after multiplication by a weight of 0.

    :param event_dim: the number of dims of a sequence: of time and of one observation.
    """
    if lengths is None:
        return value, None
    time = torch.arange(value.shape[-event_dim], device=lengths.device)
    valid = time < lengths.unsqueeze(-1)  # (..., T)
    keep = valid.reshape(valid.shape + (1,) * (event_dim - 1))
    return torch.where(keep, value, value.narrow(-event_dim, 0, 1)), valid


def fill_missing(
    value: Tensor, observation_dist: Distribution, missing: str
) -> tuple[Tensor, Tensor | None]:
    """Replace missing entries by those of a finite observation, or by a value of the support.

    :param value: without padding.
    :param missing: as in :class:`.RegimeHMM`.
    :return: also where they are, in its shape; None if there are none, or they are refused.
    """
    if missing == "refuse" or not value.is_floating_point() or not value.numel():
        return value, None
    can_be_seen = ops.can_be_seen(value)
    if can_be_seen and ops.is_finite(value):
        return value, None
    gone = value.isnan()
    if can_be_seen and not bool(gone.any()):
        return value, None
    each = value.detach().reshape((-1,) + observation_dist.event_shape)
    finite = each.isfinite().reshape(each.shape[:1] + (-1,)).all(-1)
    donor = each.index_select(0, finite.int().argmax(0, keepdim=True)).squeeze(0)
    inside = stand_in.some_value(observation_dist, like=value)
    return torch.where(gone, torch.where(finite.any(), donor, inside), value), gone


def check_support(
    value: Tensor, observation_dist: Distribution, valid: Tensor | None = None
) -> None:
    """Check that every observation is in the support of some state.

    :param valid: mask of the observations to check, ``(..., T)``; None for all.
    :raises ValueError: if one is not.
    """
    if not value.numel():
        return  # torch's check does not support an empty batch
    try:
        support = observation_dist.support
    except NotImplementedError:  # a distribution may not define it
        support = None
    if support is None or (_is_real(support) and _has_no_nan(value.detach())):
        return
    beside = observation.beside_states(observation_dist, value)
    inside = support.check(beside).any(-1)  # (..., T)
    if valid is not None:
        inside = inside | ~valid
    if not inside.all():
        inside = inside | marginalised(value, observation_dist)
    if not inside.all():
        outside = value.expand(inside.shape + observation_dist.event_shape)[~inside]
        remedy = "; NaN is missing data with missing='marginalise'"
        raise ValueError(
            f"expected value to lie in the support {support} of observation_dist at every "
            f"step, got {outside.flatten()[:3].tolist()} at {len(outside)} steps of value of "
            f"shape {tuple(value.shape)}{remedy * bool(outside.isnan().any())}"
        )


def _has_no_nan(value: Tensor) -> bool:
    """Whether that is certain. If a sum is not NaN, no term is."""
    return (ops.can_be_seen(value) and ops.is_finite(value)) or not bool(value.sum().isnan())


@torch.no_grad()
def marginalised(value: Tensor, observation_dist: Distribution) -> Tensor:
    """Mask of the observations with NaN that ``observation_dist`` has a density for, ``(..., T)``.

    Pyro's ``NanMaskedNormal`` treats NaN as missing, but does not include it in its support.
    """
    num_lead = value.dim() - len(observation_dist.event_shape)
    missing = value.isnan().reshape(value.shape[:num_lead] + (-1,)).any(-1)
    if not missing.any():
        return missing
    checking = exact_copy(observation_dist, validate_args=True)
    try:
        density = checking.log_prob(observation.beside_states(observation_dist, value))
    except ValueError:
        return torch.zeros_like(missing)
    return missing & ~density.isnan().any(-1)


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, type(constraints.real_vector)):
        support = support.base_constraint
    return support is constraints.real
