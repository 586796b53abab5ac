"""The most likely path of states among those that stay in each for some steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]
Path = npt.NDArray[np.int64]


@torch.no_grad()
def min_duration_viterbi(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    min_duration: int,
) -> Tensor:
    r"""The path :math:`\arg\max_q \log p(x, q)` in which each stay has at least n steps.

    The first and the last stay may be shorter, as the data may begin and end within one. It is the
    Viterbi path of the chain with states (k, steps that its stay still lacks), of which each has at
    most one successor in its own stay: K n numbers a step, and the K (K - 1) changes.

    :param initial_logits: ``(K,)``.
    :param transition_logits: ``(1 or T-1, K, K)``.
    :param observation_logits: ``(T, K)``.
    :param min_duration: n, at least 1.
    :return: LongTensor ``(T,)``, all -1 if no such path has a positive probability.
    """
    initial, transition, observation = (
        each.detach().cpu().double().numpy()
        for each in (initial_logits, transition_logits, observation_logits)
    )
    least = min(min_duration, len(observation))  # no stay between two others is so long
    score, ending, changed, origin = _forward(initial, transition, observation, least)
    path = _backward(score, ending, changed, origin)
    return torch.from_numpy(path).to(observation_logits.device)


def _forward(
    initial: Array, transition: Array, observation: Array, n: int
) -> tuple[Array, Array, npt.NDArray[np.bool_], Path]:
    """The scores at the last step, and the choices at every step.

    :return: of stays that may end, ``(K,)``; of those of 1 to n - 1 steps, ``(n - 1, K)``; where a
        stay has reached n steps rather than gone on, ``(T, K)``; and where one that begins comes
        from, ``(T, K)``.
    """
    num_steps, num_states = observation.shape
    each, own = np.arange(num_states), np.eye(num_states, dtype=np.bool_)
    score, young = initial + observation[0], np.full((n - 1, num_states), -np.inf)
    changed = np.zeros((num_steps, num_states), dtype=np.bool_)
    origin = np.zeros((num_steps, num_states), dtype=np.int64)
    for step in range(1, num_steps):
        moves = transition[0 if len(transition) == 1 else step - 1]
        stay = moves[each, each] + observation[step]
        arrivals = np.where(own, -np.inf, score[:, np.newaxis] + moves)
        origin[step] = arrivals.argmax(0)
        begun = arrivals[origin[step], each] + observation[step]
        grown = np.concatenate([begun[np.newaxis], young + stay])  # of 1 to n steps
        kept = score + stay
        changed[step] = grown[-1] > kept
        score, young = np.maximum(kept, grown[-1]), grown[:-1]
        # Only differences decide; kept near zero, they keep their precision over any T.
        peak = max(score.max(), young.max(initial=-np.inf))
        if np.isfinite(peak):
            score, young = score - peak, young - peak
    return score, young, changed, origin


def _backward(
    score: Array, young: Array, changed: npt.NDArray[np.bool_], origin: Path
) -> Path:
    """The path of the highest score."""
    num_steps, n = len(changed), len(young) + 1
    path = np.full(num_steps, -1, dtype=np.int64)
    ends = np.concatenate([young, score[np.newaxis]])
    if ends.max() == -np.inf:
        return path
    length, state = np.unravel_index(ends.argmax(), ends.shape)
    step = num_steps - 1
    if length < n - 1:  # the last stay is shorter
        first = step - int(length)
        path[first:], state, step = state, origin[first, state], first - 1
    while step >= 0:
        if changed[step, state]:
            first = step - n + 1
            path[first : step + 1], state, step = state, origin[first, state], first - 1
        else:
            path[step], step = state, step - 1
    return path
