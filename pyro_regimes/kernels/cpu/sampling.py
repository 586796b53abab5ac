r"""Random paths of states, compiled for any number of states.

A kernel draws the paths ``first`` to ``last`` of a range from given uniform numbers. Arrays are as
those of :mod:`.scaled`, and results go to the array that comes last.

A draw sums products of probabilities, which is fast but loses what falls below the smallest number.
A sum below ``TRUSTED`` of :mod:`.filtering` is computed again from logarithms.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.kernels.cpu.filtering import TRUSTED
from pyro_regimes.kernels.cpu.jit import compiled, spread

#: The most uniform numbers that are drawn at a time, 128 MiB of them.
_UNIFORMS = 2**24


@compiled
def _pick(weights: Any, total: float, uniform: float) -> int:
    """The state in whose part of ``(0, total)`` a uniform number falls, never one of weight 0."""
    mark, passed, state = uniform * total, 0.0, 0
    for k in range(len(weights)):
        passed += weights[k]
        if weights[k] > 0.0:
            state = k
            if passed > mark:
                break
    return state


@compiled
def _exponentiate(weights: Any) -> float:
    """Turn logarithms into weights of which the largest is 1.

    :return: the weights' sum.
    """
    peak = -np.inf
    for k in range(len(weights)):
        peak = max(peak, weights[k])
    total = 0.0
    for k in range(len(weights)):
        weights[k] = math.exp(weights[k] - peak) if weights[k] > -np.inf else 0.0
        total += weights[k]
    return total


@compiled
def posterior_paths(
    logits: Any,  # (N, T, K), float64: the filter
    probs: Any,  # (N, T, K), float64: its exponential
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    matrix: Any,  # (N or 1, 1, K, K), (new, old): exp A up to a factor; or (0, 0, 0, 0), A varies
    lengths: Any,  # (N,)
    exact: Any,  # (N,): the sequence's place in the shares of :func:`.log_space.origins`, or -1
    shares: Any,  # (R, T-1, K, K)
    uniforms: Any,  # (M, T), in [0, 1)
    skipped: int,  # paths drawn before these: path m is of sequence (skipped + m) mod N
    first: int,
    last: int,
    paths: Any,  # (M, T), int64
) -> None:
    r"""Draw backwards from :math:`p(q_t = i \mid q_{t+1} = j, x) \propto \alpha_t(i) e^{A_{ij}}`.

    Padding and the paths of a sequence of probability zero are -1.
    """
    num_sequences, _, num_states = logits.shape
    varying = len(matrix) == 0
    weights = np.empty(num_states)
    for m in range(first, last):
        n = (skipped + m) % num_sequences
        paths[m] = -1
        end = lengths[n] - 1
        total = 0.0
        for k in range(num_states):
            total += probs[n, end, k]
        if total == 0.0:
            continue
        state = _pick(probs[n, end], total, uniforms[m, end])
        paths[m, end] = state
        own = n if len(transition) > 1 else 0
        for t in range(end - 1, -1, -1):
            total = 0.0
            if exact[n] >= 0:
                for i in range(num_states):
                    weights[i] = shares[exact[n], t, state, i]
                    total += weights[i]
            elif not varying:
                for i in range(num_states):
                    weights[i] = probs[n, t, i] * matrix[own, 0, state, i]
                    total += weights[i]
            if not total >= TRUSTED:
                slice_ = transition[own, t if varying else 0]
                for i in range(num_states):
                    weights[i] = logits[n, t, i] + slice_[i, state]
                total = _exponentiate(weights)
            state = _pick(weights, total, uniforms[m, t])
            paths[m, t] = state


@compiled
def prior_paths(
    initial: Any,  # (N or 1, K)
    transition: Any,  # (N or 1, 1 or T-1, K, K)
    matrix: Any,  # (N or 1, 1, K, K), (old, new): exp A, row by row; or (0, 0, 0, 0), A varies
    num_sequences: int,
    uniforms: Any,  # (M, T), in [0, 1)
    skipped: int,  # paths drawn before these: path m is of sequence (skipped + m) mod N
    first: int,
    last: int,
    paths: Any,  # (M, T), int64
) -> None:
    r"""Draw forwards from :math:`p(q_1 = j) \propto e^{\pi_j}` and
    :math:`p(q_t = j \mid q_{t-1} = i) \propto e^{A_{ij}}`.
    """
    num_states = initial.shape[1]
    varying = len(matrix) == 0
    weights = np.empty(num_states)
    for m in range(first, last):
        n = (skipped + m) % num_sequences
        own = n if len(transition) > 1 else 0
        weights[:] = initial[n if len(initial) > 1 else 0]
        state = _pick(weights, _exponentiate(weights), uniforms[m, 0])
        paths[m, 0] = state
        for t in range(1, paths.shape[1]):
            if varying:
                weights[:] = transition[own, t - 1, state]
                state = _pick(weights, _exponentiate(weights), uniforms[m, t])
            else:
                row = matrix[own, 0, state]
                total = 0.0
                for k in range(num_states):
                    total += row[k]
                state = _pick(row, total, uniforms[m, t])
            paths[m, t] = state


def draw_paths(draw: Callable[..., None], paths: Tensor, grain: int) -> None:
    """Call ``draw(uniforms, skipped, first, last, paths)`` for all paths, on several threads.

    The uniform numbers of very many paths are drawn in turns, since they would need as much memory
    as the paths.

    :param paths: filled, ``(M, T)``.
    :param grain: the fewest steps that are worth a thread.
    """
    num_paths, num_steps = paths.shape
    turn = max(1, _UNIFORMS // num_steps)
    for skipped in range(0, num_paths, turn):
        out = paths[skipped : skipped + turn].numpy()
        uniforms = torch.rand(out.shape, dtype=torch.double, device="cpu").numpy()
        work = partial(_draw_some, draw, uniforms, skipped, out)
        spread(work, len(out), 1 + grain // num_steps)


def _draw_some(
    draw: Callable[..., None],
    uniforms: npt.NDArray[np.float64],
    skipped: int,
    paths: npt.NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    draw(uniforms, skipped, first, last, paths)
