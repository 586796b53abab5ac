r"""The recursions of :mod:`.cpu.lagged` with all tuples in one vector, for few tuples.

They are the same but for two things. :math:`\hat\alpha_t` and n are scaled only if their sums leave
the limits of :mod:`.scales`, so that most steps have neither a division nor a logarithm. And of the
way forwards only :math:`\sum_o \hat\alpha_{t-1}(o, r)` is kept, and E where the probabilities will
be written.

In a vector of the tuples (o, r) or (r, j), the oldest state o varies slowest, and the last one, j,
fastest.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.lagged import LEAST, LEAST_OVERLAP
from pyro_regimes.kernels.cpu.lagged_emissions import fill, load, moves_of
from pyro_regimes.kernels.cpu.scales import HIGH, LARGE, LOW, add, times

BLOCK = 64  # steps whose emissions are computed at once


class Room(NamedTuple):
    """Arrays that the sequences of one call use in turn."""

    moves: Any  # K^2 or (T-1) K^2: M
    joint: Any  # S: the constant factor of E
    first: Any  # S: alpha of the first step
    row: Any  # S
    narrow: Any  # K^p
    sums: Any  # T K^p: alpha of the step before, summed over its oldest state; or empty
    block: Any  # E of some steps, or of all


class Widths(NamedTuple):
    """Vectors of ones, for their lengths."""

    tuples: Any  # S
    few: Any  # K^p
    state: Any  # K
    pair: Any  # K^2
    low: Any  # L
    high: Any  # H
    wide: Any  # exponentials at once


@compiled
def _first(initial: Any, room: Any, emitted: Any, widths: Any) -> tuple[Any, float]:
    """alpha of the first step, and what was subtracted from its logarithm; NaN if it is inexact."""
    ones = widths.tuples
    logits = simd.load(initial, 0, ones)
    best = simd.largest(logits)
    state = simd.exp(simd.subtract(logits, simd.splat(best, ones)))
    state = simd.multiply(simd.multiply(state, simd.load(room.joint, 0, ones)), emitted)
    simd.store(room.first, 0, state)
    for s in range(len(room.first)):
        if not room.first[s] >= LEAST and initial[s] > -np.inf:
            return state, np.nan
    return state, best


@compiled
def _move_at(t: int, room: Any, varies: Any, widths: Any) -> Any:
    """M times the constant factor of E."""
    at = 0 if varies is None else (t - 1) * simd.width_of(widths.pair)
    move = simd.repeat_all(simd.load(room.moves, at, widths.pair), widths.tuples)
    return simd.multiply(move, simd.load(room.joint, 0, widths.tuples))


@compiled
def _forwards(
    initial: Any,  # (S,)
    data: Any,  # (T S,) logits, or (T K,)
    num_steps: int,
    room: Any,
    written: Any,
    filtered: Any,
    constants: Any,
    varies: Any,
    widths: Any,
) -> tuple[float, float, float, bool]:
    """Fill ``room``, and ``written`` and ``filtered`` unless they are empty.

    :return: the log-likelihood but for the logarithms of M, as a sum of two numbers, the largest
        absolute logit, and whether it is exact.
    """
    ones, few = widths.tuples, widths.few
    narrow, least = simd.width_of(few), simd.splat(LEAST, ones)
    keep, whole = len(room.sums) > 0, len(written) > 0
    shift, rest, extreme, state, move = 0.0, 0.0, 0.0, ones, ones
    for begin in range(0, num_steps, BLOCK):
        end, base = min(begin + BLOCK, num_steps), 0 if whole else begin
        into = written if whole else room.block
        total, lost, most = fill(data, begin, end, into, begin - base, constants, widths)
        shift, rest = add(shift, rest + lost, total)
        extreme = max(extreme, most)
        if begin == 0:
            state, best = _first(initial, room, load(into, 0, constants, widths), widths)
            shift, rest = add(shift, rest, best)
            extreme = max(extreme, abs(best))
            if not extreme <= LARGE:
                return 0.0, 0.0, 0.0, False
            move = _move_at(1, room, None, widths)
            if len(filtered) > 0:
                _write_share(filtered, 0, state, ones, widths)
        for t in range(max(1, begin), end):
            emitted = load(into, t - base, constants, widths)
            if varies is not None:
                move = _move_at(t, room, varies, widths)
            before = simd.fold(state, few)
            if keep:
                simd.store(room.sums, t * narrow, before)
            state = simd.multiply(simd.repeat_each(before, ones), simd.multiply(move, emitted))
            size = simd.total(state)
            if not LOW <= size <= HIGH:
                if not 0.0 < size < np.inf:
                    return 0.0, 0.0, 0.0, False
                simd.store(room.row, 0, simd.multiply(state, simd.splat(1.0 / size, ones)))
                state = simd.load(room.row, 0, ones)
                shift, rest = add(shift, rest, math.log(size))
            if simd.any_less(state, least):
                if _fades(state, before, data, t, room, constants, varies):
                    return 0.0, 0.0, 0.0, False
            if len(filtered) > 0:
                _write_share(filtered, t, state, ones, widths)
    return shift, rest + math.log(simd.total(state)), extreme, extreme * num_steps <= LARGE


@compiled
def _is_possible(t: int, s: int, data: Any, room: Any, constants: Any, varies: Any) -> bool:
    """Whether the tuple s can be entered at t, from some tuple that is possible."""
    size, pairs = len(room.row), len(room.row) // len(room.narrow)
    pairs = pairs * pairs
    at = 0 if varies is None else (t - 1) * pairs
    if room.moves[at + s % pairs] == 0.0:
        return False
    return constants is not None or data[t * size + s] > -np.inf


@compiled
def _fades(
    state: Any, before: Any, data: Any, t: int, room: Any, constants: Any, varies: Any
) -> bool:
    """Whether a tuple that is possible has a share below ``LEAST``."""
    simd.store(room.row, 0, state)
    simd.store(room.narrow, 0, before)
    num_states = len(room.row) // len(room.narrow)
    for s in range(len(room.row)):
        if not room.row[s] >= LEAST and room.narrow[s // num_states] > 0.0:
            if _is_possible(t, s, data, room, constants, varies):
                return True
    return False


@compiled
def _write_share(out: Any, t: int, state: Any, follows: Any, widths: Any) -> tuple[Any, float]:
    """Write the probabilities of tuples, or of their last states, to a row of ``out``.

    :return: these probabilities of tuples, and the sum of the products that they are made of.
    """
    ones = widths.tuples
    share = simd.multiply(state, follows)
    overlap = simd.total(share)
    share = simd.multiply(share, simd.splat(1.0 / overlap, ones))
    flat, width = out.reshape(-1), simd.width_of(ones)
    if out.shape[1] == width:
        simd.store(flat, t * width, share)
    else:
        simd.store(flat, t * simd.width_of(widths.state), simd.fold(share, widths.state))
    return share, overlap


@compiled
def _backwards(
    data: Any,
    num_steps: int,
    room: Any,
    written: Any,
    smoothed: Any,  # (T, S or K), filled
    moved: Any,  # (1 or T-1, K, K), filled
    constants: Any,
    varies: Any,
    widths: Any,
) -> bool:
    """:return: whether gamma and the transitions are exact."""
    ones, few, pair = widths.tuples, widths.few, widths.pair
    narrow, size, least = simd.width_of(few), simd.width_of(pair), simd.splat(LEAST, few)
    counts, after, out = simd.splat(0.0, pair), few, moved.reshape(-1)
    move = _move_at(1, room, None, widths)
    for t in range(num_steps - 1, 0, -1):
        follows = simd.repeat_all(after, ones)
        if varies is not None:
            move = _move_at(t, room, varies, widths)
        ahead = simd.multiply(move, load(written, t, constants, widths))
        before = simd.load(room.sums, t * narrow, few)
        state = simd.multiply(simd.repeat_each(before, ones), ahead)
        share, overlap = _write_share(smoothed, t, state, follows, widths)
        if not overlap >= LEAST_OVERLAP:
            return False
        if varies is None:
            counts = simd.add(counts, simd.fold(share, pair))
        else:
            simd.store(out, (t - 1) * size, simd.fold(share, pair))
        after = simd.fold_each(simd.multiply(ahead, follows), few)
        sum_of_all = simd.total(after)
        if not LOW <= sum_of_all <= HIGH:
            if not 0.0 < sum_of_all < np.inf:
                return False
            simd.store(room.narrow, 0, simd.multiply(after, simd.splat(1.0 / sum_of_all, few)))
            after = simd.load(room.narrow, 0, few)
        if simd.any_less(after, least):
            if _is_lost(after, follows, data, t, room, constants, varies):
                return False
    state, follows = simd.load(room.first, 0, ones), simd.repeat_all(after, ones)
    _, overlap = _write_share(smoothed, 0, state, follows, widths)
    if len(out) == size:  # not where there is no step, or where each has its own
        simd.store(out, 0, counts)
    return overlap >= LEAST_OVERLAP


@compiled
def _is_lost(
    after: Any, follows: Any, data: Any, t: int, room: Any, constants: Any, varies: Any
) -> bool:
    """Whether an entry of n that is possible is below ``LEAST``."""
    simd.store(room.narrow, 0, after)
    simd.store(room.row, 0, follows)
    num_states = len(room.row) // len(room.narrow)
    for s in range(len(room.row)):
        if not room.narrow[s // num_states] >= LEAST and room.row[s] > 0.0:
            if _is_possible(t, s, data, room, constants, varies):
                return True
    return False


@compiled
def both_ways(
    initial: Any,  # (S,)
    moving: Any,  # (K^2 or (T-1) K^2,): transition logits
    data: Any,  # logits (T S,), or the series (p + T,)
    num_steps: int,
    room: Any,
    written: Any,  # where E is kept: T rows, or empty for the way forwards alone
    filtered: Any,  # (T, S or K), or empty
    smoothed: Any,  # (T, S or K), or empty
    moved: Any,  # (1 or T-1, K, K)
    constants: Any,  # of .lagged_emissions, or None
    varies: Any,  # None where the transitions are of one step
    widths: Any,
) -> tuple[float, bool]:
    """Fill the probabilities of one sequence and its transitions.

    :return: the log-likelihood, and whether all is exact.
    """
    peak, lost, most, sound = moves_of(moving, room.moves, LEAST, widths)
    shift, rest, extreme, exact = _forwards(
        initial, data, num_steps, room, written, filtered, constants, varies, widths
    )
    if num_steps > 1:
        high, low = (peak, lost) if varies is not None else times(peak, num_steps - 1)
        shift, rest = add(shift, rest + low, high)
        exact = exact and sound and max(extreme, most) * num_steps <= LARGE
    value = shift + rest
    exact = exact and abs(value) < np.inf
    if exact and len(smoothed) > 0:
        exact = _backwards(
            data, num_steps, room, written, smoothed, moved, constants, varies, widths
        )
    return value, exact
