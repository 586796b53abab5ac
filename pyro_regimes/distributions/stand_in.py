"""Values of the support that stand for observations without a density, such as infinite ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, transform_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from pyro_regimes import emissions
from pyro_regimes.kernels import ops
from pyro_regimes.observed.columns import Columns


def some_value(observation_dist: Distribution, like: Tensor) -> Tensor:
    """An observation in the support of the first state, of dtype and device of a tensor."""
    event_shape = observation_dist.event_shape
    base = emissions.unwrap(observation_dist).base
    if isinstance(base, Columns):
        values = [some_value(part, like) for part in base.parts]
        return base.assemble(values).expand(event_shape)
    try:
        support = observation_dist.support
        if isinstance(support, MixtureSameFamilyConstraint):
            support = support.base_constraint
        transform = transform_to(support)
        found = transform(like.new_zeros(transform.inverse_shape(event_shape)))
    except NotImplementedError:
        try:  # of discrete distributions
            found = observation_dist.mode
        except NotImplementedError:
            return like.new_zeros(event_shape)
    num_lead = found.dim() - len(event_shape)
    return found.detach()[(0,) * num_lead].to(like).expand(event_shape)


def infinite_rows(value: Tensor, event_dim: int) -> Tensor | None:
    """Which observations have an infinite entry, ``(..., T)``; None if none has.

    None also in a traced graph, whose values cannot be seen: there it is as the formulas have it.
    """
    if not value.is_floating_point() or not ops.can_be_seen(value) or ops.is_finite(value):
        return None
    infinite = value.isinf()
    if not bool(infinite.any()):
        return None
    return infinite.flatten(-event_dim).any(-1) if event_dim else infinite


def without_rows(observation_dist: Distribution, value: Tensor, rows: Tensor) -> Tensor:
    """The value with one of the support in some rows, at which no derivative is NaN.

    :param rows: ``(..., T)``.
    """
    rows = rows.reshape(rows.shape + (1,) * len(observation_dist.event_shape))
    return torch.where(rows, some_value(observation_dist, like=value), value)
