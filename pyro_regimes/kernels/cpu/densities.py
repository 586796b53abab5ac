r"""Gaussian log densities of all states at once, compiled for the CPU.

With :math:`\Sigma_k = L_k L_k^\top`, :math:`L_k` lower triangular, :math:`z_{tk}` solves
:math:`L_k z_{tk} = x_t - \mu_k` by forward substitution, and

.. math::
    \log N(x_t; \mu_k, \Sigma_k) =
        -\tfrac12 |z_{tk}|^2 - \sum_i \log L_{k,ii} - \tfrac D2 \log 2\pi.

The mean is subtracted first, which loses no digits far from zero, unlike expanding the square. The
same loops are used for independent series, whose :math:`L_k` is diagonal.

Steps are processed in small blocks with time along the lanes of the SIMD vectors, so that no array
of size (T, K, D) is written to memory. Inputs and results may be float32; all arithmetic is
float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.jit import compiled, spread

WIDTH = 32  # steps that are processed together, in several registers

#: The fewest multiplications that are worth waking another thread for.
_GRAIN = 1_000_000

_LOG_2_PI = math.log(2 * math.pi)


@compiled
def _log_density_sweep(
    value: Any,  # (V, T, D), of which each sequence has row n mod V
    loc: Any,  # (N or 1, K or 1, D)
    factor: Any,  # (N or 1, K or 1, D, D), or the diagonals (N or 1, K or 1, D, 1)
    first: int,
    last: int,
    out: Any,  # (N, T, K)
) -> None:
    """The log densities of blocks ``first`` to ``last``, each of ``WIDTH`` steps of a sequence."""
    num_steps, num_states, size = out.shape[1], out.shape[2], value.shape[2]
    full = size if factor.shape[3] == size else 0  # of a diagonal nothing is left of the pivot
    stride = factor.shape[2] * factor.shape[3]
    flat_value, flat_loc, flat_out = value.reshape(-1), loc.reshape(-1), out.reshape(-1)
    factors = factor.shape[1]
    # -L left of the diagonal, 1 / L on it.
    matrix, constant = np.empty(factors * stride), np.empty(factors)
    x, z = np.zeros(size * WIDTH), np.empty(size * WIDTH)
    density = np.empty(num_states * WIDTH)
    blocks = (num_steps + WIDTH - 1) // WIDTH
    half = simd.splat(-0.5, WIDTH)
    filled = -1
    for unit in range(first, last):
        n = unit // blocks
        start = (unit - n * blocks) * WIDTH
        count = min(WIDTH, num_steps - start)
        own = min(n, factor.shape[0] - 1)
        if own != filled:
            filled = own
            for k in range(factors):
                log_det = 0.0
                for i in range(size):
                    for j in range(min(i, full)):
                        matrix[k * stride + i * full + j] = -factor[own, k, i, j]
                    pivot = factor[own, k, i, i if full else 0]
                    matrix[k * stride + (i * full + i if full else i)] = 1.0 / pivot
                    log_det += math.log(pivot)
                constant[k] = -log_det - 0.5 * size * _LOG_2_PI
        at = (n % value.shape[0] * num_steps + start) * size
        for i in range(size):
            for t in range(count):
                x[np.uintp(i * WIDTH + t)] = flat_value[np.uintp(at + t * size + i)]
        for k in range(num_states):
            mean = (min(n, loc.shape[0] - 1) * loc.shape[1] + min(k, loc.shape[1] - 1)) * size
            row = min(k, factors - 1) * stride
            squares = simd.splat(0.0, WIDTH)
            for i in range(size):
                left = simd.subtract(
                    simd.load(x, i * WIDTH, WIDTH), simd.splat(flat_loc[mean + i], WIDTH)
                )
                for j in range(min(i, full)):
                    left = simd.multiply_add(
                        simd.splat(matrix[row + j], WIDTH),
                        simd.load(z, j * WIDTH, WIDTH),
                        left,
                    )
                pivot = matrix[row + (i if full else 0)]
                row += full if full else 1
                left = simd.multiply(left, simd.splat(pivot, WIDTH))
                simd.store(z, i * WIDTH, left)
                squares = simd.multiply_add(left, left, squares)
            shift = simd.splat(constant[min(k, factors - 1)], WIDTH)
            simd.store(density, k * WIDTH, simd.multiply_add(half, squares, shift))
        at = (n * num_steps + start) * num_states
        for k in range(num_states):
            for t in range(count):
                flat_out[np.uintp(at + t * num_states + k)] = density[np.uintp(k * WIDTH + t)]


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate densities; tests fill them with NaN to detect unwritten elements."""
    return torch.empty(shape, dtype=dtype, device="cpu")  # whatever the default device


