r"""The recursions of :mod:`pyro_regimes.kernels.lagged_reference` in log space, compiled.

They serve sequences in which a tuple fades, as it does where regimes are many standard deviations
apart, and which the scaled recursions of :mod:`.cpu.lagged` report. The logarithm of the sum of
:math:`\alpha_t` is subtracted at each step, and that of n by its largest entry.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.scales import add


@compiled
def _log_total(logits: Any) -> float:
    """The logarithm of the sum; not finite if no term is, or one is NaN or infinite."""
    best = np.max(logits)
    if not abs(best) < np.inf:
        return best
    total = 0.0
    for s in range(len(logits)):
        total += math.exp(logits[s] - best)
    return best + math.log(total)


@compiled
def _sum_oldest(alpha: Any, kept: Any) -> None:
    """Fill ``kept`` with alpha, (S,), summed over its oldest state."""
    num_kept = len(kept)
    for r in range(num_kept):
        best = -np.inf
        for s in range(r, len(alpha), num_kept):
            best = max(best, alpha[s])
        total = 0.0
        for s in range(r, len(alpha), num_kept):
            total += math.exp(alpha[s] - best) if best > -np.inf else 0.0
        kept[r] = best + math.log(total) if best > -np.inf else -np.inf


@compiled
def _forwards(initial: Any, matrices: Any, observation: Any, kept: Any, alpha: Any) -> float:
    """Fill alpha, (T, S), each row up to its scale; return the log-likelihood."""
    num_states, shift, rest = matrices.shape[1], 0.0, 0.0
    for t in range(len(observation)):
        if t == 0:
            alpha[0] = initial + observation[0]
        else:
            matrix = matrices[(t - 1) % len(matrices)]
            _sum_oldest(alpha[t - 1], kept)
            for s in range(alpha.shape[1]):
                r = s // num_states
                alpha[t, s] = kept[r] + matrix[r % num_states, s % num_states] + observation[t, s]
        size = _log_total(alpha[t])
        if not abs(size) < np.inf:
            return np.nan
        alpha[t] -= size
        shift, rest = add(shift, rest, size)
    return shift + rest


@compiled
def _backwards(
    matrices: Any, observation: Any, ahead: Any, follow: Any, alpha: Any, moved: Any
) -> bool:
    """Replace alpha by the logarithms of gamma, and fill the expected transitions."""
    num_states, num_kept = matrices.shape[1], len(ahead)
    ahead[:] = 0.0
    moved[:] = 0.0
    for t in range(len(observation) - 1, -1, -1):
        for s in range(alpha.shape[1]):
            alpha[t, s] += ahead[s % num_kept]
        size = _log_total(alpha[t])
        if not abs(size) < np.inf:
            return False
        for s in range(alpha.shape[1]):
            alpha[t, s] = math.exp(alpha[t, s] - size)
        if t == 0:
            break
        matrix, sums = matrices[(t - 1) % len(matrices)], moved[(t - 1) % len(moved)]
        for s in range(alpha.shape[1]):
            i, j = (s // num_states) % num_states, s % num_states
            sums[i, j] += alpha[t, s]
            follow[s] = matrix[i, j] + observation[t, s] + ahead[s % num_kept]
        for r in range(num_kept):
            ahead[r] = _log_total(follow[r * num_states : (r + 1) * num_states])
        ahead -= np.max(ahead)
    return True


@compiled
def sweep(
    initial: Any,  # (N or 1, S)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    observation: Any,  # (N, T, S)
    first: int,
    last: int,
    log_likelihood: Any,  # (N,)
    filtered: Any,  # (N, T, S), or (0, 0, 0): not wanted
    smoothed: Any,  # (N, T, S), or (0, 0, 0): forward only
    moved: Any,  # (N, 1 or T-1, K, K)
    exact: Any,  # (N,): whether to compute a sequence where False, and whether it is found
) -> None:
    """All results of the sequences from ``first`` to ``last`` that are not exact yet."""
    num_steps, num_tuples = observation.shape[1:]
    num_kept = num_tuples // transition.shape[2]
    kept, ahead, follow = np.empty(num_kept), np.empty(num_kept), np.empty(num_tuples)
    alpha = np.empty((num_steps, num_tuples))
    for n in range(first, last):
        if exact[n]:
            continue
        matrices = transition[n % len(transition)]
        value = _forwards(initial[n % len(initial)], matrices, observation[n], kept, alpha)
        log_likelihood[n], exact[n] = value, abs(value) < np.inf
        if exact[n] and len(filtered) > 0:
            filtered[n] = np.exp(alpha)
        if exact[n] and len(smoothed) > 0:
            exact[n] = _backwards(matrices, observation[n], ahead, follow, alpha, moved[n])
            smoothed[n] = alpha
