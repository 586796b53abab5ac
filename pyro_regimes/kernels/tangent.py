r"""The tangent recursion in plain tensor code: derivatives of gamma and xi along a direction.

The score of a path is :math:`s(q) = \sum_t \dot b_t(q_t) + \sum_t \dot A_{q_t q_{t+1}}`. With the
expected score of what came before, and of what follows,

.. math::
    u_t(j) = \dot b_t(j) + \sum_i p(q_{t-1} = i \mid q_t = j, x_1, \dots, x_{t-1})
        (u_{t-1}(i) + \dot A_{ij}), \\
    v_t(i) = \sum_j p(q_{t+1} = j \mid q_t = i, x_{t+1}, \dots, x_T)
        (\dot A_{ij} + \dot b_{t+1}(j) + v_{t+1}(j)),

a derivative is a covariance with the score:

.. math::
    \dot\gamma_t(k) = \gamma_t(k) (u_t(k) + v_t(k) - E s), \qquad
    \dot\xi_t(i, j) = \xi_t(i, j)
        (u_t(i) + \dot A_{ij} + \dot b_{t+1}(j) + v_{t+1}(j) - E s).

Only differences of u, and of v, matter; both are kept near 0, as they grow with T. This serves
devices whose kernel has no tangents of its own; :func:`.cpu_log.tangent` is the same, compiled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_regimes.kernels import reference


def _shares(logits: Tensor, dim: int) -> Tensor:
    """softmax; 0 where every term is -inf."""
    total = logits.logsumexp(dim, keepdim=True)
    return (logits - total.masked_fill(total == -math.inf, 0.0)).exp()


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
    alpha = reference.filter_logits(
        initial_logits, transition_logits, observation_logits, lengths
    ).double()
    alpha = alpha.expand(count, -1, -1)
    transition = transition_logits.double()
    observation, turn = observation_logits.double(), along_observation.double()
    moving = along_transition.double()
    valid = None
    if lengths is not None:
        time = torch.arange(num_steps, device=lengths.device)
        valid = time < lengths.unsqueeze(-1)  # (N, T)
        observation, turn = (
            part.masked_fill(~valid.unsqueeze(-1), 0.0) for part in (observation, turn)
        )
        if transition.shape[1] > 1:
            transition = transition.masked_fill(~valid[:, 1:, None, None], 0.0)

    def slices(t: int) -> tuple[Tensor, Tensor]:
        """A and its direction from step t to the next."""
        here = 0 if transition.shape[1] == 1 else t
        return transition[:, here], moving[:, here]

    before = [turn[:, 0]]  # u_t, (N, K)
    for t in range(1, num_steps):
        matrix, along = slices(t - 1)
        shares = _shares(alpha[:, t - 1].unsqueeze(-1) + matrix, -2)  # (N, K, K), over old states
        score = turn[:, t] + (shares * (before[-1].unsqueeze(-1) + along)).sum(-2)
        score = score - (alpha[:, t].exp() * score).sum(-1, keepdim=True)
        before.append(score)

    beta = torch.zeros_like(alpha[:, 0])
    after = torch.zeros_like(beta)
    smoothed = torch.empty_like(alpha)
    moved = torch.zeros_like(moving)
    for t in reversed(range(num_steps)):
        if t + 1 < num_steps:
            matrix, along = slices(t)
            ahead = observation[:, t + 1] + beta
            ahead = ahead - ahead.amax(-1, keepdim=True).clamp(min=torch.finfo(ahead.dtype).min)
            paths = matrix + ahead.unsqueeze(-2)  # (N, K, K)
            follows = along + (turn[:, t + 1] + after).unsqueeze(-2)
            pairs = _shares((alpha[:, t].unsqueeze(-1) + paths).flatten(-2), -1).view_as(paths)
            centred = before[t].unsqueeze(-1) + follows
            centred = centred - (pairs * centred).sum((-2, -1), keepdim=True)
            there, new_beta = pairs * centred, paths.logsumexp(-1)
            new_after = (_shares(paths, -1) * follows).sum(-1)
            if valid is not None:
                inside = valid[:, t + 1, None]
                there = there.masked_fill(~inside.unsqueeze(-1), 0.0)
                new_beta, new_after = (
                    torch.where(inside, new, old)
                    for new, old in ((new_beta, beta), (new_after, after))
                )
            moved[:, 0 if moving.shape[1] == 1 else t] += there
            beta, after = new_beta, new_after
        gamma = _shares(alpha[:, t] + beta, -1)
        centred = before[t] + after
        smoothed[:, t] = gamma * (centred - (gamma * centred).sum(-1, keepdim=True))
        after = after - (gamma * after).sum(-1, keepdim=True)
    if valid is not None:
        smoothed = smoothed.masked_fill(~valid.unsqueeze(-1), 0.0)
    # A sequence of probability zero has a filter without states at its end.
    possible = (alpha[:, -1] > -math.inf).any(-1)
    smoothed = torch.where(possible[:, None, None], smoothed, 0.0)
    moved = torch.where(possible[:, None, None, None], moved, 0.0)
    return smoothed.to(observation_logits.dtype), moved.to(observation_logits.dtype)
