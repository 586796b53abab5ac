"""Orthonormal columns of covariates, so that neither their units nor their levels matter."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.estimator.parameters import Array


def triangle(matrix: Array) -> Array:
    """R of the columns, scaled such that ``matrix / R`` has columns of mean square 1."""
    lengths = np.linalg.norm(matrix, axis=0)
    factor = np.linalg.qr(matrix / lengths, mode="r") * lengths
    return factor / np.sqrt(len(matrix))


def rotated(matrix: Array, factor: Array) -> Tensor:
    """The orthonormal columns of a matrix."""
    if not matrix.shape[1]:
        return torch.from_numpy(matrix)
    return torch.from_numpy(np.ascontiguousarray(np.linalg.solve(factor.T, matrix.T).T))


def solved(factor: Array, coefficients: Tensor) -> Tensor:
    """Coefficients ``(..., P)`` of the columns themselves."""
    triangle = torch.from_numpy(factor).to(coefficients)
    return torch.linalg.solve_triangular(triangle, coefficients.mT, upper=True).mT
