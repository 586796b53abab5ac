r"""The recursions of :mod:`.cpu.lagged` with all tuples in one vector, for few tuples.

They are the same but for two things. :math:`\hat\alpha_t` and n are scaled only if their sums leave
the limits of :mod:`.scales`, so that most steps have neither a division nor a logarithm. And of the
way forwards only :math:`\sum_o \hat\alpha_{t-1}(o, r)` is kept: memory takes more time than to
compute the rest again.

In a vector of the tuples (o, r) or (r, j), the oldest state o varies slowest, and the last one, j,
fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.lagged import LEAST, LEAST_OVERLAP, has_faded, tile
from pyro_regimes.kernels.cpu.scales import HIGH, LARGE, LOW, add, times

MAX_TUPLES = 64


def is_served(num_states: int, num_tuples: int) -> bool:
    """Whether the tuples fill registers of the processor, or parts of them."""
    return num_states > 1 and num_tuples <= MAX_TUPLES and num_tuples & (num_tuples - 1) == 0


class _Room(NamedTuple):
    """Arrays that the sequences of one call use in turn."""

    moves: Any  # S: M
    first: Any  # S: alpha of the first step
    row: Any  # S
    narrow: Any  # K^p
    sums: Any  # T K^p: alpha of the step before, summed over its oldest state; or empty


@compiled
def _emission(logits: Any, ones: Any) -> tuple[Any, float]:
    """E, and the largest logit."""
    best = simd.largest(logits)
    return simd.exp(simd.subtract(logits, simd.splat(best, ones))), best


@compiled
def _forwards(
    initial: Any,  # (S,)
    transition: Any,  # (K, K)
    observation: Any,  # (T, S)
    room: Any,
    ones: Any,
    few: Any,
) -> tuple[float, bool]:
    """Fill ``room``; the sums over the oldest state only if there is room for them.

    :return: the log-likelihood, and whether it is exact.
    """
    num_tuples, num_steps, num_states = len(initial), len(observation), len(transition)
    keep, flat, narrow = len(room.sums) > 0, observation.reshape(-1), len(room.narrow)
    least = simd.splat(LEAST, ones)
    logits = simd.add(simd.load(flat, 0, ones), simd.load(initial, 0, ones))
    state, best = _emission(logits, ones)
    shift, rest, extreme, peak = best, 0.0, abs(best), 0.0
    if num_steps > 1:
        peak = tile(transition, room.moves)
        extreme = max(extreme, abs(peak))
    if not extreme <= LARGE:
        return 0.0, False
    simd.store(room.first, 0, state)
    for s in range(num_tuples):
        if room.first[s] < LEAST and initial[s] + observation[0, s] > -np.inf:
            return 0.0, False
    move = simd.load(room.moves, 0, ones)
    for t in range(1, num_steps):
        emitted, best = _emission(simd.load(flat, t * num_tuples, ones), ones)
        extreme = max(extreme, abs(best))
        shift, rest = add(shift, rest, best)
        before = simd.fold(state, few)
        if keep:
            simd.store(room.sums, t * narrow, before)
        state = simd.multiply(simd.multiply(simd.repeat_each(before, ones), move), emitted)
        size = simd.total(state)
        if not LOW <= size <= HIGH:
            if not 0.0 < size < np.inf:
                return 0.0, False
            simd.store(room.row, 0, simd.multiply(state, simd.splat(1.0 / size, ones)))
            state = simd.load(room.row, 0, ones)
            shift, rest = add(shift, rest, math.log(size))
        if simd.any_less(state, least):
            simd.store(room.row, 0, state)
            simd.store(room.narrow, 0, before)
            if has_faded(room.row, room.narrow, room.moves, observation[t], num_states):
                return 0.0, False
    high, low = times(peak, num_steps - 1)
    shift, rest = add(shift, rest, high)
    shift, rest = add(shift, rest, low)
    value = shift + (rest + math.log(simd.total(state)))
    return value, value - value == 0.0 and extreme * num_steps <= LARGE


@compiled
def _state_at(flat: Any, t: int, room: Any, move: Any, ones: Any, few: Any) -> tuple[Any, Any]:
    """alpha of a step up to its scale, and M E of the tuples that it moves to."""
    if t == 0:
        return simd.load(room.first, 0, ones), ones
    emitted, _ = _emission(simd.load(flat, t * simd.width_of(ones), ones), ones)
    before = simd.load(room.sums, t * simd.width_of(few), few)
    moving = simd.multiply(move, emitted)
    return simd.multiply(simd.repeat_each(before, ones), moving), moving


@compiled
def _filter(observation: Any, room: Any, filtered: Any, ones: Any, few: Any) -> None:
    flat, out = observation.reshape(-1), filtered.reshape(-1)
    move = simd.load(room.moves, 0, ones)
    for t in range(len(observation)):
        state, _ = _state_at(flat, t, room, move, ones, few)
        share = simd.splat(1.0 / simd.total(state), ones)
        simd.store(out, t * simd.width_of(ones), simd.multiply(state, share))


@compiled
def _backwards(
    observation: Any,  # (T, S)
    room: Any,
    smoothed: Any,  # (T, S), filled
    moved: Any,  # (K, K), filled
    ones: Any,
    few: Any,
) -> bool:
    """:return: whether gamma and the transitions are exact."""
    num_states, num_tuples = len(moved), simd.width_of(ones)
    flat, out, least = observation.reshape(-1), smoothed.reshape(-1), simd.splat(LEAST, few)
    move, after, counts = simd.load(room.moves, 0, ones), few, simd.splat(0.0, ones)
    for t in range(len(observation) - 1, -1, -1):
        follows = simd.repeat_all(after, ones)
        state, moving = _state_at(flat, t, room, move, ones, few)
        share = simd.multiply(state, follows)
        overlap = simd.total(share)
        if not overlap >= LEAST_OVERLAP:
            return False
        share = simd.multiply(share, simd.splat(1.0 / overlap, ones))
        simd.store(out, t * num_tuples, share)
        if t == 0:
            break
        counts = simd.add(counts, share)
        after = simd.fold_each(simd.multiply(moving, follows), few)
        size = simd.total(after)
        if not LOW <= size <= HIGH:
            if not 0.0 < size < np.inf:
                return False
            simd.store(room.narrow, 0, simd.multiply(after, simd.splat(1.0 / size, few)))
            after = simd.load(room.narrow, 0, few)
        if simd.any_less(after, least):
            simd.store(room.narrow, 0, after)
            simd.store(room.row, 0, follows)
            for s in range(num_tuples):
                if room.narrow[s // num_states] < LEAST and room.row[s] > 0.0:
                    if room.moves[s] > 0.0 and observation[t, s] > -np.inf:
                        return False
    simd.store(room.row, 0, counts)
    moved[:] = 0.0
    for s in range(num_tuples):
        moved[(s // num_states) % num_states, s % num_states] += room.row[s]
    return True


@cache
def sweep(num_states: int, num_tuples: int) -> Callable[..., None]:
    """The kernel for so many states and tuples, with the arguments of :func:`.lagged.sweep`."""
    return _make_sweep(num_tuples, num_tuples // num_states)


@cache
def _make_sweep(width: int, narrow: int) -> Callable[..., None]:
    @compiled
    def run(
        initial: Any,
        transition: Any,
        observation: Any,
        first: int,
        last: int,
        log_likelihood: Any,
        filtered: Any,
        smoothed: Any,
        moved: Any,
        exact: Any,
    ) -> None:
        num_steps = observation.shape[1]
        keep = len(smoothed) > 0 or len(filtered) > 0
        room = _Room(
            np.empty(width), np.empty(width), np.empty(width), np.empty(narrow),
            np.empty(num_steps * narrow if keep else 0),
        )  # fmt: skip
        ones, few = simd.splat(1.0, width), simd.splat(1.0, narrow)
        for n in range(first, last):
            start, matrix = initial[n % len(initial)], transition[n % len(transition)]
            data = observation[n]
            log_likelihood[n], exact[n] = _forwards(start, matrix, data, room, ones, few)
            if exact[n] and len(filtered) > 0:
                _filter(data, room, filtered[n], ones, few)
            if exact[n] and len(smoothed) > 0:
                exact[n] = _backwards(data, room, smoothed[n], moved[n], ones, few)

    return run
