"""EM on data in chunks, which are read again in every iteration.

Each pass writes the parameters to the store and runs the model on one chunk after the other. What
is kept of a chunk are its expected statistics. Those of families that need another pass at the new
values of some arguments, such as the degrees of freedom of a Student-t, take it in the M-step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Arguments, Stats
from pyro_regimes.infer.em.ascent import Ascent, Held
from pyro_regimes.infer.em.chunk_checks import check_chunk
from pyro_regimes.infer.em.chunk_sums import (
    SumOfChunks,
    add,
    sum_of_chunk,
    sum_of_retaken,
    without_start,
)
from pyro_regimes.infer.em.e_step import take_expectations
from pyro_regimes.infer.em.engines.tensors import TensorEngine
from pyro_regimes.infer.em.m_step import Maximised
from pyro_regimes.infer.em.pieces import Piece, Remembers, in_one_pass, in_two_passes
from pyro_regimes.infer.em.problem import Params, Problem, State, TensorState
from pyro_regimes.infer.em.session import Call, Session

T = TypeVar("T")

#: Starts a pass over the calls of the model, one for each chunk.
Calls = Callable[[], Iterator[Call]]


class ChunkEngine(TensorEngine):
    """Steps on sums of the statistics of chunks.

    :param problem: that of the first chunk.
    :param continues: whether the chunks are pieces of one sequence.
    """

    def __init__(self, session: Session, problem: Problem, calls: Calls, continues: bool) -> None:
        super().__init__(problem)
        self._session, self._calls, self._continues = session, calls, continues
        self._remembers = False  # whether a piece is too short to forget what was before it
        self._now: tuple[Params, Params] | None = None  # of which the last sums are
        self._num_chunks: int | None = None
        self.num_passes = 0  #: over the data

    @property
    def description(self) -> str:
        """How the statistics are computed, for ``em.plan``."""
        if not self._continues:
            return "tensor operations on chunks of whole sequences"
        passes = "two passes" if self._remembers else "one pass"
        return f"tensor operations on pieces of one sequence, {passes} for each E-step"

    def start(self) -> TensorState:
        """The E-step at the parameters in the store."""
        return self.evaluate(*self._session.parameters(self.problem.plan))

    def at(
        self, now: TensorState, params: Params, leaves: Params, found: Maximised
    ) -> TensorState:
        """The E-step at new parameters, over all chunks."""
        after = self.evaluate(params, leaves)
        return after._replace(unbounded=_names(found.unbounded), idle=_names(found.idle))

    def complete(self, start: TensorState, state: State) -> TensorState:
        """See :meth:`.TensorEngine.complete`."""
        if isinstance(state, TensorState) and state.expected:
            return state
        return self.evaluate(state.params, state.leaves)

    def advance(self, now: TensorState, ascent: Ascent) -> TensorState:
        """One step; the store then holds its parameters."""
        after = super().advance(now, ascent)
        if self._now is None or self._now[0] is not after.params:
            self._write(after.params, after.leaves)
        return after

    def maximise(self, now: TensorState, held: Held) -> Maximised:
        """The M-step."""
        self._now = now.params, now.leaves  # at which statistics are taken again
        return super().maximise(now, held)

    def _write(self, params: Params, leaves: Params) -> None:
        self._session.write(params, leaves)
        self._now = params, leaves

    def evaluate(self, params: Params, leaves: Params) -> TensorState:
        """The E-step over all chunks."""
        self._write(params, leaves)
        return self._over_pieces(lambda pieces: self._sum(pieces, params, leaves))

    def _sum(self, pieces: Iterator[Piece], params: Params, leaves: Params) -> TensorState:
        """Add up the statistics of all chunks."""
        total: Tensor | None = None
        expected: dict[str, Any] = {}
        for piece in pieces:
            own = _log_likelihoods(piece)
            if total is None:  # priors count once
                total = torch.zeros_like(own)
                if self.problem.latents or self.problem.plan.is_joint:
                    total = piece.problem.log_prior(params)
            total = total + own
            for name, each in piece.expected.items():
                found = sum_of_chunk(each, self.problem.plan.updated(name))
                found = found if piece.is_first else without_start(found)
                known = expected.get(name)
                if known is None:
                    expected[name] = SumOfChunks.of(each, found, self._retake)
                else:
                    expected[name] = known._replace(sums=add(each.data.site, known.sums, found))
            del piece, each  # before the next chunk is read
        assert total is not None
        return TensorState(params, leaves, expected, -total.cpu().numpy(), [], [])

    def _retake(self, site: str, arguments: Arguments, names: frozenset[str]) -> Stats:
        """Statistics at other arguments, with the expectations at the present parameters."""
        assert self._now is not None
        self._write(*self._now)

        def total(pieces: Iterator[Piece]) -> Stats:
            sums = None
            for piece in pieces:
                each = piece.expected[site]
                found, family = sum_of_retaken(each, arguments, names), each.data.site.family
                assert family is not None
                sums = found if sums is None else family.add(sums, found)
                del piece, each
            return sums

        return self._over_pieces(total)

    def _over_pieces(self, fold: Callable[[Iterator[Piece]], T]) -> T:
        """A function of the E-step of all chunks, one after the other."""
        if not self._continues:
            return fold(_sequences(self._problems()))
        if not self._remembers:
            try:
                return fold(in_one_pass(self._problems()))
            except Remembers:
                self._remembers = True
        return fold(in_two_passes(self._problems))

    def _problems(self) -> Iterator[Problem]:
        """Run the model on all chunks, one after the other."""
        self.num_passes += 1
        number = 0
        for call in self._calls():
            problem = self._session.read_chunk(self.problem.plan, call)
            number += 1
            check_chunk(number, problem, self.problem, self._continues)
            yield problem
            del problem, call
        if self._num_chunks not in (None, number):
            raise ValueError(
                f"expected the same chunks in every pass, got {number} of them where a pass before "
                f"had {self._num_chunks}: the source must be one that can be read again"
            )
        self._num_chunks = number


def _sequences(problems: Iterator[Problem]) -> Iterator[Piece]:
    """The E-step of chunks of whole sequences."""
    for problem in problems:
        expected = {name: take_expectations(data) for name, data in problem.sites.items()}
        yield Piece(problem, expected, True)
        del problem, expected


def _log_likelihoods(piece: Piece) -> Tensor:
    """The log-likelihood of each restart, of one chunk."""
    values = {
        name: each.data.weigh(each.expectations.log_likelihood)
        for name, each in piece.expected.items()
    }
    return piece.problem.groups.total(values)


def _names(flags: dict[str, Tensor]) -> list[str]:
    return [name for name, there in flags.items() if there]
