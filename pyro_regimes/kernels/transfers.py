r"""Blocks of consecutive rows of one sequence: transfer matrices, messages, and the E-step of one.

The transfer of rows s to e is the matrix

.. math:: M(i, j) = \log p(x_s, \dots, x_e, q_e = j \mid q_{s-1} = i).

It includes the transition into the first row. Those of blocks that follow one another combine by a
product of matrices. With the message from the rows before,
:math:`\alpha(i) = \log p(q_{s-1} = i \mid x_1, \dots, x_{s-1})`, and the one from the rows after,
:math:`\beta(j) = \log p(x_{e+1}, \dots, x_T \mid q_e = j)` up to a constant, the expectations of a
block are those of a sequence of its own with

.. math::
    \pi_j = \log \sum_i e^{\alpha(i) + A_{ij}}, \qquad
    b_e(j) + \beta(j) \text{ in the place of } b_e(j),

and :math:`\xi(i, j) = e^{\alpha(i) + A_{ij} - \pi_j} \gamma_s(j)` for the transition into it.

**Rows that forget.** If all rows of M are proportional, :math:`e^{M(i, j)} = u_i v_j`, the message
to the rows before is :math:`\log u_i` up to a constant, whatever follows. For most chains this is
so to the last bit after some hundred or thousand rows. :func:`look_ahead` finds such a number of
rows, so that only the first rows of the next block are needed, and not the transfer of all of them.
In the same way the last rows determine the columns, :math:`v_j`. :func:`outline` is
:math:`u_i v_j` if both are known, and otherwise the transfer, because messages that pass a block
need no constant.

Everything is float64, whatever the dtype of the logits.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.kernels import likelihoods
from pyro_regimes.kernels.logs import logsumexp

#: The most numbers in the observation logits of one call, of which K copies are made.
_MOST_NUMBERS = 2**20

#: The first number of rows that may have forgotten, and by how much it grows.
_FIRST_ROWS, _GROWTH = 64, 4

#: Rows of a transfer are proportional if their logarithms agree to so many units in the last place.
_UNITS = 32


class Block(NamedTuple):
    """The E-step of one block given all other rows."""

    log_likelihood: Tensor  #: ``(...)``, of its rows given those before; the sum over blocks counts
    smoothed_probs: Tensor  #: ``(..., T, K)``
    #: ``(..., K, K)``, with that into the first row if rows are before it
    expected_transitions: Tensor
    filtered_logits: Tensor  #: ``(..., K)``, of the last row: the message to the next block


class Ahead(NamedTuple):
    """The message of a block to the one before it, or its transfer."""

    message: Tensor | None  #: ``(..., K)``; None if it depends on the rows after the block
    transfer: Tensor | None  #: of the whole block, ``(..., K, K)``; None if there is a message


def transfer(transition_logits: Tensor, observation_logits: Tensor) -> Tensor:
    """The transfer matrix of a block; differentiable.

    :param transition_logits: ``(..., 1 or T, K, K)``, of the transition into each row.
    :param observation_logits: ``(..., T, K)``.
    :return: ``(..., K, K)``.
    """
    num_rows, num_states = observation_logits.shape[-2:]
    most = max(1, _MOST_NUMBERS // num_states**2)
    parts = []
    for begin in range(0, num_rows, most):
        size = min(most, num_rows - begin)
        own = transition_logits
        if own.shape[-3] != 1:
            own = own.narrow(-3, begin, size)
        parts.append(_transfer(own.double(), observation_logits.narrow(-2, begin, size).double()))
    return reduce(combine, parts)


def _transfer(transition: Tensor, observation: Tensor) -> Tensor:
    """The filter from each of the K states before the rows."""
    start = transition[..., 0, :, :]  # (..., K, K)
    later = transition if transition.shape[-3] == 1 else transition[..., 1:, :, :]
    if observation.shape[-2] == 1:
        later = transition[..., :1, :, :]
    chain = start, later.unsqueeze(-4), observation.unsqueeze(-3)
    last = likelihoods.filter_logits(*chain)[..., -1, :]
    return likelihoods.log_likelihood(*chain).unsqueeze(-1) + last


def combine(first: Tensor, second: Tensor) -> Tensor:
    """The transfer of two blocks, of which the second follows the first, ``(..., K, K)``."""
    return logsumexp(first.unsqueeze(-1) + second.unsqueeze(-3), -2)


def begin(
    initial_logits: Tensor, transition_logits: Tensor, observation_logits: Tensor
) -> Tensor:
    """log p(x, q_T) of the first block, ``(..., K)``; its logsumexp is the log-likelihood.

    :param transition_logits: ``(..., 1 or T-1, K, K)``.
    """
    chain = [part.double() for part in (initial_logits, transition_logits, observation_logits)]
    last = likelihoods.filter_logits(*chain)[..., -1, :]
    return likelihoods.log_likelihood(*chain).unsqueeze(-1) + last


def forwards(message: Tensor, block: Tensor) -> Tensor:
    """The message after a block, from that before it and its transfer, ``(..., K)``."""
    return logsumexp(message.unsqueeze(-1) + block, -2)


def backwards(block: Tensor, message: Tensor) -> Tensor:
    """The message before a block, from its transfer and the message after it, ``(..., K)``."""
    found = logsumexp(block + message.unsqueeze(-2), -1)
    return found - _peak(found)  # its constant is of no use


def look_ahead(transition_logits: Tensor, observation_logits: Tensor) -> Ahead:
    """The message of a block to the rows before it, from the first rows that determine it.

    :param transition_logits: ``(..., 1, K, K)``.
    :param observation_logits: ``(..., T, K)``.
    """
    num_rows, size = observation_logits.shape[-2], _FIRST_ROWS
    while True:
        found = transfer(transition_logits, observation_logits[..., :size, :])
        message = _of_proportional(found)
        if message is not None:
            return Ahead(message, None)
        if size >= num_rows:
            return Ahead(None, found)
        size *= _GROWTH


def outline(
    initial_logits: Tensor | None, transition_logits: Tensor, observation_logits: Tensor
) -> Tensor:
    """The transfer of a block up to a constant, from as few of its rows as decide it.

    :param initial_logits: ``(..., K)`` of the first block, all rows of whose transfer are the
        message after it; None for other blocks.
    :param transition_logits: ``(..., 1, K, K)``.
    :param observation_logits: ``(..., T, K)``.
    :return: ``(..., K, K)``, the largest entry of which is 0.
    """
    begins = initial_logits is not None
    ends = outline_of_ends(begins, transition_logits, observation_logits, observation_logits)
    if ends is not None:
        return ends
    if initial_logits is None:
        found = transfer(transition_logits, observation_logits)
    else:
        last = begin(initial_logits, transition_logits, observation_logits)
        found = last.unsqueeze(-2).expand(last.shape[:-1] + 2 * last.shape[-1:])
    return found - _peak(found.flatten(-2)).unsqueeze(-1)


def outline_of_ends(
    begins: bool, transition_logits: Tensor, first_logits: Tensor, last_logits: Tensor
) -> Tensor | None:
    """The same from some of the first and of the last rows; None if these do not decide it.

    :param begins: whether the block is the first one.
    :param transition_logits: ``(..., 1, K, K)``.
    :param first_logits: ``(..., S, K)``, those of the first rows.
    :param last_logits: ``(..., S, K)``, those of the last rows.
    """
    last = _look_back(transition_logits, last_logits)
    if last is None:
        return None
    if begins:
        found = last.unsqueeze(-2).expand(last.shape[:-1] + 2 * last.shape[-1:])
    else:
        message = look_ahead(transition_logits, first_logits).message
        if message is None:
            return None
        found = message.unsqueeze(-1) + last.unsqueeze(-2)
    return found - _peak(found.flatten(-2)).unsqueeze(-1)


def _look_back(transition: Tensor, observation: Tensor) -> Tensor | None:
    """The message after a block, ``(..., K)``, from its last rows; None if these do not do."""
    num_rows, size = observation.shape[-2], _FIRST_ROWS
    while size < num_rows:
        found = transfer(transition, observation[..., num_rows - size :, :])
        if _of_proportional(found) is not None:
            return found.amax(-2)
        size *= _GROWTH
    return None


def _of_proportional(block: Tensor) -> Tensor | None:
    """The message before a block whose rows are proportional; None if they are not."""
    sizes = logsumexp(block, -1)  # (..., K)
    impossible = (sizes == -torch.inf).unsqueeze(-1)
    shares = (block - sizes.unsqueeze(-1).masked_fill(impossible, 0.0)).masked_fill(
        impossible, -torch.inf
    )
    largest = shares.amax(-2, keepdim=True)
    bound = _UNITS * torch.finfo(torch.float64).eps * (1 + largest.abs())
    alike = (shares == largest) | (largest - shares <= bound) | impossible
    return sizes - _peak(sizes) if bool(alike.all()) else None


def expectations(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    before: Tensor | None,
    after: Tensor | None,
) -> Block:
    """The E-step of one block given all other rows.

    :param initial_logits: ``(..., K)``, which count only where no rows are before.
    :param transition_logits: ``(..., 1, K, K)``.
    :param observation_logits: ``(..., T, K)``.
    :param before: the message from the rows before, ``(..., K)``; None for the first block.
    :param after: the message from the rows after, ``(..., K)``; None for the last block.
    """
    dtype = observation_logits.dtype
    transition, observation = transition_logits.double(), observation_logits.double()
    start = initial_logits.double()
    joint = torch.empty(0)
    if before is not None:
        joint = before.unsqueeze(-1) + transition.squeeze(-3)
        start = logsumexp(joint, -2)
    if after is not None:
        last = observation[..., -1:, :] + after.unsqueeze(-2)
        lead = torch.broadcast_shapes(last.shape[:-2], observation.shape[:-2])
        rest = observation[..., :-1, :]
        parts = [part.expand(lead + part.shape[-2:]) for part in (rest, last)]
        observation = torch.cat(parts, -2)
    value, smoothed, moved = likelihoods.expectations(start, transition, observation)
    if before is not None:
        share = (joint - start.masked_fill(start == -torch.inf, 0.0).unsqueeze(-2)).exp()
        moved = moved + share * smoothed[..., :1, :]
    # Where the smoothed probability underflows to 0, no path through the state matters, so the
    # filtered one may be taken as 0 as well.
    filtered = smoothed[..., -1, :].log()
    if after is not None:
        filtered = filtered - after.masked_fill(filtered == -torch.inf, 0.0)
    size = logsumexp(filtered, -1)
    filtered = filtered - size.masked_fill(size == -torch.inf, 0.0).unsqueeze(-1)
    value = value + size if after is not None else value
    return Block(value, smoothed.to(dtype), moved.to(dtype), filtered)


def _peak(message: Tensor) -> Tensor:
    """The largest entry, ``(..., 1)``; 0 where all are -inf."""
    peak = message.amax(-1, keepdim=True)
    return peak.masked_fill(peak == -torch.inf, 0.0)
