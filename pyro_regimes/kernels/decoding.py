"""Paths of states: the most likely path, and draws from the prior and the posterior.

:mod:`pyro_regimes.kernels.ops` checks the arguments. The functions are not differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_regimes.kernels import reference, sums, transforms
from pyro_regimes.kernels.sums import Sum

_LARGE = 2.0**16


def _draw(logits: Tensor) -> Tensor:
    """A categorical draw over the last dim, never a state of probability zero.

    Exponential races: if :math:`E_k` are independent unit exponentials, then
    :math:`\\arg\\min_k E_k / p_k` has distribution p, normalised or not.
    """
    waiting = torch.empty_like(logits).exponential_()
    return (logits - waiting.log()).argmax(-1)


def _time_slice(transition_logits: Tensor, step: int) -> Tensor:
    """The ``(..., K, K)`` logits of the transition from observation ``step`` to the next."""
    return transition_logits[..., 0 if transition_logits.shape[-3] == 1 else step, :, :]


def _columns(transition_logits: Tensor, states: Tensor) -> Tensor:
    """``transition_logits[..., :, states]``: logits of every old state, given the new one."""
    num_states = transition_logits.shape[-1]
    matrices = transition_logits.mT.expand(states.shape + (num_states, num_states))
    index = states[..., None, None].expand(states.shape + (1, num_states))
    return matrices.gather(-2, index).squeeze(-2)


def _parts_for_paths(chain: list[Tensor]) -> int:
    """One part, as in the compiled kernel, where float64 rounds no sum by more than 1e-11."""
    if not transforms.can_be_seen(*chain):
        return sums.parts_needed(*chain)
    sizes = sums.sizes_of(*chain)
    if all(size < _LARGE for size in sizes):
        return 1
    return sums.parts_for_sizes(sizes, chain[2].shape[-2])


@torch.no_grad()
def viterbi(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """The path :math:`\\arg\\max_q \\log p(x, q)` (Viterbi 1967).

    Among equally likely predecessors it takes the lowest state. Padding, and paths of sequences of
    probability zero, are -1.

    :return: LongTensor ``(..., T)``.
    """
    num_steps, num_states = observation_logits.shape[-2:]
    chain = [each.double() for each in (initial_logits, transition_logits, observation_logits)]
    num_parts = _parts_for_paths(chain)
    transitions, observations = (sums.exact(logits) for logits in chain[1:])

    def observed(step: int) -> Sum:
        return observations.map(lambda part: part[..., step, :])

    score = sums.widen(sums.exact(chain[0]), num_parts).plus(observed(0))
    stay = torch.arange(num_states, device=observation_logits.device)
    origins = []
    for step in range(1, num_steps):
        # Only differences decide; kept near zero, they keep their precision over any T.
        peak = score.estimate().amax(-1, keepdim=True)
        peak = torch.where(peak == -math.inf, 0.0, -peak)
        emitted = sums.widen(observed(step), num_parts).plus(Sum((peak,), torch.zeros_like(peak)))
        slice_ = transitions.map(lambda part: _time_slice(part, step - 1))  # noqa: B023
        moves = score.map(lambda part: part.unsqueeze(-1)).plus(slice_)
        # An index and a value apart, since max(dim) starts all threads for the smallest of tensors.
        origin = sums.from_largest(moves, -2)[0].argmax(-2)
        index = origin.unsqueeze(-2)
        best = moves.map(lambda part: part.gather(-2, index).squeeze(-2))  # noqa: B023
        best = best.plus(emitted)
        if lengths is not None:
            keep = (step < lengths).unsqueeze(-1)
            best, origin = sums.where(keep, best, score), torch.where(keep, origin, stay)
        score = best
        origins.append(origin)

    gaps, _ = sums.from_largest(score, -1)
    batch_shape = torch.broadcast_shapes(
        gaps.shape[:-1], origins[-1].shape[:-1] if origins else ()
    )
    final = gaps.amax(-1)
    state = gaps.argmax(-1).expand(batch_shape)
    path = [state]
    for origin in reversed(origins):
        origin = origin.expand(batch_shape + (num_states,))
        state = origin.gather(-1, state.unsqueeze(-1)).squeeze(-1)
        path.append(state)
    states = torch.stack(path[::-1], -1)
    states = states.masked_fill((final == -math.inf).unsqueeze(-1), -1)
    return _blank_padding(states, lengths)


@torch.no_grad()
def sample_posterior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
    sample_shape: torch.Size = torch.Size(),  # noqa: B008 (immutable)
) -> Tensor:
    """Paths from :math:`p(q \\mid x)`: filter forwards, sample backwards (Carter and Kohn 1994).

    .. math:: p(q_t = i \\mid q_{t+1} = j, x) \\propto p(q_t = i \\mid x_1, \\dots, x_t) A_{ij}.

    A sequence of probability zero has no posterior; its paths, like padding, are -1.

    :return: LongTensor ``sample_shape + (..., T)``.
    """
    _, alphas = reference.forward(
        initial_logits, transition_logits, observation_logits, lengths, True
    )
    assert alphas is not None
    transitions = sums.exact(transition_logits.double())
    num_steps, num_states = observation_logits.shape[-2:]

    def filtered(step: int) -> Sum:
        return alphas.map(lambda part: part[..., step, :])

    last = sums.log_shares(filtered(-1), -1)
    shape = sample_shape + last.shape[:-1]
    state = _draw(last.expand(shape + (num_states,)))
    path = [state]
    for step in reversed(range(num_steps - 1)):
        slice_ = transitions.map(lambda part: _time_slice(part, step))  # noqa: B023
        arrows = slice_.map(lambda part: _columns(part, state))  # noqa: B023
        drawn = _draw(sums.log_shares(filtered(step).plus(arrows), -1))
        if lengths is None:
            state = drawn
        else:  # on padding the filter repeats the last state, so the first draw stands for it
            state = torch.where(step + 1 < lengths, drawn, state)
        path.append(state)
    states = torch.stack(path[::-1], -1)
    impossible = (last == -math.inf).all(-1)
    return _blank_padding(states.masked_fill(impossible.unsqueeze(-1), -1), lengths)


@torch.no_grad()
def sample_prior(
    initial_logits: Tensor, transition_logits: Tensor, num_steps: int, shape: torch.Size
) -> Tensor:
    """Draw paths from :math:`p(q)`.

    :param shape: shape of the result without the time dim, ``sample_shape + (...)``.
    :return: LongTensor ``shape + (num_steps,)``.
    """
    num_states = initial_logits.shape[-1]
    state = _draw(initial_logits.expand(shape + (num_states,)))
    path = [state]
    for step in range(num_steps - 1):
        rows = _columns(_time_slice(transition_logits, step).mT, state)
        state = _draw(rows)
        path.append(state)
    return torch.stack(path, -1)


def _blank_padding(states: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return states
    time = torch.arange(states.shape[-1], device=states.device)
    return states.masked_fill(time >= lengths.unsqueeze(-1), -1)
