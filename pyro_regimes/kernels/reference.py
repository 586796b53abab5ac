"""The recursions in plain tensor code, the specification of every faster kernel.

Write :math:`\\pi` for ``initial_logits`` ``(..., K)``, :math:`A` for ``transition_logits``
``(..., 1 or T-1, K, K)`` and :math:`b` for ``observation_logits`` ``(..., T, K)``, all three
logarithms, not necessarily normalised. A path :math:`q_1, \\dots, q_T` has

.. math:: \\log p(x, q) = \\pi_{q_1} + \\sum_{t=2}^T A_{q_{t-1} q_t} + \\sum_{t=1}^T b_t(q_t),

and everything here is a sum or a derivative of it. The forward recursion is

.. math::
    \\alpha_1(j) = \\pi_j + b_1(j), \\qquad
    \\alpha_t(j) = b_t(j) + \\log \\sum_i \\exp(\\alpha_{t-1}(i) + A_{ij}), \\qquad
    \\log p(x) = \\log \\sum_j \\exp \\alpha_T(j).

There is no code for the backward recursion. Differentiating the forward recursion performs it
(Fisher's identity) and gives the smoothed probabilities and the expected transitions.

Sums keep small terms next to large logits (``sums.py``). If the logits and their sums are finite
in float64, the results are those of exact arithmetic up to rounding. Under transforms, which hide
the numbers from Python, sums have about 159 bits, enough for logits of similar size.

Callers use :mod:`pyro_regimes.kernels.ops`, which checks the arguments.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from pyro_regimes.kernels import sums, transforms
from pyro_regimes.kernels.sums import Sum

# A scan over blocks does K times the arithmetic of the plain loop in about 2 sqrt(T) instead of T
# steps. A step costs some 1e4 times what one element of it costs (measured on two cores), so the
# scan pays while a step of it handles fewer elements than that.
_MAX_BLOCKED_STATES = 8
_MIN_BLOCKED_STEPS = 16
_MAX_BLOCKED_ELEMENTS = 10_000


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


def _sweep(
    rows: Sum,  # (..., B, R, K)
    transitions: list[Sum],  # L times (..., 1 or B, K, K)
    observations: list[Sum],  # L times (..., B, K)
    valid: list[Tensor | None],  # L times (..., B), or None: all are
    history: list[Sum] | None = None,
) -> Sum:
    """Carry R rows in each of B blocks through L steps of the forward recursion.

    One row holding :math:`\\alpha` gives the filter; the K rows of the identity matrix give the
    block's transfer matrix.

    :return: the rows at the end.
    """
    for step, observation in enumerate(observations):
        paths = rows.map(_column).plus(transitions[step].map(lambda a: a.unsqueeze(-3)))
        moved = sums.logsumexp(paths, -2).plus(observation.map(_row))
        keep = valid[step]
        rows = moved if keep is None else sums.where(keep[..., None, None], moved, rows)
        if history is not None:
            history.append(rows)
    return rows


def _row(values: Tensor) -> Tensor:
    return values.unsqueeze(-2)


def _column(values: Tensor) -> Tensor:
    return values.unsqueeze(-1)


def _blocks_of(logits: Tensor, dim: int, num_blocks: int, size: int) -> list[Sum]:
    number = sums.exact(logits)
    values, lives = (
        _unbind_blocks(part, dim, num_blocks, size) for part in (number.parts[0], number.live)
    )
    return [Sum((value,), live) for value, live in zip(values, lives, strict=True)]


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


def _without_padding(
    transition_logits: Tensor, observation_logits: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with 0 for padding, and NaN where a length is not from 1 to T.

    :return: transitions, observations, and which steps count ``(..., T)``.
    """
    num_steps = observation_logits.shape[-2]
    # Under transforms and in graphs nobody could look at the lengths before.
    wrong = (lengths < 1) | (lengths > num_steps)
    lengths = lengths.masked_fill(wrong, num_steps)
    valid = torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)
    observation_logits = observation_logits.masked_fill(~valid.unsqueeze(-1), 0.0)
    observation_logits = observation_logits + torch.where(wrong, math.nan, 0.0)[..., None, None]
    if transition_logits.shape[-3] > 1:
        transition_logits = transition_logits.masked_fill(~valid[..., 1:, None, None], 0.0)
    return transition_logits, observation_logits, valid


