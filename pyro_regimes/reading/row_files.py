"""The rows of arrays and tables in files, in pieces."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.messages import shown
from pyro_regimes.reading.packages import require

#: A rank and the number of ranks, of which each reads consecutive rows.
Part = tuple[int, int]

#: The first dates of a file, which tell the frequency of all.
_MOST_DATES = 10_000


def bounds(num_rows: int, part: Part) -> tuple[int, int]:
    """The first row of a part, and the one after its last."""
    number, size = part
    return number * num_rows // size, (number + 1) * num_rows // size


class ArrayRows:
    """The rows of a ``.npy`` file in pieces."""

    def __init__(self, path: str | os.PathLike[str], rows: int, part: Part = (0, 1)) -> None:
        self._path, self._rows, self._part = os.fspath(path), rows, part
        self._open()

    def _open(self) -> Any:
        try:
            found = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{self._path}: expected a .npy file, got another or a broken one ({error}); write "
                "an array of numbers by numpy.save"
            ) from error
        if not isinstance(found, np.ndarray) or found.ndim not in (1, 2):
            what = "several arrays" if not isinstance(found, np.ndarray) else f"{found.ndim} dims"
            raise ValueError(
                f"expected {self._path} to hold one array of shape (T,) or (T, D), got {what}"
            )
        if found.dtype.kind not in "biuf":
            raise ValueError(
                f"{self._path}: expected an array of numbers, got one of {found.dtype}; convert "
                "it by astype(float)"
            )
        return found

    def __iter__(self) -> Iterator[Any]:
        found = self._open()
        first, end = bounds(len(found), self._part)
        for begin in range(first, end, self._rows):
            piece = found[begin : min(begin + self._rows, end)]
            yield np.array(piece, found.dtype.newbyteorder("="))


class ParquetRows:
    """The rows of columns of a Parquet file in pieces.

    :param ascends: whether the dates of an index of pandas must ascend.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: str | Sequence[str] | None,
        rows: int,
        ascends: bool = False,
        part: Part = (0, 1),
    ) -> None:
        self._path, self._rows, self._part = os.fspath(path), rows, part
        self._is_one = isinstance(columns, str)
        schema, types = self._open().schema_arrow, _pyarrow(self._path, "types")
        are_numbers = (types.is_floating, types.is_integer, types.is_decimal)
        numbers = [
            name
            for name, kind in zip(schema.names, schema.types, strict=True)
            if any(is_number(kind) for is_number in are_numbers)
        ]
        index = (schema.pandas_metadata or {}).get("index_columns", [])
        self._index, self._ascends = _only_dates(schema, index, types), ascends
        if columns is None:
            columns = [name for name in numbers if name not in index]
        self.columns = _read_names(columns)
        self._check_once(schema.names)
        others = [name for name in self.columns if name not in numbers]
        if others or not self.columns:
            came = shown(others[0]) if others else "none"
            if others and others[0] in schema.names:
                came += " of other values"
            raise ValueError(
                f"expected columns among the columns of numbers of {self._path}, "
                f"{', '.join(map(repr, numbers))}, got {came}"
            )

    def _check_once(self, names: list[str]) -> None:
        """:raises ValueError: if a column is chosen twice, or the file has two of its name."""
        for name in self.columns:
            if names.count(name) > 1:
                raise ValueError(
                    f"{self._path}: expected columns with a name of its own each, got {name!r} "
                    "more than once; rename them, or choose others"
                )
            if self.columns.count(name) > 1:
                raise ValueError(f"expected each column once, got {name!r} twice in columns")

    def _open(self) -> Any:
        try:
            # Else pyarrow keeps all that it has read of the file until the last row.
            return _pyarrow(self._path, "parquet").ParquetFile(self._path, pre_buffer=False)
        except _pyarrow(self._path, "lib").ArrowInvalid as error:
            raise ValueError(
                f"{self._path}: expected a Parquet file, got another or a broken one ({error}); "
                "write it again"
            ) from error

    def __iter__(self) -> Iterator[Any]:
        index = [] if self._index is None or not self._ascends else [self._index]
        names, last = list(dict.fromkeys([*self.columns, *index])), None
        with self._open() as file:
            begin, end = bounds(file.metadata.num_rows, self._part)
            first = max(0, begin - len(index))  # the date before is to be earlier
            groups, at = _row_groups(file.metadata, first, end)
            read = partial(file.iter_batches, row_groups=groups, columns=names, use_threads=False)
            for batch in read(self._rows):
                for name in index:
                    last = self._check_dates(batch.column(name), last)
                own = batch.slice(max(0, begin - at), max(0, end - max(begin, at)))
                at += len(batch)
                if len(own):
                    yield self._read(own)

    @property
    def dates(self) -> npt.NDArray[np.datetime64]:
        """The dates of the first rows, of an index of pandas."""
        if self._index is not None:
            with self._open() as file:
                for batch in file.iter_batches(_MOST_DATES, columns=[self._index]):
                    return _dates_of(batch.column(self._index))
        return np.empty(0, "datetime64[s]")

    def _check_dates(self, column: Any, last: np.datetime64 | None) -> np.datetime64:
        """The last date, of those after another.

        :raises ValueError: if they do not ascend.
        """
        dates = _dates_of(column)
        dates = dates if last is None else np.insert(dates, 0, last)
        falls = np.flatnonzero(~(dates[1:] > dates[:-1]))
        if len(falls):
            raise ValueError(
                f"{self._path}: expected rows in order of time, got the date "
                f"{dates[falls[0] + 1]} after {dates[falls[0]]} in the index; sort the file, with "
                "one row for each date"
            )
        found: np.datetime64 = dates[-1]
        return found

    def _read(self, batch: Any) -> Any:
        """A batch as float64; null is NaN."""
        cast = [batch.column(name).cast("float64", safe=False) for name in self.columns]
        columns = [np.asarray(each.to_numpy(zero_copy_only=False)) for each in cast]
        return columns[0].copy() if self._is_one else np.stack(columns, 1)


def _row_groups(metadata: Any, begin: int, end: int) -> tuple[list[int], int]:
    """The row groups with the rows from one to another, and the first row of the first group."""
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    firsts = np.cumsum([0, *sizes])
    found = [n for n, size in enumerate(sizes) if firsts[n] < end and firsts[n] + size > begin]
    return found, int(firsts[found[0]]) if found else 0


def _pyarrow(path: str, module: str) -> Any:
    require("pyarrow", f"{path}: reading .parquet")
    return importlib.import_module(f"pyarrow.{module}")


def _only_dates(schema: Any, index: list[Any], types: Any) -> str | None:
    """The column of an index of pandas, if it has one level of dates."""
    if len(index) != 1 or not isinstance(index[0], str) or schema.names.count(index[0]) != 1:
        return None
    kind = schema.field(index[0]).type
    return index[0] if types.is_timestamp(kind) or types.is_date(kind) else None


def _dates_of(column: Any) -> npt.NDArray[np.datetime64]:
    """Dates, in UTC if they have a time zone."""
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype("datetime64[us]")


def _read_names(columns: Any) -> list[str]:
    """:raises ValueError: if columns are not one name, or several."""
    if isinstance(columns, str):
        return [columns]
    listed: list[Any] = list(columns) if isinstance(columns, Iterable) else [None]
    if isinstance(columns, bytes) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"expected columns to be names, got {shown(columns)}")
    return listed
