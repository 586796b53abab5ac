r"""Derivatives of gamma and xi along a direction, compiled for any number of states.

The score of a path is :math:`s(q) = \sum_t \dot b_t(q_t) + \sum_t \dot A_{q_t q_{t+1}}`. With
the expected score of what came before,

.. math::
    \bar u_t(j) = \sum_i q_t(i \mid j) (u_{t-1}(i) + \dot A_{ij}), \qquad
    u_t(j) = \dot b_t(j) + \bar u_t(j),

which is the derivative of :math:`\alpha_t` (a logarithm), the derivatives of the shares are
covariances with the score,

.. math::
    \dot q_t(i \mid j) = q_t(i \mid j) (u_{t-1}(i) + \dot A_{ij} - \bar u_t(j)), \\
    \dot\xi_{t-1}(i, j) = \dot q_t(i \mid j) \gamma_t(j) + q_t(i \mid j) \dot\gamma_t(j), \qquad
    \dot\gamma_{t-1}(i) = \sum_j \dot\xi_{t-1}(i, j).

Only differences of u matter. u is shifted to stay near 0, as it would grow with T.

:math:`\alpha` and the shares are those of :mod:`.log_space`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.chain import array_of, move_into
from pyro_regimes.kernels.cpu.exact_sums import PAIR, shares_of
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.log_space import arrive, fill_alpha, leave_blank, total_of


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
    r"""Derivatives of gamma and xi when A moves along :math:`\dot A` and b along :math:`\dot b`."""
    num_steps, num_states = observation.shape[1], observation.shape[2]
    pairs_of_alpha = np.empty((num_steps, num_states, PAIR))
    score = np.empty((num_steps, num_states))  # u
    shares = np.empty(num_states)
    for n in range(first, last):
        steps, slices, start = lengths[n], array_of(transition, n), array_of(initial, n)
        value, alpha = fill_alpha(start, slices, observation[n], steps, pairs_of_alpha, shares)
        if leave_blank(value, steps, smoothed[n], moved[n]):
            continue
        along = along_transition[n]
        _fill_score(alpha, slices, along, along_observation[n], steps, shares, score)
        _turn_backwards(alpha, slices, along, score, steps, shares, smoothed[n], moved[n])


@compiled
def _fill_score(
    alpha: Any,  # (T, K, width)
    slices: Any,  # (1 or T-1, K, K)
    along_transition: Any,  # (1 or T-1, K, K)
    along_observation: Any,  # (T, K)
    steps: int,
    shares: Any,  # (K,)
    score: Any,  # (T, K)
) -> None:
    """The expected score u of every state at every step, relative to that of the likeliest."""
    num_states = alpha.shape[1]
    terms, room = np.empty(alpha.shape[1:]), np.empty(alpha.shape[2])
    for t in range(steps):
        for j in range(num_states):
            score[t, j] = along_observation[t, j]
            if t > 0 and alpha[t, j, 0] > -np.inf:
                arrive(alpha[t - 1], move_into(slices, t), j, terms, shares, room)
                along = move_into(along_transition, t)
                score[t, j] += _mean_score(shares, score[t - 1], along, j)
        best = shares_of(alpha[t], shares, room)
        centre = score[t, best]
        for j in range(num_states):
            score[t, j] -= centre


@compiled
def _turn_backwards(
    alpha: Any,  # (T, K, width)
    slices: Any,  # (1 or T-1, K, K)
    along_transition: Any,  # (1 or T-1, K, K)
    score: Any,  # (T, K)
    steps: int,
    shares: Any,  # (K,)
    smoothed: Any,  # (T, K)
    moved: Any,  # (1 or T-1, K, K), zero
) -> None:
    """The derivatives of one sequence, from the last step to the first."""
    num_states = alpha.shape[1]
    terms, room = np.empty(alpha.shape[1:]), np.empty(alpha.shape[2])
    gamma, earlier = np.empty(num_states), np.empty(num_states)
    turn, turn_earlier = np.empty(num_states), np.empty(num_states)  # of gamma
    total = np.zeros((num_states, num_states))
    shares_of(alpha[steps - 1], gamma, room)
    _open_turn(gamma, score[steps - 1], turn)
    for t in range(steps - 1, -1, -1):
        for k in range(num_states):
            smoothed[t, k] = turn[k]
        if t == 0:
            break
        slice_, along = move_into(slices, t), move_into(along_transition, t)
        if len(slices) > 1:
            total[:] = 0.0
        earlier[:] = 0.0
        turn_earlier[:] = 0.0
        for j in range(num_states):
            if gamma[j] == 0.0:
                continue
            arrive(alpha[t - 1], slice_, j, terms, shares, room)
            size = total_of(shares)
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
            moved[t - 1] = total
    if len(slices) == 1 and steps > 1:
        moved[0] = total


@compiled
def _open_turn(gamma: Any, score: Any, turn: Any) -> None:
    """Normalise gamma at the last step, and fill its derivative: the covariance with the score."""
    size = total_of(gamma)
    mean = 0.0
    for k in range(len(gamma)):
        gamma[k] /= size
        if gamma[k] > 0.0:
            mean += gamma[k] * score[k]
    for k in range(len(gamma)):
        turn[k] = gamma[k] * (score[k] - mean) if gamma[k] > 0.0 else 0.0


@compiled
def _mean_score(shares: Any, before: Any, along: Any, new: int) -> float:
    """The mean of ``before_i + along_ij``, which may be anything where a share is 0."""
    mean = 0.0
    for old in range(len(shares)):
        if shares[old] > 0.0:
            mean += shares[old] * (before[old] + along[old, new])
    return mean / total_of(shares)
