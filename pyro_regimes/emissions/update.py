"""What a family of observation distributions tells EM of one of its arguments."""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor


class Observed(NamedTuple):
    """The data of one site with the E-step's weights, ready for a family's statistics.

    ``*event`` is the shape of one observation. Where the observation distribution does not vary in
    time, statistics are summed over it, and keep a time dim of size 1.
    """

    value: Tensor  #: ``(..., T, 1, *event)``, finite wherever a weight is positive
    weights: Tensor  #: gamma, times the site's own scale and mask: ``(..., T, K)``
    varies: bool  #: whether the observation distribution varies in time


class Natural(NamedTuple):
    r"""How an argument's cells move, in coordinates that no unit of the data changes.

    The cells are perturbed by ``e``, which has their shape and is 0 at their present values. With
    s the score, the derivative of Q in e, and I the expected information of the complete data,
    half of :math:`s^\top I^{-1} s` is the gain in nats that a step of Newton's method promises.

    Statistics are those of :class:`Update`, pooled, a location's weighted with precisions.
    """

    perturb: Callable[[Tensor, Tensor], Tensor]  #: ``(cells, e) -> cells``
    score: Callable[[tuple[Tensor, ...], Tensor], Tensor]  #: ``(statistics, cells) -> score``
    #: ``(score, statistics, cells, floor) -> (cells,)``, nats; directions that the covariance
    #: floor blocks count for nothing
    gain: Callable[[Tensor, tuple[Tensor, ...], Tensor, float], Tensor]


class Update(NamedTuple):
    """The closed-form update of one argument: expected statistics, then their maximiser.

    A *block* is what moves as one: a scalar, a vector or a matrix, the last ``event_dim`` dims of
    the argument. A *cell* is a block of a parameter; it may be used for many blocks of the
    argument (all states, all series, all sequences), and the statistics of those add up.
    """

    argument: str
    event_dim: int
    #: Whether the blocks are elements of one observation (a scale for each series), so that
    #: statistics have the event's dims beside those of time and state.
    elementwise: bool
    #: ``(observed, arguments, shared) -> statistics``, each ``(..., 1 or T, K[, *event]) + block``,
    #: the first the weight. ``shared``: some cell serves blocks that differ in other arguments.
    statistics: Callable[[Observed, dict[str, Tensor], bool], tuple[Tensor, ...]]
    #: ``(statistics, floor) -> cells``; NaN where there is no maximiser.
    maximise: Callable[[tuple[Tensor, ...], float], Tensor]
    #: ``(cells, floor) -> cells`` that meet the covariance floor.
    feasible: Callable[[Tensor, float], Tensor]
    #: ``cells -> mask`` of those at which the density can be computed.
    sound: Callable[[Tensor], Tensor]
    what: str  #: for the reader of ``em.plan``
    natural: Natural  #: for the check of convergence


def shift(cells: Tensor, by: Tensor) -> Tensor:
    """``perturb`` of a location."""
    return cells + by


def is_at_floor(values: Tensor, floor: float) -> Tensor:
    """Whether variances, or the eigenvalues of covariances ``(..., D)``, are at the floor.

    Rounding of the largest of them, and 1e-6 of the floor, do not count.
    """
    rounding = 64 * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    return values <= floor * (1 + 1e-6) + rounding


def divide_where_known(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``; where there is no weight, 0 for a total of 0 and else infinity."""
    known = weight > 0
    ratio = total / weight.masked_fill(~known, 1.0)
    return torch.where(known, ratio, torch.where(total == 0, 0.0, torch.inf))


def unchanged(cells: Tensor, floor: float) -> Tensor:
    """``feasible`` of an argument that the covariance floor does not concern."""
    return cells


def finite(cells: Tensor) -> Tensor:
    """``sound`` of an argument that may be any number; by elements."""
    return cells.isfinite()


def divide(total: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean ``total / weight``; NaN where there is no weight."""
    tiny = torch.finfo(weight.dtype).tiny
    return total / weight.masked_fill(weight < tiny, torch.nan)
