"""The rows of a delimited text below its header."""

from __future__ import annotations

import csv
import io
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pyro_regimes.reading.cells import DATE, classify, is_compact_date
from pyro_regimes.reading.packages import pandas
from pyro_regimes.reading.sniff import split
from pyro_regimes.reading.table import Layout

_MAY_BE_BLANK = re.compile(r"\n[\n\r \t]")
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n\s*(?=\S)")


class Body(NamedTuple):
    """The rows of data of a text.

    :param name: how messages name the file.
    :param text: the rows.
    :param first_line: the number of lines above them.
    :param separator: what separates cells; ``" "`` stands for any blanks.
    :param width: the number of columns.
    :param missing: the cells that are missing values.
    """

    name: str
    text: str
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
                    io.BytesIO(self.text.encode("utf-8", "surrogatepass")),
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

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The number of the last line of each row, and its cells."""
        lines: Iterable[str] = io.StringIO(self.text, newline="")
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
    name: str, text: str, begin: int, layout: Layout, separator: str
) -> tuple[int, tuple[str, ...]]:
    """The end of the table: of the text, or a blank line that something else follows.

    :returns: the end, and a note if something follows.
    """
    if _MAY_BE_BLANK.search(text, begin) is None:  # in a tenth of the time of the search below
        return len(text), ()
    for match in _BLANK_LINE.finditer(text, begin):
        stop = re.compile(r"[\r\n]|$").search(text, match.end())
        line = text[match.end() : stop.start() if stop else None]
        cells = split([line], separator).cells[0]
        if layout.date_column is None:
            goes_on = len(cells) == layout.width
        else:
            cell = cells[layout.date_column] if layout.date_column < len(cells) else ""
            goes_on = classify(cell) == DATE or is_compact_date(cell) or len(cells) == layout.width
        if not goes_on:
            number = text.count("\n", 0, match.end()) + 1
            return match.start(), (
                f"{name}: read up to the blank line before line {number}, {line.strip()[:40]!r}; "
                "what follows is no part of the table",
            )
    return len(text), ()
