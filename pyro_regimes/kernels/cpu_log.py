r"""The recursions in log space, compiled for any number of states.

They lose nothing however far apart the states drift, and cost an exponential where the scaled sweep
costs a multiplication. Here go the sequences that :mod:`.cpu_scaled` reports, chains with more
states than it takes, and the tangents, which second derivatives are made of.

With :math:`\alpha` and :math:`\beta` as logarithms, shifted at every step so that the largest is 0,

.. math::
    \alpha_t(j) = b_t(j) + \log \sum_i e^{\alpha_{t-1}(i) + A_{ij}}, \qquad
    \beta_t(i) = \log \sum_j e^{A_{ij} + b_{t+1}(j) + \beta_{t+1}(j)}.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.jit import compiled


@compiled
def _larger(peak: float, value: float) -> float:
    """The larger of two; NaN if one is, which ``max`` would drop."""
    return value if value > peak or value != value else peak


@compiled
def _forward(
    initial: Any, transition: Any, observation: Any, steps: int, alpha: Any
) -> float:
    """Fill ``alpha`` ``(T, K)``; its last row alone, where it has but one.

    :return: the log-likelihood.
    """
    num_states = observation.shape[1]
    moved = np.empty(num_states)
    shift = 0.0
    for t in range(steps):
        here, before = t % len(alpha), (t - 1) % len(alpha)
        for j in range(num_states):
            if t == 0:
                moved[j] = initial[j]
                continue
            slice_ = transition[t - 1 if len(transition) > 1 else 0]
            peak = -np.inf
            for i in range(num_states):
                peak = _larger(peak, alpha[before, i] + slice_[i, j])
            size = 0.0
            if peak > -np.inf:
                for i in range(num_states):
                    size += math.exp(alpha[before, i] + slice_[i, j] - peak)
            moved[j] = peak + math.log(size) if size > 0.0 else peak
        peak = -np.inf
        for j in range(num_states):
            alpha[here, j] = moved[j] + observation[t, j]
            peak = _larger(peak, alpha[here, j])
        if peak == -np.inf:
            return peak
        shift += peak
        for j in range(num_states):
            alpha[here, j] -= peak
    size = 0.0
    for j in range(num_states):
        size += math.exp(alpha[(steps - 1) % len(alpha), j])
    return shift + math.log(size)


@compiled
def _backward_step(slice_: Any, ahead: Any, beta: Any) -> None:
    """``beta_i = log sum_j exp(A_ij + ahead_j)``"""
    num_states = len(ahead)
    for i in range(num_states):
        peak = -np.inf
        for j in range(num_states):
            peak = _larger(peak, slice_[i, j] + ahead[j])
        size = 0.0
        if peak > -np.inf:
            for j in range(num_states):
                size += math.exp(slice_[i, j] + ahead[j] - peak)
        beta[i] = peak + math.log(size) if size > 0.0 else peak


@compiled
def _log_total(a: Any, b: Any) -> float:
    """``log sum_k exp(a_k + b_k)``"""
    peak = -np.inf
    for k in range(len(a)):
        peak = _larger(peak, a[k] + b[k])
    size = 0.0
    for k in range(len(a)):
        if a[k] + b[k] > -np.inf:
            size += math.exp(a[k] + b[k] - peak)
    return peak + math.log(size)


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
    alpha = np.empty((num_steps if both else 2, num_states))
    beta, ahead = np.empty(num_states), np.empty(num_states)
    pairs = np.empty((num_states, num_states))  # in float64, whatever the result's dtype
    for n in range(first, last):
        if not redo[n]:
            continue
        steps = lengths[n]
        slices = transition[n if len(transition) > 1 else 0]
        start = initial[n if len(initial) > 1 else 0]
        log_likelihood[n] = _forward(start, slices, observation[n], steps, alpha)
        if not both:
            continue
        smoothed[n] = 0.0
        moved[n] = 0.0
        if log_likelihood[n] == -np.inf:
            continue
        if log_likelihood[n] != log_likelihood[n]:
            smoothed[n, :steps] = np.nan
            moved[n, : steps - 1] = np.nan  # of one slice, that one, unless there is no move
            continue
        beta[:] = 0.0
        pairs[:] = 0.0
        for t in range(steps - 1, -1, -1):
            if t + 1 < steps:
                slice_ = slices[t if len(slices) > 1 else 0]
                _backward_step(slice_, ahead, beta)
            size = _log_total(alpha[t], beta)
            for k in range(num_states):
                smoothed[n, t, k] = math.exp(alpha[t, k] + beta[k] - size)
            if t + 1 < steps:
                if len(slices) > 1:
                    pairs[:] = 0.0
                for i in range(num_states):
                    for j in range(num_states):
                        pairs[i, j] += math.exp(alpha[t, i] + slice_[i, j] + ahead[j] - size)
                if len(slices) > 1:
                    moved[n, t] = pairs
            peak = -np.inf
            for k in range(num_states):
                peak = _larger(peak, beta[k])
            for k in range(num_states):
                ahead[k] = observation[n, t, k] + beta[k] - peak
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
    the expected score of what came before, and of what follows,

    .. math::
        u_t(j) = \dot b_t(j) + \sum_i p(q_{t-1} = i \mid q_t = j, x_1, \dots, x_{t-1})
            (u_{t-1}(i) + \dot A_{ij}), \\
        v_t(i) = \sum_j p(q_{t+1} = j \mid q_t = i, x_{t+1}, \dots, x_T)
            (\dot A_{ij} + \dot b_{t+1}(j) + v_{t+1}(j)),

    a derivative is a covariance with the score:

    .. math::
        \dot\gamma_t(k) = \gamma_t(k) (u_t(k) + v_t(k) - E s), \\
        \dot\xi_t(i, j) = \xi_t(i, j)
            (u_t(i) + \dot A_{ij} + \dot b_{t+1}(j) + v_{t+1}(j) - E s).

    Only differences of u, and of v, matter; both are kept near 0, as they grow with T.
    """
    num_steps, num_states = observation.shape[1], observation.shape[2]
    alpha = np.empty((num_steps, num_states))
    before = np.empty((num_steps, num_states))
    beta, ahead = np.empty(num_states), np.empty(num_states)
    after, score = np.empty(num_states), np.empty(num_states)
    pairs = np.empty((num_states, num_states))
    total = np.empty((num_states, num_states))
    for n in range(first, last):
        steps = lengths[n]
        slices = transition[n if len(transition) > 1 else 0]
        start = initial[n if len(initial) > 1 else 0]
        smoothed[n] = 0.0
        moved[n] = 0.0
        value = _forward(start, slices, observation[n], steps, alpha)
        if value == -np.inf:
            continue
        if value != value:
            smoothed[n, :steps] = np.nan
            moved[n, : steps - 1] = np.nan
            continue
        for t in range(steps):
            peak_score = 0.0
            for j in range(num_states):
                before[t, j] = along_observation[n, t, j]
                if t > 0:
                    slice_ = slices[t - 1 if len(slices) > 1 else 0]
                    along = along_transition[n, t - 1 if len(slices) > 1 else 0]
                    arrived = alpha[t, j] - observation[n, t, j]
                    peak = -np.inf
                    for i in range(num_states):
                        peak = _larger(peak, alpha[t - 1, i] + slice_[i, j])
                    size, mean = 0.0, 0.0
                    if peak > -np.inf and arrived == arrived:
                        for i in range(num_states):
                            share = math.exp(alpha[t - 1, i] + slice_[i, j] - peak)
                            if share > 0.0:
                                size += share
                                mean += share * (before[t - 1, i] + along[i, j])
                        before[t, j] += mean / size
                if alpha[t, j] == 0.0:
                    peak_score = before[t, j]
            for j in range(num_states):
                before[t, j] -= peak_score

        beta[:] = 0.0
        after[:] = 0.0
        total[:] = 0.0
        for t in range(steps - 1, -1, -1):
            if t + 1 < steps:
                here = t if len(slices) > 1 else 0
                slice_, along = slices[here], along_transition[n, here]
                if len(slices) > 1:
                    total[:] = 0.0
                _backward_step(slice_, ahead, beta)
                for k in range(num_states):
                    score[k] = along_observation[n, t + 1, k] + after[k]
                size = _log_total(alpha[t], beta)
                mean = 0.0
                for i in range(num_states):
                    after[i] = 0.0
                    for j in range(num_states):
                        pairs[i, j] = 0.0
                        if slice_[i, j] + ahead[j] > -np.inf:
                            follows = along[i, j] + score[j]
                            after[i] += math.exp(slice_[i, j] + ahead[j] - beta[i]) * follows
                            pairs[i, j] = math.exp(alpha[t, i] + slice_[i, j] + ahead[j] - size)
                            if pairs[i, j] > 0.0:
                                mean += pairs[i, j] * (before[t, i] + follows)
                for i in range(num_states):
                    for j in range(num_states):
                        if pairs[i, j] > 0.0:
                            follows = along[i, j] + score[j]
                            total[i, j] += pairs[i, j] * (before[t, i] + follows - mean)
                if len(slices) > 1:
                    moved[n, t] = total
            size = _log_total(alpha[t], beta)
            mean, later = 0.0, 0.0
            for k in range(num_states):
                share = math.exp(alpha[t, k] + beta[k] - size)
                if share > 0.0:
                    mean += share * (before[t, k] + after[k])
                    later += share * after[k]
            peak = -np.inf
            for k in range(num_states):
                share = math.exp(alpha[t, k] + beta[k] - size)
                if share > 0.0:
                    smoothed[n, t, k] = share * (before[t, k] + after[k] - mean)
                peak = _larger(peak, beta[k])
            for k in range(num_states):
                ahead[k] = observation[n, t, k] + beta[k] - peak
                after[k] -= later
        if len(slices) == 1 and steps > 1:
            moved[n, 0] = total
