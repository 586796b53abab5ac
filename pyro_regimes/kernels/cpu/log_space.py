r"""The recursions in log space, compiled for any number of states.

They lose nothing however far apart the states drift, and cost an exponential where the scaled sweep
costs a multiplication. They serve the sequences that :mod:`.scaled`, :mod:`.filtering` and
:mod:`.viterbi` report, chains with more states than the scaled sweep takes, and the tangents, of
which second derivatives are made. Forwards, in logarithms,

.. math::
    \alpha_t(j) = b_t(j) + \log \sum_i e^{\alpha_{t-1}(i) + A_{ij}}, \qquad
    p(q_{t-1} = i \mid q_t = j, x_1, \dots, x_{t-1}) = e^{\alpha_{t-1}(i) + A_{ij}} \Big/
        \sum_{i'} e^{\alpha_{t-1}(i') + A_{i'j}},

and backwards, with these shares q(i | j),

.. math::
    \xi_{t-1}(i, j) = q_t(i \mid j) \, \gamma_t(j), \qquad
    \gamma_{t-1}(i) = \sum_j \xi_{t-1}(i, j).

So each :math:`\gamma_t` sums to 1 and is the marginal of :math:`\xi`, to rounding, whatever the
logits. :math:`\alpha` is kept without rounding beside large logits (:mod:`.exact_sums`), as a
share is the exponential of a difference: pairs of numbers first, and parts where those do not
reach. The results are those of the exact sum over paths, wherever its logits and their sums are
finite in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.exact_sums import (
    PAIR,
    arrive_in_pairs,
    clear,
    difference,
    plus,
    put,
    shares_of,
    width_of,
)
from pyro_regimes.kernels.cpu.jit import compiled


@compiled
def _total(values: Any) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


@compiled
def _reach(reach: float, row: Any) -> float:
    """The larger of ``reach`` and the size of a number, if that is finite."""
    size = abs(row[0])
    return size if reach < size < np.inf else reach


@compiled
def _arrive(before: Any, slice_: Any, new: int, terms: Any, shares: Any, room: Any) -> int:
    r"""The terms :math:`\alpha(i) + A_{ij}` of one new state j, and their shares of the largest."""
    if terms.shape[1] == PAIR:
        return arrive_in_pairs(before, slice_, new, terms, shares)
    for old in range(len(terms)):
        plus(terms[old], before[old], slice_[old, new])
    return shares_of(terms, shares, room)


@compiled
def _forward(
    initial: Any,  # (K,)
    transition: Any,  # (1 or T-1, K, K)
    observation: Any,  # (T, K)
    steps: int,
    alpha: Any,  # (T, K, width), filled; or (2, K, width), of which the last two steps' are left
    terms: Any,  # (K, width)
    shares: Any,  # (K,)
) -> tuple[float, float]:
    """:return: the log-likelihood, and the largest of the numbers that were added up."""
    num_states = observation.shape[1]
    room = np.empty(terms.shape[1])
    reach = 0.0
    for t in range(steps):
        here, before = t % len(alpha), (t - 1) % len(alpha)
        possible = False
        for j in range(num_states):
            now = alpha[here, j]
            if t == 0:
                clear(now)
                plus(now, now, initial[j])
            else:
                slice_ = transition[t - 1 if len(transition) > 1 else 0]
                best = _arrive(alpha[before], slice_, j, terms, shares, room)
                if best < 0:
                    put(now, -np.inf)
                    continue
                reach = _reach(reach, terms[best])
                plus(now, terms[best], math.log(_total(shares)))
            reach = _reach(reach, now)
            plus(now, now, observation[t, j])
            reach = _reach(reach, now)
            possible |= now[0] != -np.inf
        if not possible:
            return -np.inf, reach
    last = alpha[(steps - 1) % len(alpha)]
    best = shares_of(last, shares, room)
    plus(room, last[best], math.log(_total(shares)))
    return room[0], reach


@compiled
def _filled(
    initial: Any, transition: Any, observation: Any, steps: int, alpha: Any, shares: Any
) -> tuple[float, Any]:
    """The log-likelihood and alpha, in pairs where they reach."""
    num_states = observation.shape[1]
    value, reach = _forward(
        initial, transition, observation, steps, alpha, np.empty((num_states, PAIR)), shares
    )
    width = width_of(reach, steps)
    if width == PAIR:
        return value, alpha
    wide = np.empty((len(alpha), num_states, width))
    value, _ = _forward(
        initial, transition, observation, steps, wide, np.empty((num_states, width)), shares
    )
    return value, wide


@compiled
def sweep(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    first: int,
    last: int,
    log_likelihood: Any,  # (N,)
    smoothed: Any,  # (N, T, K), or (0, 0, 0): forward only
    moved: Any,  # (N, 1 or T-1, K, K)
    redo: Any,  # (N,): the sequences to work on
) -> None:
    """The E-step; arguments as those of the scaled sweep."""
    num_steps, num_states = observation.shape[1], observation.shape[2]
    both = len(smoothed) > 0
    pairs_of_alpha = np.empty((num_steps if both else 2, num_states, PAIR))
    shares, gamma, earlier = np.empty(num_states), np.empty(num_states), np.empty(num_states)
    pairs = np.empty((num_states, num_states))  # in float64, whatever the result's dtype
    for n in range(first, last):
        if not redo[n]:
            continue
        steps = lengths[n]
        slices = transition[n if len(transition) > 1 else 0]
        start = initial[n if len(initial) > 1 else 0]
        value, alpha = _filled(start, slices, observation[n], steps, pairs_of_alpha, shares)
        log_likelihood[n] = value
        if not both:
            continue
        smoothed[n] = 0.0
        moved[n] = 0.0
        if value == -np.inf:
            continue
        if value != value:
            smoothed[n, :steps] = np.nan
            moved[n, : steps - 1] = np.nan  # of one slice, that one, unless there is no move
            continue
        terms, room = np.empty(alpha.shape[1:]), np.empty(alpha.shape[2])
        pairs[:] = 0.0
        shares_of(alpha[steps - 1], gamma, room)
        for t in range(steps - 1, -1, -1):
            size = _total(gamma)  # after the first step 1, to rounding
            for k in range(num_states):
                gamma[k] /= size
                smoothed[n, t, k] = gamma[k]
            if t == 0:
                break
            slice_ = slices[t - 1 if len(slices) > 1 else 0]
            if len(slices) > 1:
                pairs[:] = 0.0
            earlier[:] = 0.0
            for j in range(num_states):
                if gamma[j] == 0.0:
                    continue
                _arrive(alpha[t - 1], slice_, j, terms, shares, room)
                weight = gamma[j] / _total(shares)
                for i in range(num_states):
                    pairs[i, j] += weight * shares[i]
                    earlier[i] += weight * shares[i]
            if len(slices) > 1:
                moved[n, t - 1] = pairs
            gamma[:] = earlier
        if len(slices) == 1 and steps > 1:
            moved[n, 0] = pairs


@compiled
def tangent(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    along_transition: Any,  # (N, 1 or T-1, K, K)
    along_observation: Any,  # (N, T, K)
    first: int,
    last: int,
    smoothed: Any,  # (N, T, K)
    moved: Any,  # (N, 1 or T-1, K, K)
) -> None:
    r"""Derivatives of gamma and xi when A moves along :math:`\dot A` and b along :math:`\dot b`.

    The score of a path is :math:`s(q) = \sum_t \dot b_t(q_t) + \sum_t \dot A_{q_t q_{t+1}}`. With
    the expected score of what came before,

    .. math::
        \bar u_t(j) = \sum_i q_t(i \mid j) (u_{t-1}(i) + \dot A_{ij}), \qquad
        u_t(j) = \dot b_t(j) + \bar u_t(j),

    which is how :math:`\alpha_t` moves, the derivatives of the shares are covariances with the
    score,

    .. math::
        \dot q_t(i \mid j) = q_t(i \mid j) (u_{t-1}(i) + \dot A_{ij} - \bar u_t(j)), \\
        \dot\xi_{t-1}(i, j) = \dot q_t(i \mid j) \gamma_t(j) + q_t(i \mid j) \dot\gamma_t(j), \qquad
        \dot\gamma_{t-1}(i) = \sum_j \dot\xi_{t-1}(i, j).

    Only differences of u matter; they are kept near 0, as u grows with T.
    """
    num_steps, num_states = observation.shape[1], observation.shape[2]
    pairs_of_alpha = np.empty((num_steps, num_states, PAIR))
    score = np.empty((num_steps, num_states))  # u
    shares = np.empty(num_states)
    gamma, earlier = np.empty(num_states), np.empty(num_states)
    turn, turn_earlier = np.empty(num_states), np.empty(num_states)  # of gamma
    total = np.empty((num_states, num_states))
    for n in range(first, last):
        steps = lengths[n]
        slices = transition[n if len(transition) > 1 else 0]
        start = initial[n if len(initial) > 1 else 0]
        smoothed[n] = 0.0
        moved[n] = 0.0
        value, alpha = _filled(start, slices, observation[n], steps, pairs_of_alpha, shares)
        if value == -np.inf:
            continue
        if value != value:
            smoothed[n, :steps] = np.nan
            moved[n, : steps - 1] = np.nan
            continue
        terms, room = np.empty(alpha.shape[1:]), np.empty(alpha.shape[2])
        for t in range(steps):
            for j in range(num_states):
                score[t, j] = along_observation[n, t, j]
                if t > 0 and alpha[t, j, 0] > -np.inf:
                    slice_ = slices[t - 1 if len(slices) > 1 else 0]
                    along = along_transition[n, t - 1 if len(slices) > 1 else 0]
                    _arrive(alpha[t - 1], slice_, j, terms, shares, room)
                    score[t, j] += _mean_score(shares, score[t - 1], along, j)
            best = shares_of(alpha[t], shares, room)
            centre = score[t, best]
            for j in range(num_states):
                score[t, j] -= centre

        total[:] = 0.0
        shares_of(alpha[steps - 1], gamma, room)
        size = _total(gamma)
        mean = 0.0
        for k in range(num_states):
            gamma[k] /= size
            if gamma[k] > 0.0:
                mean += gamma[k] * score[steps - 1, k]
        for k in range(num_states):
            turn[k] = gamma[k] * (score[steps - 1, k] - mean) if gamma[k] > 0.0 else 0.0
        for t in range(steps - 1, -1, -1):
            for k in range(num_states):
                smoothed[n, t, k] = turn[k]
            if t == 0:
                break
            here = t - 1 if len(slices) > 1 else 0
            slice_, along = slices[here], along_transition[n, here]
            if len(slices) > 1:
                total[:] = 0.0
            earlier[:] = 0.0
            turn_earlier[:] = 0.0
            for j in range(num_states):
                if gamma[j] == 0.0:
                    continue
                _arrive(alpha[t - 1], slice_, j, terms, shares, room)
                size = _total(shares)
                mean = _mean_score(shares, score[t - 1], along, j)
                for i in range(num_states):
                    share = shares[i] / size
                    if share > 0.0:
                        centred = score[t - 1, i] + along[i, j] - mean
                        change = share * (turn[j] + gamma[j] * centred)
                        earlier[i] += share * gamma[j]
                        turn_earlier[i] += change
                        total[i, j] += change
            gamma[:] = earlier
            turn[:] = turn_earlier
            if len(slices) > 1:
                moved[n, t - 1] = total
        if len(slices) == 1 and steps > 1:
            moved[n, 0] = total


@compiled
def _mean_score(shares: Any, before: Any, along: Any, new: int) -> float:
    """The mean of ``before_i + along_ij``, which may be anything where a share is 0."""
    mean = 0.0
    for old in range(len(shares)):
        if shares[old] > 0.0:
            mean += shares[old] * (before[old] + along[old, new])
    return mean / _total(shares)


@compiled
def filter_sweep(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    first: int,
    last: int,
    logits: Any,  # (N, T, K)
    redo: Any,  # (N,): the sequences to work on
) -> None:
    """The filter's logarithms; see :func:`.cpu.filtering.filter_sweep`."""
    num_steps, num_states = observation.shape[1], observation.shape[2]
    pairs_of_alpha = np.empty((num_steps, num_states, PAIR))
    shares = np.empty(num_states)
    for n in range(first, last):
        if not redo[n]:
            continue
        steps = lengths[n]
        slices = transition[n if len(transition) > 1 else 0]
        start = initial[n if len(initial) > 1 else 0]
        _, alpha = _filled(start, slices, observation[n], steps, pairs_of_alpha, shares)
        room = np.empty(alpha.shape[2])
        best = 0
        for t in range(num_steps):
            if t >= steps or best < 0:
                for k in range(num_states):
                    logits[n, t, k] = -np.inf if best < 0 else logits[n, steps - 1, k]
                continue
            best = shares_of(alpha[t], shares, room)
            size = math.log(_total(shares)) if best >= 0 else 0.0
            for k in range(num_states):
                logits[n, t, k] = -np.inf
                if not alpha[t, k, 0] == -np.inf:
                    logits[n, t, k] = difference(alpha[t, k], alpha[t, best], room) - size