def forward(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
    history: bool,
) -> tuple[Tensor, Sum | None]:
    """The forward recursion.

    :return: :math:`\\log p(x)`, and with ``history`` every :math:`\\alpha_t`, ``(..., T, K)``; on
        padding that of the last observation.
    """
    initial_logits, transition_logits, observation_logits = (
        logits.double() for logits in (initial_logits, transition_logits, observation_logits)
    )
    num_steps, num_states = observation_logits.shape[-2:]
    valid = None
    if lengths is not None:
        transition_logits, observation_logits, valid = _without_padding(
            transition_logits, observation_logits, lengths
        )
        valid = valid[..., 1:]

    num_parts = sums.parts_needed(initial_logits, transition_logits, observation_logits)
    first = sums.widen(sums.exact(initial_logits), num_parts)
    first = first.plus(sums.exact(observation_logits[..., 0, :]))  # (..., K)
    steps = num_steps - 1
    if steps == 0:
        return _total(first), first.map(_row) if history else None

    batch_shape = torch.broadcast_shapes(
        initial_logits.shape[:-1], transition_logits.shape[:-3], observation_logits.shape[:-2]
    )
    first = first.map(lambda part: part.expand(batch_shape + (num_states,)))
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
        device = observation_logits.device
        last = torch.arange(num_blocks, device=device) == num_blocks - 1
        keeps = [None] * (size - missing) + [~last] * missing
    observations = _blocks_of(observation_logits[..., 1:, :], -2, num_blocks, size)
    if transition_logits.shape[-3] == 1:
        transitions = [sums.exact(transition_logits)] * size
    else:
        transitions = _blocks_of(transition_logits, -3, num_blocks, size)

    entries = first.map(lambda part: part[..., None, None, :])  # (..., 1, 1, K)
    if num_blocks > 1:
        identity = torch.eye(num_states, dtype=torch.float64, device=observation_logits.device)
        rows = sums.widen(sums.exact(identity.log()), num_parts)
        shape = batch_shape + (num_blocks, num_states, num_states)
        matrices = _sweep(
            rows.map(lambda part: part.expand(shape)), transitions, observations, keeps
        )
        alpha, starts = first, []
        for block in range(num_blocks):
            starts.append(alpha)
            matrix = matrices.map(lambda part: part.select(-3, block))  # noqa: B023 (called here)
            alpha = sums.logsumexp(alpha.map(_column).plus(matrix), -2)
        if not history:
            return _total(alpha), None
        entries = sums.stack(starts, -2).map(_row)  # (..., B, 1, K)

    passed: list[Sum] | None = [] if history else None
    exits = _sweep(entries, transitions, observations, keeps, passed)
    if num_blocks == 1:
        alpha = exits.map(lambda part: part[..., 0, 0, :])
    if passed is None:
        return _total(alpha), None
    later = sums.stack([rows.map(lambda part: part.squeeze(-2)) for rows in passed], -2)
    later = later.map(lambda part: part.flatten(-3, -2)[..., :steps, :])  # of (..., B, L, K)
    return _total(alpha), sums.cat([first.map(_row), later], -2)


def _total(alpha: Sum) -> Tensor:
    """:math:`\\log \\sum_j \\exp \\alpha(j)`, rounded once."""
    total = sums.logsumexp(alpha, -1)
    return total.estimate() + total.live


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """:math:`\\log p(x)`, shape ``(...)``; -inf, with gradient 0, for a sequence of probability 0.

    :return: float64 whatever the inputs' dtype.
    """
    return forward(initial_logits, transition_logits, observation_logits, lengths, False)[0]


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
    alphas = forward(initial_logits, transition_logits, observation_logits, lengths, True)[1]
    assert alphas is not None
    return sums.log_shares(alphas, -1)


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
    # One copy for each sequence, so that the gradient is each sequence's own.
    terms = [
        term.expand(batch_shape + term.shape[-event_dim:])
        for term, event_dim in zip(logits, (1, 3, 2), strict=True)
    ]
    if not all(map(_is_plain, logits)):
        found = torch.func.vjp(partial(log_likelihood, lengths=lengths), *terms)
        value, pull_back = found[:2]
        _, *gradients = pull_back(torch.ones_like(value))
    else:
        value, gradients = _differentiate(terms, lengths)
    moved, smoothed = gradients
    if transition_logits.shape[-3] == 1:
        moved = moved.squeeze(-3)
    return value, smoothed, moved


def _is_plain(logits: Tensor) -> bool:
    """Whether no transform of :mod:`torch.func` and no forward mode follows what is done to it."""
    return not (
        torch._C._functorch.is_functorch_wrapped_tensor(logits) or transforms.has_tangent(logits)
    )


def _differentiate(
    terms: list[Tensor], lengths: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """The value, and its derivatives in A and b; recorded for autograd where an input is."""
    keep_graph = torch.is_grad_enabled() and any(term.requires_grad for term in terms)
    with torch.inference_mode(False), torch.enable_grad():
        leaves = []
        for term in terms:
            if not (keep_graph and term.requires_grad):
                term = (term.clone() if term.is_inference() else term.detach()).requires_grad_()
            leaves.append(term)
        value = log_likelihood(leaves[0], leaves[1], leaves[2], lengths)
        gradients = torch.autograd.grad(  # 0 in A where T = 1 and there is no transition
            value.sum(), leaves[1:], create_graph=keep_graph, materialize_grads=True
        )
    return (value if keep_graph else value.detach()), list(gradients)
