"""Independent answers, slow and obvious: every path of states, one at a time."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Enumerated(NamedTuple):
    """What the sum over all K^T paths of one sequence says; float64."""

    log_likelihood: float
    filtered_probs: Tensor  # (T, K)
    predicted_probs: Tensor  # (T, K)
    smoothed_probs: Tensor  # (T, K)
    transitions: Tensor  # (T-1, K, K)
    best_path: list[int]
    paths: dict[tuple[int, ...], float]


def path_weights(initial: Tensor, transition: Tensor, observation: Tensor) -> dict:
    """log p(x, q) of every path q; ``transition`` is ``(T-1, K, K)``."""
    pi, a, b = initial.tolist(), transition.tolist(), observation.tolist()
    weights = {}
    for path in itertools.product(range(len(pi)), repeat=len(b)):
        weight = pi[path[0]] + b[0][path[0]]
        for t in range(1, len(b)):
            weight += a[t - 1][path[t - 1]][path[t]] + b[t][path[t]]
        weights[path] = weight
    return weights


def _marginals(weights: dict, num_steps: int, num_states: int) -> tuple[float, Tensor, Tensor]:
    peak = max(weights.values())
    single = torch.zeros(num_steps, num_states, dtype=torch.float64)
    pair = torch.zeros(num_steps - 1, num_states, num_states, dtype=torch.float64)
    if peak == -math.inf:
        return peak, single, pair
    total = math.fsum(math.exp(weight - peak) for weight in weights.values())
    for path, weight in weights.items():
        probability = math.exp(weight - peak) / total
        for t, state in enumerate(path):
            single[t, state] += probability
            if t:
                pair[t - 1, path[t - 1], state] += probability
    return peak + math.log(total), single, pair


def enumerate_paths(
    initial: Tensor, transition: Tensor, observation: Tensor, length: int | None = None
) -> Enumerated:
    """All answers for one sequence of ``(K,)``, ``(1 or T-1, K, K)`` and ``(T, K)``."""
    num_padded, num_states = observation.shape
    num_steps = length or num_padded
    transition = transition.expand(num_padded - 1, num_states, num_states)[: num_steps - 1]
    observation = observation[:num_steps]
    filtered, predicted = [], []
    for t in range(num_steps):
        seen = path_weights(initial, transition[:t], observation[: t + 1])
        filtered.append(_marginals(seen, t + 1, num_states)[1][t])
        ahead = observation[: t + 1].clone()
        ahead[t] = 0.0
        seen = path_weights(initial, transition[:t], ahead)
        predicted.append(_marginals(seen, t + 1, num_states)[1][t])
    weights = path_weights(initial, transition, observation)
    log_likelihood, smoothed, pair = _marginals(weights, num_steps, num_states)

    def pad(values: Tensor, size: int) -> Tensor:
        return torch.cat([values, values.new_zeros((size - len(values),) + values.shape[1:])])

    return Enumerated(
        log_likelihood,
        pad(torch.stack(filtered), num_padded),
        pad(torch.stack(predicted), num_padded),
        pad(smoothed, num_padded),
        pad(pair, num_padded - 1),
        list(max(weights, key=weights.__getitem__)) + [-1] * (num_padded - num_steps),
        weights,
    )
