"""Data that do not fit in memory: chunks that are read anew in every pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.messages import shown
from pyro_regimes.reading.row_files import ArrayRows, ParquetRows

#: The rows of a chunk by default: a few megabytes of a few columns.
ROWS = 2**17


class Chunks:
    """Data in chunks, for fits that hold one or two of them in memory.

    Every iteration of a fit reads all chunks again, in the same order.

    :param source: what gives the chunks: an iterable that can be read any number of times, such as
        a list, or a function without arguments that returns a new iterator each time, such as a
        generator function. A chunk is an array or a tensor; for :meth:`.EM.run` also a tuple of
        the model's first arguments.
    :param continues: True if the chunks are consecutive pieces of one sequence, cut along time;
        False if each chunk holds whole sequences. The fit is exact in both cases. In a
        ``torch.distributed`` process group, the pieces of rank 1 follow those of rank 0, and so on.
    :raises ValueError: if the source can be read only once, or ``continues`` is no bool.

    >>> pieces = Chunks([[[0.1], [0.2]], [[0.3]]], continues=True)
    >>> [len(chunk) for chunk in pieces]
    [2, 1]
    """

    def __init__(
        self, source: Iterable[Any] | Callable[[], Iterable[Any]], *, continues: bool
    ) -> None:
        if not isinstance(continues, (bool, np.bool_)):
            raise ValueError(
                "expected continues to be True (chunks are pieces of one sequence) or False (each "
                f"chunk holds whole sequences), got {shown(continues)}"
            )
        remedy = _why_no_source(source)
        if remedy is not None:
            raise ValueError(
                "expected source to be an iterable of chunks, or a function that returns an "
                f"iterator of them, got {type(source).__name__}; {remedy}"
            )
        if isinstance(source, Iterator):
            raise ValueError(
                "expected source to be readable any number of times, as each iteration of a fit "
                f"reads all chunks, got {_named(source)}, which can be read once; pass the "
                "function that makes it, Chunks(lambda: make_chunks(), continues=...), or a list"
            )
        if not callable(source) and not isinstance(source, Iterable):
            raise ValueError(
                "expected source to be an iterable of chunks, or a function that returns an "
                f"iterator of them, got {type(source).__name__}"
            )
        self._source = source
        self.continues = bool(continues)

    def __iter__(self) -> Iterator[Any]:
        if not callable(self._source):
            return iter(self._source)
        found = self._source()
        if not isinstance(found, Iterable):
            raise ValueError(
                "expected the function source to return an iterator of chunks, got "
                f"{type(found).__name__}"
            )
        return iter(found)

    @property
    def columns(self) -> list[str] | None:
        """The names of the columns; None if they are not known."""
        found: list[str] | None = getattr(self._source, "columns", None)
        return found

    @property
    def dates(self) -> npt.NDArray[np.datetime64]:
        """The dates of the first rows; none if they are not known without reading the chunks."""
        return getattr(self._source, "dates", np.empty(0, "datetime64[s]"))

    def __repr__(self) -> str:
        return f"Chunks({_named(self._source)}, continues={self.continues})"

    @classmethod
    def parquet(
        cls,
        path: str | os.PathLike[str],
        columns: str | Sequence[str] | None = None,
        *,
        rows: int = ROWS,
        continues: bool = True,
        part: tuple[int, int] = (0, 1),
    ) -> Chunks:
        """The rows of a Parquet file, which pyarrow reads batch by batch.

        :param path: the file.
        :param columns: the columns to read, in this order: names, or one name for chunks of one
            dimension. None is all columns of numbers, without the index of pandas.
        :param rows: the most rows of a chunk.
        :param continues: as in the constructor. The dates of an index must ascend then.
        :param part: ``(rank, size)`` for the rows of one of several processes: the file is cut into
            ``size`` parts of consecutive rows, of sizes that differ by one row at most, and only
            row groups with rows of the part are read.
        :return: chunks ``(rows, D)`` of float64; null is NaN.
        :raises ValueError: if a column is not there or does not hold numbers, ``rows`` is no
            positive integer, or ``part`` is not valid; and while reading, if dates do not ascend.
        :raises ImportError: if pyarrow is not installed.
        """
        source = ParquetRows(path, columns, _check_rows(rows), continues, _check_part(part))
        return cls(source, continues=continues)

    @classmethod
    def npy(
        cls,
        path: str | os.PathLike[str],
        *,
        rows: int = ROWS,
        continues: bool = True,
        part: tuple[int, int] = (0, 1),
    ) -> Chunks:
        """The rows of an array in a ``.npy`` file, which is mapped to memory and not read whole.

        :param path: the file, of one array ``(T,)`` or ``(T, D)``.
        :param rows: the most rows of a chunk.
        :param continues: as in the constructor.
        :param part: as in :meth:`parquet`.
        :return: chunks of copies of its rows.
        :raises ValueError: if it is no such file, ``rows`` is no positive integer, or ``part`` is
            not valid.
        """
        source = ArrayRows(path, _check_rows(rows), _check_part(part))
        return cls(source, continues=continues)


def is_empty(chunk: Any) -> bool:
    """Whether a chunk is an array or a list without rows, which counts for nothing."""
    if isinstance(chunk, (list, tuple, Mapping)):
        return not len(chunk)
    return hasattr(chunk, "shape") and tuple(chunk.shape[:1]) == (0,)


def _why_no_source(source: Any) -> str | None:
    """What to do with what is iterable, but not in chunks; None if it may be a source."""
    if isinstance(source, (str, bytes, os.PathLike)):
        return "Chunks.parquet and Chunks.npy read files"
    if isinstance(source, Mapping):
        return "give its sequences, Chunks(list(source.values()), ...)"
    are_tables = ("shape", "iloc", "itemsize", "__dataframe__", "__arrow_c_stream__")
    if not isinstance(source, type) and any(hasattr(source, name) for name in are_tables):
        return "give one table as its pieces in a list; Chunks.parquet and Chunks.npy read files"
    return None


def _check_rows(rows: Any) -> int:
    """:raises ValueError: if it is no positive integer."""
    if not _is_integer(rows) or rows < 1:
        raise ValueError(f"expected rows to be a positive integer, got {shown(rows)}")
    return int(rows)


def _check_part(part: Any) -> tuple[int, int]:
    """:raises ValueError: if it is no rank with a number of ranks."""
    is_pair = isinstance(part, (tuple, list)) and len(part) == 2
    numbers = [each for each in part if _is_integer(each)] if is_pair else []
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
        raise ValueError(
            "expected part to be (rank, size), integers with a rank from 0 to size - 1, got "
            f"{shown(part)}"
        )
    return int(numbers[0]), int(numbers[1])


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def _named(source: Any) -> str:
    """A source in a message."""
    name = getattr(source, "__name__", "")
    return f"{type(source).__name__} {name}".rstrip()
