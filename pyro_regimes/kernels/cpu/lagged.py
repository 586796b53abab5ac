r"""The recursions of :mod:`pyro_regimes.kernels.lagged_reference`, scaled and compiled.

With :math:`E_t = e^{b_t - \max b_t}` and :math:`M_{ij} = e^{A_{ij} - \max A}`, and with i the last
state of r,

.. math::
    \hat\alpha_t(r, j) \propto M_{ij} E_t(r, j) \sum_o \hat\alpha_{t-1}(o, r), \qquad
    n_{t-1}(r) \propto \sum_j M_{ij} E_t(r, j) \, n_t(r', j),

.. math::
    \gamma_t(o, r) = \hat\alpha_t(o, r) \, n_t(r) / S_t,

where (r', j) is (r, j) without its oldest state. What follows a tuple does not depend on its oldest
state, so n has :math:`K^p` entries. The expected transitions are sums of gamma, because a tuple
contains the state before its last.

**Where this is exact.** :math:`\hat\alpha_t` sums to 1, the largest entry of n is 1, and an entry
of either that is possible but below ``LEAST`` makes the sequence be reported; so does
:math:`S_t <` ``LEAST_OVERLAP``. Otherwise no sum has lost a term that matters in float64. The
caller computes sequences that are reported in log space.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled

LEAST = 1e-150
LEAST_OVERLAP = 1e-100


@compiled
def _tile(probs: Any, t: int, out: Any) -> None:
    """M for each tuple (r, j) that is entered at t; nothing if A is the same at each step."""
    matrix, num_states = probs[(t - 1) % len(probs)], probs.shape[-1]
    if t == 1 or len(probs) > 1:
        for s in range(len(out)):
            out[s] = matrix[(s // num_states) % num_states, s % num_states]


@compiled
def _has_faded(state: Any, kept: Any, moves: Any, logits: Any, num_states: int) -> bool:
    """Whether a tuple that is possible has a share below ``LEAST``."""
    for s in range(len(state)):
        if state[s] < LEAST and logits[s] > -np.inf and kept[s // num_states] > 0.0:
            if moves[s] > 0.0:
                return True
    return False


@compiled
def _forwards(
    initial: Any,  # (S,)
    probs: Any,  # (1 or T-1, K, K): M
    observation: Any,  # (T, S)
    emission: Any,  # (T, S)
    peaks: Any,  # (T,)
    moves: Any,  # (S,)
    kept: Any,  # (K^p,)
    alpha: Any,  # (T or 2, S)
) -> tuple[float, bool]:
    """:return: the log-likelihood but for what A is divided by, and whether it is exact."""
    num_states, num_steps = probs.shape[-1], len(observation)
    num_tuples, num_kept = len(initial), len(kept)
    value = 0.0
    for t in range(num_steps):
        now = alpha[t % len(alpha)]
        if t == 0:
            peak = np.max(initial + observation[0])
            if not abs(peak) < np.inf:
                return 0.0, False
            for s in range(num_tuples):
                logit = initial[s] + observation[0, s]
                now[s] = math.exp(logit - peak)
                if now[s] < LEAST and logit > -np.inf:
                    return 0.0, False
            value = peak
        else:
            _tile(probs, t, moves)
            before = alpha[(t - 1) % len(alpha)]
            kept[:] = before[:num_kept]
            for o in range(1, num_states):
                for r in range(num_kept):
                    kept[r] += before[o * num_kept + r]
            for r in range(num_kept):
                for j in range(num_states):
                    s = r * num_states + j
                    now[s] = kept[r] * moves[s] * emission[t, s]
            value += peaks[t]
        total, least = 0.0, np.inf
        for s in range(num_tuples):
            total += now[s]
            least = min(least, now[s])
        if not (0.0 < total < np.inf):
            return 0.0, False
        if t > 0 and least < LEAST * total:
            scaled = now / total
            if _has_faded(scaled, kept, moves, observation[t], num_states):
                return 0.0, False
        value += math.log(total)
        inverse = 1.0 / total
        for s in range(num_tuples):
            now[s] *= inverse
    return value, abs(value) < np.inf


@compiled
def _backwards(
    probs: Any,  # (1 or T-1, K, K)
    observation: Any,  # (T, S)
    emission: Any,  # (T, S)
    moves: Any,  # (S,)
    ahead: Any,  # (2, K^p): n, and that of the step before
    alpha: Any,  # (T, S)
    smoothed: Any,  # (T, S), filled
    moved: Any,  # (1 or T-1, K, K), filled
) -> bool:
    """:return: whether gamma and the transitions are exact."""
    num_states, num_kept, num_tuples = probs.shape[-1], ahead.shape[1], len(moves)
    after, earlier = ahead[0], ahead[1]
    after[:] = 1.0
    moved[:] = 0.0
    for t in range(len(observation) - 1, -1, -1):
        overlap = 0.0
        for o in range(num_states):
            for r in range(num_kept):
                share = alpha[t, o * num_kept + r] * after[r]
                smoothed[t, o * num_kept + r] = share
                overlap += share
        if not overlap >= LEAST_OVERLAP:
            return False
        inverse = 1.0 / overlap
        for s in range(num_tuples):
            smoothed[t, s] *= inverse
        if t == 0:
            break
        sums = moved[(t - 1) % len(moved)]
        for s in range(num_tuples):
            sums[(s // num_states) % num_states, s % num_states] += smoothed[t, s]
        if len(probs) > 1:
            _tile(probs, t, moves)
        largest, least = 0.0, np.inf
        for r in range(num_kept):
            total = 0.0
            for j in range(num_states):
                s = r * num_states + j
                total += moves[s] * emission[t, s] * after[s % num_kept]
            earlier[r] = total
            largest = max(largest, total)
            least = min(least, total)
        if not largest > 0.0:
            return False
        if least < LEAST * largest:
            for r in range(num_kept):
                if earlier[r] < LEAST * largest:
                    for s in range(r * num_states, (r + 1) * num_states):
                        follows = after[s % num_kept] > 0.0
                        if moves[s] > 0.0 and follows and observation[t, s] > -np.inf:
                            return False
        inverse = 1.0 / largest
        for r in range(num_kept):
            after[r] = earlier[r] * inverse
    return True


@compiled
def sweep(
    initial: Any,  # (N or 1, S)
    probs: Any,  # (N or 1, 1 or T-1, K, K): M
    subtracted: Any,  # (N or 1,): the sum of the logarithms of what A is divided by
    observation: Any,  # (N, T, S)
    emission: Any,  # (N, T, S): exp(observation - peaks)
    peaks: Any,  # (N, T): the largest of each step's logits
    first: int,
    last: int,
    log_likelihood: Any,  # (N,)
    filtered: Any,  # (N, T, S), or (0, 0, 0): not wanted
    smoothed: Any,  # (N, T, S), or (0, 0, 0): forward only
    moved: Any,  # (N, 1 or T-1, K, K)
    exact: Any,  # (N,): filled; the results of others are to be computed in log space
) -> None:
    """All results of the sequences from ``first`` to ``last``."""
    num_steps, num_tuples = observation.shape[1:]
    num_kept = num_tuples // probs.shape[-1]
    moves, kept = np.empty(num_tuples), np.empty(num_kept)
    ahead = np.empty((2, num_kept))
    keep = len(smoothed) > 0 or len(filtered) > 0
    room = np.empty((num_steps if keep else 2, num_tuples))
    for n in range(first, last):
        start, matrices = initial[n % len(initial)], probs[n % len(probs)]
        given = observation[n], emission[n]
        value, exact[n] = _forwards(start, matrices, *given, peaks[n], moves, kept, room)
        log_likelihood[n] = value + subtracted[n % len(subtracted)]
        exact[n] = exact[n] and abs(log_likelihood[n]) < np.inf
        if exact[n] and len(filtered) > 0:
            filtered[n] = room
        if exact[n] and len(smoothed) > 0:
            out = smoothed[n], moved[n]
            exact[n] = _backwards(matrices, *given, moves, ahead, room, *out)
