r"""Formulas of Gaussian densities and their derivatives, in plain tensor code.

Here z solves :math:`L z = x - \mu`. A factor L is ``(..., K or 1, D, D)``, or for independent
series its diagonal ``(..., K or 1, D, 1)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG_2_PI = math.log(2 * math.pi)


def is_full(factor: Tensor) -> bool:
    """Whether a factor is a matrix ``(..., D, D)``, or standard deviations ``(..., D, 1)``."""
    return factor.shape[-1] == factor.shape[-2]


def whiten(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """:math:`z`, ``(..., K, D, T)``."""
    deviation = (value.unsqueeze(-3) - loc.unsqueeze(-2)).mT  # (..., K, D, T)
    if not is_full(factor):
        return deviation / factor
    return torch.linalg.solve_triangular(factor, deviation, upper=False)


def solve_transposed(factor: Tensor, right: Tensor) -> Tensor:
    """:math:`L^{-\\top} R` for R ``(..., K, D, any)``."""
    if not is_full(factor):
        return right / factor
    return torch.linalg.solve_triangular(factor.mT, right, upper=True)


def diagonal(factor: Tensor) -> Tensor:
    """``(..., K, D)``"""
    return factor.diagonal(dim1=-2, dim2=-1) if is_full(factor) else factor.squeeze(-1)


def log_prob(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """Gaussian log densities in plain tensor code, for any device and dtype.

    :param factor: ``(..., K or 1, D, D)``, or the diagonals ``(..., K or 1, D, 1)``.
    """
    squares = whiten(value, loc, factor).square().sum(-2)  # (..., K, T)
    constant = diagonal(factor).log().sum(-1) + 0.5 * value.shape[-1] * _LOG_2_PI
    return (-0.5 * squares - constant.unsqueeze(-1)).mT


def push_forward(
    z: Tensor,
    loc: Tensor,
    factor: Tensor,
    of_value: Tensor | None,
    of_loc: Tensor | None,
    of_factor: Tensor | None,
) -> Tensor:
    """The tangent of z, ``(N, K, D, T)``: :math:`L^{-1} (dx - d\\mu - dL\\, z)`."""
    turn = torch.zeros_like(z)
    if of_value is not None:
        turn = turn + of_value.unsqueeze(-3).mT
    if of_loc is not None:
        turn = turn - of_loc.unsqueeze(-1)
    if of_factor is not None:
        turn = turn - (of_factor.tril() @ z if is_full(factor) else of_factor * z)
    if not is_full(factor):
        return turn / factor
    return torch.linalg.solve_triangular(factor, turn, upper=False)
