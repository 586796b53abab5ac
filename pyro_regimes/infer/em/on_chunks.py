"""Runs of EM on data in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Callable, NamedTuple

import numpy as np
import torch

from pyro_regimes.infer.em import guard
from pyro_regimes.infer.em.chunk_checks import check_one_piece, check_problem, varies
from pyro_regimes.infer.em.chunk_sums import without_values
from pyro_regimes.infer.em.engines.chain_steps import ChainEM
from pyro_regimes.infer.em.engines.chunk_kernel import ChunkKernel, NotServed
from pyro_regimes.infer.em.engines.chunk_reader import ChunkReader
from pyro_regimes.infer.em.engines.chunks import ChunkEngine
from pyro_regimes.infer.em.engines.finding import find_fused
from pyro_regimes.infer.em.engines.on_ranks import why_not_on_all
from pyro_regimes.infer.em.engines.relay import RelayEngine
from pyro_regimes.infer.em.engines.retrace_chunks import RetraceChunkEngine
from pyro_regimes.infer.em.engines.tensors import TensorEngine
from pyro_regimes.infer.em.joining import check_pieces
from pyro_regimes.infer.em.loop import Engine, Loop
from pyro_regimes.infer.em.pieces import Passes
from pyro_regimes.infer.em.problem import Problem, TensorState, evaluate
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.em.session import Call, Session
from pyro_regimes.infer.tuple_chain import TupleChain
from pyro_regimes.reading.chunks import Chunks, is_empty


class ChunkCalls(NamedTuple):
    """Calls of a model, one for each chunk in place of the first argument."""

    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    chunks: Chunks
    args: tuple[Any, ...]  #: that follow
    kwargs: dict[str, Any]

    def read(self) -> Iterator[Call]:
        """Start a pass."""
        for chunk in self.chunks:
            given = chunk if isinstance(chunk, tuple) else (chunk,)
            if not given or not is_empty(given[0]):
                args = (*map(_as_tensor, given), *self.args)
                yield Call(self.model, self.guide, args, self.kwargs)

    def first(self) -> Call:
        """The call of the first chunk.

        :raises ValueError: if there is none.
        """
        for call in self.read():
            return call
        raise ValueError("expected chunks with at least one row, got none")


def _check_begun(ranks: Ranks | None, calls: ChunkCalls) -> None:
    """Check that every rank has chunks, as another one would wait for it otherwise.

    :raises ValueError: on every rank, if one has none.
    """
    if ranks is None:
        return
    counts = ranks.objects(next(calls.read(), None) is not None)
    if not all(counts):
        raise ValueError(
            "expected chunks with at least one row on every rank, got none on rank "
            f"{counts.index(False)}"
        )


def _as_tensor(value: Any) -> Any:
    """An array as a tensor; anything else unchanged.

    :raises ValueError: if some values are masked.
    """
    if not isinstance(value, np.ndarray):
        return value
    if np.ma.is_masked(value):
        raise ValueError(
            "expected chunks without masked values, which tensors do not have, got some; give "
            "chunk.filled(numpy.nan) to a model with missing='marginalise'"
        )
    can_share = value.flags.writeable and value.dtype.isnative
    if not can_share or min(value.strides, default=0) < 0:
        value = value.astype(value.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(value)


def _are_single_pieces(problem: Problem, calls: ChunkCalls) -> bool:
    """Whether distributions vary in time, and each rank has one piece of a sequence in memory."""
    if not calls.chunks.continues:
        return False
    plan, sites = problem.plan, problem.sites.items()
    own = [varies(data.site, plan.updated(name)) for name, data in sites]
    is_any = any(own) and not any(isinstance(data.site.hmm, TupleChain) for _, data in sites)
    if problem.ranks is None:
        return is_any and _is_single(calls)
    if not any(problem.ranks.objects(is_any)):
        return False
    return problem.ranks.all(_is_single(calls))


def _is_single(calls: ChunkCalls) -> bool:
    return len(list(islice(calls.read(), 2))) == 1


class OnChunks:
    """The engines for data in chunks.

    :raises ValueError: if the model cannot be fitted to chunks.
    """

    def __init__(self, session: Session, calls: ChunkCalls) -> None:
        _check_begun(session.ranks, calls)
        snapshot = session.read(calls.first())
        problem = snapshot.problem
        check_problem(problem)
        if problem.ranks is not None and calls.chunks.continues:
            check_pieces(problem.ranks, problem)
        self._session, self._problem = session, problem
        self._state = snapshot.state._replace(expected={})
        sites = {name: without_values(data) for name, data in problem.sites.items()}
        empty = problem._replace(sites=sites)
        self._reader = ChunkReader(session, empty, calls.read, calls.chunks.continues)
        self._tensors = ChunkEngine(self._reader, Passes())
        self._calls = calls
        self._is_one_piece = _are_single_pieces(problem, calls)
        self._kernel: ChunkKernel | None = None
        self._relay: RelayEngine | None = None
        self._why = ""

    @property
    def first(self) -> TensorState:
        """The parameters in the store, with the loss of the first chunk."""
        return self._state

    @property
    def plan(self) -> Plan:
        """The plan of the first chunk."""
        return self._problem.plan

    def expect(self) -> TensorState:
        """The E-step at the parameters in the store, by tensor operations."""
        return self._tensors.start()

    def start(self, extrapolates: bool) -> tuple[Engine, TensorState]:
        """The fastest engine, and the first state.

        This releases the data of the first chunk, if there are others.
        """
        ranks = self._problem.ranks
        if self._is_one_piece:
            check_one_piece(self._problem)
            problem = self._problem._replace(is_piece=True)
            return TensorEngine(problem), evaluate(problem, *self._state[:2])
        fused = find_fused(self._problem, self._state, extrapolates)
        reason = fused if isinstance(fused, str) else self._why_not_pieces()
        if ranks is not None:
            reason = why_not_on_all(reason, self._problem)
        self._problem, params, leaves = self._reader.problem, *self._state[:2]
        if isinstance(fused, str) or reason is not None:
            return self.start_on_tensors(str(reason))
        assert isinstance(fused.kernel, ChainEM)
        fused.problem = self._problem
        if ranks is not None:
            fused.what += f", added up over {ranks.size} ranks"
        self._kernel = fused.kernel = ChunkKernel(fused, fused.kernel, self._reader)
        try:
            first = self._kernel.step(fused.start)
        except NotServed as error:
            return self.start_on_tensors(str(error))
        losses = -first.log_likelihood
        if np.isnan(losses).any():
            return self.start_on_tensors("a spread is not positive definite")
        start = TensorState(params, leaves, {}, losses, [], [])
        self._relay = RelayEngine(fused, self._tensors, start, extrapolates)
        return self._relay, start

    def start_on_tensors(self, why: str) -> tuple[Engine, TensorState]:
        """The engine of any model, and the first state.

        :param why: the reason why the compiled engine does not serve.
        """
        self._kernel, self._relay, self._why = None, None, why
        self._session.write(*self._state[:2])
        return self._tensors, self._tensors.start()

    def start_moving(self) -> tuple[RetraceChunkEngine, TensorState]:
        """The engine of a model of which an optimiser moves parameters, and the first state."""
        self._kernel, self._relay, self._problem = None, None, self._reader.problem
        assert self._session.plan is not None
        self._why = self._session.plan.why_not_closed
        engine = RetraceChunkEngine(self._session, self._tensors, self._calls.first())
        return engine, engine.start()

    def _why_not_pieces(self) -> str | None:
        """Why no compiled engine serves pieces of a sequence; None if one may."""
        if not self._reader.continues:
            return None
        dtypes = {data.dtype for data in self._problem.sites.values()}
        return None if dtypes == {torch.float64} else "pieces of a sequence are not float64"

    @property
    def description(self) -> str:
        """Which engine has run, for ``em.plan``."""
        if self._is_one_piece:
            ranks = self._problem.ranks
            of = "" if ranks is None else f", of which each of {ranks.size} ranks has one piece"
            return f"tensor operations on one sequence{of}, as distributions vary in time"
        if self._relay is None or self._kernel is None:
            return f"{self._tensors.description}; not the compiled one, as {self._why}"
        what = "chunks of whole sequences"
        if self._reader.continues:
            what = f"pieces of one sequence, {self._kernel.passes.description}"
        return f"{self._relay.description()}; {what}"


def check(session: Session, calls: ChunkCalls, loop: Loop, tol: float) -> list[guard.Finding]:
    """Compare the model's own objective and gradient with EM's on the first chunk.

    The chunk is treated as a complete sequence, so the gradient need not be 0.
    """
    call = calls.first()
    with session.on_ranks(None):
        problem, state, _ = session.read(call, is_start=False)
        alone = Loop(TensorEngine(problem), state, loop.ascent.frozen, lambda message: None)
        return guard.check(session, call, alone, tol, is_maximum=False)
