"""The first pass over data in chunks: checks, counts, and a sample for the starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from pyro_regimes.estimator import validation
from pyro_regimes.estimator.beginning import NUM_ROWS
from pyro_regimes.estimator.emissions.checks import Names
from pyro_regimes.estimator.inputs import ChunkDates, chunk_tables
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.reading.chunks import Chunks, is_empty

#: The most rows of the sample. Of more rows it takes every second, fourth, ... block.
MOST_ROWS = 100_000

#: Rows of a block, long enough for changes of regime.
_BLOCK = 1_000


class Survey:
    """What a fit keeps of all rows, from one pass over the chunks.

    The sample consists of evenly spaced blocks of consecutive rows. Nothing in it is random.

    :param model: gets the number and the names of the columns.
    :param chunks: tables ``(T, D)``; also lists of tables, if the chunks are whole sequences.
    :param given: the values of ``init_params``.
    :raises ValueError: if a chunk is not valid data, or there are no rows.
    """

    def __init__(
        self,
        model: BaseEstimator,
        chunks: Chunks,
        given: Mapping[str, Array] | None = None,
        most_rows: int = MOST_ROWS,
    ) -> None:
        self.num_rows = self.num_sequences = self.num_empty = 0
        self.num_missing = np.zeros(0, dtype=np.int64)
        self.training_start: Array | None = None
        self._blocks: list[tuple[int, Array]] = []  # with the number of the first row
        self._every, self._most = 1, max(1, most_rows // _BLOCK)
        self._count, self._rest = 0, np.empty((0, 0))
        self._continues, self._given = chunks.continues, given or {}
        #: The names of the columns, if they have some.
        self.names: Names | None = None
        self._spec: Spec | None = None  # of any data in these columns
        self._most_values = np.empty((0, 0))  # of each column
        dates = ChunkDates(chunks)
        for number, chunk in enumerate(chunks, 1):
            try:
                for table in tables(model, chunk, chunks.continues, self._spec is None):
                    self._check(model, chunks.columns, table)
                    self._add(table)
                dates.add(chunk)
            except ValueError as error:
                raise ValueError(f"chunk {number}: {error}") from error
        if self._spec is None:
            raise ValueError("expected chunks with at least one row, got none")
        self._end()
        self.num_own_rows: int = self.num_rows  #: without those of other ranks
        if chunks.continues:
            self.num_sequences = 1
        self.periods_per_year: float = dates.periods_per_year

    def join(self, ranks: Ranks) -> None:
        """Take what other ranks have seen as seen here, in the order of the ranks.

        :raises ValueError: if they have other columns, or other kinds of chunks.
        """
        names = None if self.names is None else list(self.names)
        described = {
            "the number of columns of X": repr(self._most_values.shape[1]),
            "the list of column names of X": repr(names),
            "continues of the chunks": repr(self._continues),
        }
        ranks.check_same(described, "give every rank rows of the same columns")
        rows = ranks.objects(self.num_rows)
        begins = sum(rows[: ranks.rank])
        self._blocks = [(begins + first, block) for first, block in self._sample_over(ranks)]
        parts = ranks.objects(
            (
                self._blocks,
                self.num_sequences,
                self.num_empty,
                self.num_missing,
                self.training_start,
                self._most_values,
                self.periods_per_year,
            )
        )
        blocks, sequences, empty, gone, first_rows, most, periods = zip(*parts, strict=True)
        self._blocks = [block for own in blocks for block in own]
        self.num_rows, self.num_empty = sum(rows), sum(empty)
        self.num_sequences = 1 if self._continues else sum(sequences)
        self.num_missing = np.sum(gone, 0)
        self.training_start = np.concatenate(first_rows)[:NUM_ROWS]
        self._most_values = np.fmax.reduce(most)
        self.periods_per_year = periods[0]

    def _sample_over(self, ranks: Ranks) -> list[tuple[int, Array]]:
        """The blocks of this rank in a sample that is as dense on every rank."""
        every = max(ranks.objects(self._every))
        own = [block for block in self._blocks if block[0] // _BLOCK % every == 0]
        counts = ranks.objects(len(own))
        step = -(-sum(counts) // self._most)
        return own[-sum(counts[: ranks.rank]) % step :: step]

    def spec(self, filled: Array) -> Spec:
        """The object for all rows.

        :param filled: the sample, without missing entries.
        """
        assert self._spec is not None
        return self._spec.for_data(np.concatenate([filled, self._most_values]), self._given)

    def sample(self) -> tuple[Array, list[int]]:
        """The rows of the sample and the sizes of its sequences.

        Blocks that follow one another are one sequence.
        """
        sizes: list[int] = []
        end = -1
        for first, block in self._blocks:
            if self._continues and first == end:
                sizes[-1] += len(block)
            else:
                sizes.append(len(block))
            end = first + len(block)
        return np.concatenate([block for _, block in self._blocks]), sizes

    def _check(self, model: BaseEstimator, columns: list[str] | None, table: Array) -> None:
        """:raises ValueError: if values are no observations of the emission."""
        if self._spec is None:
            self.names = getattr(model, "feature_names_in_", None)
            if columns is not None and len(columns) == table.shape[1]:
                self.names = np.array(columns, dtype=object)
            self._spec = model._spec().for_columns(self.names, table.shape[1])
            self._most_values = np.full((1, table.shape[1]), -np.inf)
        self._spec.for_data(table, self._given).check_support(table, self.names)
        self._most_values = np.fmax(self._most_values, np.fmax.reduce(table, 0))

    def _add(self, table: Array) -> None:
        gone = np.isnan(table)
        if not self.num_rows:
            self.num_missing = np.zeros(table.shape[1], dtype=np.int64)
            self._rest = table[:0]
        if self.training_start is None or len(self.training_start) < NUM_ROWS:
            known = table[:0] if self.training_start is None else self.training_start
            self.training_start = np.concatenate([known, table])[:NUM_ROWS]
        self.num_missing += gone.sum(0)
        self.num_empty += int(gone.all(1).sum())
        self.num_rows += len(table)
        self.num_sequences += 1
        if self._continues:
            table = np.concatenate([self._rest, table])
            whole = len(table) - len(table) % _BLOCK
            self._rest = table[whole:].copy()
            table = table[:whole]
        for begin in range(0, len(table), _BLOCK):
            self._keep(table[begin : begin + _BLOCK])

    def _end(self) -> None:
        if len(self._rest):
            self._keep(self._rest)

    def _keep(self, block: Array) -> None:
        """Keep every n-th block; n doubles whenever there are too many of them."""
        if self._count % self._every == 0:
            self._blocks.append((self._count * _BLOCK, block.copy()))
        self._count += 1
        while len(self._blocks) > self._most:
            self._blocks, self._every = self._blocks[::2], 2 * self._every


def survey_of_all(make: Callable[[], Survey], ranks: Ranks | None) -> Survey:
    """The survey of the rows of all ranks.

    :param make: makes that of the rows of this one.
    :raises ValueError: on every rank, if the data of one are not valid.
    """
    if ranks is None:
        return make()
    found, why = None, None
    try:
        found = make()
    except ValueError as error:
        why = str(error)
    for rank, each in enumerate(ranks.objects(why)):
        if each is not None:
            raise ValueError(f"rank {rank}: {each}")
    assert found is not None
    found.join(ranks)
    return found


def tables(model: BaseEstimator, chunk: Any, continues: bool, reset: bool) -> Iterator[Array]:
    """The tables of one chunk, validated.

    :param reset: whether it sets the columns of the model.
    :raises ValueError: if the chunk is not valid.
    """
    if is_empty(chunk):
        return
    found = chunk_tables(chunk)
    data, sizes = validation.check_data(model, found, None, reset=reset)
    if continues and len(sizes) > 1:
        raise ValueError(
            "expected one table, as chunks are pieces of one sequence, got "
            f"{len(sizes)}; Chunks(..., continues=False) is for whole sequences"
        )
    begin = 0
    for size in sizes:
        yield data[begin : begin + size]
        begin += size
