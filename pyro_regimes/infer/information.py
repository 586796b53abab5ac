r"""Exact second derivatives, and the covariance matrix that they give.

The observed information is :math:`I = -\partial^2 \log p / \partial u \partial u^\top` at the
estimate, and :math:`I^{-1}` estimates the covariance of the estimator. With the scores
:math:`s_i` of independent contributions the "sandwich" :math:`I^{-1} (\sum_i s_i s_i^\top) I^{-1}`
stays valid if the model is misspecified (White 1982).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from pyro_regimes import progress

#: An eigenvalue of the information, scaled to a unit diagonal, that is told from 0.
_LEAST = 1e-9

#: The square of a parameter's share in such a direction, from which on it has no variance.
_SHARE = 1e-8


class Derivatives(NamedTuple):
    """Derivatives of a log density at a point."""

    value: float
    gradient: Tensor  #: ``(P,)``
    information: Tensor  #: ``(P, P)``, minus the second derivatives


class Inverse(NamedTuple):
    """The inverse of an information matrix where it has one."""

    covariance: Tensor  #: ``(P, P)``, NaN in rows and columns without a variance
    singular: list[Tensor]  #: directions ``(P,)`` of unit length in scaled coordinates
    negative: list[Tensor]  #: those in which the log density curves upwards


def differentiate(log_density: Callable[[Tensor], Tensor], point: Tensor) -> Derivatives:
    """The value, the gradient and minus the Hessian, one row at a time.

    :param log_density: of coordinates ``(P,)``; a scalar that is twice differentiable.
    :param point: ``(P,)``, float64.
    """
    point = point.detach().requires_grad_()
    value = log_density(point)
    (gradient,) = torch.autograd.grad(value, point, create_graph=True, materialize_grads=True)
    return Derivatives(float(value.detach()), gradient.detach(), -jacobian(gradient, point))


def jacobian(values: Tensor, point: Tensor) -> Tensor:
    """Derivatives of values ``(n,)`` in a leaf ``(P,)``: ``(n, P)``, one row at a time."""
    if not values.requires_grad:
        return torch.zeros(len(values), len(point), dtype=point.dtype, device=point.device)
    rows = [
        torch.autograd.grad(each, point, retain_graph=True, materialize_grads=True)[0]
        for each in _told(values)
    ]
    return torch.stack(rows) if rows else point.new_zeros(0, len(point))


def columns_of_jacobian(values: Tensor, point: Tensor) -> Tensor:
    """The same as :func:`jacobian`, one column at a time, for more values than coordinates.

    The gradient of :math:`w^\\top v` is linear in w, and its derivatives in w are the columns.

    :param values: any shape ``(...)``.
    :return: ``(..., P)``.
    """
    if not values.requires_grad:
        return values.new_zeros(values.shape + (len(point),))
    weights = torch.zeros_like(values, requires_grad=True)
    (pulled,) = torch.autograd.grad(
        values, point, weights, create_graph=True, materialize_grads=True
    )
    if not pulled.requires_grad:
        return values.new_zeros(values.shape + (len(point),)).detach()
    columns = [
        torch.autograd.grad(each, weights, retain_graph=True, materialize_grads=True)[0]
        for each in _told(pulled)
    ]
    return torch.stack(columns, -1)


def _told(values: Tensor) -> Iterator[Tensor]:
    """The values one by one, with their number on the bar that is shown."""
    tell = progress.teller()
    for number, each in enumerate(values):
        if tell is not None:
            tell(number, len(values))
        yield each


def invert(information: Tensor) -> Inverse:
    """Invert a symmetric matrix whose coordinates may have any units.

    A coordinate with a share in a direction that is singular, or in which the matrix is negative,
    has no variance.
    """
    matrix = (information + information.mT) / 2
    diagonal = matrix.diagonal().abs()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * matrix * scale)
    good = values > _LEAST
    half = scale[:, None] * vectors[:, good] * values[good].rsqrt()
    covariance = half @ half.mT
    without = (vectors[:, ~good] ** 2).sum(-1) > _SHARE
    covariance[without] = torch.nan
    covariance[:, without] = torch.nan
    return Inverse(
        covariance,
        [vectors[:, i] for i in (values.abs() <= _LEAST).nonzero().flatten()],
        [vectors[:, i] for i in (values < -_LEAST).nonzero().flatten()],
    )


def sandwich(inverse: Tensor, scores: Tensor) -> Tensor:
    """:math:`I^{-1} S^\\top S I^{-1}` of scores S, ``(n, P)``; NaN where the inverse is."""
    missing = inverse.diagonal().isnan()
    half = scores @ inverse.nan_to_num()
    found = half.mT @ half
    found[missing] = torch.nan
    found[:, missing] = torch.nan
    return found


def transformed(covariance: Tensor, jacobian: Tensor) -> Tensor:
    r"""The delta method: :math:`J C J^\top`, NaN where J depends on what has no variance.

    :param covariance: C, ``(P, P)``.
    :param jacobian: J, ``(n, P)``.
    """
    missing = covariance.diagonal().isnan()
    found = jacobian @ covariance.nan_to_num() @ jacobian.mT
    without = (jacobian[:, missing] != 0).any(-1)
    found[without] = torch.nan
    found[:, without] = torch.nan
    return found
