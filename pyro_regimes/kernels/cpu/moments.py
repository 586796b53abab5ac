r"""Weighted moments of observations about the mean of each state, compiled for the CPU.

They are of the deviations :math:`v_{tk} = x_t - \mu_k`, or of
:math:`v_{tk} = L_k^{-1} (x_t - \mu_k)` as in :mod:`.densities`:

.. math::
    n_k = \sum_t w_{tk}, \qquad s_k = \sum_t w_{tk} v_{tk}, \qquad
    S_k = \sum_t w_{tk} v_{tk} v_{tk}^\top.

Steps are processed in blocks as there. All sums are float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.densities import WIDTH, grain_of, pivots, to_array
from pyro_regimes.kernels.cpu.jit import compiled, spread

_BLOCK = 128  # steps whose moments are summed before they join the total


class Moments(NamedTuple):
    """Weighted sums over time, float64."""

    weight: Tensor  #: n, ``(N, K)``
    first: Tensor  #: s, ``(N, K, D)``
    second: Tensor  #: S, ``(N, K, D, D)``; of independent series its diagonal, ``(N, K, D)``


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
        stop = (count + WIDTH - 1) // WIDTH * WIDTH
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
        zero = simd.splat(0.0, WIDTH)
        for i in range(size):
            for t in range(0, stop, WIDTH):
                zero = simd.multiply(zero, simd.load(x, i * _BLOCK + t, WIDTH))
        finite = simd.total(zero) == 0.0
        for k in range(num_states):
            mean = loc[min(n, loc.shape[0] - 1), min(k, loc.shape[1] - 1)]
            for i in range(size):
                shift = simd.splat(float(mean[i]), WIDTH)
                for t in range(0, stop, WIDTH):
                    left = simd.subtract(simd.load(x, i * _BLOCK + t, WIDTH), shift)
                    simd.store(v, i * _BLOCK + t, left)
            if whiten:
                own = factor[min(n, factor.shape[0] - 1), min(k, factor.shape[1] - 1)]
                for i in range(size):
                    pivot = simd.splat(1.0 / own[i, i if left_of_pivot else 0], WIDTH)
                    for t in range(0, stop, WIDTH):
                        left = simd.load(v, i * _BLOCK + t, WIDTH)
                        for j in range(i if left_of_pivot else 0):
                            left = simd.multiply_add(
                                simd.splat(-float(own[i, j]), WIDTH),
                                simd.load(v, j * _BLOCK + t, WIDTH),
                                left,
                            )
                        simd.store(v, i * _BLOCK + t, simd.multiply(left, pivot))
            if not finite:
                # Padding may hold anything: where there is no weight, nothing counts.
                for t in range(count):
                    if share[k * _BLOCK + t] == 0.0:
                        for i in range(size):
                            v[i * _BLOCK + t] = 0.0
            some = simd.splat(0.0, WIDTH)
            for t in range(0, stop, WIDTH):
                some = simd.add(some, simd.load(share, k * _BLOCK + t, WIDTH))
            weight[n - base, k] += simd.total(some)
            for i in range(size):
                some = simd.splat(0.0, WIDTH)
                for t in range(0, stop, WIDTH):
                    each = simd.multiply(
                        simd.load(share, k * _BLOCK + t, WIDTH),
                        simd.load(v, i * _BLOCK + t, WIDTH),
                    )
                    simd.store(shared, t, each)
                    some = simd.add(some, each)
                total[n - base, k, i] += simd.total(some)
                for j in range(0 if square else i, i + 1 if wanted else 0):
                    some = simd.splat(0.0, WIDTH)
                    for t in range(0, stop, WIDTH):
                        some = simd.multiply_add(
                            simd.load(shared, t, WIDTH),
                            simd.load(v, j * _BLOCK + t, WIDTH),
                            some,
                        )
                    second[n - base, k, i, j if square else 0] += simd.total(some)
    if square:
        for n in range(len(second)):
            for k in range(num_states):
                for i in range(size):
                    for j in range(i):
                        second[n, k, j, i] = second[n, k, i, j]


def _moments(
    value: Tensor,
    weights: Tensor,
    loc: Tensor,
    factor: Tensor | None,
    second_shape: tuple[int, int],
) -> Moments:
    found = sum_moments(
        to_array(value, weights.dtype),
        to_array(weights, weights.dtype),
        to_array(loc, torch.float64)[:, 0],
        None if factor is None else to_array(factor, torch.float64)[:, 0],
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
        spread(work, blocks, grain_of(_BLOCK, num_states, size, second_shape[1] > 1))
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
        scale = pivots(scale, size)
    weight, first, second = _moments(value, weights, loc, scale, (size, 1))
    return Moments(weight, first, second.squeeze(-1))


def first_moments(value: Tensor, weights: Tensor, loc: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\sum_t w_{tk}` and :math:`\sum_t w_{tk} (x_t - \mu_k)`; see :func:`moments_full`."""
    weight, first, _ = _moments(value, weights, loc, None, (0, 0))
    return weight, first
