r"""Coordinates of arguments in which EM extrapolates, without bounds and without units.

Every point of a chart is an admissible value, and the differences of two points do not depend on
the units of the data:

- probabilities: :math:`\sqrt{p_i}`, in which the Fisher information of a row is constant, and a
  probability of 0 is a point like any other;
- a probability p: :math:`\arcsin \sqrt p`, likewise;
- rates of counts: :math:`\sqrt\lambda`, in which the Fisher information is constant;
- scales, and rates of waiting times: :math:`\log \sigma`;
- positive definite matrices with the Cholesky factor L: the logarithms of the standard deviations,
  and the entries of L over the diagonal entry of their row;
- locations: themselves, over the standard deviation of the observations.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class Chart(NamedTuple):
    """A map from cells to coordinates ``(cells, n)``, and its inverse."""

    to: Map
    of: Map  #: the inverse; the coordinates may be any numbers
    #: ``arguments -> unit`` of the coordinates, in the shape of the argument; None is 1
    unit: Callable[[dict[str, Tensor]], Tensor] | None = None
    #: ``(value, after) -> value`` within the bounds that EM keeps, after its own step; None is all
    within: Callable[[Tensor, Tensor], Tensor] | None = None


def _itself(value: Tensor) -> Tensor:
    return value


def location(unit: Callable[[dict[str, Tensor]], Tensor]) -> Chart:
    """The chart of a location, by the standard deviations about it."""
    return Chart(_itself, _itself, unit)


def _rows_of(roots: Tensor) -> Tensor:
    squares = roots.square()
    return squares / squares.sum(-1, keepdim=True)


#: The least share of a probability after EM's step that an extrapolation may leave of it.
LEAST_SHARE = 1e-2


def _not_far_below(probs: Tensor, after: Tensor) -> Tensor:
    """Probabilities of at least a hundredth of others, and with their zeros.

    A probability that is nearly 0 grows by a factor at each step of EM, and may take hundreds of
    them to matter again. No entry underflows to 0, which EM could not leave.
    """
    tiny = torch.finfo(after.dtype).tiny
    after = after.to(probs.dtype)
    probs = probs.maximum(LEAST_SHARE * after)
    probs = probs / probs.sum(-1, keepdim=True)
    return torch.where(after > 0, probs.clamp(min=tiny), after)


def _arc(probs: Tensor) -> Tensor:
    return probs.sqrt().asin()


def _of_arc(angle: Tensor) -> Tensor:
    return angle.sin().square()


def _inside_unit(probs: Tensor, after: Tensor) -> Tensor:
    """A probability and its complement of at least a hundredth of others, and with their zeros."""
    after = after.to(probs.dtype)
    low, high = LEAST_SHARE * after, 1 - LEAST_SHARE * (1 - after)
    return torch.where((after > 0) & (after < 1), probs.maximum(low).minimum(high), after)


def _not_far_below_rate(rate: Tensor, after: Tensor) -> Tensor:
    return rate.maximum(LEAST_SHARE * after.to(rate.dtype))


def _factor_to(factor: Tensor) -> Tensor:
    factor = factor.tril()
    size = factor.shape[-1]
    row, column = torch.tril_indices(size, size, -1, device=factor.device)
    deviations = factor.square().sum(-1).sqrt().log()
    below = factor[..., row, column] / factor.diagonal(dim1=-2, dim2=-1)[..., row]
    return torch.cat([deviations, below], -1)


def _factor_of(point: Tensor) -> Tensor:
    size = int((2 * point.shape[-1] + 0.25) ** 0.5)  # of D (D + 1) / 2 coordinates
    row, column = torch.tril_indices(size, size, -1, device=point.device)
    factor = torch.eye(size, dtype=point.dtype, device=point.device).repeat(len(point), 1, 1)
    factor[:, row, column] = point[:, size:]
    length = factor.square().sum(-1, keepdim=True).sqrt()
    return factor / length * point[:, :size].exp().unsqueeze(-1)


def _matrix_to(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    return _factor_to(factor.masked_fill((info != 0)[..., None, None], torch.nan))


def _matrix_of(point: Tensor) -> Tensor:
    factor = _factor_of(point)
    # Not a matrix product, which rounds by where in memory a matrix begins.
    columns = factor.unbind(-1)
    return torch.stack([each.unsqueeze(-1) * each.unsqueeze(-2) for each in columns]).sum(0)


def _roots_of_matrix(matrix: Tensor) -> Tensor:
    return matrix.sqrt().flatten(-2)


def _matrix_of_roots(point: Tensor) -> Tensor:
    size = math.isqrt(point.shape[-1])
    return _rows_of(point.reshape(-1, size, size))


ROWS = Chart(torch.sqrt, _rows_of, within=_not_far_below)
TRANSITIONS = Chart(_roots_of_matrix, _matrix_of_roots, within=_not_far_below)
PROBABILITY = Chart(_arc, _of_arc, within=_inside_unit)
COUNT_RATE = Chart(torch.sqrt, torch.square, within=_not_far_below_rate)
SCALE = Chart(torch.log, torch.exp)
FACTOR = Chart(_factor_to, _factor_of)
MATRIX = Chart(_matrix_to, _matrix_of)
