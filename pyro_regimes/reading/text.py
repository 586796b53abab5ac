"""Reads delimited text: finds separator, decimal mark and header, and lets pandas do the rest."""

from __future__ import annotations

import csv
import io
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.reading.cells import (
    DATE,
    TEXT,
    VENDORS_MISSING_VALUES,
    classify,
    clean_name,
    decimal_evidence,
    is_compact_date,
)
from pyro_regimes.reading.packages import pandas
from pyro_regimes.reading.source import Source, decode
from pyro_regimes.reading.table import DATE_NAMES, IDENTIFIERS, Layout, Table, base_name, locate

_SEPARATORS = [";", "\t", "|", ",", " "]  # " " stands for any blanks
_HEAD_LINES, _HEAD_CHARACTERS = 200, 200_000
_COMMENT = re.compile(r"^[ \t]*#(?!N/?A\b|NV\b|VALUE!|DIV/0!)[^\r\n]*", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n\s*(?=\S)")
_SAYS_FRENCH_MISSING = re.compile(r"-99\.99")


class _Rows(NamedTuple):
    """The first rows of a text, split at one separator.

    :param cells: the cells of each row, stripped; empty for a blank line.
    :param starts: the number of the line on which each row begins, from 0.
    """

    cells: list[list[str]]
    starts: list[int]


def read_text(source: Source, decimal: str | None) -> Table:
    """Read delimited text.

    :param decimal: the decimal mark; None: as the numbers tell.
    :raises ValueError: if the text is no table, or numbers can be read in two ways.
    """
    name = source.name
    text = decode(name, source.content)
    if "\r" in text and "\n" not in text:  # as old Macs end their lines
        text = text.replace("\r", "\n")
    if "#" in text:
        text = _COMMENT.sub("", _open_header(text))
    head = list(itertools.islice(io.StringIO(text[:_HEAD_CHARACTERS], newline=""), _HEAD_LINES))
    if len(text) > _HEAD_CHARACTERS and sum(map(len, head)) == _HEAD_CHARACTERS and len(head) > 1:
        head.pop()  # cut in the middle
    separator = _find_separator(head)
    rows = _split(head, separator)
    layout = locate(name, rows.cells)
    if layout.width == 1:
        separator = "\t"
    first_line = rows.starts[layout.data]
    begin = sum(map(len, head[:first_line]))
    body = text[begin:]
    notes: tuple[str, ...] = ()
    data = body.encode("utf-8", "surrogatepass")
    if _has_blank_lines(data):
        end, notes = _find_end(name, text, begin, layout, separator)
        body = text[begin:end]
        data = body.encode("utf-8", "surrogatepass")
    sample = rows.cells[layout.data :]
    found = decimal or _find_decimal(name, sample, separator, layout)

    header = [[clean_name(cell) for cell in rows.cells[i]] for i in layout.header]
    as_text = _keep_text(header, sample, layout)
    missing = set(VENDORS_MISSING_VALUES)
    if _SAYS_FRENCH_MISSING.search(text[:begin]):  # the remark in the files of Kenneth French
        missing |= {"-99.99", "-999", "-99.9900"}
    where = _line_finder(body, separator, first_line, missing)
    frame = _parse(name, body, data, separator, found or ".", layout.width, as_text, missing, first_line)
    if found is None:  # whole numbers in the first rows
        found = _find_decimal(name, _with_marks(frame, layout), separator, layout) or "."
        if found == ",":
            frame = _parse(name, body, data, separator, found, layout.width, as_text, missing, first_line)
    blank = frame.isna().all(axis=1)
    if blank.any():
        frame = frame[~blank].reset_index(drop=True)
    _check_short_rows(name, frame, body, separator, first_line, missing)
    columns = [frame[column] for column in range(layout.width)]
    return Table(name, header, columns, where, found, notes)


def _open_header(text: str) -> str:
    """The text without the sign of a remark before the names of columns, as NumPy writes it."""
    names = ""
    for line in itertools.islice(io.StringIO(text[:_HEAD_CHARACTERS], newline=""), _HEAD_LINES):
        if _COMMENT.match(line):
            names = line
        elif line.strip():
            opened = names.lstrip(" \t#")
            for separator in _SEPARATORS if names else ():
                (above, below) = _split([opened, line], separator).cells
                if len(above) == len(below) > 1 and TEXT not in map(classify, below):
                    return text.replace(names, opened, 1)
            break
    return text


def _keep_text(
    header: list[list[str]], sample: list[list[str]], layout: Layout
) -> dict[int, type]:
    """The columns in which 1871.10 or 0700 would lose a digit as a number: dates and names."""
    columns: dict[int, type] = {}
    for column in range(layout.width):
        names = {base_name(row[column]) for row in header}
        first = next((row[column] for row in sample if len(row) == layout.width), "")
        month = re.fullmatch(r"\d{4}\.\d{1,2}", first) and (column == 0 or names & DATE_NAMES)
        if month or names & IDENTIFIERS:
            columns[column] = str
    return columns


def _split(lines: list[str], separator: str) -> _Rows:
    if separator == " ":
        return _Rows([line.split() for line in lines], list(range(len(lines))))
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    rows, starts, start = [], [], 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            rows.append(cells if any(cells) else [])
            starts.append(start)
            start = reader.line_num
    except csv.Error:  # a line end within a line, or a cell that is too long: pandas says so
        pass
    return _Rows(rows, starts)


def _find_separator(head: list[str]) -> str:
    """The separator by which the most rows have the same number of cells, more than one."""
    if _is_one_column(head):
        return "\t"
    shares = {}
    for separator in _SEPARATORS:
        sizes = [len(row) for row in _split(head, separator).cells if row][-50:]
        (size, count), *_ = Counter(sizes).most_common(1) or [(1, 0)]
        shares[separator] = count / len(sizes) if size > 1 else 0.0
    for separator, share in shares.items():
        if share >= 0.8:
            return separator
    best = max(shares, key=lambda separator: shares[separator])
    return best if shares[best] > 0 else ","


def _is_one_column(head: list[str]) -> bool:
    """Whether there is a name, and below it one column of numbers with a decimal comma."""
    first, *rest = [line.strip() for line in head if line.strip()] or [""]
    return "," not in first and all(re.fullmatch(r"[+-]?\d+(,\d+)?%?", line) for line in rest)


def _with_marks(frame: Any, layout: Layout) -> list[list[str]]:
    """The cells of text that have a comma, as rows of one cell each, all else blank."""
    rows = []
    for column in range(layout.width):
        if column != layout.date_column and frame[column].dtype.kind not in "iufb":
            cells = frame[column].dropna().astype(str)
            blank = [""] * layout.width
            rows += [
                [*blank[:column], cell, *blank[column + 1 :]]
                for cell in cells[cells.str.contains(",", regex=False)]
            ]
    return rows


def _find_decimal(
    name: str, rows: list[list[str]], separator: str, layout: Layout
) -> str | None:
    """The decimal mark; None if no number has a point or a comma."""
    evidence = [
        (row[column], decimal_evidence(row[column]))
        for row in rows
        for column in range(min(len(row), layout.width))
        if column != layout.date_column
    ]
    marks = {mark for _, found in evidence if len(found) == 1 for mark in found}
    if len(marks) == 1:
        return marks.pop()
    open_cells = [cell for cell, found in evidence if len(found) == 2]
    # Without evidence: a comma separates groups in text separated by commas, a point is decimal
    # except in text separated by semicolons, as it comes from countries with a decimal comma.
    doubtful = [cell for cell in open_cells if separator == ";" or ("," in cell != ",")]
    if not marks and doubtful and separator != ",":
        cell = doubtful[0]
        one, other = cell.replace(",", "").replace(".", ""), cell.replace(",", ".")
        raise ValueError(
            f"{name}: expected numbers that can be read in one way, got {cell!r}, which may be "
            f"{one} or {other}; say decimal='.' or decimal=',' (--decimal)"
        )
    return "." if any(found for _, found in evidence) else None


def _has_blank_lines(data: bytes) -> bool:
    """Whether a line may be blank; in an array of bytes this takes a tenth of a search's time."""
    characters = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(characters[:-1] == ord("\n"))
    return bool(np.isin(characters[ends + 1], list(b"\n\r \t")).any())


def _find_end(
    name: str, text: str, begin: int, layout: Layout, separator: str
) -> tuple[int, tuple[str, ...]]:
    """The end of the table: of the text, or a blank line that something else follows."""
    for match in _BLANK_LINE.finditer(text, begin):
        stop = re.compile(r"[\r\n]|$").search(text, match.end())
        line = text[match.end() : stop.start() if stop else None]
        cells = _split([line], separator).cells[0]
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


def _parse(
    name: str,
    body: str,
    data: bytes,
    separator: str,
    decimal: str,
    width: int,
    as_text: dict[int, type],
    missing: set[str],
    first_line: int,
) -> Any:
    pd = pandas()
    options: dict[str, Any] = {}
    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):
        options["float_precision"] = "round_trip"  # later releases always read floats exactly
    try:
        with warnings.catch_warnings():
            # a column with text in some of its chunks, which the reader of numbers refuses
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)
            return pd.read_csv(
                io.BytesIO(data),
                sep=r"\s+" if separator == " " else separator,
                header=None,
                names=range(width),
                index_col=False,
                dtype=as_text or None,
                decimal=decimal,
                na_values=sorted(missing),
                keep_default_na=False,
                skipinitialspace=True,
                **options,
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        for line, row in _physical_rows(body, separator, first_line):
            if any(row) and len(row) != width:
                raise ValueError(_other_length(name, line, width, row)) from error
        raise ValueError(
            f"{name}: expected text with a separator and closed quotes, got {str(error).strip()}; "
            "correct the file or save it again"
        ) from error


def _physical_rows(body: str, separator: str, first_line: int) -> Any:
    """The number of the last line of each row, and its cells."""
    if separator == " ":
        for i, line in enumerate(io.StringIO(body, newline="")):
            yield first_line + i + 1, line.split()
        return
    reader = csv.reader(
        io.StringIO(body, newline=""), delimiter=separator, skipinitialspace=True
    )
    try:
        for row in reader:
            yield first_line + reader.line_num, [cell.strip() for cell in row]
    except csv.Error:  # a cell that is too long
        return


def _line_finder(
    body: str, separator: str, first_line: int, missing: set[str]
) -> Callable[[int], str]:
    """A function from the number of a row to its line, which is looked up when it is asked for."""

    def where(row: int) -> str:
        filled = (
            line
            for line, cells in _physical_rows(body, separator, first_line)
            if any(cell not in missing for cell in cells)
        )
        return f"line {next(itertools.islice(filled, row, None), '?')}"

    return where


def _check_short_rows(
    name: str, frame: Any, body: str, separator: str, first_line: int, missing: set[str]
) -> None:
    """pandas fills a row that is too short with missing values; here it is refused."""
    width = frame.shape[1]
    if width == 1 or not frame[width - 1].isna().any():
        return
    for line, row in _physical_rows(body, separator, first_line):
        if len(row) < width and any(cell not in missing for cell in row):
            raise ValueError(_other_length(name, line, width, row))


def _other_length(name: str, line: int, width: int, row: list[str]) -> str:
    return (
        f"{name}, line {line}: expected {width} cells, as in the header, got {len(row)}: "
        f"{row[:8]}; correct the line, or remove it if it is a remark"
    )
