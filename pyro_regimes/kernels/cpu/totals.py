"""Sums over time in float64, compiled for the CPU, in an order that is always the same.

torch's sums choose their order by the layout, the batch and the number of threads, so that the last
digits of one sequence would depend on the others. Here a sequence is summed in blocks, and these in
chunks, of which each is processed by one thread, as in :mod:`.moments`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.kernels.cpu.densities import to_array
from pyro_regimes.kernels.cpu.jit import compiled, spread
from pyro_regimes.kernels.cpu.moments import in_order

_BLOCK = 128  # rows that are summed before they join the total
_GRAIN = 100_000  # the fewest numbers that are worth a thread


@compiled
def _sum_chunks(
    value: Any, first: int, last: int, chunks: int, chunk: int, out: Any
) -> None:
    num_rows, size = value.shape[1], value.shape[2]
    part = np.empty(size)
    for index in range(first, last):
        sequence, begin = index // chunks, index % chunks * chunk
        end = min(begin + chunk, num_rows)
        total = out[index]
        total[:] = 0.0
        while begin < end:
            stop = min(begin + _BLOCK, end)
            part[:] = 0.0
            for row in range(begin, stop):
                for j in range(size):
                    part[j] += value[sequence, row, j]
            for j in range(size):
                total[j] += part[j]
            begin = stop


def sum_rows(value: Tensor) -> Tensor:
    """``(N, T, C)`` to ``(N, C)``, float64."""
    array = to_array(value, value.dtype)
    count, num_rows, size = array.shape
    chunk = _BLOCK * max(1, _GRAIN // (_BLOCK * max(size, 1)))
    chunks = max(1, -(-num_rows // chunk))
    out = np.empty((count * chunks, size))

    def work(first: int, last: int) -> None:
        _sum_chunks(array, first, last, chunks, chunk, out)

    spread(work, count * chunks, max(1, _GRAIN // max(1, min(chunk, num_rows) * size)))
    return torch.from_numpy(out if chunks == 1 else in_order(out, chunks))
