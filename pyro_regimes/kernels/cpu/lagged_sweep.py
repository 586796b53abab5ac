"""The kernels of :mod:`.cpu.lagged_vectors` for all sequences, made for each number of lanes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.lagged_emissions import Constants, load_constants, set_for
from pyro_regimes.kernels.cpu.lagged_vectors import BLOCK, Room, Widths, both_ways

MAX_TUPLES = 64
_WIDE = 32  # exponentials at once


def is_served(num_states: int, num_tuples: int) -> bool:
    """Whether the tuples fill registers of the processor, or parts of them."""
    return num_states > 1 and num_tuples <= MAX_TUPLES and num_tuples & (num_tuples - 1) == 0


@cache
def sweep(num_states: int, num_tuples: int, lows: int = 1, highs: int = 1) -> Callable[..., None]:
    """The kernel for so many states and tuples, and lanes L and H of the normal densities."""
    return _make_sweep(num_states, num_tuples, lows, highs)


def _make_sweep(num_states: int, width: int, lows: int, highs: int) -> Callable[..., None]:
    narrow, square = width // num_states, num_states**2

    @compiled
    def run(
        initial: Any,  # (N or 1, S)
        transition: Any,  # (N or 1, 1 or T-1, K, K)
        data: Any,  # logits (N, T, S), or series (N, p + T)
        normal: Any,  # None, or loc (N or 1, K), coefficients (N or 1, 1 or K, p) and scale
        varies: Any,  # None where the transitions are of one step
        first: int,
        last: int,
        log_likelihood: Any,  # (N,)
        filtered: Any,  # (N, T, S or K), or (0, 0, 0): not wanted
        smoothed: Any,  # (N, T, S or K), or (0, 0, 0): forward only
        moved: Any,  # (N, 1 or T-1, K, K)
        exact: Any,  # (N,): filled; the results of others are to be computed in log space
    ) -> None:
        widths = Widths(
            simd.splat(1.0, width), simd.splat(1.0, narrow), simd.splat(1.0, num_states),
            simd.splat(1.0, square), simd.splat(1.0, lows), simd.splat(1.0, highs),
            simd.splat(1.0, _WIDE),
        )  # fmt: skip
        order = 0 if normal is None else normal[1].shape[2]
        num_steps, keep, nothing = data.shape[1] - order, len(smoothed) > 0, np.empty((0, 1))
        own = normal is None and keep and smoothed.shape[2] == width  # E is kept in smoothed
        rows = min(BLOCK, num_steps) if own or not keep else num_steps
        room = Room(
            np.empty(max(transition[0].size, square)), np.ones(width), np.empty(width),
            np.empty(width), np.empty(narrow), np.empty(num_steps * narrow if keep else 0),
            np.empty(rows * (width if normal is None else lows + highs)),
        )  # fmt: skip
        arrays = Constants(
            np.empty((order + 2, num_states)), np.empty((4, lows)), np.empty((3, highs)),
            room.joint,
        )  # fmt: skip
        for n in range(first, last):
            exact[n] = set_for(normal, n, arrays)
            if exact[n]:
                after = smoothed[n] if keep else nothing
                written = after.reshape(-1) if own else (room.block if keep else room.block[:0])
                log_likelihood[n], exact[n] = both_ways(
                    initial[n % len(initial)], transition[n % len(transition)].reshape(-1),
                    data[n].reshape(-1), num_steps, room, written,
                    filtered[n] if len(filtered) > 0 else nothing, after, moved[n],
                    load_constants(normal, arrays, widths), varies, widths,
                )  # fmt: skip

    return run
