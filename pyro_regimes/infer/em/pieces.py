"""The E-step of one sequence that comes in consecutive pieces, exact across the seams.

The filter goes from piece to piece. What the rows after a piece say of its last state is found from
the first rows of the next one, if these forget what was before them (:mod:`.kernels.transfers`).
Otherwise a pass over all pieces computes their transfers first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from torch import Tensor

from pyro_regimes.infer.em.e_step import Expected, SiteData, chain_of
from pyro_regimes.infer.em.problem import Problem
from pyro_regimes.kernels import ops

Messages = dict[str, Tensor]  #: by site, ``(..., K)``


class Piece(NamedTuple):
    """One piece of a sequence given all others."""

    problem: Problem
    expected: dict[str, Expected]
    is_first: bool


class Remembers(Exception):
    """The rows of a whole piece do not forget what was before them."""


def in_one_pass(problems: Iterable[Problem]) -> Iterator[Piece]:
    """The pieces, two of which are in memory.

    :raises Remembers: if the next piece alone does not decide a message.
    """
    before: Messages | None = None
    current = None
    for following in chain(problems, [None]):
        if current is not None:
            after = None if following is None else _looked_ahead(following)
            piece, before = _take(current, before, after)
            yield piece
            del piece
        current = following


def in_two_passes(read: Callable[[], Iterable[Problem]]) -> Iterator[Piece]:
    """The pieces, after a pass that computes their transfers.

    :param read: starts a pass.
    """
    transfers: list[Messages] = []
    for number, problem in enumerate(read()):
        if number:
            logits = {name: chain_of(data)[1] for name, data in problem.sites.items()}
            transfers.append({name: ops.transfer(*own[1:]) for name, own in logits.items()})
    after: list[Messages | None] = [None]
    for transfer in reversed(transfers):
        last = after[-1]
        after.append(
            {
                name: ops.backward_message(
                    block, block.new_zeros(block.shape[:-1]) if last is None else last[name]
                )
                for name, block in transfer.items()
            }
        )
    before: Messages | None = None
    for problem in read():
        piece, before = _take(problem, before, after.pop())
        yield piece
        del piece, problem


def _looked_ahead(problem: Problem) -> Messages:
    """What the first rows of a piece say of the state before them."""
    messages = {}
    for name, data in problem.sites.items():
        ahead = ops.look_ahead(*chain_of(data)[1][1:])
        if ahead.message is None:
            raise Remembers
        messages[name] = ahead.message
    return messages


def _take(
    problem: Problem, before: Messages | None, after: Messages | None
) -> tuple[Piece, Messages]:
    """The E-step of a piece, and its message to the next one."""
    expected, messages = {}, {}
    for name, data in problem.sites.items():
        found, messages[name] = _expect(
            data, None if before is None else before[name], None if after is None else after[name]
        )
        expected[name] = found
    return Piece(problem, expected, before is None), messages


def _expect(
    data: SiteData, before: Tensor | None, after: Tensor | None
) -> tuple[Expected, Tensor]:
    arguments, logits = chain_of(data)
    block = ops.block_expectations(*logits, before, after)
    return Expected(data, arguments, ops.Expectations(*block[:3])), block.filtered_logits