@compiled
def origins(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    sequences: Any,  # (M,): which of them
    first: int,
    last: int,
    shares: Any,  # (M, T-1, K, K), of the old states (last) of each new one
) -> None:
    r"""The shares :math:`q_t(i \mid j)`, by which posterior paths are drawn backwards."""
    num_steps, num_states = observation.shape[1], observation.shape[2]
    pairs_of_alpha = np.empty((num_steps, num_states, PAIR))
    for m in range(first, last):
        n = sequences[m]
        slices = transition[n if len(transition) > 1 else 0]
        start = initial[n if len(initial) > 1 else 0]
        value, alpha = _filled(
            start, slices, observation[n], lengths[n], pairs_of_alpha, np.empty(num_states)
        )
        terms, room = np.empty(alpha.shape[1:]), np.empty(alpha.shape[2])
        shares[m] = 0.0
        if value == -np.inf:
            continue
        for t in range(1, lengths[n]):
            slice_ = slices[t - 1 if len(slices) > 1 else 0]
            for j in range(num_states):
                _arrive(alpha[t - 1], slice_, j, terms, shares[m, t - 1, j], room)


@compiled
def viterbi(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    first: int,
    last: int,
    paths: Any,  # (N, T), int64
    redo: Any,  # (N,): the sequences to work on
) -> None:
    """The most likely path; see :func:`.cpu.viterbi.viterbi`. Ties are exact ones."""
    num_steps, num_states = observation.shape[1], observation.shape[2]
    came_from = np.empty((num_steps, num_states), np.int64)
    for n in range(first, last):
        if not redo[n]:
            continue
        steps = lengths[n]
        slices = transition[n if len(transition) > 1 else 0]
        start = initial[n if len(initial) > 1 else 0]
        width = PAIR
        while True:
            state, reach = _best_path(start, slices, observation[n], steps, width, came_from)
            needed = width_of(reach, steps)
            if needed <= width:
                break
            width = needed
        paths[n] = -1
        if state >= 0:
            for t in range(steps - 1, -1, -1):
                paths[n, t] = state
                state = came_from[t, state]


@compiled
def _best_path(
    initial: Any, transition: Any, observation: Any, steps: int, width: int, came_from: Any
) -> tuple[int, float]:
    """:return: the best last state, -1 if there is none, and the largest of the numbers."""
    num_states = observation.shape[1]
    score = np.empty((2, num_states, width))
    terms, room = np.empty((num_states, width)), np.empty(width)
    shares = np.empty(num_states)
    reach = 0.0
    for t in range(steps):
        possible = False
        for j in range(num_states):
            now = score[t % 2, j]
            came_from[t, j] = 0
            if t == 0:
                clear(now)
                plus(now, now, initial[j])
            else:
                slice_ = transition[t - 1 if len(transition) > 1 else 0]
                best = _arrive(score[(t - 1) % 2], slice_, j, terms, shares, room)
                if best < 0:
                    put(now, -np.inf)
                    continue
                came_from[t, j] = best
                reach = _reach(reach, terms[best])
                plus(now, terms[best], 0.0)
            reach = _reach(reach, now)
            plus(now, now, observation[t, j])
            reach = _reach(reach, now)
            possible |= now[0] != -np.inf
        if not possible:
            return -1, reach
    return shares_of(score[(steps - 1) % 2], shares, room), reach
