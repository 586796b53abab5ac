r"""Densities that are linear in functions of the observation, and their sums, compiled for the CPU.

.. math::
    \log b_k(x_t) = s(x_t)^\top \eta_k, \qquad S_k = \sum_t w_{tk} s(x_t).

The functions are given as numbers, ``(T, S)``, or as a row of a table for each element of an
observation, ``(T, D)``: then they are the indicators of the rows, and nothing is multiplied.

Inputs and results may be float32; all arithmetic is float64. The results of one model depend
neither on other models nor on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.densities import WIDTH, grain_of
from pyro_regimes.kernels.cpu.jit import compiled, spread

_BLOCK = 128  # steps whose sums are taken in registers
_CHUNK = 2**14  # steps whose sums are taken by one thread, a multiple of _BLOCK
_GRAIN = 200_000  # the fewest entries of a table that are worth waking another thread for


@compiled
def _product_sweep(
    value: Any,  # (V, T, S), of which each sequence has row n mod V
    natural: Any,  # (P, K, S); model p has N / P sequences
    first: int,
    last: int,
    out: Any,  # (N, T, K)
) -> None:
    """The densities of blocks ``first`` to ``last``, each of ``WIDTH`` steps of a sequence."""
    num_steps, num_states, size = out.shape[1], out.shape[2], value.shape[2]
    flat_value, flat_natural, flat_out = value.reshape(-1), natural.reshape(-1), out.reshape(-1)
    x, density = np.zeros(size * WIDTH), np.empty(num_states * WIDTH)
    blocks = (num_steps + WIDTH - 1) // WIDTH
    each = len(out) // len(natural)
    for unit in range(first, last):
        n = unit // blocks
        start = (unit - n * blocks) * WIDTH
        count = min(WIDTH, num_steps - start)
        at = (n % value.shape[0] * num_steps + start) * size
        for i in range(size):
            for t in range(count):
                x[np.uintp(i * WIDTH + t)] = flat_value[np.uintp(at + t * size + i)]
        row = n // each * num_states * size
        for k in range(num_states):
            total = simd.splat(0.0, WIDTH)
            for i in range(size):
                factor = simd.splat(flat_natural[row + i], WIDTH)
                total = simd.multiply_add(factor, simd.load(x, i * WIDTH, WIDTH), total)
            row += size
            simd.store(density, k * WIDTH, total)
        at = (n * num_steps + start) * num_states
        for k in range(num_states):
            for t in range(count):
                flat_out[np.uintp(at + t * num_states + k)] = density[np.uintp(k * WIDTH + t)]


def fill_products(
    value: npt.NDArray[np.float64],  # (V, T, S), of which each sequence has row n mod V
    natural: npt.NDArray[np.float64],  # (P, K, S); model p has N / P sequences
    out: npt.NDArray[Any],  # (N, T, K)
) -> None:
    """The densities of functions given as numbers."""

    def work(first: int, last: int) -> None:
        _product_sweep(value, natural, first, last, out)

    num_steps, num_states = out.shape[1:]
    blocks = len(out) * ((num_steps + WIDTH - 1) // WIDTH)
    spread(work, blocks, grain_of(WIDTH, num_states, value.shape[-1], False))


@compiled
def _product_sums(
    value: Any,  # (V, T, S), of which each sequence has row n mod V
    weights: Any,  # (N, T, K)
    first: int,
    last: int,
    sums: Any,  # (N * chunks, K, S), zero
) -> None:
    """Add up the products of chunks ``first`` to ``last`` of a sequence."""
    num_steps, num_states, size = weights.shape[1], weights.shape[2], value.shape[2]
    chunks = (num_steps + _CHUNK - 1) // _CHUNK
    flat_value, flat_weights = value.reshape(-1), weights.reshape(-1)
    x, share = np.empty(size * _BLOCK), np.empty(num_states * _BLOCK)
    for unit in range(first, last):
        n = unit // chunks
        begin = (unit - n * chunks) * _CHUNK
        for start in range(begin, min(begin + _CHUNK, num_steps), _BLOCK):
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
                    own = np.uintp(at + t * num_states + k)
                    share[np.uintp(k * _BLOCK + t)] = flat_weights[own]
            for k in range(num_states):
                for i in range(size):
                    some = simd.splat(0.0, WIDTH)
                    for t in range(0, stop, WIDTH):
                        weight = simd.load(share, k * _BLOCK + t, WIDTH)
                        some = simd.multiply_add(weight, simd.load(x, i * _BLOCK + t, WIDTH), some)
                    sums[unit, k, i] += simd.total(some)


def sum_products(
    value: npt.NDArray[np.float64],  # (V, T, S), of which each sequence has row n mod V
    weights: npt.NDArray[Any],  # (N, T, K)
) -> npt.NDArray[np.float64]:
    """The weighted sums of functions given as numbers, ``(N, K, S)``."""
    count, num_steps, num_states = weights.shape
    chunks = -(-num_steps // _CHUNK)
    sums = np.zeros((count * chunks, num_states, value.shape[-1]))

    def work(first: int, last: int) -> None:
        _product_sums(value, weights, first, last, sums)

    blocks = -(-min(num_steps, _CHUNK) // _BLOCK)
    grain = grain_of(_BLOCK, num_states, value.shape[-1], False)
    spread(work, len(sums), -(-grain // max(1, blocks)))
    return sums if chunks == 1 else sums.reshape((count, chunks) + sums.shape[1:]).sum(1)


@compiled
def _lookup_sweep(
    rows: Any,  # (V, T, D), of which each sequence has row n mod V
    table: Any,  # (P, R, K); model p has N / P sequences
    first: int,
    last: int,
    out: Any,  # (N, T, K)
) -> None:
    """The densities of chunks ``first`` to ``last`` of a sequence."""
    num_steps, num_states, size = out.shape[1], out.shape[2], rows.shape[2]
    chunks = (num_steps + _CHUNK - 1) // _CHUNK
    each = len(out) // len(table)
    for unit in range(first, last):
        n = unit // chunks
        start = (unit - n * chunks) * _CHUNK
        own, sequence, density = table[n // each], rows[n % rows.shape[0]], out[n]
        for t in range(start, min(start + _CHUNK, num_steps)):
            if size == 1:
                row = sequence[t, 0]
                for k in range(num_states):
                    density[t, k] = own[row, k]
            else:
                for k in range(num_states):
                    total = 0.0
                    for d in range(size):
                        total += own[sequence[t, d], k]
                    density[t, k] = total


@compiled
def _lookup_sums(
    rows: Any,  # (V, T, D), of which each sequence has row n mod V
    weights: Any,  # (N, T, K)
    each: int,  # sequences of a model
    first: int,
    last: int,
    sums: Any,  # (P * chunks, R, K), zero
) -> None:
    """Add up the weights of each row of the table in chunks ``first`` to ``last``.

    The chunks are those of the steps of all sequences of a model.
    """
    num_steps, num_states, size = weights.shape[1], weights.shape[2], rows.shape[2]
    chunks = (each * num_steps + _CHUNK - 1) // _CHUNK
    for unit in range(first, last):
        model = unit // chunks
        start = (unit - model * chunks) * _CHUNK
        n = model * each + start // num_steps
        t = start % num_steps
        total = sums[unit]
        for _ in range(min(_CHUNK, each * num_steps - start)):
            for d in range(size):
                row = rows[n % rows.shape[0], t, d]
                for k in range(num_states):
                    total[row, k] += weights[n, t, k]
            t += 1
            if t == num_steps:
                n, t = n + 1, 0


def fill_lookups(
    rows: npt.NDArray[np.int64],  # (V, T, D), of which each sequence has row n mod V
    table: npt.NDArray[np.float64],  # (P, R, K); model p has N / P sequences
    out: npt.NDArray[Any],  # (N, T, K)
) -> None:
    """The densities of functions given as rows of a table."""

    def work(first: int, last: int) -> None:
        _lookup_sweep(rows, table, first, last, out)

    count, num_steps, num_states = out.shape
    of_chunk = min(num_steps, _CHUNK) * num_states * rows.shape[-1]
    spread(work, count * -(-num_steps // _CHUNK), 1 + _GRAIN // max(1, of_chunk))


def sum_lookups(
    rows: npt.NDArray[np.int64],  # (V, T, D), of which each sequence has row n mod V
    weights: npt.NDArray[Any],  # (N, T, K)
    num_models: int,
    num_rows: int,
) -> npt.NDArray[np.float64]:
    """The sums of the weights of each row of the table, ``(P, R, K)``."""
    count, num_steps, num_states = weights.shape
    each = count // num_models
    chunks = -(-each * num_steps // _CHUNK)
    sums = np.zeros((num_models * chunks, num_rows, num_states))

    def work(first: int, last: int) -> None:
        _lookup_sums(rows, weights, each, first, last, sums)

    of_chunk = min(each * num_steps, _CHUNK) * num_states * rows.shape[-1]
    spread(work, len(sums), 1 + _GRAIN // max(1, of_chunk))
    return sums if chunks == 1 else sums.reshape((num_models, chunks) + sums.shape[1:]).sum(1)
