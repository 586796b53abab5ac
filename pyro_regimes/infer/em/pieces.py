"""The E-step of one sequence that comes in consecutive pieces, exact across the seams.

The filter goes from piece to piece. What the rows after a piece say of its last state is found from
the first rows of the next one, if these forget what was before them (:mod:`.kernels.transfers`).
Otherwise a pass over all pieces computes their transfers first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Protocol, TypeVar

from torch import Tensor

from pyro_regimes.kernels import ops

T = TypeVar("T")
U = TypeVar("U")
T_co = TypeVar("T_co", covariant=True)

Messages = dict[str, Tensor]  #: by site, ``(..., K)``; or transfers, ``(..., K, K)``


class Piece(Protocol[T_co]):
    """One piece of a sequence at the present parameters."""

    def look_ahead(self) -> Messages | None:
        """What its rows say of the state before them; None if that depends on later rows."""

    def transfer(self) -> Messages:
        """Its transfers."""

    def expect(self, before: Messages | None, after: Messages | None) -> tuple[T_co, Messages]:
        """Its E-step, and the message to the next piece.

        :param before: the message from the piece before; None for the first piece.
        :param after: the message from the piece after; None for the last piece.
        """


class Remembers(Exception):
    """The rows of a whole piece do not forget what was before them."""


def in_one_pass(pieces: Iterable[Piece[T]]) -> Iterator[T]:
    """The E-steps of the pieces, two of which are in memory.

    :raises Remembers: if the next piece alone does not decide a message.
    """
    before: Messages | None = None
    current: Piece[T] | None = None
    for following in chain(pieces, [None]):
        if current is not None:
            after = None if following is None else following.look_ahead()
            if following is not None and after is None:
                raise Remembers
            found, before = current.expect(before, after)
            yield found
            del found
        current = following


def in_two_passes(read: Callable[[], Iterable[Piece[T]]]) -> Iterator[T]:
    """The E-steps of the pieces, after a pass that computes their transfers.

    :param read: starts a pass.
    """
    transfers = [piece.transfer() for number, piece in enumerate(read()) if number]
    after: list[Messages | None] = [None]
    while transfers:
        block, last = transfers.pop(), after[-1]
        after.append(
            {
                name: ops.backward_message(
                    own, own.new_zeros(own.shape[:-1]) if last is None else last[name]
                )
                for name, own in block.items()
            }
        )
    before: Messages | None = None
    for piece in read():
        found, before = piece.expect(before, after.pop())
        yield found
        del found, piece


class Passes:
    """Passes over the pieces of a sequence: one for each E-step as long as that is enough."""

    def __init__(self) -> None:
        self.remember = False  #: whether some piece is too short to forget what was before it

    def fold(
        self, read: Callable[[], Iterable[Piece[T]]], function: Callable[[Iterator[T]], U]
    ) -> U:
        """A function of the E-steps of all pieces.

        :param read: starts a pass.
        """
        if not self.remember:
            try:
                return function(in_one_pass(read()))
            except Remembers:
                self.remember = True
        return function(in_two_passes(read))

    @property
    def description(self) -> str:
        """The number of passes, for ``em.plan``."""
        return f"{'two passes' if self.remember else 'one pass'} for each E-step"
