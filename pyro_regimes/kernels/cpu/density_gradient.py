r"""Derivatives of Gaussian log densities in their parameters, from weighted moments, on the CPU.

With n, s and S the moments of :math:`z = L^{-1}(x - \mu)` under the cotangents,

.. math::
    \partial \mu_k = L_k^{-\top} s_k, \qquad
    \partial L_k = \mathrm{tril}(L_k^{-\top} S_k) - n_k \,\mathrm{diag}(1 / L_{k,ii}),

by substitution backwards. The matrices are small: a dozen tensor operations on them would take as
long as the sums over time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.moments import sum_moments


@compiled
def _pull_back(
    weight: Any,  # (N, K)
    first: Any,  # (N, K, D)
    second: Any,  # (N, K, D, D), or the diagonals (N, K, D, 1)
    factor: Any,  # (N or 1, K or 1, D, D or 1)
    to_loc: Any,  # (N, K, D)
    to_factor: Any,  # (N, K, D, D or 1)
) -> None:
    count, num_states, size = first.shape
    full = factor.shape[3] == size
    for n in range(count):
        for k in range(num_states):
            own = factor[min(n, factor.shape[0] - 1), min(k, factor.shape[1] - 1)]
            for i in range(size - 1, -1, -1):
                pivot = own[i, i if full else 0]
                step = first[n, k, i]
                if full:
                    for below in range(i + 1, size):
                        step -= own[below, i] * to_loc[n, k, below]
                to_loc[n, k, i] = step / pivot
                for j in range(size if full else 1):
                    step = second[n, k, i, j]
                    if full:
                        for below in range(i + 1, size):
                            step -= own[below, i] * to_factor[n, k, below, j]
                    to_factor[n, k, i, j] = step / pivot
            for i in range(size):
                to_factor[n, k, i, i if full else 0] -= weight[n, k] / own[i, i if full else 0]
                if full:
                    to_factor[n, k, i, i + 1 :] = 0.0


def gradients(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the sum of the log densities times ``weights``.

    :param value: ``(N or 1, T, D)``.
    :param weights: ``(N, T, K)``, the cotangents.
    :param loc: ``(N or 1, K or 1, D)``.
    :param factor: ``(N or 1, K or 1, D, D)``, or the diagonals ``(N or 1, K or 1, D, 1)``.
    :return: ``(N, K, D)`` and ``(N, K, D, D or 1)``, in the dtype of the weights.
    """
    x, share, mean, own = (
        each.detach().to(dtype).contiguous().numpy()
        for each, dtype in (
            (value, weights.dtype),
            (weights, weights.dtype),
            (loc, torch.float64),
            (factor, torch.float64),
        )
    )
    shape = (factor.shape[-2], factor.shape[-1])
    moments = sum_moments(x, share, mean, own, second_shape=shape)
    to_loc, to_factor = np.empty_like(moments[1]), np.empty_like(moments[2])
    _pull_back(*moments, own, to_loc, to_factor)
    dtype = weights.dtype
    return torch.from_numpy(to_loc).to(dtype), torch.from_numpy(to_factor).to(dtype)
