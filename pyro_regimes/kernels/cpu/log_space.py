r"""The recursions in log space, compiled for any number of states.

They cannot underflow, but need an exponential where the scaled sweep needs a multiplication. They
process the sequences that :mod:`.scaled` and :mod:`.filtering` report, and chains with more states
than the scaled sweep supports. The forward recursion, in logarithms, is

.. math::
    \alpha_t(j) = b_t(j) + \log \sum_i e^{\alpha_{t-1}(i) + A_{ij}}, \qquad
    p(q_{t-1} = i \mid q_t = j, x_1, \dots, x_{t-1}) = e^{\alpha_{t-1}(i) + A_{ij}} \Big/
        \sum_{i'} e^{\alpha_{t-1}(i') + A_{i'j}},

and the backward recursion, with these shares q(i | j), is

.. math::
    \xi_{t-1}(i, j) = q_t(i \mid j) \, \gamma_t(j), \qquad
    \gamma_{t-1}(i) = \sum_j \xi_{t-1}(i, j).

So each :math:`\gamma_t` sums to 1 and is the marginal of :math:`\xi`, up to rounding, for all
logits. A share is the exponential of a difference, so :math:`\alpha` is stored without rounding
next to large logits (:mod:`.exact_sums`): as pairs of numbers, or as lists of parts if a pair is
not enough. The results are those of the exact sum over paths, if its logits and their sums are
finite in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.chain import array_of, end_of, longest_of, move_into
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
def total_of(values: Any) -> float:
    """The sum, in order."""
    total = 0.0
    for value in values:
        total += value
    return total


@compiled
def larger_reach(reach: float, row: Any) -> float:
    """The larger of ``reach`` and the size of a number, if that is finite."""
    size = abs(row[0])
    return size if reach < size < np.inf else reach


@compiled
def arrive(before: Any, slice_: Any, new: int, terms: Any, shares: Any, room: Any) -> int:
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
        slice_ = move_into(transition, t)
        possible = False
        for j in range(num_states):
            now = alpha[here, j]
            if t == 0:
                clear(now)
                plus(now, now, initial[j])
            else:
                best = arrive(alpha[before], slice_, j, terms, shares, room)
                if best < 0:
                    put(now, -np.inf)
                    continue
                reach = larger_reach(reach, terms[best])
                plus(now, terms[best], math.log(total_of(shares)))
            reach = larger_reach(reach, now)
            plus(now, now, observation[t, j])
            reach = larger_reach(reach, now)
            possible |= now[0] != -np.inf
        if not possible:
            return -np.inf, reach
    last = alpha[(steps - 1) % len(alpha)]
    best = shares_of(last, shares, room)
    plus(room, last[best], math.log(total_of(shares)))
    return room[0], reach


@compiled
def fill_alpha(
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
def leave_blank(value: float, steps: int, smoothed: Any, moved: Any) -> bool:
    """Fill the results of one sequence with 0, and with NaN where its log-likelihood is that.

    :return: whether nothing else is to be computed.
    """
    smoothed[:] = 0.0
    moved[:] = 0.0
    if value != value:
        smoothed[:steps] = np.nan
        moved[: steps - 1] = np.nan  # of one slice, that one, unless there is no move
    return not value > -np.inf


@compiled
def sweep(
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
    redo: Any,  # (S,): the sequences to work on
) -> None:
    """The E-step; arguments as those of the scaled sweep."""
    num_steps, num_states = longest_of(lengths, first, last), observation.shape[2]
    each = len(lengths) // max(1, len(observation))
    both = len(smoothed) > 0
    pairs_of_alpha = np.empty((num_steps if both else 2, num_states, PAIR))
    shares = np.empty(num_states)
    for n in range(first, last):
        if not redo[n]:
            continue
        row, at, steps = n // each, begins[n], lengths[n]
        slices, start = array_of(transition, row), array_of(initial, row)
        data = observation[row, at : at + steps]
        value, alpha = fill_alpha(start, slices, data, steps, pairs_of_alpha, shares)
        log_likelihood[n] = value
        if not both:
            continue
        out = smoothed[row, at : end_of(begins, n, each, observation.shape[1])]
        if not leave_blank(value, steps, out, moved[n]):
            _smooth(alpha, slices, steps, shares, out, moved[n])


@compiled
def _smooth(
    alpha: Any,  # (T, K, width)
    slices: Any,  # (1 or T-1, K, K)
    steps: int,
    shares: Any,  # (K,)
    smoothed: Any,  # (T, K)
    moved: Any,  # (1 or T-1, K, K), zero
) -> None:
    """Gamma and xi of one sequence, backwards by the shares of the old states in each new one."""
    num_states = alpha.shape[1]
    terms, room = np.empty(alpha.shape[1:]), np.empty(alpha.shape[2])
    gamma, earlier = np.empty(num_states), np.empty(num_states)
    pairs = np.zeros((num_states, num_states))  # in float64, whatever the result's dtype
    shares_of(alpha[steps - 1], gamma, room)
    for t in range(steps - 1, -1, -1):
        size = total_of(gamma)  # after the first step 1, to rounding
        for k in range(num_states):
            gamma[k] /= size
            smoothed[t, k] = gamma[k]
        if t == 0:
            break
        slice_ = move_into(slices, t)
        if len(slices) > 1:
            pairs[:] = 0.0
        earlier[:] = 0.0
        for j in range(num_states):
            if gamma[j] == 0.0:
                continue
            arrive(alpha[t - 1], slice_, j, terms, shares, room)
            weight = gamma[j] / total_of(shares)
            for i in range(num_states):
                pairs[i, j] += weight * shares[i]
                earlier[i] += weight * shares[i]
        if len(slices) > 1:
            moved[t - 1] = pairs
        gamma[:] = earlier
    if len(slices) == 1 and steps > 1:
        moved[0] = pairs


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
        slices = array_of(transition, n)
        start = array_of(initial, n)
        _, alpha = fill_alpha(start, slices, observation[n], steps, pairs_of_alpha, shares)
        room = np.empty(alpha.shape[2])
        best = 0
        for t in range(num_steps):
            if t >= steps or best < 0:
                for k in range(num_states):
                    logits[n, t, k] = -np.inf if best < 0 else logits[n, steps - 1, k]
                continue
            best = shares_of(alpha[t], shares, room)
            size = math.log(total_of(shares)) if best >= 0 else 0.0
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
        slices = array_of(transition, n)
        start = array_of(initial, n)
        value, alpha = fill_alpha(
            start, slices, observation[n], lengths[n], pairs_of_alpha, np.empty(num_states)
        )
        terms, room = np.empty(alpha.shape[1:]), np.empty(alpha.shape[2])
        shares[m] = 0.0
        if value == -np.inf:
            continue
        for t in range(1, lengths[n]):
            slice_ = move_into(slices, t)
            for j in range(num_states):
                arrive(alpha[t - 1], slice_, j, terms, shares[m, t - 1, j], room)