def to_array(tensor: Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """The numbers of a tensor, contiguous."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.to(dtype).contiguous().numpy()


def grain_of(block: int, num_states: int, size: int, full: bool) -> int:
    """The fewest blocks that are worth a thread."""
    each = num_states * size * (4 + (size if full else 0))
    return 1 + _GRAIN // max(1, block * each)


def pivots(scale: Tensor, size: int) -> Tensor:
    """``(..., D, 1)``, the diagonal of L."""
    if scale.shape[-1] != size:
        scale = scale.expand(scale.shape[:-1] + (size,))
    return scale.unsqueeze(-1)


def _log_density(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    num_steps, size = value.shape[1:]
    slices, num_states = max(loc.shape[1], factor.shape[1]), max(loc.shape[2], factor.shape[2])
    count = max(len(value), len(loc), len(factor))
    out = _empty((count, num_steps, num_states), value.dtype)
    if out.numel() == 0:
        return out
    x, rows = to_array(value, value.dtype), out.numpy()
    mean, scale = to_array(loc, torch.float64), to_array(factor, torch.float64)
    if slices > 1:  # every step is a sequence of its own
        x = _flat(x, (count, num_steps))[:, np.newaxis]
        mean, scale = _flat(mean, (count, num_steps)), _flat(scale, (count, num_steps))
        rows = rows.reshape(-1, 1, num_states)
    else:
        mean, scale = mean[:, 0], scale[:, 0]
        if len(mean) == len(scale) == 1:  # all steps of all sequences are alike
            x, rows = x.reshape(1, -1, size), rows.reshape(1, -1, num_states)
    fill_log_density(x, mean, scale, rows)
    return out


def fill_log_density(
    value: npt.NDArray[Any],  # (V, T, D), of which each sequence has row n mod V
    loc: npt.NDArray[np.float64],  # (N or 1, K or 1, D)
    factor: npt.NDArray[np.float64],  # (N or 1, K or 1, D, D), or the diagonals (..., D, 1)
    out: npt.NDArray[Any],  # (N, T, K)
) -> None:
    """The log densities, on arrays."""

    def work(first: int, last: int) -> None:
        _log_density_sweep(value, loc, factor, first, last, out)

    num_steps, num_states = out.shape[1:]
    blocks = len(out) * ((num_steps + WIDTH - 1) // WIDTH)
    size = value.shape[-1]
    spread(work, blocks, grain_of(WIDTH, num_states, size, factor.shape[-1] > 1))


def _flat(array: npt.NDArray[Any], sizes: tuple[int, int]) -> npt.NDArray[Any]:
    """Sequences and steps as one dim; those of size 1 repeated, unless both are."""
    event = array.shape[2:]
    if array.shape[:2] != (1, 1):
        array = np.broadcast_to(array, sizes + event)
    return np.ascontiguousarray(array).reshape((-1,) + event)


def log_density_full(value: Tensor, loc: Tensor, scale_tril: Tensor) -> Tensor:
    r""":math:`\log N(x_t; \mu_k, L_k L_k^\top)` for all states.

    :param value: ``(N or 1, T, D)``, float32 or float64.
    :param loc: ``(N or 1, 1 or T, K or 1, D)``.
    :param scale_tril: ``(N or 1, 1 or T, K or 1, D, D)``; what is above the diagonal is not read.
    :return: ``(N, T, K)``, in the value's dtype.
    """
    return _log_density(value, loc, scale_tril)


def log_density_diagonal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r""":math:`\sum_d \log N(x_{td}; \mu_{kd}, \sigma_{kd}^2)` for all states.

    :param value: ``(N or 1, T, D)``, float32 or float64.
    :param loc: ``(N or 1, 1 or T, K or 1, D)``.
    :param scale: ``(N or 1, 1 or T, K or 1, D or 1)``.
    :return: ``(N, T, K)``, in the value's dtype.
    """
    return _log_density(value, loc, pivots(scale, value.shape[-1]))
