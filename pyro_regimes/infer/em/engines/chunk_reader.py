"""Passes over data in chunks, on each of which the model is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyro_regimes.infer.em.chunk_checks import check_chunk, check_moved
from pyro_regimes.infer.em.problem import Params, Problem
from pyro_regimes.infer.em.session import Call, Session


class ChunkReader:
    """Runs the model on one chunk after the other.

    :param problem: that of the first chunk.
    :param calls: starts a pass over the calls of the model, one for each chunk.
    :param continues: whether the chunks are pieces of one sequence.
    """

    def __init__(
        self,
        session: Session,
        problem: Problem,
        calls: Callable[[], Iterator[Call]],
        continues: bool,
    ) -> None:
        self.session, self.problem, self.continues = session, problem, continues
        self._calls = calls
        self._last: tuple[int, int] | None = None  # the numbers of chunks and values in a pass

    def read(self, with_densities: bool) -> Iterator[Problem]:
        """One pass, at the parameters in the store.

        :raises ValueError: if a chunk cannot be added to the first one.
        """
        number, size, like = 0, 0, None if with_densities else self.problem
        moved: Params = {}
        for call in self._calls():
            problem = self.session.read_chunk(self.problem.plan, call, like)
            number += 1
            size += sum(data.value.numel() for data in problem.sites.values())
            check_chunk(number, problem, self.problem, self.continues)
            check_moved(number, problem, moved)
            yield problem
            del problem, call
        known = self._last
        if known is not None and known != (number, size):
            raise ValueError(
                f"expected the same chunks in every pass, got {number} with {size} values where a "
                f"pass before had {known[0]} with {known[1]}: the source must be one that can be "
                "read again"
            )
        self._last = number, size
