r"""The filter, compiled for any number of states.

A kernel works on the sequences ``first`` to ``last`` of a range. Arrays are as
those of :mod:`.cpu.scaled`, and results go to the arrays that come last.

**Underflow.** A prediction and a draw both sum products of probabilities, which is fast but may
underflow. If a sum is at least ``TRUSTED``, the loss is less than 1e-100 of it. A smaller sum,
including 0, is recomputed from logarithms, for that state and step only. So no reachable state
underflows, and an unreachable state stays at exactly 0.

**Large logits.** A sum of logarithms as large as ``_LARGE`` has a rounding error above 1e-12. This
has no effect in a state that is so much less likely than the best one. If later data make such a
state likely again, the error may decide between states. Such a sequence is reported, and recomputed
by :func:`.cpu.log_space.filter_sweep`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled

TRUSTED = 1e-200
_LARGE = 2.0**13


@compiled
def _fill_matrix(logits: Any, matrix: Any) -> float:
    """``matrix = exp(logits - peak)``.

    :return: the peak, which is the largest entry.
    """
    peak = -np.inf
    for i in range(len(logits)):
        for j in range(len(logits)):
            value = logits[i, j]
            if value > peak or value != value:
                peak = value
    if peak == -np.inf:  # every transition is impossible: 0 throughout, whatever is subtracted
        peak = 0.0
    for i in range(len(logits)):
        for j in range(len(logits)):
            matrix[i, j] = math.exp(logits[i, j] - peak)
    return float(peak)


@compiled
def _log_prediction(filtered: Any, slice_: Any, new: int) -> float:
    r"""``log sum_i exp(filtered_i + slice_ij)`` for one new state j."""
    peak = -np.inf
    for old in range(len(filtered)):
        term = filtered[old] + slice_[old, new]
        if term > peak or term != term:
            peak = term
    if peak == -np.inf:
        return peak
    size = 0.0
    for old in range(len(filtered)):
        size += math.exp(filtered[old] + slice_[old, new] - peak)
    return peak + math.log(size)


@compiled
def comes_back(before: Any, raw: Any, peak: float, shift: float, large: float) -> bool:
    """Whether a state within ``large`` of the peak was a sum, or is a difference, of larger ones.

    :param before: logarithms before the data of a step, of which transitions are ``shift`` at most.
    :param raw: the same with the data, whose largest is ``peak``.
    """
    if abs(shift) > large:
        return True
    for k in range(len(raw)):
        if raw[k] - peak > -large and max(abs(before[k] - shift), abs(raw[k])) > large:
            return True
    return False


@compiled
def filter_sweep(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, K)
    lengths: Any,  # (N,)
    first: int,
    last: int,
    logits: Any,  # (N, T, K)
    probs: Any,  # (N, T, K), or (0, 0, 0): the logarithms alone
    redo: Any,  # (N,): filled with the sequences that logarithms are too large in
) -> None:
    r"""The filter :math:`\alpha_t(k) = p(q_t = k \mid x_1, \dots, x_t)` and its logarithm,

    .. math:: \log \alpha_t(j) = \log \sum_i \alpha_{t-1}(i) e^{A_{ij}} + b_t(j) - c_t,

    with :math:`c_t` such that :math:`\sum_j \alpha_t(j) = 1`. From the step at which a sequence has
    become impossible on it is 0; padding repeats the last observation's.
    """
    num_states = observation.shape[2]
    both = len(probs) > 0
    varying = transition.shape[1] > 1
    filtered, share = np.empty(num_states), np.empty(num_states)
    predicted = np.empty(num_states)
    matrix = np.empty((num_states, num_states))
    filled, shift = -1, 0.0
    for n in range(first, last):
        steps = lengths[n]
        own = n if len(transition) > 1 else 0
        start = initial[n if len(initial) > 1 else 0]
        redo[n] = False
        for t in range(steps):
            if t == 0:
                for k in range(num_states):
                    predicted[k] = start[k]
            else:
                slice_ = transition[own, t - 1 if varying else 0]
                if varying or filled != own:
                    shift, filled = _fill_matrix(slice_, matrix), own
                for j in range(num_states):
                    predicted[j] = 0.0
                for i in range(num_states):
                    for j in range(num_states):
                        predicted[j] += share[i] * matrix[i, j]
                for j in range(num_states):
                    if predicted[j] >= TRUSTED:
                        predicted[j] = math.log(predicted[j]) + shift
                    else:
                        predicted[j] = _log_prediction(filtered, slice_, j)
            best, peak = -np.inf, -np.inf
            for k in range(num_states):
                if observation[n, t, k] > best and predicted[k] > -np.inf:
                    best = observation[n, t, k]
            for k in range(num_states):
                filtered[k] = predicted[k] + observation[n, t, k]
                if best > -np.inf:  # relative to that both are small, of the states that count
                    filtered[k] = predicted[k] + (observation[n, t, k] - best)
                if filtered[k] > peak or filtered[k] != filtered[k]:
                    peak = filtered[k]
            redo[n] |= comes_back(predicted, filtered, peak, shift if t > 0 else 0.0, _LARGE)
            if peak == -np.inf:
                steps = t
                filtered[:] = -np.inf
                share[:] = 0.0
                break
            size = 0.0
            for k in range(num_states):
                filtered[k] -= peak
                share[k] = math.exp(filtered[k])
                size += share[k]
            scale, log_size = 1.0 / size, math.log(size)
            for k in range(num_states):
                filtered[k] -= log_size
                share[k] *= scale
                logits[n, t, k] = filtered[k]
                if both:
                    probs[n, t, k] = share[k]
        for t in range(steps, logits.shape[1]):
            for k in range(num_states):
                logits[n, t, k] = filtered[k]
                if both:
                    probs[n, t, k] = share[k]
