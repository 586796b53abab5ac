"""Weighted sums of observations for the M-step of a Gaussian, without gradients.

They use a compiled kernel on the CPU and matrix products elsewhere, and never build a tensor of
size (T, K, D, D).
"""

from __future__ import annotations

from torch import Tensor

from pyro_regimes.kernels.gaussian import densities
from pyro_regimes.kernels.shapes import flatten


def moments(
    value: Tensor, weights: Tensor, origin: Tensor, is_full: bool, with_second: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Weighted moments about an origin o of each state: of :math:`d_{tk} = x_t - o_k`

    .. math:: \sum_t w_{tk}, \qquad \sum_t w_{tk} d_{tk}, \qquad \sum_t w_{tk} d_{tk} d_{tk}^\top.

    They are not differentiable, and have the dtype of the weights, or float64.

    :param value: ``(..., T, D)``, which broadcasts to the weights' batch.
    :param weights: ``(..., T, K)``.
    :param origin: ``(..., K or 1, D)``, likewise.
    :param is_full: whether the second moments are matrices, or their diagonals.
    :return: ``(..., K)``, ``(..., K, D)`` and ``(..., K, D, D)`` or ``(..., K, D)``, or None where
        they are not wanted.
    """
    if densities.is_served(value, weights, origin):
        return _compiled_moments(value, weights, origin, is_full, with_second)
    weight = weights.sum(-2)
    if not with_second:
        return weight, weights.mT @ value - weight.unsqueeze(-1) * origin, None
    deviation = (value.unsqueeze(-3) - origin.unsqueeze(-2)).to(weights.dtype)  # (..., K, T, D)
    weighted = weights.mT.unsqueeze(-1) * deviation
    second = weighted.mT @ deviation if is_full else (weighted * deviation).sum(-2)
    return weight, weighted.sum(-2), second


def _compiled_moments(
    value: Tensor, weights: Tensor, origin: Tensor, is_full: bool, with_second: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    from pyro_regimes.kernels.cpu import moments as kernel

    batch_shape = weights.shape[:-2]
    given = (
        flatten(value, 2, batch_shape),
        weights.reshape((-1,) + weights.shape[-2:]),
        flatten(origin, 2, batch_shape).unsqueeze(1),
    )

    def in_shape(part: Tensor) -> Tensor:
        return part.reshape(batch_shape + part.shape[1:])

    if not with_second:
        weight, first = kernel.first_moments(*given)
        return in_shape(weight), in_shape(first), None
    take = kernel.moments_full if is_full else kernel.moments_diagonal
    weight, first, second = map(in_shape, take(*given))
    return weight, first, second
