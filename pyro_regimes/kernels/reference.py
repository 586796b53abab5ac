"""The recursions in plain tensor code: the specification that every faster kernel must meet.

Write :math:`\\pi` for ``initial_logits`` ``(..., K)``, :math:`A` for ``transition_logits``
``(..., 1 or T-1, K, K)`` and :math:`b` for ``observation_logits`` ``(..., T, K)``, all three
logarithms and none of them necessarily normalised. A path :math:`q_1, \\dots, q_T` has

.. math:: \\log p(x, q) = \\pi_{q_1} + \\sum_{t=2}^T A_{q_{t-1} q_t} + \\sum_{t=1}^T b_t(q_t),

and everything here is a sum or a derivative of it. The forward recursion is

.. math::
    \\alpha_1(j) = \\pi_j + b_1(j), \\qquad
    \\alpha_t(j) = b_t(j) + \\log \\sum_i \\exp(\\alpha_{t-1}(i) + A_{ij}), \\qquad
    \\log p(x) = \\log \\sum_j \\exp \\alpha_T(j).

The backward recursion is not written down: differentiating the forward one performs it (Fisher's
identity), and gives the smoothed probabilities and the expected transitions.

Arguments arrive checked from :mod:`pyro_regimes.kernels.ops`, which is the door for callers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# A scan over blocks does K times the arithmetic of the plain loop in about 2 sqrt(T) instead of T
# steps. A step costs some 1e4 times what one element of it costs (measured on two cores), so the
# scan pays while a step of it handles fewer elements than that.
_MAX_BLOCKED_STATES = 8
_MIN_BLOCKED_STEPS = 16
_MAX_BLOCKED_ELEMENTS = 10_000


class _LogSumExp(torch.autograd.Function):
    """``torch.logsumexp`` over ``dim``, with gradient 0 instead of NaN where all terms are -inf.

    The backward pass is made of differentiable operations, so derivatives of any order are right.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(terms: Tensor, dim: int) -> Tensor:
        return terms.logsumexp(dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        terms, ctx.dim = inputs
        ctx.save_for_backward(terms, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        terms, total = ctx.saved_tensors
        total = total.masked_fill(total == -math.inf, 0.0)  # exp(-inf - 0) = 0: no gradient
        weights = (terms - total.unsqueeze(ctx.dim)).exp()
        return grad.unsqueeze(ctx.dim) * weights, None


def logsumexp(terms: Tensor, dim: int) -> Tensor:
    """:math:`\\log \\sum \\exp` over one dim; -inf (with gradient 0) where every term is -inf."""
    return _LogSumExp.apply(terms, dim)


def complete_log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    path: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """The complete-data log-likelihood :math:`\\log p(x, q)` of a path (equations 4 and 5).

    :param path: states ``(..., T)``; what it holds on padding does not matter.
    :return: ``(...)``.
    """
    if lengths is not None:
        valid = torch.arange(path.shape[-1], device=path.device) < lengths.unsqueeze(-1)
        path = path.masked_fill(~valid, 0)
    batch_shape = torch.broadcast_shapes(path.shape[:-1], observation_logits.shape[:-2])
    path = path.expand(batch_shape + path.shape[-1:])
    num_steps, num_states = observation_logits.shape[-2:]
    emitted = _take(observation_logits.expand(batch_shape + (num_steps, num_states)), path)
    first = _take(initial_logits.expand(batch_shape + (num_states,)), path[..., 0])
    square = (num_steps - 1, num_states, num_states)
    rows = transition_logits[..., : num_steps - 1, :, :].expand(batch_shape + square)
    index = path[..., :-1, None, None].expand(batch_shape + (num_steps - 1, 1, num_states))
    moved = _take(rows.gather(-2, index).squeeze(-2), path[..., 1:])
    if lengths is not None:
        emitted = emitted.masked_fill(~valid, 0.0)
        moved = moved.masked_fill(~valid[..., 1:], 0.0)
    return first + moved.sum(-1) + emitted.sum(-1)


def _take(values: Tensor, states: Tensor) -> Tensor:
    """``values[..., states]`` along the last dim, batch by batch."""
    return values.gather(-1, states.unsqueeze(-1)).squeeze(-1)


def _normalise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the largest entry of each row; a row of -inf stays one, its shift does not matter.

    The shift is a constant to autograd: added back, it leaves value and derivatives unchanged.
    """
    peak = rows.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).min)
    return rows - peak, peak


def _sweep(
    rows: Tensor,  # (..., B, R, K)
    transitions: list[Tensor],  # L times (..., 1 or B, K, K)
    observations: list[Tensor],  # L times (..., B, K)
    valid: list[Tensor | None],  # L times (..., B), or None: all are
    history: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Carry R rows in each of B blocks through L steps of the forward recursion.

    One row holding :math:`\\alpha` gives the filter; the K rows of the identity matrix give the
    block's transfer matrix. Each row is normalised at every step.

    :return: the rows at the end, and what was subtracted from each ``(..., B, R, 1)``.
    """
    shift = torch.zeros_like(rows[..., :1])
    for step, observation in enumerate(observations):
        moved = logsumexp(rows.unsqueeze(-1) + transitions[step].unsqueeze(-3), -2)
        moved, peak = _normalise(moved + observation.unsqueeze(-2))
        keep = valid[step]
        if keep is not None:
            keep = keep[..., None, None]
            moved = torch.where(keep, moved, rows)
            peak = peak.masked_fill(~keep, 0.0)
        rows, shift = moved, shift + peak
        if history is not None:
            history.append(rows)
    return rows, shift


def _unbind_blocks(steps: Tensor, dim: int, num_blocks: int, size: int) -> list[Tensor]:
    """Cut time, at ``dim`` from the right, in blocks; unbind the position within the block."""
    missing = num_blocks * size - steps.shape[dim]
    if missing:
        filler = steps.new_zeros(steps.shape[:dim] + (missing,) + steps.shape[dim:][1:])
        steps = torch.cat([steps, filler], dim)
    return list(steps.unflatten(dim, (num_blocks, size)).unbind(dim))


def _block_size(steps: int) -> int:
    """About the square root, chosen so that the last block is as full as can be."""
    root = math.isqrt(steps)
    return min(range(root - root // 8, root + root // 8 + 1), key=lambda size: -steps % size)


def _forward(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
    history: bool,
) -> tuple[Tensor, Tensor | None]:
    """The forward recursion in float64.

    :return: :math:`\\log p(x)`, and with ``history`` every :math:`\\alpha_t` up to a constant.
    """
    initial_logits, transition_logits, observation_logits = (
        logits.double() for logits in (initial_logits, transition_logits, observation_logits)
    )
    num_steps, num_states = observation_logits.shape[-2:]
    valid = None
    if lengths is not None:
        time = torch.arange(num_steps, device=lengths.device)
        valid = time < lengths.unsqueeze(-1)  # (..., T)
        observation_logits = observation_logits.masked_fill(~valid.unsqueeze(-1), 0.0)
        valid = valid[..., 1:]
        if transition_logits.shape[-3] > 1:
            transition_logits = transition_logits.masked_fill(~valid[..., None, None], 0.0)

    first = initial_logits + observation_logits[..., 0, :]
    first, total = _normalise(first)  # (..., K), (..., 1)
    steps = num_steps - 1
    if steps == 0:
        alphas = first.unsqueeze(-2) if history else None
        return logsumexp(first, -1) + total.squeeze(-1), alphas

    batch_shape = torch.broadcast_shapes(
        initial_logits.shape[:-1], transition_logits.shape[:-3], observation_logits.shape[:-2]
    )
    elements = math.prod(batch_shape) * num_states**3
    blocked = (
        num_states <= _MAX_BLOCKED_STATES
        and steps >= _MIN_BLOCKED_STEPS
        and elements <= _MAX_BLOCKED_ELEMENTS
    )
    size = _block_size(steps) if blocked else steps
    num_blocks = math.ceil(steps / size)
    keeps: list[Tensor | None]
    if valid is not None:
        keeps = list(_unbind_blocks(valid, -1, num_blocks, size))
    else:
        missing = num_blocks * size - steps  # at the end of the last block
        last = torch.arange(num_blocks, device=first.device) == num_blocks - 1
        keeps = [None] * (size - missing) + [~last] * missing
    observations = _unbind_blocks(observation_logits[..., 1:, :], -2, num_blocks, size)
    if transition_logits.shape[-3] == 1:
        transitions = [transition_logits] * size
    else:
        transitions = _unbind_blocks(transition_logits, -3, num_blocks, size)

    if num_blocks == 1:
        entries = first[..., None, None, :]  # (..., 1, 1, K)
    else:
        identity = torch.eye(num_states, dtype=first.dtype, device=first.device).log()
        rows = identity.expand(batch_shape + (num_blocks, num_states, num_states))
        transfer, shift = _sweep(rows, transitions, observations, keeps)
        matrices, peaks = _normalise((transfer + shift).flatten(-2))
        blocks = matrices.unflatten(-1, (num_states, num_states)).unbind(-3)
        alpha, starts = first, []
        for matrix, peak in zip(blocks, peaks.unbind(-2), strict=True):
            starts.append(alpha.expand(batch_shape + (num_states,)))
            alpha, more = _normalise(logsumexp(alpha.unsqueeze(-1) + matrix, -2))
            total = total + peak + more
        if not history:
            return logsumexp(alpha, -1) + total.squeeze(-1), None
        entries = torch.stack(starts, -2).unsqueeze(-2)  # (..., B, 1, K)

    passed: list[Tensor] | None = [] if history else None
    exits, shift = _sweep(entries, transitions, observations, keeps, passed)
    if num_blocks == 1:
        alpha, total = exits[..., 0, 0, :], total + shift[..., 0, 0, :]
    log_likelihood = logsumexp(alpha, -1) + total.squeeze(-1)
    if passed is None:
        return log_likelihood, None
    alphas = torch.stack([rows.squeeze(-2) for rows in passed], -2)  # (..., B, L, K)
    alphas = alphas.flatten(-3, -2)[..., :steps, :]
    first = first.expand(alphas.shape[:-2] + first.shape[-1:])
    return log_likelihood, torch.cat([first.unsqueeze(-2), alphas], -2)


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """:math:`\\log p(x)`, shape ``(...)``; -inf, with gradient 0, for a sequence of probability 0.

    Computed in float64 whatever the inputs' dtype, and rounded to that at the end.
    """
    return _forward(initial_logits, transition_logits, observation_logits, lengths, False)[0].to(
        observation_logits.dtype
    )


def filter_logits(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """:math:`\\log p(q_t \\mid x_1, \\dots, x_t)`, shape ``(..., T, K)``, float64.

    From the step at which a sequence has become impossible on, every entry is -inf. On padding
    the entries repeat those of the last observation.
    """
    alphas = _forward(initial_logits, transition_logits, observation_logits, lengths, True)[1]
    assert alphas is not None
    total = logsumexp(alphas, -1).unsqueeze(-1)
    return alphas - total.masked_fill(total == -math.inf, 0.0)


def predict_probs(
    initial_logits: Tensor, transition_logits: Tensor, filtered_probs: Tensor
) -> Tensor:
    """:math:`p(q_t \\mid x_1, \\dots, x_{t-1})`, shape ``(..., T, K)``, from the filtered ones."""
    first = initial_logits.softmax(-1).unsqueeze(-2)
    later = filtered_probs[..., :-1, :]
    with torch.autocast(later.device.type, enabled=False):  # a probability has more digits
        if transition_logits.shape[-3] == 1:
            later = later @ transition_logits.softmax(-1).squeeze(-3)
        else:
            later = (later.unsqueeze(-2) @ transition_logits.softmax(-1)).squeeze(-2)
    return torch.cat([first.expand(later.shape[:-2] + first.shape[-2:]), later], -2)


def expectations(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The E-step, as the gradient of :math:`\\log p(x)` (equations 17 and 21).

    .. math::
        \\gamma_t(k) = \\frac{\\partial \\log p(x)}{\\partial b_t(k)}, \\qquad
        \\sum_t \\xi_t(i, j) = \\frac{\\partial \\log p(x)}{\\partial A_{ij}}.

    The result is differentiable where an input is and gradients are enabled.

    :return: ``log_likelihood`` ``(...)``, ``smoothed_probs`` ``(..., T, K)`` and
        ``expected_transitions`` ``(..., K, K)``, or ``(..., T-1, K, K)`` where A varies in time.
    """
    logits = (initial_logits, transition_logits, observation_logits)
    batch_shape = torch.broadcast_shapes(
        initial_logits.shape[:-1], transition_logits.shape[:-3], observation_logits.shape[:-2]
    )
    keep_graph = torch.is_grad_enabled() and any(term.requires_grad for term in logits)
    with torch.inference_mode(False), torch.enable_grad():
        terms = []
        for term, event_dim in zip(logits, (1, 3, 2), strict=True):
            # One copy for each sequence, so that the gradient is each sequence's own.
            term = term.expand(batch_shape + term.shape[-event_dim:])
            if not (keep_graph and term.requires_grad):
                term = (term.clone() if term.is_inference() else term.detach()).requires_grad_()
            terms.append(term)
        value = log_likelihood(terms[0], terms[1], terms[2], lengths)
        gradients = torch.autograd.grad(
            value.sum(), terms[1:], create_graph=keep_graph, allow_unused=True
        )
    moved, smoothed = gradients
    if moved is None:  # T = 1: there is no transition
        moved = torch.zeros_like(terms[1])
    if transition_logits.shape[-3] == 1:
        moved = moved.squeeze(-3)
    return (value if keep_graph else value.detach()), smoothed, moved
