r"""Gaussian log densities of all states at once, and their weighted moments, on the CPU.

With :math:`\Sigma_k = L_k L_k^\top`, :math:`L_k` lower triangular, :math:`z_{tk}` solves
:math:`L_k z_{tk} = x_t - \mu_k` by forward substitution, and

.. math::
    \log N(x_t; \mu_k, \Sigma_k) =
        -\tfrac12 |z_{tk}|^2 - \sum_i \log L_{k,ii} - \tfrac D2 \log 2\pi.

The mean is subtracted first: what is far from zero loses nothing to expanding the square. The same
loops serve independent series, whose :math:`L_k` is diagonal.

Weighted moments, of the deviations :math:`v_{tk} = x_t - \mu_k` themselves or of :math:`z_{tk}`,
are

.. math::
    n_k = \sum_t w_{tk}, \qquad s_k = \sum_t w_{tk} v_{tk}, \qquad
    S_k = \sum_t w_{tk} v_{tk} v_{tk}^\top.

Steps go through in small blocks with time along the lanes of the processor's vectors, so that
nothing of size (T, K, D) is written to memory. float32 is read and written as it is; all
arithmetic in between is float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.kernels import simd
from pyro_regimes.kernels.jit import compiled, spread

_WIDTH = 32  # steps that go through the arithmetic together, in several registers
_BLOCK = 128  # steps whose moments are summed before they join the total

#: The fewest multiplications that are worth waking another thread for.
_GRAIN = 1_000_000

_LOG_2_PI = math.log(2 * math.pi)


class Moments(NamedTuple):
    """Weighted sums over time, float64."""

    weight: Tensor  #: n, ``(N, K)``
    first: Tensor  #: s, ``(N, K, D)``
    second: Tensor  #: S, ``(N, K, D, D)``; of independent series its diagonal, ``(N, K, D)``


@compiled
def _log_density_sweep(
    value: Any,  # (N or 1, T, D)
    loc: Any,  # (N or 1, K or 1, D)
    factor: Any,  # (N or 1, K or 1, D, D), or the diagonals (N or 1, K or 1, D, 1)
    first: int,
    last: int,
    out: Any,  # (N, T, K)
) -> None:
    """The log densities of blocks ``first`` to ``last``, each of ``_WIDTH`` steps of a sequence."""
    num_steps, num_states, size = out.shape[1], out.shape[2], value.shape[2]
    full = size if factor.shape[3] == size else 0  # of a diagonal nothing is left of the pivot
    stride = factor.shape[2] * factor.shape[3]
    flat_value, flat_loc, flat_out = value.reshape(-1), loc.reshape(-1), out.reshape(-1)
    factors = factor.shape[1]
    # -L left of the diagonal, 1 / L on it.
    matrix, constant = np.empty(factors * stride), np.empty(factors)
    x, z = np.zeros(size * _WIDTH), np.empty(size * _WIDTH)
    density = np.empty(num_states * _WIDTH)
    blocks = (num_steps + _WIDTH - 1) // _WIDTH
    half = simd.splat(-0.5, _WIDTH)
    filled = -1
    for unit in range(first, last):
        n = unit // blocks
        start = (unit - n * blocks) * _WIDTH
        count = min(_WIDTH, num_steps - start)
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
        at = (min(n, value.shape[0] - 1) * num_steps + start) * size
        for i in range(size):
            for t in range(count):
                x[np.uintp(i * _WIDTH + t)] = flat_value[np.uintp(at + t * size + i)]
        for k in range(num_states):
            mean = (min(n, loc.shape[0] - 1) * loc.shape[1] + min(k, loc.shape[1] - 1)) * size
            row = min(k, factors - 1) * stride
            squares = simd.splat(0.0, _WIDTH)
            for i in range(size):
                left = simd.subtract(
                    simd.load(x, i * _WIDTH, _WIDTH), simd.splat(flat_loc[mean + i], _WIDTH)
                )
                for j in range(min(i, full)):
                    left = simd.multiply_add(
                        simd.splat(matrix[row + j], _WIDTH),
                        simd.load(z, j * _WIDTH, _WIDTH),
                        left,
                    )
                pivot = matrix[row + (i if full else 0)]
                row += full if full else 1
                left = simd.multiply(left, simd.splat(pivot, _WIDTH))
                simd.store(z, i * _WIDTH, left)
                squares = simd.multiply_add(left, left, squares)
            shift = simd.splat(constant[min(k, factors - 1)], _WIDTH)
            simd.store(density, k * _WIDTH, simd.multiply_add(half, squares, shift))
        at = (n * num_steps + start) * num_states
        for k in range(num_states):
            for t in range(count):
                flat_out[np.uintp(at + t * num_states + k)] = density[np.uintp(k * _WIDTH + t)]


@compiled
def _moment_sweep(
    value: Any,  # (N or 1, T, D)
    weights: Any,  # (N, T, K)
    loc: Any,  # (N or 1, K or 1, D)
    factor: Any,  # (N or 1, K or 1, D, D or 1), or empty: deviations are not divided by it
    first: int,
    last: int,
    base: int,
    weight: Any,  # (n, K), zero; sequence ``base`` comes first
    total: Any,  # (n, K, D), zero
    second: Any,  # (n, K, D, D), or the diagonals (n, K, D, 1), zero; or (n, K, 0, 0): not wanted
) -> None:
    """Add up the moments of blocks ``first`` to ``last``, each of ``_BLOCK`` steps."""
    num_steps, num_states, size = weights.shape[1], weights.shape[2], value.shape[2]
    whiten = factor.shape[0] > 0
    left_of_pivot = whiten and factor.shape[3] == size
    square, wanted = second.shape[3] == size, second.shape[3] > 0
    flat_value, flat_weights = value.reshape(-1), weights.reshape(-1)
    x, v = np.empty(size * _BLOCK), np.empty(size * _BLOCK)
    share, shared = np.empty(num_states * _BLOCK), np.empty(_BLOCK)
    blocks = (num_steps + _BLOCK - 1) // _BLOCK
    for unit in range(first, last):
        n = unit // blocks
        start = (unit - n * blocks) * _BLOCK
        count = min(_BLOCK, num_steps - start)
        stop = (count + _WIDTH - 1) // _WIDTH * _WIDTH
        if count < stop:
            x[:], share[:] = 0.0, 0.0
        at = (min(n, value.shape[0] - 1) * num_steps + start) * size
        for i in range(size):
            for t in range(count):
                x[np.uintp(i * _BLOCK + t)] = flat_value[np.uintp(at + t * size + i)]
        at = (n * num_steps + start) * num_states
        for k in range(num_states):
            for t in range(count):
                share[np.uintp(k * _BLOCK + t)] = flat_weights[np.uintp(at + t * num_states + k)]
        # 0 times a number that is not finite is NaN.
        zero = simd.splat(0.0, _WIDTH)
        for i in range(size):
            for t in range(0, stop, _WIDTH):
                zero = simd.multiply(zero, simd.load(x, i * _BLOCK + t, _WIDTH))
        finite = simd.total(zero) == 0.0
        for k in range(num_states):
            mean = loc[min(n, loc.shape[0] - 1), min(k, loc.shape[1] - 1)]
            for i in range(size):
                shift = simd.splat(float(mean[i]), _WIDTH)
                for t in range(0, stop, _WIDTH):
                    left = simd.subtract(simd.load(x, i * _BLOCK + t, _WIDTH), shift)
                    simd.store(v, i * _BLOCK + t, left)
            if whiten:
                own = factor[min(n, factor.shape[0] - 1), min(k, factor.shape[1] - 1)]
                for i in range(size):
                    pivot = simd.splat(1.0 / own[i, i if left_of_pivot else 0], _WIDTH)
                    for t in range(0, stop, _WIDTH):
                        left = simd.load(v, i * _BLOCK + t, _WIDTH)
                        for j in range(i if left_of_pivot else 0):
                            left = simd.multiply_add(
                                simd.splat(-float(own[i, j]), _WIDTH),
                                simd.load(v, j * _BLOCK + t, _WIDTH),
                                left,
                            )
                        simd.store(v, i * _BLOCK + t, simd.multiply(left, pivot))
            if not finite:
                # Padding may hold anything: where there is no weight, nothing counts.
                for t in range(count):
                    if share[k * _BLOCK + t] == 0.0:
                        for i in range(size):
                            v[i * _BLOCK + t] = 0.0
            some = simd.splat(0.0, _WIDTH)
            for t in range(0, stop, _WIDTH):
                some = simd.add(some, simd.load(share, k * _BLOCK + t, _WIDTH))
            weight[n - base, k] += simd.total(some)
            for i in range(size):
                some = simd.splat(0.0, _WIDTH)
                for t in range(0, stop, _WIDTH):
                    each = simd.multiply(
                        simd.load(share, k * _BLOCK + t, _WIDTH),
                        simd.load(v, i * _BLOCK + t, _WIDTH),
                    )
                    simd.store(shared, t, each)
                    some = simd.add(some, each)
                total[n - base, k, i] += simd.total(some)
                for j in range(0 if square else i, i + 1 if wanted else 0):
                    some = simd.splat(0.0, _WIDTH)
                    for t in range(0, stop, _WIDTH):
                        some = simd.multiply_add(
                            simd.load(shared, t, _WIDTH),
                            simd.load(v, j * _BLOCK + t, _WIDTH),
                            some,
                        )
                    second[n - base, k, i, j if square else 0] += simd.total(some)
    if square:
        for n in range(len(second)):
            for k in range(num_states):
                for i in range(size):
                    for j in range(i):
                        second[n, k, j, i] = second[n, k, i, j]


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Densities begin here: tests fill it with NaN, and see what nobody writes."""
    return torch.empty(shape, dtype=dtype, device="cpu")  # whatever the default device


