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
_TILE = 16  # steps of which four products are summed at once, in registers


class Moments(NamedTuple):
    """Weighted sums over time, float64."""

    weight: Tensor  #: n, ``(N, K)``
    first: Tensor  #: s, ``(N, K, D)``
    second: Tensor  #: S, ``(N, K, D, D)``; of independent series its diagonal, ``(N, K, D)``


@compiled
def _add_products(shared: Any, v: Any, stop: int, i: int, second: Any) -> None:
    """Add the sums of two weighted rows, i and i + 1, times the rows before them.

    Two rows times two share the loads.

    :param shared: the weighted rows, of which the second is not used where i is the last one.
    :param second: ``(D, D)``, filled below the diagonal.
    """
    both = i + 1 < len(second)
    for j in range(0, i, 2):
        a = b = c = d = simd.splat(0.0, _TILE)
        for t in range(0, stop, _TILE):
            one, two = simd.load(shared, t, _TILE), simd.load(shared, _BLOCK + t, _TILE)
            left = simd.load(v, j * _BLOCK + t, _TILE)
            right = simd.load(v, (j + 1) * _BLOCK + t, _TILE)
            a, b = simd.multiply_add(one, left, a), simd.multiply_add(one, right, b)
            c, d = simd.multiply_add(two, left, c), simd.multiply_add(two, right, d)
        second[i, j] += simd.total(a)
        second[i, j + 1] += simd.total(b)
        if both:
            second[i + 1, j] += simd.total(c)
            second[i + 1, j + 1] += simd.total(d)
    if both:
        a = simd.splat(0.0, _TILE)
        for t in range(0, stop, _TILE):
            two = simd.load(shared, _BLOCK + t, _TILE)
            a = simd.multiply_add(two, simd.load(v, i * _BLOCK + t, _TILE), a)
        second[i + 1, i] += simd.total(a)


