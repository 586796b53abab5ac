"""Reads delimited text: finds separator, decimal mark and header, and lets pandas do the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pyro_regimes.reading.body import Body, find_end
from pyro_regimes.reading.cells import NUMBER, TEXT, VENDORS_MISSING_VALUES, classify, clean_name
from pyro_regimes.reading.sniff import (
    Rows,
    find_decimal,
    find_separator,
    first_lines,
    split,
    without_remarks,
)
from pyro_regimes.reading.source import Source, to_utf8
from pyro_regimes.reading.table import DATE_NAMES, IDENTIFIERS, Layout, Table, base_name, locate

# The files of Kenneth French say above the table how they write a missing value.
_SAYS_MISSING, _SAID_MISSING = "-99.99", frozenset(["-99.99", "-999", "-99.9900"])


def read_text(source: Source, decimal: str | None) -> Table:
    """Read delimited text.

    :param decimal: the decimal mark; None: as the numbers tell.
    :raises ValueError: if the text is no table, or numbers can be read in two ways.
    """
    name = source.name
    text = to_utf8(name, source.content)
    if b"\r" in text and b"\n" not in text:  # as old Macs end their lines
        text = text.replace(b"\r", b"\n")
    text = without_remarks(text)
    head = first_lines(text)
    separator = find_separator(head)
    rows = _name_first_column(split(head, separator))
    layout = locate(name, rows.cells)
    if layout.width == 1:
        separator = "\t"
    header = [[clean_name(cell) for cell in rows.cells[i]] for i in layout.header]
    sample = [row for row in rows.cells[layout.data :] if len(row) == layout.width]

    first_line = rows.starts[layout.data]
    begin = sum(len(line.encode()) for line in head[:first_line])
    end, notes = find_end(name, text, begin, layout, separator)
    said = _SAID_MISSING if _SAYS_MISSING in "".join(head[:first_line]) else frozenset()
    missing = VENDORS_MISSING_VALUES | said
    body = Body(name, text[:end], begin, first_line, separator, layout.width, missing)
    as_text = _keep_text(header, sample, layout)
    numbers = (cell for row in sample for i, cell in enumerate(row) if i != layout.date_column)
    mark = decimal or find_decimal(name, numbers, separator)
    frame = body.parse(mark or ".", as_text)
    if mark is None:  # whole numbers in the first rows
        mark = find_decimal(name, _cells_with_commas(frame, layout), separator) or "."
        frame = body.parse(mark, as_text) if mark == "," else frame
    columns = [frame[column] for column in range(layout.width)]
    return Table(name, header, columns, body.where, mark, notes)


def _name_first_column(rows: Rows) -> Rows:
    """R writes no name for the column of the names of rows; a blank one takes its place."""
    filled = [i for i, row in enumerate(rows.cells) if row]
    if len(filled) > 1:
        header, first = (rows.cells[i] for i in filled[:2])
        text_only = {*map(classify, header)} == {TEXT}
        longer = all(len(rows.cells[i]) == len(header) + 1 for i in filled[1:])
        if text_only and longer and NUMBER in map(classify, first[1:]):
            cells = [["", *row] if i == filled[0] else row for i, row in enumerate(rows.cells)]
            return rows._replace(cells=cells)
    return rows


def _keep_text(
    header: list[list[str]], sample: list[list[str]], layout: Layout
) -> dict[int, type]:
    """The columns in which 1871.10 or 0700 would lose a digit as a number: dates and names."""
    columns: dict[int, type] = {}
    for column in range(layout.width):
        names = {base_name(row[column]) for row in header}
        first = sample[0][column] if sample else ""
        month = re.fullmatch(r"\d{4}\.\d{1,2}", first) and (column == 0 or names & DATE_NAMES)
        if month or names & IDENTIFIERS:
            columns[column] = str
    return columns


def _cells_with_commas(frame: Any, layout: Layout) -> Iterator[str]:
    """The cells of text, dates left out, that have a comma."""
    for column in range(layout.width):
        if column != layout.date_column and frame[column].dtype.kind not in "iufb":
            cells = frame[column].dropna().astype(str)
            yield from cells[cells.str.contains(",", regex=False)]
