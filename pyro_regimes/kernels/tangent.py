r"""The tangent recursion in plain tensor code: derivatives of gamma and xi along a direction.

The score of a path is :math:`s(q) = \sum_t \dot b_t(q_t) + \sum_t \dot A_{q_t q_{t+1}}`. With the
shares :math:`q_t(i \mid j) = p(q_{t-1} = i \mid q_t = j, x_1, \dots, x_{t-1})` and the expected
score of what came before,

.. math::
    \bar u_t(j) = \sum_i q_t(i \mid j) (u_{t-1}(i) + \dot A_{ij}), \qquad
    u_t(j) = \dot b_t(j) + \bar u_t(j),

the derivatives of the shares are covariances with the score,

.. math::
    \dot q_t(i \mid j) = q_t(i \mid j) (u_{t-1}(i) + \dot A_{ij} - \bar u_t(j)), \\
    \dot\xi_{t-1}(i, j) = \dot q_t(i \mid j) \gamma_t(j) + q_t(i \mid j) \dot\gamma_t(j), \qquad
    \dot\gamma_{t-1}(i) = \sum_j \dot\xi_{t-1}(i, j).

Only differences of u matter. u is shifted to stay near 0, as it would grow with T. This is used on
devices without a compiled tangent recursion; :mod:`.cpu.tangent` is the same, compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.kernels import reference, sums


@torch.no_grad()
def tangent(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
    along_transition: Tensor,
    along_observation: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Derivatives of gamma and xi when A moves along :math:`\dot A` and b along :math:`\dot b`.

    :param initial_logits: ``(N or 1, K)``.
    :param transition_logits: ``(N or 1, S, K, K)``, with S of 1 or T - 1.
    :param observation_logits: ``(N, T, K)``.
    :param lengths: ``(N,)`` or None.
    :param along_transition: ``(N, S, K, K)``.
    :param along_observation: ``(N, T, K)``.
    :return: ``(N, T, K)`` and ``(N, S, K, K)``, of the input's dtype; 0 on padding and for
        sequences of probability zero.
    """
    count, num_steps, _ = observation_logits.shape
    _, alphas = reference.forward(
        initial_logits, transition_logits, observation_logits, lengths, True
    )
    assert alphas is not None
    transition, moving = sums.exact(transition_logits.double()), along_transition.double()
    turn = along_observation.double()
    valid = turn.new_ones((count, num_steps), dtype=torch.bool)
    if lengths is not None:
        valid = torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)
        turn = turn.masked_fill(~valid.unsqueeze(-1), 0.0)

    def arrive(t: int) -> tuple[Tensor, Tensor]:
        """Shares of the old states in each new one, and the scores they bring, ``(N, K, K)``."""
        here = 0 if moving.shape[1] == 1 else t - 1
        before = alphas.map(lambda part: part[:, t - 1].unsqueeze(-1))
        paths = before.plus(transition.map(lambda part: part[:, here]))
        shares = sums.log_shares(paths, -2).exp().expand(count, -1, -1)
        arriving = scores[t - 1].unsqueeze(-1) + moving[:, here]
        return shares, torch.where(shares == 0, 0.0, arriving)

    scores = [turn[:, 0]]  # u_t, (N, K)
    for t in range(1, num_steps):
        shares, arriving = arrive(t)
        score = turn[:, t] + (shares * arriving).sum(-2)
        filtered = sums.log_shares(alphas.map(lambda part: part[:, t]), -1).exp()  # noqa: B023
        score = score - (filtered * score).sum(-1, keepdim=True)
        scores.append(torch.where(valid[:, t, None], score, scores[-1]))

    gamma = sums.log_shares(alphas.map(lambda part: part[:, -1]), -1).exp().expand(count, -1)
    score = torch.where(gamma == 0, 0.0, scores[-1])
    change = gamma * (score - (gamma * score).sum(-1, keepdim=True))  # of gamma
    smoothed = torch.zeros_like(turn)
    moved = torch.zeros_like(moving)
    smoothed[:, -1] = change
    for t in reversed(range(1, num_steps)):
        shares, arriving = arrive(t)
        inside = valid[:, t, None]
        centred = arriving - (shares * arriving).sum(-2, keepdim=True)
        there = shares * (change.unsqueeze(-2) + gamma.unsqueeze(-2) * centred)
        there = there.masked_fill(~inside.unsqueeze(-1), 0.0)
        moved[:, 0 if moving.shape[1] == 1 else t - 1] += there
        gamma = torch.where(inside, (shares * gamma.unsqueeze(-2)).sum(-1), gamma)
        change = torch.where(inside, there.sum(-1), change)
        smoothed[:, t - 1] = change
    smoothed = smoothed.masked_fill(~valid.unsqueeze(-1), 0.0)
    return smoothed.to(observation_logits.dtype), moved.to(observation_logits.dtype)
