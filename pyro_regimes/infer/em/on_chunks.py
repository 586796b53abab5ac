"""Runs of EM on data in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import numpy as np
import torch

from pyro_regimes.infer.em import guard
from pyro_regimes.infer.em.chunk_checks import check_plan
from pyro_regimes.infer.em.chunk_sums import without_values
from pyro_regimes.infer.em.engines.chunks import ChunkEngine
from pyro_regimes.infer.em.engines.tensors import TensorEngine
from pyro_regimes.infer.em.loop import Loop
from pyro_regimes.infer.em.session import Call, Session
from pyro_regimes.reading.chunks import Chunks, is_empty


class ChunkCalls(NamedTuple):
    """Calls of a model, one for each chunk in the place of the first argument."""

    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    chunks: Chunks
    args: tuple[Any, ...]  #: that follow
    kwargs: dict[str, Any]

    def __call__(self) -> Iterator[Call]:
        """Start a pass."""
        for chunk in self.chunks:
            if not is_empty(chunk):
                given = chunk if isinstance(chunk, tuple) else (chunk,)
                args = (*map(_as_tensor, given), *self.args)
                yield Call(self.model, self.guide, args, self.kwargs)

    def first(self) -> Call:
        """The call of the first chunk.

        :raises ValueError: if there is none.
        """
        for call in self():
            return call
        raise ValueError("expected chunks with at least one row, got none")


def _as_tensor(value: Any) -> Any:
    """An array as a tensor, as models take these; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(value if value.flags.writeable else value.copy())


def make_engine(session: Session, calls: ChunkCalls) -> ChunkEngine:
    """Make the plan from the first chunk.

    :raises ValueError: if the model cannot be fitted to chunks.
    """
    problem = session.read(calls.first()).problem
    check_plan(problem.plan)
    sites = {name: without_values(data) for name, data in problem.sites.items()}
    return ChunkEngine(session, problem._replace(sites=sites), calls, calls.chunks.continues)


def check(session: Session, calls: ChunkCalls, loop: Loop, tol: float) -> list[guard.Finding]:
    """Compare the model's own objective and gradient with EM's on the first chunk.

    It is taken as a sequence of its own, so that its parameters need not be at an optimum.
    """
    call = calls.first()
    problem, state, _ = session.read(call, is_start=False)
    alone = Loop(TensorEngine(problem), state, loop.ascent.frozen, lambda message: None)
    return guard.check(session, call, alone, tol, is_maximum=False)
