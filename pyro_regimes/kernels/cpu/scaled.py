r"""The scaled forward-backward recursion, compiled for up to 128 states.

With :math:`E_t(k) = e^{b_t(k) - \max b_t}` and :math:`M_{ij} = e^{A_{ij} - \max A}`, and with the
first step :math:`\hat\alpha_1(k) \propto e^{\pi_k + b_1(k)}`,

.. math::
    \hat\alpha_t(j) \propto E_t(j) \sum_i \hat\alpha_{t-1}(i) M_{ij}, \qquad
    w_t(j) = E_t(j) \hat\beta_t(j), \qquad
    \hat\beta_{t-1}(i) \propto \sum_j M_{ij} w_t(j),

.. math::
    \gamma_t(k) = \hat\alpha_t(k) \hat\beta_t(k) / S_t, \qquad
    \xi_t(i, j) = \hat\alpha_t(i) M_{ij} w_{t+1}(j) / S_t, \qquad
    S_t = \sum_k \hat\alpha_t(k) \hat\beta_t(k).

Each of the two is scaled only when its sum leaves :math:`[2^{-64}, 2^{64}]`. The log-likelihood is
the sum of the logarithms of the scales and of the numbers subtracted from the logits.

**Error bound.** A state whose share of :math:`\hat\alpha_t` falls below ``FADED`` is set to 0
(it *fades*). Later data may make it likely again. Its posterior probability would be its share
times its :math:`\hat\beta_t`, over :math:`S_t`: at most ``FADED`` :math:`\cdot 2^{64} / S_t`. If
:math:`S_t` is at least ``LEAST_OVERLAP`` at every t, and no state has faded from
:math:`\hat\beta` as well, the loss is less than 1e-30. If states have faded only from
:math:`\hat\beta`, the same bound holds with the roles exchanged. If states have faded from both, as
they do in a chain from left to right, then what :math:`\hat\beta_t` lacks is at most

.. math:: e_{t-1}(i) = \sum_j M_{ij} E_t(j) e_t(j) + F, \qquad e_T = 0

with F for ``FADED``, scaled as :math:`\hat\beta_t` is. As long as its sum is at most
:math:`2^{64}`, the bound holds for states that fade from :math:`\hat\alpha`. The paths that are
lost on the way back have a probability of at most
:math:`\sum_k (\hat\alpha_1(k) + F) e_1(k) / S_1`, which must be less than ``_NEGLIGIBLE``.
Otherwise the sequence is reported, and recomputed in log space. Unreachable states do not count as
faded. If every entry of M is at least ``_MIXING``, each state is refilled at the next step, and no
check is needed. The forward sweep alone does not know :math:`S_t`. If a state has faded, it is
repeated with ``FADED`` in place of 0, which is too much where 0 is too little. If both
log-likelihoods agree, the exact one is between them. Otherwise the sequence is reported. The same
holds for the filtered probabilities :math:`\hat\alpha_t(k) / \sum_j \hat\alpha_t(j)` at every t.

An entry of M below ``NOTHING`` (:mod:`.moves`) counts as 0 in these products. It contributes less
than 1e-268, which is negligible next to a share of ``FADED``. It would also make subnormal numbers,
which are ten times slower on a processor. EM produces many such entries.

**Large logits.** Each step's logits are relative to their largest, so none is too large. Those of
the first step are sums of two logits, which are added without rounding (:func:`_open`). The
log-likelihood is a sum of numbers as large as the logits; its rounding error is accumulated
separately. If even that is not exact, beyond ``LARGE``, the sequence is reported.

**From both ends.** Where A is constant in time, :mod:`.cpu.both_ends` makes both sweeps at once, in
two thirds of the time. Those here are for sequences in which a state fades, and for few steps.

**Sequences.** :mod:`.cpu.chain` describes how S sequences lie in N rows.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Callable

import numpy as np

from pyro_regimes.kernels.cpu import moves, simd
from pyro_regimes.kernels.cpu.both_ends import meet_from_both_ends, sweep_both_ends
from pyro_regimes.kernels.cpu.chain import array_of, end_of, longest_of
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.scales import (
    FADED,
    HIGH,
    LARGE,
    LEAST_OVERLAP,
    LOW,
    Room,
    add,
    open_logits,
)

MAX_STATES = 128

_NEGLIGIBLE = 1e-30
_MIXING = 1e-100
_FEW = 8  # steps: shorter sequences are swept once forwards and once back
_REMEMBERED = 262_144  # numbers: beyond these, to allocate them takes longer than to compute them
_AGREED, _AGREED_SINGLE = 1e-13, 2e-7  # by how much filtered probabilities may differ


@compiled
def _drop_faded(
    row: Any,
    before: Any,
    initial: Any,
    transition: Any,
    observation: Any,
    t: int,
    floor: float,
    rows: Any,
) -> bool:
    """Set faded states to 0, and those that could be reached to ``floor``.

    :param before: the states' shares before the transition.
    :return: whether one of them could be reached.
    """
    num_states = len(observation)
    reached = False
    for j in range(num_states):
        if row[j] < FADED:
            row[j] = 0.0
            if observation[j] == -np.inf or (reached and floor == 0.0):
                continue
            if _is_reached(j, before, initial, transition, t, rows):
                reached, row[j] = True, floor
    return reached


@compiled
def _could_be_reached(
    state: Any, before: Any, logits: Any, room: Any, rows: Any, faded: Any
) -> bool:
    """Whether a transition leads to a faded state, where M has an entry for each that is possible.

    :param logits: the observation logits.
    """
    zero, one = simd.splat(0.0, state), simd.splat(1.0, state)
    possible = moves.forwards(simd.where_greater(one, before, zero), room, rows)
    share = simd.where_greater(faded, possible, zero)
    return simd.any_less(state, simd.where_greater(share, logits, simd.splat(-np.inf, state)))


@compiled
def _is_reached(j: int, before: Any, initial: Any, transition: Any, t: int, rows: Any) -> bool:
    """Whether a transition, or the start, leads to state j."""
    if t == 0:
        return bool(initial[j] > -np.inf)
    first, last = moves.origins(j, len(before), rows)
    for i in range(first, last):
        if before[i] > 0.0 and transition[i, j] > -np.inf:
            return True
    return False


@cache
def sweep(num_states: int, has_two_diagonals: bool = False) -> Callable[..., None]:
    """The kernel for at least so many states, at most :data:`MAX_STATES`.

    :param has_two_diagonals: whether the chains go from left to right; see :mod:`.moves`.
    """
    width = max(4, 1 << (num_states - 1).bit_length())
    if has_two_diagonals:
        return _kernel(width, 0)
    few = 3 * width // 4
    return _kernel(width, few if num_states <= few else width)


@cache
def _kernel(width: int, rows: int) -> Callable[..., None]:
    return _make_sweep(width, rows)


@compiled
def _sweep_forwards(
    initial: Any,  # (K,)
    transition: Any,  # (1 or T-1, K, K)
    observation: Any,  # (T, K)
    steps: int,
    peak: float,
    is_whole: bool,
    checked: bool,
    keep: bool,
    floor: float,
    room: Any,
    ones: Any,
    rows: Any,  # of the vectors' lanes, those of states: see simd.matvec
    faded: Any,
) -> tuple[float, bool, bool, float]:
    """Fill ``room.alpha``, and ``room.emission`` unless it is empty.

    :param peak: what was subtracted from the transition logits, where A does not vary in time.
    :param is_whole: whether M has an entry for every possible transition.
    :param checked: whether to look for states that have faded.
    :param keep: whether every alpha is kept for later, or only the last two.
    :param floor: what states that have faded are set to.
    :return: the log-likelihood; whether the sequence is impossible; whether a state that can be
        reached has faded; and the size of the largest number that was added to the log-likelihood.
    """
    width, num_states = simd.width_of(ones), observation.shape[1]
    varying = len(transition) > 1
    state, suspect, here = ones, False, 0
    shift, rest, extreme = 0.0, 0.0, 0.0 if varying else abs(peak)
    for t in range(steps):
        if t == 0:
            room.row[:] = -np.inf
            best, rest = open_logits(initial, observation[0], room.row)
            logits = simd.load(room.row, 0, ones)
        else:
            logits = simd.load_row(observation, t * num_states, num_states, -np.inf, ones)
            best = simd.largest(logits)
        if best == -np.inf:
            simd.store(room.row, 0, logits)
            for k in range(num_states):  # NaN hides behind the padding
                if room.row[k] != room.row[k]:
                    return np.nan, False, suspect, extreme
            return -np.inf, True, suspect, extreme
        extreme = max(extreme, abs(best))
        if t > 0:
            shift, rest = add(shift, rest, best)
            logits = simd.subtract(logits, simd.splat(best, ones))
        else:
            shift = best
        emitted = simd.exp(logits)
        before, here = here, t * width if keep else (t & 1) * width
        if t == 0:
            state = emitted
        else:
            if varying:
                peak, _, is_whole = moves.fill(transition[t - 1], room, width, rows)
                extreme = max(extreme, abs(peak))
            shift, rest = add(shift, rest, peak)
            state = simd.multiply(moves.forwards(state, room, rows), emitted)
        if (checked or varying) and simd.any_less(state, faded):
            if floor == 0.0 and (suspect or (t > 0 and is_whole)):
                if not suspect:
                    last = simd.load(room.alpha, before, ones)
                    suspect = _could_be_reached(state, last, logits, room, rows, faded)
                state = simd.unless_less(state, faded)
            else:
                simd.store(room.row, 0, state)
                suspect |= _drop_faded(
                    room.row,
                    room.alpha[before : before + width],
                    initial,
                    transition[t - 1 if varying else 0],
                    observation[t],
                    t,
                    floor,
                    rows,
                )
                state = simd.load(room.row, 0, ones)
        size = simd.total(state)
        if size < LOW or size > HIGH:
            if size == 0.0:
                return -np.inf, True, suspect, extreme
            state = simd.multiply(state, simd.splat(1.0 / size, ones))
            shift, rest = add(shift, rest, math.log(size))
        simd.store(room.alpha, here, state)
        if len(room.emission) > 0:
            simd.store(room.emission, here, emitted)
    return shift + (rest + math.log(simd.total(state))), False, suspect, extreme


@compiled
def _sweep_backwards(
    transition: Any,  # (1 or T-1, K, K)
    observation: Any,  # (T, K)
    steps: int,
    suspect: bool,
    room: Any,
    ones: Any,
    rows: Any,
    faded: Any,
    smoothed: Any,  # (T, K)
    moved: Any,  # (1 or T-1, K, K)
) -> bool:
    """Fill gamma and xi from ``room.alpha``.

    :param suspect: whether a state that can be reached has faded on the way forwards.
    :return: whether both have to be computed again in log space.
    """
    width, num_states = simd.width_of(ones), observation.shape[1]
    varying = len(transition) > 1
    beta = ahead = ones
    room.outer[:] = 0.0
    doubtful, loss = False, 0.0  # whether a state has faded on the way back, and e is in room.other
    for t in range(steps - 1, -1, -1):
        state = simd.load(room.alpha, t * width, ones)
        overlap = simd.total(simd.multiply(state, beta))
        if overlap < LEAST_OVERLAP:
            return True
        if doubtful and t == 0:
            reached = simd.add(state, simd.splat(FADED, ones))
            loss = simd.total(simd.multiply(reached, simd.load(room.other, 0, ones))) / overlap
        state = simd.multiply(state, simd.splat(1.0 / overlap, ones))
        simd.store_row(smoothed, t * num_states, num_states, simd.multiply(state, beta))
        if t + 1 < steps:
            moves.count(state, ahead, room, rows)
            if varying:
                moves.write_counts(moved[t], room, width, rows)
                room.outer[:] = 0.0
        if t == 0:
            break
        size = simd.total(beta)
        if size < LOW or size > HIGH:
            # Through memory, so that the compiler does not turn the rare branch into a selection,
            # for which each step would wait for a division.
            share = simd.splat(1.0 / size, ones)
            simd.store(room.row, 0, simd.multiply(beta, share))
            beta = simd.load(room.row, 0, ones)
            if doubtful:
                missing = simd.multiply(simd.load(room.other, 0, ones), share)
                simd.store(room.other, 0, missing)
        if len(room.emission) > 0:
            emitted = simd.load(room.emission, t * width, ones)
        else:
            logits = simd.load_row(observation, t * num_states, num_states, -np.inf, ones)
            best = simd.largest(logits)
            emitted = simd.exp(simd.subtract(logits, simd.splat(best, ones)))
        ahead = simd.multiply(beta, emitted)
        if varying:
            moves.fill(transition[t - 1], room, width, rows)
        beta = moves.backwards(ahead, room, rows)
        if suspect and (doubtful or simd.any_less(beta, faded)):
            if not doubtful:
                room.other[:] = 0.0
                doubtful = True
            missing = simd.load(room.other, 0, ones)
            if not simd.total(missing) <= HIGH:
                return True
            missing = simd.multiply(missing, emitted)
            missing = moves.backwards(missing, room, rows)
            simd.store(room.other, 0, simd.add(missing, simd.splat(FADED, ones)))
    if not varying and steps > 1:
        moves.write_counts(moved[0], room, width, rows)
    return doubtful and not loss < _NEGLIGIBLE  # NaN is not


@compiled
def _filter_into(filtered: Any, alpha: Any, steps: int, ones: Any) -> None:
    """Fill the filtered probabilities of one sequence ``(T, K)``: each alpha over its sum."""
    width, num_states = simd.width_of(ones), filtered.shape[1]
    filtered[steps:] = 0.0
    for t in range(steps):
        state = simd.load(alpha, t * width, ones)
        share = simd.splat(1.0 / simd.total(state), ones)
        simd.store_row(filtered, t * num_states, num_states, simd.multiply(state, share))


@compiled
def _is_filtered(filtered: Any, alpha: Any, steps: int, width: int) -> bool:
    """Whether filtered probabilities of one sequence ``(T, K)`` are those of another alpha."""
    num_states = filtered.shape[1]
    agreed = _AGREED if filtered.itemsize == 8 else _AGREED_SINGLE
    for t in range(steps):
        size = 0.0
        for k in range(num_states):
            size += alpha[t * width + k]
        for k in range(num_states):
            if not abs(alpha[t * width + k] / size - filtered[t, k]) <= agreed:
                return False
    return True


def _make_sweep(width: int, rows: int) -> Callable[..., None]:
    lanes = max(width, 8)

    @compiled
    def run(
        initial: Any,  # (N or 1, K)
        transition: Any,  # (N or 1, 1 or T-1, K, K)
        observation: Any,  # (N, T, K)
        lengths: Any,  # (S,)
        begins: Any,  # (S,)
        first: int,
        last: int,
        log_likelihood: Any,  # (S,)
        smoothed: Any,  # (N, T, K), or (0, 0, 0): forward only
        moved: Any,  # (S, 1 or T-1, K, K)
        redo: Any,  # (S,)
        filtered: Any,  # (N, T, K), 0 on padding; or (0, 0, 0)
        unfiltered: Any,  # (S,): filled with the sequences that are left out of it
    ) -> None:
        num_steps, num_states = longest_of(lengths, first, last), observation.shape[2]
        each = len(lengths) // max(1, len(observation))
        both, filtering = len(smoothed) > 0, len(filtered) > 0
        keep = both or filtering
        varying = transition.shape[1] > 1
        # Of long sequences E is computed one by one, and again on the way back.
        remember = (both or not keep) and num_steps * width <= _REMEMBERED
        room = Room(
            np.empty((num_steps if keep else 2) * width),
            np.empty(num_steps * width + 8 if remember else 0),
            np.zeros(width * width),
            np.zeros(width * width),
            np.empty(width * width),
            np.empty(width),
            np.full(width, -1.0),
            np.empty(3),
        )
        room.other[:num_states] = FADED
        faded, ones = simd.load(room.other, 0, width), simd.splat(1.0, width)
        wide = simd.splat(0.0, lanes)
        states = simd.rows_of(rows)
        filled, peak, is_whole, checked = -1, 0.0, True, True
        for n in range(first, last):
            row, at, steps = n // each, begins[n], lengths[n]
            end = end_of(begins, n, each, observation.shape[1])
            data = observation[row, at : at + steps]
            own = row if len(transition) > 1 else 0
            slices = transition[own]
            if not varying and steps > 1 and own != filled:
                peak, entry, is_whole = moves.fill(slices[0], room, width, states)
                checked, filled = not entry >= _MIXING, own
            start = array_of(initial, row)
            given = start, data, steps, peak, checked, room, ones, states, wide
            if not keep and not varying and steps >= _FEW:
                value, is_sound = meet_from_both_ends(*given)
                if is_sound:
                    log_likelihood[n], redo[n] = value, False
                    continue
            if both and not varying and steps >= _FEW:
                out = smoothed[row, at:end], moved[n]
                value, is_sound = sweep_both_ends(
                    *given, *out, filtered[row : row + 1, at:end]
                )
                if is_sound:
                    log_likelihood[n], redo[n] = value, False
                    smoothed[row, at + steps : end] = 0.0
                    if filtering:
                        unfiltered[n] = False
                        filtered[row, at + steps : end] = 0.0
                    continue
            args = start, slices, data, steps, peak, is_whole, checked, keep
            value, gone, suspect, extreme = _sweep_forwards(*args, 0.0, room, ones, states, faded)
            log_likelihood[n] = value
            is_number = value == value and not gone
            if filtering:
                unfiltered[n] = not is_number
                if is_number:
                    _filter_into(filtered[row, at:end], room.alpha, steps, ones)
            if both:
                smoothed[row, (at if gone else at + steps) : end] = 0.0
                moved[n] = 0.0
                redo[n] = suspect if gone else extreme * steps > LARGE
                if value != value:
                    smoothed[row, at : at + steps] = np.nan
                    moved[n, : steps - 1] = np.nan  # one slice: that, unless there is no move
                    redo[n] = False
                elif not gone and not redo[n]:
                    out = smoothed[row, at:end], moved[n]
                    redo[n] = _sweep_backwards(
                        slices, data, steps, suspect, room, ones, states, faded, *out
                    )
            if suspect and is_number and (filtering or not both):
                more, _, _, _ = _sweep_forwards(*args, FADED, room, ones, states, faded)
                suspect = not more - value <= _AGREED * max(1.0, abs(value))
                if filtering:
                    found = filtered[row, at:end]
                    unfiltered[n] = suspect or not _is_filtered(found, room.alpha, steps, width)
            if not both:
                redo[n] = suspect or extreme * steps > LARGE

    return run
