r"""The recursions of a chain whose observations depend on lagged states, as plain tensor code.

With p lags, the observation at t depends on :math:`u_t = (q_{t-p}, \dots, q_t)`, one of
:math:`S = K^{p+1}` tuples, numbered with the latest state varying fastest. From
:math:`u_{t-1} = (o, r)`, with the oldest state o and the other p states r, only the K tuples
:math:`u_t = (r, j)` can follow. In logarithms,

.. math::
    m_{t-1}(r) = \log \sum_o e^{\alpha_{t-1}(o, r)}, \qquad
    \alpha_t(r, j) = b_t(r, j) + A_{ij} + m_{t-1}(r), \quad i = \text{the last state of } r,

so that a step adds :math:`K^{p+1}` numbers, where a chain of S states without structure takes
:math:`K^{2p+2}`. Derivatives are those of autograd.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_regimes.kernels.logs import logsumexp


def steps_of(transition: Tensor) -> Tensor:
    """Transition logits with a dim of time, ``(N or 1, 1 or T-1, K, K)``."""
    return transition.unsqueeze(1) if transition.dim() == 3 else transition


def _moves(transition: Tensor, observation: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The transition logits into each tuple (r, j), ``(N or 1, S)``, and those of the data."""
    num_steps, num_tuples = observation.shape[1:]
    wide = steps_of(transition).expand(-1, num_steps - 1, -1, -1)
    wide = wide.repeat(1, 1, num_tuples // transition.shape[-1] ** 2, 1).flatten(2)
    return zip(wide.unbind(1), observation[:, 1:].unbind(1), strict=True)


def alphas(initial: Tensor, transition: Tensor, observation: Tensor) -> list[Tensor]:
    """The forward recursion, T tensors ``(N, S)``; arguments as :func:`log_likelihood`."""
    num_states = transition.shape[-1]
    state = initial + observation[:, 0]
    found = [state]
    for moves, logits in _moves(transition, observation):
        kept = logsumexp(state.unflatten(-1, (num_states, -1)), -2)  # m, (N, K^p)
        state = kept.repeat_interleave(num_states, -1) + moves + logits
        found.append(state)
    return found


def log_likelihood(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """The sum over all paths, ``(N,)``.

    :param initial: log probabilities of the first tuple, ``(N or 1, S)``.
    :param transition: (old, new), ``(N or 1, K, K)``, or ``(N or 1, 1 or T-1, K, K)``.
    :param observation: log densities ``(N, T, S)``.
    """
    return logsumexp(alphas(initial, transition, observation)[-1], -1)


def filter_probs(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """Probabilities of each tuple given the data up to t, ``(N, T, S)``."""
    state = torch.stack(alphas(initial, transition, observation), 1)
    total = logsumexp(state, -1).unsqueeze(-1)
    return (state - total.masked_fill(total == -torch.inf, 0.0)).exp()


def expectations(
    initial: Tensor, transition: Tensor, observation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood ``(N,)``, smoothed probabilities ``(N, T, S)``, transitions ``(N, K, K)``.

    Transitions have a dim of time where ``transition`` has one. All are differentiable where a
    graph is recorded.
    """
    num_sequences = len(observation)
    wide = transition.expand(num_sequences, *transition.shape[1:])

    def value(wide: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
        found = log_likelihood(initial, wide, observation)
        return found.sum(), found

    grad = torch.func.grad(value, argnums=(0, 1), has_aux=True)
    (moved, smoothed), found = grad(wide, observation)
    return found, smoothed, moved


def viterbi(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """The tuples of the most likely path, LongTensor ``(N, T)``."""
    num_states, num_tuples = transition.shape[-1], observation.shape[-1]
    best, origins = initial + observation[:, 0], []
    for moves, logits in _moves(transition, observation):
        kept, oldest = best.unflatten(-1, (num_states, -1)).max(-2)
        origins.append(oldest)
        best = kept.repeat_interleave(num_states, -1) + moves + logits
    path = [best.argmax(-1)]
    for oldest in reversed(origins):
        kept = path[-1] // num_states  # the states that both tuples share
        first = oldest.gather(-1, kept.unsqueeze(-1)).squeeze(-1)
        path.append(first * (num_tuples // num_states) + kept)
    return torch.stack(path[::-1], 1)
