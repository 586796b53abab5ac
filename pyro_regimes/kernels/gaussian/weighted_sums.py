"""Weighted sums of observations: what the M-step of a Gaussian needs, and no gradient runs through.

A compiled kernel on the CPU, matrix products elsewhere; nothing of size (T, K, D, D) is built.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_regimes.kernels.gaussian import densities
from pyro_regimes.kernels.shapes import flatten


def sums(value: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\sum_t w_{tk}`, ``(..., K)``, and :math:`\sum_t w_{tk} x_t`, ``(..., K, D)``.

    Not differentiable; in the dtype of the weights.

    :param value: ``(..., T, D)``, which broadcasts to the weights' batch.
    :param weights: ``(..., T, K)``.
    """
    if not densities.is_served(value, weights):
        return weights.sum(-2), weights.mT @ value
    from pyro_regimes.kernels.cpu import moments

    batch_shape = weights.shape[:-2]
    weight, total = moments.sums(
        flatten(value, 2, batch_shape), weights.reshape((-1,) + weights.shape[-2:])
    )
    return (
        weight.to(weights.dtype).reshape(batch_shape + weight.shape[1:]),
        total.to(weights.dtype).reshape(batch_shape + total.shape[1:]),
    )


def scatter(value: Tensor, weights: Tensor, loc: Tensor) -> Tensor:
    r""":math:`\sum_t w_{tk} (x_t - \mu_k)(x_t - \mu_k)^\top`, ``(..., K, D, D)``.

    Not differentiable; in the dtype of the weights.

    :param value: ``(..., T, D)``, which broadcasts to the weights' batch.
    :param weights: ``(..., T, K)``.
    :param loc: ``(..., K or 1, D)``, likewise.
    """
    if not densities.is_served(value, weights, loc):
        deviation = (value.unsqueeze(-3) - loc.unsqueeze(-2)).to(weights.dtype)  # (..., K, T, D)
        return (weights.mT.unsqueeze(-1) * deviation).mT @ deviation
    from pyro_regimes.kernels.cpu import moments

    return _scatter(moments.scatter_full, value, weights, loc)


def scatter_diagonal(value: Tensor, weights: Tensor, loc: Tensor) -> Tensor:
    r""":math:`\sum_t w_{tk} (x_{td} - \mu_{kd})^2`, ``(..., K, D)``; see :func:`scatter`."""
    if not densities.is_served(value, weights, loc):
        deviation = (value.unsqueeze(-3) - loc.unsqueeze(-2)).to(weights.dtype)
        return (weights.mT.unsqueeze(-1) * deviation.square()).sum(-2)
    from pyro_regimes.kernels.cpu import moments

    return _scatter(moments.scatter_diagonal, value, weights, loc)


def _scatter(kernel: Any, value: Tensor, weights: Tensor, loc: Tensor) -> Tensor:
    batch_shape = weights.shape[:-2]
    found: Tensor = kernel(
        flatten(value, 2, batch_shape),
        weights.reshape((-1,) + weights.shape[-2:]),
        flatten(loc, 2, batch_shape).unsqueeze(1),
    )
    return found.to(weights.dtype).reshape(batch_shape + found.shape[1:])
