"""Selects the part of a chain's arrays that a sequence or a step uses.

The arrays of the data are ``(N, T, K)``. Each of the N rows holds equally many of the S sequences:
one, with padding after it, or several that follow one another. Sequence n is in row
``n // (S / N)``, where it has ``lengths[n]`` steps from step ``begins[n]`` on. Initial and
transition logits are those of its row.
"""

from __future__ import annotations

from typing import Any

from pyro_regimes.kernels.cpu.jit import compiled


@compiled
def array_of(arrays: Any, n: int) -> Any:
    """The array of sequence n, where there is one for each, or the one that all share."""
    return arrays[n if len(arrays) > 1 else 0]


@compiled
def move_into(slices: Any, t: int) -> Any:
    """The transitions from step t - 1 to step t, where they vary in time, or those of all steps."""
    return slices[t - 1 if len(slices) > 1 else 0]


@compiled
def end_of(begins: Any, n: int, each: int, num_steps: int) -> int:
    """Where the steps and the padding of sequence n end in its row of ``each`` sequences."""
    return int(num_steps if (n + 1) % each == 0 else begins[n + 1])


@compiled
def longest_of(lengths: Any, first: int, last: int) -> int:
    """The largest number of steps of the sequences ``first`` to ``last``."""
    longest = 1
    for n in range(first, last):
        longest = max(longest, lengths[n])
    return longest
