"""The rows of a delimited text below its header."""

from __future__ import annotations

import csv
import io
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.reading.cells import DATE, classify, is_compact_date
from pyro_regimes.reading.packages import pandas
from pyro_regimes.reading.sniff import split
from pyro_regimes.reading.table import Layout

_BLANK_LINE = re.compile(rb"\n[ \t]*\r?\n\s*(?=\S)")


class Body(NamedTuple):
    """The rows of data of a text.

    :param name: how messages name the file.
    :param text: the text in UTF-8, of which the rows are the end.
    :param begin: where the rows begin.
    :param first_line: the number of lines above them.
    :param separator: what separates cells; ``" "`` stands for any blanks.
    :param width: the number of columns.
    :param missing: the cells that are missing values.
    """

    name: str
    text: bytes
    begin: int
    first_line: int
    separator: str
    width: int
    missing: frozenset[str]

    def parse(self, decimal: str, as_text: dict[int, type]) -> Any:
        """A DataFrame of all rows but blank ones.

        :param as_text: the columns to keep as text.
        :raises ValueError: if a row has another length than the header.
        """
        pd = pandas()
        options: dict[str, Any] = {}
        if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):
            options["float_precision"] = "round_trip"  # later releases always read floats exactly
        try:
            with warnings.catch_warnings():
                # a column with text in some of its chunks, which the reader of numbers refuses
                warnings.simplefilter("ignore", pd.errors.DtypeWarning)
                warnings.simplefilter("error", pd.errors.ParserWarning)  # of lost cells
                frame = pd.read_csv(
                    self._stream(),
                    sep=r"\s+" if self.separator == " " else self.separator,
                    header=None,
                    names=range(self.width),
                    index_col=False,
                    dtype=as_text or None,
                    decimal=decimal,
                    na_values=sorted(self.missing),
                    keep_default_na=False,
                    skipinitialspace=True,
                    **options,
                )
        except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError) as error:
            for line, row in self._rows():
                if any(row) and len(row) != self.width:
                    raise ValueError(self._other_length(line, row)) from error
            raise ValueError(
                f"{self.name}: expected text with a separator and closed quotes, got "
                f"{str(error).strip()}; correct the file or save it again"
            ) from error
        blank = frame.isna().all(axis=1)
        if blank.any():
            frame = frame[~blank].reset_index(drop=True)
        self._check_short_rows(frame)
        return frame

    def where(self, row: int) -> str:
        """The line of a row, which is looked up when a message needs it."""
        filled = (
            line
            for line, cells in self._rows()
            if any(cell not in self.missing for cell in cells)
        )
        return f"line {next(itertools.islice(filled, row, None), '?')}"

    def _stream(self) -> io.BytesIO:
        """A stream of the rows, which shares the memory of the text."""
        stream = io.BytesIO(self.text)
        stream.seek(self.begin)
        return stream

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The number of the last line of each row, and its cells."""
        lines: Iterable[str] = io.TextIOWrapper(self._stream(), encoding="utf-8", newline="")
        if self.separator == " ":
            lines = (" ".join(line.split()) for line in lines)
        reader = csv.reader(lines, delimiter=self.separator, skipinitialspace=True)
        try:
            for row in reader:
                yield self.first_line + reader.line_num, [cell.strip() for cell in row]
        except csv.Error:  # a cell that is too long
            return

    def _check_short_rows(self, frame: Any) -> None:
        """pandas fills a row that is too short with missing values; here it is refused."""
        if self.width == 1 or not frame[self.width - 1].isna().any():
            return
        for line, row in self._rows():
            if len(row) < self.width and any(cell not in self.missing for cell in row):
                raise ValueError(self._other_length(line, row))

    def _other_length(self, line: int, row: list[str]) -> str:
        return (
            f"{self.name}, line {line}: expected {self.width} cells, as in the header, got "
            f"{len(row)}: {row[:8]}; correct the line, or remove it if it is a remark"
        )


def find_end(
    name: str, text: bytes, begin: int, layout: Layout, separator: str
) -> tuple[int, tuple[str, ...]]:
    """The end of the table: of the text, or a blank line that something else follows.

    :param text: in UTF-8.
    :returns: the end, and a note if something follows.
    """
    if not _may_have_blank_line(text, begin):
        return len(text), ()
    for match in _BLANK_LINE.finditer(text, begin):
        stop = re.compile(rb"[\r\n]|$").search(text, match.end())
        line = text[match.end() : stop.start() if stop else None].decode()
        cells = split([line], separator).cells[0]
        if layout.date_column is None:
            goes_on = len(cells) == layout.width
        else:
            cell = cells[layout.date_column] if layout.date_column < len(cells) else ""
            goes_on = classify(cell) == DATE or is_compact_date(cell) or len(cells) == layout.width
        if not goes_on:
            number = text.count(b"\n", 0, match.end()) + 1
            return match.start(), (
                f"{name}: read up to the blank line before line {number}, {line.strip()[:40]!r}; "
                "what follows is no part of the table",
            )
    return len(text), ()


def _may_have_blank_line(text: bytes, begin: int) -> bool:
    """Whether a blank follows the end of a line, in a small part of the time of a search."""
    codes, block = np.frombuffer(text, np.uint8), 2**17  # a block fits the cache
    for first in range(begin, len(text) - 1, block):
        part = codes[first : first + block + 1]
        if ((part[:-1] == ord("\n")) & (part[1:] <= ord(" "))).any():
            return True
    return False