def _array(tensor: Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.to(dtype).contiguous().numpy()


def _grain(block: int, num_states: int, size: int, full: bool) -> int:
    """The fewest blocks that are worth a thread."""
    each = num_states * size * (4 + (size if full else 0))
    return 1 + _GRAIN // max(1, block * each)


def _log_density(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    num_steps, size = value.shape[1:]
    slices, num_states = max(loc.shape[1], factor.shape[1]), max(loc.shape[2], factor.shape[2])
    count = max(len(value), len(loc), len(factor))
    out = _empty((count, num_steps, num_states), value.dtype)
    if out.numel() == 0:
        return out
    x, rows = _array(value, value.dtype), out.numpy()
    mean, scale = _array(loc, torch.float64), _array(factor, torch.float64)
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
    value: npt.NDArray[Any],  # (N or 1, T, D)
    loc: npt.NDArray[np.float64],  # (N or 1, K or 1, D)
    factor: npt.NDArray[np.float64],  # (N or 1, K or 1, D, D), or the diagonals (..., D, 1)
    out: npt.NDArray[Any],  # (N, T, K)
) -> None:
    """The log densities, on arrays."""

    def work(first: int, last: int) -> None:
        _log_density_sweep(value, loc, factor, first, last, out)

    num_steps, num_states = out.shape[1:]
    blocks = len(out) * ((num_steps + _WIDTH - 1) // _WIDTH)
    size = value.shape[-1]
    spread(work, blocks, _grain(_WIDTH, num_states, size, factor.shape[-1] > 1))


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
    return _log_density(value, loc, _pivots(scale, value.shape[-1]))


def _pivots(scale: Tensor, size: int) -> Tensor:
    """``(..., D, 1)``, the diagonal of L."""
    if scale.shape[-1] != size:
        scale = scale.expand(scale.shape[:-1] + (size,))
    return scale.unsqueeze(-1)


def _moments(
    value: Tensor,
    weights: Tensor,
    loc: Tensor,
    factor: Tensor | None,
    second_shape: tuple[int, int],
) -> Moments:
    found = sum_moments(
        _array(value, weights.dtype),
        _array(weights, weights.dtype),
        _array(loc, torch.float64)[:, 0],
        None if factor is None else _array(factor, torch.float64)[:, 0],
        second_shape,
    )
    return Moments(*map(torch.from_numpy, found))


def sum_moments(
    value: npt.NDArray[Any],  # (N or 1, T, D)
    weights: npt.NDArray[Any],  # (N, T, K)
    loc: npt.NDArray[np.float64],  # (N or 1, K or 1, D)
    factor: npt.NDArray[np.float64] | None = None,  # (N or 1, K or 1, D, D or 1)
    second_shape: tuple[int, int] | None = None,  # (D, D) by default, or (D, 1) or (0, 0)
) -> tuple[npt.NDArray[np.float64], ...]:
    """The arrays of :class:`Moments`."""
    count, num_steps, num_states = weights.shape
    size = value.shape[-1]
    second_shape = (size, size) if second_shape is None else second_shape
    factor = np.empty((0, 0, 0, 0)) if factor is None else factor
    per_sequence = (num_steps + _BLOCK - 1) // _BLOCK
    parts: list[tuple[int, int, tuple[npt.NDArray[np.float64], ...]]] = []

    def zeros(sequences: int) -> tuple[npt.NDArray[np.float64], ...]:
        sizes = (sequences, num_states)
        return np.zeros(sizes), np.zeros(sizes + (size,)), np.zeros(sizes + second_shape)

    def work(first: int, last: int) -> None:
        base, end = first // per_sequence, (last - 1) // per_sequence + 1
        sums = zeros(end - base)
        _moment_sweep(value, weights, loc, factor, first, last, base, *sums)
        parts.append((base, end, sums))

    blocks = count * per_sequence
    if blocks:
        spread(work, blocks, _grain(_BLOCK, num_states, size, second_shape[1] > 1))
    if len(parts) == 1 and parts[0][:2] == (0, count):
        return parts[0][2]
    found = zeros(count)
    # In the order of time, whichever thread was done first: the same sums on every run.
    for base, end, sums in sorted(parts, key=lambda part: part[:2]):
        for whole, part in zip(found, sums, strict=True):
            whole[base:end] += part
    return found


def moments_full(
    value: Tensor, weights: Tensor, loc: Tensor, scale_tril: Tensor | None = None
) -> Moments:
    r"""The weighted moments of :math:`x_t - \mu_k`, or of :math:`L_k^{-1} (x_t - \mu_k)`.

    A value that is not finite adds nothing where its weight is 0.

    :param value: ``(N or 1, T, D)``.
    :param weights: ``(N, T, K)``, float32 or float64; they may be negative.
    :param loc: ``(N or 1, 1, K or 1, D)``.
    :param scale_tril: ``(N or 1, 1, K or 1, D, D)``.
    """
    size = value.shape[-1]
    return _moments(value, weights, loc, scale_tril, (size, size))


def moments_diagonal(
    value: Tensor, weights: Tensor, loc: Tensor, scale: Tensor | None = None
) -> Moments:
    r"""The same of independent series: moments of :math:`x_{td} - \mu_{kd}`, or of that over the
    scale.

    :param scale: ``(N or 1, 1, K or 1, D or 1)``.
    """
    size = value.shape[-1]
    if scale is not None:
        scale = _pivots(scale, size)
    weight, first, second = _moments(value, weights, loc, scale, (size, 1))
    return Moments(weight, first, second.squeeze(-1))


def first_moments(value: Tensor, weights: Tensor, loc: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\sum_t w_{tk}` and :math:`\sum_t w_{tk} (x_t - \mu_k)`; see :func:`moments_full`."""
    weight, first, _ = _moments(value, weights, loc, None, (0, 0))
    return weight, first
