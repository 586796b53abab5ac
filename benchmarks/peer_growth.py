"""The cost of the E-step: memory at a million steps, and the growth of time with T, K and N.

    python -m benchmarks.peer_growth NUM_STEPS NUM_STATES

prints the peak extra memory of one E-step, in a process that has done nothing else.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.measure import can_measure_memory, chain_logits, duration, extra_bytes
from pyro_regimes.kernels import ops


class Growth(NamedTuple):
    """Times at several sizes, and the exponent of a power law through them."""

    variable: str
    rest: str  #: the sizes that stay
    sizes: tuple[int, ...]
    milliseconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The slope of a line through the logarithms, by least squares."""
        slope, _ = np.polyfit(np.log(self.sizes), np.log(self.milliseconds), 1)
        return float(slope)


def extra_arrays(num_steps: int, num_states: int) -> float | None:
    """Peak memory of a float64 E-step beyond its arguments, in arrays of (T, K).

    It includes what the E-step returns. None where the system has no ``/proc`` to read it from.
    """
    if not can_measure_memory():
        return None
    command = [sys.executable, "-m", "benchmarks.peer_growth", str(num_steps), str(num_states)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout) / (8 * num_steps * num_states)


def _extra_bytes(num_steps: int, num_states: int) -> int:
    """The same in bytes, in this process."""
    ops.expectations(*chain_logits(1, 1000, num_states))  # compiles and loads what it needs
    arguments = chain_logits(1, num_steps, num_states)
    return extra_bytes(lambda: ops.expectations(*arguments))


def growths(scale: int = 1, repeats: int = 5) -> list[Growth]:
    """How the time of a float64 E-step grows with each size.

    :param scale: divides the number of steps, for a quick look.
    """
    steps, few_steps, fewest_steps = 2**18 // scale, 4096 // scale, 256 // scale
    return [
        _growth("T", "N=1 K=4", _doubled(steps, 7), lambda size: (1, size, 4), repeats),
        _growth("K", f"N=1 T={few_steps}", _doubled(64, 6), lambda k: (1, few_steps, k), repeats),
        _growth(
            "N", f"T={fewest_steps} K=4", _doubled(512, 7), lambda n: (n, fewest_steps, 4), repeats
        ),
    ]


def _doubled(last: int, number: int) -> list[int]:
    """So many sizes up to the last, each twice the one before."""
    return [last // 2**power for power in reversed(range(number))]


def _growth(
    variable: str,
    rest: str,
    sizes: Sequence[int],
    shape: Callable[[int], tuple[int, int, int]],
    repeats: int,
) -> Growth:
    """Median times at each size, after a first call that is not counted."""
    times = []
    for size in sizes:
        arguments = chain_logits(*shape(size))
        task = partial(ops.expectations, *arguments)
        task()
        runs = [duration(task) for _ in range(repeats)]
        times.append(1e3 * statistics.median(runs))
    return Growth(variable, rest, tuple(sizes), tuple(times))


if __name__ == "__main__":
    print(_extra_bytes(int(sys.argv[1]), int(sys.argv[2])))
