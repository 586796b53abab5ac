r"""The scaled forward-backward recursion from both ends at once, where no state fades.

A step of :mod:`.scaled` waits for the step before it, and meanwhile a processor has time for a step
of another recursion. So one sweep goes forwards and one backwards until they meet in the middle.
Each leaves :math:`\hat\alpha_t` or :math:`\hat\beta_t` behind, and then goes on over what the other
has left, which gives gamma and xi. The formulas are those of :mod:`.scaled`, but

.. math::
    \xi_{t-1}(i, j) = \hat\alpha_{t-1}(i) M_{ij} E_t(j) \hat\beta_t(j) / S_t

in the half that is completed forwards, with :math:`\hat\alpha_t` before it is scaled in
:math:`S_t`. The emissions E are computed before, several steps at once.

The log-likelihood alone needs no more than :math:`\hat\alpha_t` and :math:`\hat\beta_t` where they
meet.

If a state fades, or a logit is infinite or large, :mod:`.scaled` starts again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu import moves, simd
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.scales import (
    FADED,
    HIGH,
    LARGE,
    LEAST_OVERLAP,
    LOW,
    add,
    open_logits,
    times,
)

_BLOCK = 64  # steps whose emissions are computed at once


@compiled
def _emission(observation: Any, t: int, ones: Any) -> tuple[Any, float]:
    """E at a step, and the largest logit."""
    num_states = observation.shape[1]
    logits = simd.load_row(observation, t * num_states, num_states, -np.inf, ones)
    best = simd.largest(logits)
    return simd.exp(simd.subtract(logits, simd.splat(best, ones))), best


@compiled
def _emission_at(observation: Any, t: int, room: Any, ones: Any) -> tuple[Any, float]:
    """The same, but E is taken from ``room.emission`` if it is there; the logit is then 0."""
    if len(room.emission) > 0:
        return simd.load(room.emission, t * simd.width_of(ones), ones), 0.0
    return _emission(observation, t, ones)


@compiled
def _fill_emissions(
    observation: Any, steps: int, room: Any, ones: Any, wide: Any
) -> tuple[float, float, float]:
    """Fill ``room.emission``, with exponentials of a wide vector at once.

    :return: of all steps but the first, the sum of the largest logits, what rounding has taken from
        it, and the largest absolute value.
    """
    width, num_states, lanes = simd.width_of(ones), observation.shape[1], simd.width_of(wide)
    total, rest, extreme = 0.0, 0.0, 0.0
    for begin in range(0, steps, _BLOCK):
        end = min(begin + _BLOCK, steps)
        for t in range(begin, end):
            logits = simd.load_row(observation, t * num_states, num_states, -np.inf, ones)
            best = simd.largest(logits)
            if t > 0:
                extreme = max(extreme, abs(best))
                total, rest = add(total, rest, best)
            simd.store(room.emission, t * width, simd.subtract(logits, simd.splat(best, ones)))
        for at in range(begin * width, end * width, lanes):
            simd.store(room.emission, at, simd.exp(simd.load(room.emission, at, wide)))
    return total, rest, extreme


@compiled
def _scaled(vector: Any, work: Any, ones: Any) -> tuple[Any, float]:
    """A vector whose sum is within the limits, and what it is divided by."""
    size = simd.total(vector)
    if size < LOW or size > HIGH:  # through memory, as in scaled.py
        simd.store(work, 0, simd.multiply(vector, simd.splat(1.0 / size, ones)))
        return simd.load(work, 0, ones), size
    return vector, 1.0


@compiled
def _approach(
    observation: Any,
    steps: int,
    checked: bool,
    room: Any,
    ones: Any,
    rows: Any,
    faded: Any,
    alpha: Any,
    out: Any,
    stay: Any,
) -> tuple[Any, Any, Any, bool]:
    """Both sweeps until they meet. Each fills its half of ``room.alpha``, to go on from it.

    :param alpha: of the first step.
    :param stay: None if they go on; else nothing is kept, and ``out`` has the scales of beta, too.
    :param out: the logarithms of the scales and of what was subtracted are added to ``out[0]``,
        what rounding has taken to ``out[1]``; and ``out[2]`` is the largest absolute logit.
    :return: alpha of the last step of the first half, beta there, E times beta at the next step,
        and whether all is sound.
    """
    width, half, remember = simd.width_of(ones), steps // 2, len(room.emission) > 0
    shift, rest, extreme = out[0], out[1], out[2]
    beta = ahead = ones
    for t in range(1, steps - half + 1):
        back = steps - t
        emitted, best = _emission_at(observation, back, room, ones)
        if not remember:
            extreme = max(extreme, abs(best))
            shift, rest = add(shift, rest, best)
        beta, size = _scaled(beta, room.other, ones)
        if checked and simd.any_less(beta, faded):
            return alpha, beta, ahead, False
        if stay is None:  # decided by the compiler
            simd.store(room.alpha, back * width, beta)
        else:
            if size != 1.0:
                shift, rest = add(shift, rest, math.log(size))
        ahead = simd.multiply(beta, emitted)
        beta = simd.matvec(ahead, room.transposed, 0, rows)
        if t >= half:
            continue
        emitted, best = _emission_at(observation, t, room, ones)
        if not remember:
            extreme = max(extreme, abs(best))
            shift, rest = add(shift, rest, best)
        alpha = simd.multiply(simd.matvec(alpha, room.matrix, 0, rows), emitted)
        size = simd.total(alpha)
        if size < LOW or size > HIGH:
            simd.store(room.row, 0, simd.multiply(alpha, simd.splat(1.0 / size, ones)))
            alpha = simd.load(room.row, 0, ones)
            shift, rest = add(shift, rest, math.log(size))
        if checked and simd.any_less(alpha, faded):
            return alpha, beta, ahead, False
        if stay is None:
            simd.store(room.alpha, t * width, alpha)
    out[0], out[1], out[2] = shift, rest, extreme
    return alpha, beta, ahead, extreme * steps <= LARGE


@compiled
def _part(
    observation: Any,
    steps: int,
    checked: bool,
    room: Any,
    ones: Any,
    rows: Any,
    faded: Any,
    met: Any,
    out: Any,
    smoothed: Any,
    filtered: Any,
) -> tuple[float, bool]:
    """Both sweeps from where they have met to the ends, with gamma, xi and the filter.

    :param met: what :func:`_approach` returns.
    :return: the sum of the last alpha, and whether all is sound.
    """
    width, num_states, half = simd.width_of(ones), observation.shape[1], steps // 2
    filtering = len(filtered) > 0
    shift, rest = out[0], out[1]
    alpha, beta, ahead = met[0], met[1], met[2]
    for i in range(steps - half):
        t = half + i
        emitted, _ = _emission_at(observation, t, room, ones)
        before, behind = alpha, simd.load(room.alpha, t * width, ones)
        alpha = simd.multiply(simd.matvec(alpha, room.matrix, 0, rows), emitted)
        joint = simd.multiply(alpha, behind)
        overlap = simd.total(joint)
        if not overlap > LEAST_OVERLAP:
            return 0.0, False
        share = simd.splat(1.0 / overlap, ones)
        simd.store_row(smoothed, t * num_states, num_states, simd.multiply(joint, share))
        before, behind = simd.multiply(before, share), simd.multiply(behind, emitted)
        if i == 0 or i >= half:
            simd.add_outer(room.outer, before, behind, rows)
        size = simd.total(alpha)
        if size < LOW or size > HIGH:
            simd.store(room.row, 0, simd.multiply(alpha, simd.splat(1.0 / size, ones)))
            alpha = simd.load(room.row, 0, ones)
            shift, rest = add(shift, rest, math.log(size))
        if checked and simd.any_less(alpha, faded):
            return 0.0, False
        if filtering:
            share = simd.splat(1.0 / simd.total(alpha), ones)
            simd.store_row(filtered, t * num_states, num_states, simd.multiply(alpha, share))
        if i >= half:
            break
        t = half - 1 - i
        state = simd.load(room.alpha, t * width, ones)
        if filtering:
            share = simd.splat(1.0 / simd.total(state), ones)
            simd.store_row(filtered, t * num_states, num_states, simd.multiply(state, share))
        overlap = simd.total(simd.multiply(state, beta))
        if not overlap > LEAST_OVERLAP:
            return 0.0, False
        state = simd.multiply(state, simd.splat(1.0 / overlap, ones))
        simd.store_row(smoothed, t * num_states, num_states, simd.multiply(state, beta))
        if i > 0:  # the move between the halves is counted above
            simd.add_outers(room.outer, before, behind, state, ahead, rows)
        if t > 0:
            beta, _ = _scaled(beta, room.other, ones)
            if checked and simd.any_less(beta, faded):
                return 0.0, False
            emitted, _ = _emission_at(observation, t, room, ones)
            ahead = simd.multiply(beta, emitted)
            beta = simd.matvec(ahead, room.transposed, 0, rows)
    out[0], out[1] = shift, rest
    return simd.total(alpha), True


@compiled
def _open(
    initial: Any,
    observation: Any,
    steps: int,
    peak: float,
    checked: bool,
    room: Any,
    ones: Any,
    wide: Any,
    out: Any,
) -> tuple[Any, Any, bool]:
    """Fill ``room.emission`` unless it is empty, and ``out`` as :func:`_approach` takes it.

    :return: alpha of the first step, the share below which a state fades, and whether all is sound.
    """
    num_states = observation.shape[1]
    room.row[:] = -1.0
    room.row[:num_states] = FADED
    faded = simd.load(room.row, 0, ones)
    room.row[:] = -np.inf
    shift, rest = open_logits(initial, observation[0], room.row)
    extreme = max(abs(peak), abs(shift))
    if not extreme <= LARGE:
        return ones, faded, False
    alpha = simd.exp(simd.load(room.row, 0, ones))
    if checked and simd.any_less(alpha, faded):
        return alpha, faded, False
    if len(room.emission) > 0:
        total, lost, most = _fill_emissions(observation, steps, room, ones, wide)
        shift, rest = add(shift, rest + lost, total)
        extreme = max(extreme, most)
    out[0], out[1], out[2] = shift, rest, extreme
    return alpha, faded, True


@compiled
def _value(out: Any, peak: float, steps: int, size: float) -> tuple[float, bool]:
    """The log-likelihood, from the sum of what is left, and whether it may be used."""
    high, low = times(peak, steps - 1)
    shift, rest = add(out[0], out[1], high)
    shift, rest = add(shift, rest, low)
    value = shift + (rest + math.log(size))
    return value, value - value == 0.0


@compiled
def sweep_both_ends(
    initial: Any,  # (K,)
    observation: Any,  # (T, K), of at least 4 steps
    steps: int,
    peak: float,
    checked: bool,
    room: Any,
    ones: Any,
    rows: Any,
    wide: Any,
    smoothed: Any,  # (T, K)
    moved: Any,  # (1, K, K)
    filtered: Any,  # (1, T, K), or (0, 0, 0): not wanted
) -> tuple[float, bool]:
    """Fill gamma, xi and the filtered probabilities; the arguments are as in :mod:`.scaled`.

    :param wide: any vector of as many lanes as exponentials are computed at once.
    :return: the log-likelihood, and whether this may be used.
    """
    if rows is None:
        return 0.0, False
    out = room.totals
    room.outer[:] = 0.0
    alpha, faded, is_sound = _open(
        initial, observation, steps, peak, checked, room, ones, wide, out
    )
    if not is_sound:
        return 0.0, False
    simd.store(room.alpha, 0, alpha)
    given = observation, steps, checked, room, ones, rows, faded
    alpha, beta, ahead, is_sound = _approach(*given, alpha, out, None)
    if not is_sound:
        return 0.0, False
    size, is_sound = _part(*given, (alpha, beta, ahead), out, smoothed, filtered)
    if not is_sound:
        return 0.0, False
    moves.write_counts(moved[0], room, simd.width_of(ones), rows)
    return _value(out, peak, steps, size)


@compiled
def meet_from_both_ends(
    initial: Any,
    observation: Any,
    steps: int,
    peak: float,
    checked: bool,
    room: Any,
    ones: Any,
    rows: Any,
    wide: Any,
) -> tuple[float, bool]:
    r"""The log-likelihood alone, :math:`\log \sum_k \alpha_t(k) \beta_t(k)` where both sweeps meet.

    The arguments and the result are those of :func:`sweep_both_ends`.
    """
    if rows is None:
        return 0.0, False
    out = room.totals
    alpha, faded, is_sound = _open(
        initial, observation, steps, peak, checked, room, ones, wide, out
    )
    if not is_sound:
        return 0.0, False
    given = observation, steps, checked, room, ones, rows, faded
    alpha, beta, _, is_sound = _approach(*given, alpha, out, True)
    size = simd.total(simd.multiply(alpha, beta))
    if not (is_sound and size > LEAST_OVERLAP):
        return 0.0, False
    return _value(out, peak, steps, size)
