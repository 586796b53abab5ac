r"""Positive definite parameters, as the parameter store holds them.

The store's unconstrained tensor is the lower Cholesky factor with the logarithm of its diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import LowerCholeskyTransform
from torch.nn.functional import pad

_FACTOR = LowerCholeskyTransform()


def from_leaf(leaf: Tensor) -> Tensor:
    r"""The matrix :math:`L L^\top`, rounded in the same way wherever it is in a batch.

    Matrix products on the CPU round by where in memory a matrix begins. In a batch of matrices with
    an odd number of entries that depends on the place in the batch. Pyro's own value of the
    parameter may therefore differ in the last digit.
    """
    factor = _FACTOR(leaf)
    size = factor.shape[-1]
    if size % 2 == 0 or size == 1:
        product: Tensor = factor @ factor.mT
        return product
    even = pad(factor, (0, 1, 0, 1))
    return (even @ even.mT)[..., :size, :size].contiguous()


def to_leaf(matrix: Tensor) -> Tensor:
    """The inverse; NaN where a matrix has no Cholesky factor."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    leaf: Tensor = _FACTOR._inverse(factor.masked_fill((info != 0)[..., None, None], torch.nan))
    return leaf
