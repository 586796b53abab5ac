"""The E-step of one sequence that comes in consecutive pieces, exact across the seams.

The filter proceeds from piece to piece. The message from the rows after a piece is computed from
the first rows of the next piece, if these forget the state before them (:mod:`.kernels.transfers`).
Otherwise a pass over all pieces computes their transfers first.

If the pieces are split among the ranks of a process group, in their order, each rank gathers one
matrix of every rank, and finds from these what the rows before and after its own say
(:class:`Ends`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import chain
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.kernels import ops

T = TypeVar("T")
U = TypeVar("U")
T_co = TypeVar("T_co", covariant=True)

Messages = dict[str, Tensor]  #: by site, ``(..., K)``; or transfers, ``(..., K, K)``


class Piece(Protocol[T_co]):
    """One piece of a sequence at the present parameters."""

    def look_ahead(self) -> Messages | None:
        """The message to the rows before; None if it depends on rows after the piece."""

    def transfer(self) -> Messages:
        """The transfers of the piece."""

    def expect(self, before: Messages | None, after: Messages | None) -> tuple[T_co, Messages]:
        """The E-step of the piece, and the message to the next one.

        :param before: the message from the piece before; None for the first piece.
        :param after: the message from the piece after; None for the last piece.
        """


class Outlined(Protocol):
    """One piece of a sequence that is split among ranks."""

    def outline(self, begins: bool) -> Messages:
        """Its transfers up to a constant.

        :param begins: whether it is the first piece of the sequence.
        """


class Remembers(Exception):
    """A piece is too short to forget the state before it."""


class Ends(NamedTuple):
    """What is known of a sequence outside the pieces of this rank."""

    before: Messages | None = None  #: the message from the rank before; None for the first one
    after: Messages | None = None  #: the message from the rank after; None for the last one


_NO_OTHERS = Ends()


def in_one_pass(pieces: Iterable[Piece[T]], ends: Ends) -> Iterator[T]:
    """The E-steps of the pieces, with two pieces in memory.

    :raises Remembers: if the next piece alone does not determine a message.
    """
    before = ends.before
    current: Piece[T] | None = None
    for following in chain(pieces, [None]):
        if current is not None:
            after = ends.after if following is None else following.look_ahead()
            if following is not None and after is None:
                raise Remembers
            found, before = current.expect(before, after)
            yield found
            del found
        current = following


def in_two_passes(read: Callable[[], Iterable[Piece[T]]], ends: Ends) -> Iterator[T]:
    """The E-steps of the pieces, after a pass that computes their transfers.

    :param read: starts a pass.
    """
    transfers = [piece.transfer() for number, piece in enumerate(read()) if number]
    after = [ends.after]
    while transfers:
        after.append(_backwards(transfers.pop(), after[-1]))
    before = ends.before
    for piece in read():
        found, before = piece.expect(before, after.pop())
        yield found
        del found, piece


def outline_of(pieces: Iterable[Outlined], ranks: Ranks) -> Messages:
    """The transfers of all pieces of this rank up to a constant."""
    own: Messages | None = None
    for number, piece in enumerate(pieces):
        found = piece.outline(ranks.is_first and not number)
        own = found if own is None else _combine(own, found)
        del piece
    assert own is not None
    return own


def ends_of(own: Messages, ranks: Ranks) -> Ends:
    """The messages to the pieces of this rank, from one small matrix of every rank.

    :param own: from :func:`outline_of`.
    """
    names = list(own)
    outlines = [
        dict(zip(names, each, strict=True)) for each in ranks.gather([own[name] for name in names])
    ]
    earlier, later = outlines[: ranks.rank], outlines[ranks.rank + 1 :]
    before = after = None
    if earlier:
        whole = reduce(_combine, earlier)  # all its rows are the message, as those of the first are
        before = {name: _normalised(part[..., 0, :]) for name, part in whole.items()}
    for each in reversed(later):
        after = _backwards(each, after)
    return Ends(before, after)


def _combine(one: Messages, other: Messages) -> Messages:
    found = {name: ops.combine_transfers(part, other[name]) for name, part in one.items()}
    return {name: part - _largest(part) for name, part in found.items()}


def _backwards(block: Messages, after: Messages | None) -> Messages:
    """The messages before a piece, from its transfers and the messages after it."""
    return {
        name: ops.backward_message(
            own, own.new_zeros(own.shape[:-1]) if after is None else after[name]
        )
        for name, own in block.items()
    }


def _normalised(message: Tensor) -> Tensor:
    size = ops.logsumexp(message, -1).unsqueeze(-1)
    return message - size.masked_fill(size == -torch.inf, 0.0)


def _largest(block: Tensor) -> Tensor:
    """The largest entry of a transfer, ``(..., 1, 1)``; 0 where all are -inf."""
    largest = block.amax((-2, -1), keepdim=True)
    return largest.masked_fill(largest == -torch.inf, 0.0)


class Passes:
    """Passes over the pieces of a sequence: one for each E-step, or two once one is not enough."""

    def __init__(self) -> None:
        self.remember = False  #: whether some piece is too short to forget the state before it

    def fold(
        self,
        read: Callable[[], Iterable[Piece[T]]],
        function: Callable[[Iterator[T]], U],
        ends: Ends = _NO_OTHERS,
    ) -> U:
        """A function of the E-steps of all pieces.

        :param read: starts a pass.
        :param ends: what other ranks say.
        """
        if not self.remember:
            try:
                return function(in_one_pass(read(), ends))
            except Remembers:
                self.remember = True
        return function(in_two_passes(read, ends))

    @property
    def description(self) -> str:
        """The number of passes, for ``em.plan``."""
        return f"{'two passes' if self.remember else 'one pass'} for each E-step"
