"""Whether all numbers are finite, compiled for the CPU.

One pass answers what takes torch three: a mask, its reduction, and the threads that torch keeps
awake for a while after each, in which they take time from those of the other kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels.cpu.jit import compiled, spread

_BLOCK = 4_096  # numbers, after which it is looked whether there has been a wrong one
_GRAIN = 1_000_000  # the fewest numbers that are worth a thread


@compiled
def _find_wrong(value: Any, first: int, last: int) -> bool:
    begin = first
    while begin < last:
        end = min(begin + _BLOCK, last)
        wrong = False
        for i in range(begin, end):
            number = value[i]
            wrong |= number - number != 0.0  # which is NaN if the number is not finite
        if wrong:
            return True
        begin = end
    return False


def all_finite(value: npt.NDArray[Any]) -> bool:
    """:param value: contiguous, float32 or float64."""
    flat, wrong = value.reshape(-1), np.zeros(1, np.bool_)

    def work(first: int, last: int) -> None:
        if _find_wrong(flat, first, last):
            wrong[0] = True

    spread(work, flat.size, _GRAIN)
    return not wrong[0]
