"""Selects the part of a chain's arrays that a sequence or a step uses."""

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
