"""EM on data in chunks, which are read again in every iteration.

Each pass writes the parameters to the store, runs the model on one chunk after the other, and keeps
the expected statistics of each. If a family needs statistics at new values of some arguments, as
for the degrees of freedom of a Student-t, the M-step makes another pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from pyro_regimes.emissions.base import Arguments, Stats
from pyro_regimes.infer.em import piece_steps
from pyro_regimes.infer.em.ascent import Ascent, Held
from pyro_regimes.infer.em.chunk_sums import (
    SumOfChunks,
    SumOfGradients,
    add,
    sum_of_chunk,
    sum_of_retaken,
)
from pyro_regimes.infer.em.e_step import Expected, chain_of, take_expectations
from pyro_regimes.infer.em.engines.chunk_reader import ChunkReader
from pyro_regimes.infer.em.engines.tensors import TensorEngine
from pyro_regimes.infer.em.m_step import Maximised, names_of
from pyro_regimes.infer.em.pieces import Ends, Messages, Passes, ends_of, outline_of
from pyro_regimes.infer.em.problem import Params, Problem, State, TensorState
from pyro_regimes.kernels import ops

T = TypeVar("T")


class Chunk(NamedTuple):
    """The E-step of one chunk."""

    problem: Problem
    expected: dict[str, Expected]


class _Piece(NamedTuple):
    """A chunk that is a piece of one sequence, see :class:`.pieces.Piece`."""

    problem: Problem

    def look_ahead(self) -> Messages | None:
        """See :meth:`.Piece.look_ahead`."""
        messages = {}
        for name, data in self.problem.sites.items():
            message = ops.look_ahead(*chain_of(data)[1][1:]).message
            if message is None:
                return None
            messages[name] = message
        return messages

    def transfer(self) -> Messages:
        """See :meth:`.Piece.transfer`."""
        sites = self.problem.sites.items()
        return {name: ops.transfer(*chain_of(data)[1][1:]) for name, data in sites}

    def outline(self, begins: bool) -> Messages:
        """See :meth:`.Outlined.outline`."""
        return piece_steps.outline(piece_steps.read_pieces(self.problem.sites), begins)

    def expect(self, before: Messages | None, after: Messages | None) -> tuple[Chunk, Messages]:
        """See :meth:`.Piece.expect`."""
        pieces = piece_steps.read_pieces(self.problem.sites)
        expected, messages = piece_steps.expect(pieces, Ends(before, after))
        return Chunk(self.problem, expected), messages


class _Pass(NamedTuple):
    """How the pieces of a sequence are read at some parameters."""

    read: Callable[[], Iterable[_Piece]]
    ends: Ends


class ChunkEngine(TensorEngine):
    """Steps on sums of the statistics of chunks.

    :param passes: the passes over the pieces of a sequence.
    """

    def __init__(self, reader: ChunkReader, passes: Passes) -> None:
        super().__init__(reader.problem)
        self._reader, self._passes = reader, passes
        self._written: tuple[Params, Params] | None = None  # what the store holds
        self._now: tuple[Params, Params] | None = None  # at which statistics are taken again

    @property
    def description(self) -> str:
        """How the statistics are computed, for ``em.plan``."""
        ranks = self.problem.ranks
        of = "" if ranks is None else f", added up over {ranks.size} ranks"
        if not self._reader.continues:
            return f"tensor operations on chunks of whole sequences{of}"
        return f"tensor operations on pieces of one sequence{of}, {self._passes.description}"

    def use(self, problem: Problem) -> None:
        """Go on with another plan of the same model."""
        self.problem = self._reader.problem = problem

    def start(self) -> TensorState:
        """The E-step at the parameters in the store."""
        return self.evaluate(*self._reader.session.parameters(self.problem.plan))

    def at(
        self, now: TensorState, params: Params, leaves: Params, found: Maximised
    ) -> TensorState:
        """The E-step at new parameters, over all chunks."""
        after = self.evaluate(params, leaves)
        return after._replace(unbounded=names_of(found.unbounded), idle=names_of(found.idle))

    def complete(self, start: TensorState, state: State) -> TensorState:
        """See :meth:`.TensorEngine.complete`."""
        if isinstance(state, TensorState) and state.expected:
            return state
        return self.evaluate(state.params, state.leaves)

    def advance(self, now: TensorState, ascent: Ascent) -> TensorState:
        """One step; the store then holds its parameters."""
        after = super().advance(now, ascent)
        self._write(after.params, after.leaves)
        return after

    def maximise(self, now: TensorState, held: Held) -> Maximised:
        """The M-step."""
        self._now = now.params, now.leaves
        return super().maximise(now, held)

    def _write(self, params: Params, leaves: Params) -> None:
        if self._written is None or self._written[0] is not params:
            self._reader.session.write(params, leaves)
            self._written = params, leaves

    def evaluate(
        self, params: Params, leaves: Params, gradients: SumOfGradients | None = None
    ) -> TensorState:
        """The E-step over all chunks.

        :param gradients: to which those of the chunks are added.
        """
        self._write(params, leaves)
        pass_ = self._begin()

        def total(chunks: Iterator[Chunk]) -> TensorState:
            if gradients is not None:
                gradients.clear()  # a pass may have been given up
                chunks = self._differentiated(chunks, gradients)
            return self._sum(pass_, chunks, params, leaves)

        return self._over_chunks(pass_, total)

    def _differentiated(
        self, chunks: Iterator[Chunk], gradients: SumOfGradients
    ) -> Iterator[Chunk]:
        """The chunks, whose gradients are added up."""
        counts = self.problem.ranks is None or self.problem.ranks.is_first
        for chunk in chunks:
            latents = chunk.problem.latents.values() if counts else ()
            gradients.add(chunk.expected, [each.log_prob for each in latents])
            counts = False  # priors count once
            yield chunk
            del chunk

    def _begin(self) -> _Pass:
        """What the passes at some parameters have in common: what other ranks say of the pieces."""
        if not self._reader.continues or self.problem.ranks is None:
            return _Pass(self._pieces, Ends())
        pieces = iter(self._pieces())
        kept = list(islice(pieces, 2))  # of one piece there is no need to read it again
        own = outline_of(chain(kept, pieces), self.problem.ranks)
        ends = ends_of(own, self.problem.ranks)
        return _Pass(self._pieces if len(kept) > 1 else lambda: kept, ends)

    def _pieces(self) -> Iterable[_Piece]:
        return map(_Piece, self._reader.read(True))

    def _sum(
        self, pass_: _Pass, chunks: Iterator[Chunk], params: Params, leaves: Params
    ) -> TensorState:
        """Add up the statistics of all chunks."""
        total = prior = None
        expected: dict[str, Any] = {}
        for chunk in chunks:
            own = _log_likelihoods(chunk)
            if total is None and (self.problem.latents or self.problem.plan.is_joint):
                prior = chunk.problem.log_prior(params)
            total = own if total is None else total + own
            for name, each in chunk.expected.items():
                found = sum_of_chunk(each, self.problem.plan.updated(name))
                known = expected.get(name)
                if known is None:
                    expected[name] = SumOfChunks.of(each, found, partial(self._retake, pass_))
                else:
                    expected[name] = known._replace(sums=add(each.data.site, known.sums, found))
            del chunk, each  # before the next one is read
        assert total is not None
        if self.problem.ranks is not None:
            (total,) = self.problem.ranks.add([total])
        total = total if prior is None else prior + total  # priors count once
        return TensorState(params, leaves, expected, -total.cpu().numpy(), [], [])

    def _retake(
        self, pass_: _Pass, site: str, arguments: Arguments, names: frozenset[str]
    ) -> Stats:
        """Statistics at other arguments, with the expectations at the current parameters."""
        assert self._now is not None
        self._write(*self._now)

        def total(chunks: Iterator[Chunk]) -> Stats:
            sums = None
            for chunk in chunks:
                each = chunk.expected[site]
                found, family = sum_of_retaken(each, arguments, names), each.data.site.family
                assert family is not None
                sums = found if sums is None else family.add(sums, found)
                del chunk, each
            return sums

        return self._over_chunks(pass_, total)

    def _over_chunks(self, pass_: _Pass, function: Callable[[Iterator[Chunk]], T]) -> T:
        """A function of the E-step of all chunks, one after the other."""
        if self._reader.continues:
            return self._passes.fold(pass_.read, function, pass_.ends)
        return function(map(_of_sequences, self._reader.read(True)))


def _of_sequences(problem: Problem) -> Chunk:
    """The E-step of a chunk of whole sequences."""
    expected = {name: take_expectations(data) for name, data in problem.sites.items()}
    return Chunk(problem, expected)


def _log_likelihoods(chunk: Chunk) -> Tensor:
    """The log-likelihood of each restart, of one chunk."""
    values = {
        name: each.data.weigh(each.expectations.log_likelihood)
        for name, each in chunk.expected.items()
    }
    return chunk.problem.groups.total(values)