@compiled
def _moment_sweep(
    value: Any,  # (V, T, D), of which each sequence has row n mod V
    weights: Any,  # (N, T, K)
    loc: Any,  # (N or 1, K or 1, D)
    factor: Any,  # (N or 1, K or 1, D, D or 1), or empty: deviations are not divided by it
    first: int,
    last: int,
    chunk: int,
    weight: Any,  # (N * chunks, K), zero
    total: Any,  # (N * chunks, K, D), zero
    second: Any,  # (N * chunks, K, D, D), or the diagonals (..., D, 1), zero; or (..., 0, 0)
) -> None:
    """Add up the moments of chunks ``first`` to ``last``, each of ``chunk`` blocks of a sequence.

    ``second`` is not wanted where it has no entries.
    """
    num_steps, num_states, size = weights.shape[1], weights.shape[2], value.shape[2]
    whiten = factor.shape[0] > 0
    left_of_pivot = whiten and factor.shape[3] == size
    square, wanted = second.shape[3] == size, second.shape[3] > 0
    flat_value, flat_weights = value.reshape(-1), weights.reshape(-1)
    x, v = np.empty(size * _BLOCK), np.empty(size * _BLOCK)
    share, shared = np.empty(num_states * _BLOCK), np.zeros(2 * _BLOCK)
    blocks = (num_steps + _BLOCK - 1) // _BLOCK
    chunks = (blocks + chunk - 1) // chunk
    for unit in range(first * chunk, last * chunk):
        row = unit // chunk
        n = row // chunks
        start = (unit - n * chunks * chunk) * _BLOCK
        if start >= num_steps:
            continue
        count = min(_BLOCK, num_steps - start)
        stop = (count + WIDTH - 1) // WIDTH * WIDTH
        if count < stop:
            x[:], share[:] = 0.0, 0.0
        at = (n % value.shape[0] * num_steps + start) * size
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
            some = simd.splat(0.0, WIDTH)
            for t in range(0, stop, WIDTH):
                some = simd.add(some, simd.load(share, k * _BLOCK + t, WIDTH))
            weight[row, k] += simd.total(some)
            mean = loc[min(n, loc.shape[0] - 1), min(k, loc.shape[1] - 1)]
            if finite and not (whiten or square):  # nothing need be kept between the loops
                for i in range(size):
                    shift = simd.splat(float(mean[i]), WIDTH)
                    some, more = simd.splat(0.0, WIDTH), simd.splat(0.0, WIDTH)
                    for t in range(0, stop, WIDTH):
                        left = simd.subtract(simd.load(x, i * _BLOCK + t, WIDTH), shift)
                        each = simd.multiply(simd.load(share, k * _BLOCK + t, WIDTH), left)
                        some = simd.add(some, each)
                        more = simd.multiply_add(each, left, more)
                    total[row, k, i] += simd.total(some)
                    if wanted:
                        second[row, k, i, 0] += simd.total(more)
                continue
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
            for i in range(0, size, 2):
                for d in range(min(2, size - i)):
                    some, more = simd.splat(0.0, WIDTH), simd.splat(0.0, WIDTH)
                    for t in range(0, stop, WIDTH):
                        left = simd.load(v, (i + d) * _BLOCK + t, WIDTH)
                        each = simd.multiply(simd.load(share, k * _BLOCK + t, WIDTH), left)
                        simd.store(shared, d * _BLOCK + t, each)
                        some = simd.add(some, each)
                        more = simd.multiply_add(each, left, more)
                    total[row, k, i + d] += simd.total(some)
                    if wanted:
                        second[row, k, i + d, i + d if square else 0] += simd.total(more)
                if square:
                    _add_products(shared, v, stop, i, second[row, k])
    if square:
        for row in range(first, last):
            for k in range(num_states):
                for i in range(size):
                    for j in range(i):
                        second[row, k, j, i] = second[row, k, i, j]


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
    value: npt.NDArray[Any],  # (V, T, D), of which each sequence has row n mod V
    weights: npt.NDArray[Any],  # (N, T, K)
    loc: npt.NDArray[np.float64],  # (N or 1, K or 1, D)
    factor: npt.NDArray[np.float64] | None = None,  # (N or 1, K or 1, D, D or 1)
    second_shape: tuple[int, int] | None = None,  # (D, D) by default, or (D, 1) or (0, 0)
) -> tuple[npt.NDArray[np.float64], ...]:
    """The arrays of :class:`Moments`.

    Blocks are added up in chunks, and chunks in the order of time. The size of a chunk depends only
    on K and D, and each chunk is processed by one thread. So the sums of a sequence depend neither
    on the number of threads nor on other sequences, to the last digit.
    """
    count, num_steps, num_states = weights.shape
    size = value.shape[-1]
    second_shape = (size, size) if second_shape is None else second_shape
    factor = np.empty((0, 0, 0, 0)) if factor is None else factor
    blocks = -(-num_steps // _BLOCK)
    worthwhile = grain_of(_BLOCK, num_states, size, second_shape[1] > 1)
    # The sums of a chunk take at most a quarter of the memory of its data.
    chunk = max(worthwhile, -(-4 * num_states * second_shape[1] // _BLOCK))
    chunk = max(1, min(chunk, blocks))
    chunks = -(-blocks // chunk)
    sizes = (count * chunks, num_states)
    sums = np.zeros(sizes), np.zeros(sizes + (size,)), np.zeros(sizes + second_shape)

    def work(first: int, last: int) -> None:
        _moment_sweep(value, weights, loc, factor, first, last, chunk, *sums)

    if count * blocks < 2 * worthwhile:  # the last chunk may be short
        work(0, count * chunks)
    else:
        spread(work, count * chunks, -(-worthwhile // chunk))
    if chunks == 1:
        return sums
    return tuple(in_order(each, chunks) for each in sums)


def in_order(parts: npt.NDArray[np.float64], chunks: int) -> npt.NDArray[np.float64]:
    """The sums of each sequence's two or more chunks, from the first to the last."""
    total = parts[::chunks] + parts[1::chunks]
    for index in range(2, chunks):
        total += parts[index::chunks]
    return total


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
