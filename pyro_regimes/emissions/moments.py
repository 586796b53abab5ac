r"""Expected moments of Gaussian observations about a fixed origin, and their change of origin.

For the weights :math:`w_t`, about the origin o,

.. math::
    n = \sum_t w_t, \qquad f = \sum_t w_t (x_t - o), \qquad
    S = \sum_t w_t (x_t - o)(x_t - o)^\top,

and about :math:`\mu = o + d` the scatter is :math:`S - f d^\top - d f^\top + n d d^\top`. If o is
the old location, one pass over the data gives both the new location and the new spread.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Observed, over_sequences
from pyro_regimes.kernels import ops

#: The reason why a scale or a covariance may have no maximum.
WHY_UNBOUNDED = (
    "a state has too little spread for a positive definite covariance; it keeps its value there. A "
    "positive min_eigenvalue bounds the likelihood"
)

#: A change of origin must keep at least this share of a scatter; otherwise digits are lost.
_LEAST_SHARE = 1e-3


class Moments(NamedTuple):
    """Moments of each block; ``*event`` is (D,) for vectors. Add only moments about one origin."""

    origin: Tensor  #: broadcasts to ``first``
    #: ``(..., 1 or T, K)`` and a 1 for each dim of the event, or its size if entries are missing
    weight: Tensor
    first: Tensor  #: ``(..., 1 or T, K, *event)``
    #: ``(..., D, D)``, or ``(..., *event)`` of independent series; None if not computed
    second: Tensor | None


def take(
    observed: Observed, origin: Tensor, is_full: bool, with_second: bool
) -> Moments:
    """Compute moments about an origin.

    :param origin: ``(..., 1 or T, K or 1, *event)``; leading dims may be missing.
    :param is_full: whether the second moments are matrices.
    """
    event_dim = observed.event_dim
    is_constant = origin.shape[-2 - event_dim : -1 - event_dim] in ((), (1,))
    if observed.missing is not None or observed.varies or not is_constant:
        return _take_by_time(observed, origin, is_full, with_second)
    value = observed.value.squeeze(-1 - event_dim)
    event_shape = value.shape[value.dim() - event_dim :]
    flat = value.reshape(value.shape[: value.dim() - event_dim] + (-1,))  # (..., T, D)
    if event_dim == 1:
        center = ops.without_time(origin, 2)
    else:
        lead = (1,) * max(0, 1 + event_dim - origin.dim()) + origin.shape
        lead = lead[: len(lead) - event_dim]
        whole = origin.expand(lead + event_shape) if event_dim else origin
        center = ops.without_time(whole.reshape(lead + (-1,)), 2)
    weight, first, second = ops.weighted_moments(
        flat, observed.weights, center, is_full, with_second
    )
    shape = weight.shape[:-1] + (1,) + weight.shape[-1:]  # (..., 1, K)
    return Moments(
        origin,
        weight.reshape(shape + (1,) * event_dim),
        first.reshape(shape + event_shape),
        None if second is None else second.reshape(shape + event_shape + flat.shape[-1:] * is_full),
    )


def _take_by_time(
    observed: Observed, origin: Tensor, is_full: bool, with_second: bool
) -> Moments:
    """Moments for a distribution or an origin that varies in time, or with missing entries."""
    event_dim, varies = observed.event_dim, observed.varies
    deviation = observed.value - origin  # (..., T, K, *event)
    weight = observed.weights.reshape(observed.weights.shape + (1,) * event_dim)
    if observed.missing is not None:
        weight = torch.where(observed.missing, 0.0, weight)
    first, second = weight * deviation, None
    if with_second:
        second = (
            first.unsqueeze(-1) * deviation.unsqueeze(-2) if is_full else first * deviation
        )

    def over_time(part: Tensor) -> Tensor:
        return part if varies else ops.sum_over(part, observed.weights.dim() - 2)

    return Moments(
        origin,
        over_time(weight),
        over_time(first),
        None if second is None else over_time(second),
    )


def is_accurate(moments: Moments, loc: Tensor, is_full: bool) -> Tensor | bool:
    """Which blocks keep enough digits of the scatter about another location.

    Only the CPU checks this. On other devices, reading a result costs more than another pass.
    """
    if moments.second is None or loc.device.type != "cpu":
        return False
    square = moments.second.diagonal(dim1=-2, dim2=-1) if is_full else moments.second
    shift = moments.weight * (loc - moments.origin).square()
    accurate = shift * _LEAST_SHARE <= square - shift
    return accurate.all(-1, keepdim=True) if is_full else accurate


def merge(accurate: Tensor, one: Moments, other: Moments) -> Moments:
    """The moments of accurate blocks from ``one``, and of the rest from ``other``."""
    assert one.second is not None and other.second is not None
    extra = one.second.dim() - one.first.dim()
    whole = accurate.reshape(accurate.shape + (1,) * extra)
    return Moments(
        torch.where(accurate, one.origin, other.origin),
        one.weight,
        torch.where(accurate, one.first, other.first),
        torch.where(whole, one.second, other.second),
    )


def add(one: Moments, other: Moments) -> Moments:
    """The sum of moments about one origin."""
    second = None
    if one.second is not None and other.second is not None:
        second = one.second + other.second
    return Moments(one.origin, one.weight + other.weight, one.first + other.first, second)


def scatter(moments: Moments, loc: Tensor, is_full: bool) -> Tensor:
    """The second moments about ``loc``."""
    _, weight, first, second = moments
    assert second is not None
    step = loc - moments.origin
    if not is_full:
        return second - (2 * first - weight * step) * step
    cross = (first - 0.5 * weight * step).unsqueeze(-1) * step.unsqueeze(-2)
    return second - cross - cross.mT


def sums(moments: Moments) -> Tensor:
    """The weighted sums of the observations, ``(..., 1 or T, K, *event)``."""
    return moments.first + moments.weight * moments.origin


def total(
    moments: Moments, num_batch_dims: int, like: Moments | None, is_full: bool
) -> Moments:
    """The sum over all sequences, float64, of each block about its own origin.

    Blocks have no common origin, because a spread may be tiny relative to the distance between
    states or between series.

    :param num_batch_dims: number of dims before those of time and state.
    :param like: moments about the origins to use; None uses the mean of the data in each block.
    """
    doubled = (None if part is None else part.double() for part in moments)
    given = Moments(*doubled)  # type: ignore[arg-type]
    weight = over_sequences(given.weight, num_batch_dims)
    if like is None:
        whole = given.origin.expand(given.first.shape)
        near = whole.reshape((-1,) + whole.shape[num_batch_dims:])[0]
        first = over_sequences(_first(given, near), num_batch_dims)
        origin = near + (first / weight.clamp(min=torch.finfo(torch.float64).tiny))[0]
    else:
        origin = like.origin

    second = None if given.second is None else scatter(given, origin, is_full)
    return Moments(
        origin,
        weight,
        over_sequences(_first(given, origin), num_batch_dims),
        None if second is None else over_sequences(second, num_batch_dims),
    )


def _first(moments: Moments, origin: Tensor) -> Tensor:
    """The first moments about another origin."""
    return moments.first + moments.weight * (moments.origin - origin)
