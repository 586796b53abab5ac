"""The compiled steps of :mod:`.fused` on data in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, reduce
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.infer.em.engines.chain_steps import (
    Array,
    ChainEM,
    Flags,
    Parameters,
    Seam,
    Step,
    Sums,
)
from pyro_regimes.infer.em.engines.chunk_reader import ChunkReader
from pyro_regimes.infer.em.engines.fused import Arrays, FusedEngine, why_not_data
from pyro_regimes.infer.em.engines.on_ranks import add_up, why_not_on_all
from pyro_regimes.infer.em.pieces import Ends, Messages, Passes, ends_of, outline_of
from pyro_regimes.infer.em.problem import Problem
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.kernels import ops

T = TypeVar("T")

#: The rows of the next piece whose densities are computed first.
_HEAD = 2**12

_NAME = "sequence"  # of the messages


class NotServed(Exception):
    """The kernel does not serve a chunk."""


class ChunkKernel:
    """Steps on all chunks, by the kernel that was made for the first one.

    :param fused: reads the data of a chunk for the kernel.
    :param kernel: the kernel of the first chunk.
    :param reader: runs the model on the chunks.
    """

    def __init__(self, fused: FusedEngine, kernel: ChainEM, reader: ChunkReader) -> None:
        self._fused, self._kernel, self._reader = fused, kernel, reader
        self.passes = Passes()
        self._ranks = reader.problem.ranks
        self._is_served = False  # on all ranks
        self._last: tuple[Parameters, Step] | None = None

    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """See :meth:`.ChainEM.step`.

        :raises NotServed: if the kernel does not serve some chunk.
        """
        if models is None and self._last is not None and self._last[0] is parameters:
            return self._last[1]
        sums = self._sum(parameters, models)
        found = self._kernel.maximise(parameters, sums)
        self._last = None if models is not None else (parameters, found)
        return found

    def _sum(self, parameters: Parameters, models: Flags | None) -> Sums:
        """The sums over the chunks of all ranks."""
        ranks, ends = self._ranks, Ends()
        read = partial(self._pieces, parameters, models)
        if not self._reader.continues:
            sums = self._on_all(lambda: _add_up(self._sequences(parameters, models)))
            return sums if ranks is None else add_up(sums, ranks)
        if ranks is None:
            return self.passes.fold(read, _add_up, ends)
        own, kept = self._on_all(lambda: _outlined(read(), ranks))
        ends = ends_of(own, ranks)
        return add_up(self.passes.fold((lambda: kept) if kept else read, _add_up, ends), ranks)

    def _on_all(self, function: Callable[[], T]) -> T:
        """A function of the chunks of this rank.

        :raises NotServed: if the kernel does not serve a chunk, on all ranks.
        :raises ValueError: if it served all chunks of all ranks in an earlier pass.
        """
        why, found = None, None
        try:
            found = function()
        except NotServed as error:
            if self._ranks is None:
                raise
            if self._is_served:  # the other ranks go on
                raise ValueError(
                    f"expected the same chunks in every pass, got one of which {error}: the "
                    "source must be one that can be read again"
                ) from error
            why = str(error)
        if self._ranks is not None and not self._is_served:
            why = why_not_on_all(why, self._reader.problem)
            if why is not None:
                raise NotServed(why)
            self._is_served = True
        assert found is not None
        return found

    def keep(self, models: Flags) -> None:
        """See :meth:`.ChainEM.keep`."""
        self._kernel.keep(models)

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """See :meth:`.ChainEM.extrapolate`."""
        return self._kernel.extrapolate(before, now, after, bounds)

    def _sequences(self, parameters: Parameters, models: Flags | None) -> Iterator[Sums]:
        """The E-steps of chunks of whole sequences."""
        for problem in self._reader.read(False):
            self._kernel.load(*self._arrays(problem))
            yield self._kernel.expect(parameters, models)[0]
            del problem

    def _pieces(self, parameters: Parameters, models: Flags | None) -> Iterator[_Piece]:
        for problem in self._reader.read(False):
            yield _Piece(self._kernel, self._arrays(problem), parameters, models)
            del problem

    def _arrays(self, problem: Problem) -> Arrays:
        """The data of a chunk, of one model, which all models share."""
        (data,) = problem.sites.values()
        reason = why_not_data(data)
        found = reason if reason is not None else self._fused.read(data)
        if isinstance(found, str):
            raise NotServed(found)
        each = data.batch_shape.numel() // problem.groups.num_restarts
        if len(found.value) != each:
            raise NotServed("restarts have data of their own")
        return found._replace(lengths=found.lengths[:each])


class _Piece(NamedTuple):
    """A chunk that is a piece of one sequence, see :class:`.pieces.Piece`."""

    kernel: ChainEM
    arrays: Arrays
    parameters: Parameters
    models: Flags | None

    def look_ahead(self) -> Messages | None:
        """See :meth:`.Piece.look_ahead`."""
        num_rows = self.arrays.value.shape[1]
        for size in sorted({min(_HEAD, num_rows), num_rows}):
            message = ops.look_ahead(*self._logits(size)).message
            if message is not None:
                return {_NAME: message}
        return None

    def transfer(self) -> Messages:
        """See :meth:`.Piece.transfer`."""
        return {_NAME: ops.transfer(*self._logits(self.arrays.value.shape[1]))}

    def outline(self, begins: bool) -> Messages:
        """See :meth:`.Outlined.outline`."""
        num_rows = self.arrays.value.shape[1]
        if num_rows > 2 * _HEAD:
            transition, first = (part.clone() for part in self._logits(_HEAD))
            last = self._logits(-_HEAD)[1]
            found = ops.outline_of_ends(begins, transition, first, last)
            if found is not None:
                return {_NAME: found}
        initial, transition, density = self._all_logits(num_rows)
        return {_NAME: ops.outline(initial if begins else None, transition, density)}

    def expect(self, before: Messages | None, after: Messages | None) -> tuple[Sums, Messages]:
        """See :meth:`.Piece.expect`."""
        self.kernel.load(*self.arrays)
        seam = Seam(
            None if before is None else before[_NAME].numpy(),
            None if after is None else after[_NAME].numpy(),
        )
        found, last = self.kernel.expect(self.parameters, self.models, seam)
        return found, {_NAME: torch.from_numpy(last)}

    def _logits(self, size: int) -> tuple[Tensor, Tensor]:
        """Transition logits and densities of the first rows, or of the last ones."""
        return self._all_logits(size)[1:]

    def _all_logits(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The kernels' logits of the first rows, or of the last -size ones."""
        value, lengths, missing = self.arrays
        if abs(size) < value.shape[1]:
            rows = slice(size) if size > 0 else slice(size, None)
            value = np.ascontiguousarray(value[:, rows])
            lengths = np.full_like(lengths, abs(size))
            missing = None if missing is None else np.ascontiguousarray(missing[:, rows])
        self.kernel.load(value, lengths, missing)
        initial, transition, density = self.kernel.logits(self.parameters, self.models)
        return torch.from_numpy(initial), torch.from_numpy(transition), torch.from_numpy(density)


def _outlined(pieces: Iterator[_Piece], ranks: Ranks) -> tuple[Messages, list[_Piece]]:
    """The outline of the pieces of a rank; if there is one alone, the piece, too."""
    kept = list(islice(pieces, 2))
    own = outline_of(chain(kept, pieces), ranks)
    return own, kept if len(kept) == 1 else []


def _add_up(sums: Iterator[Sums]) -> Sums:
    return reduce(Sums.plus, sums)
