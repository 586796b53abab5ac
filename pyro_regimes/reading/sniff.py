"""Finds the separator, the header and the decimal mark of delimited text in its first lines."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from pyro_regimes.reading.cells import TEXT, classify, decimal_evidence

_SEPARATORS = [";", "\t", "|", ",", " "]  # " " stands for any blanks
_HEAD_LINES, _HEAD_BYTES = 200, 200_000
_COMMENT = re.compile(r"^[ \t]*#(?!N/?A\b|NV\b|VALUE!|DIV/0!)[^\r\n]*", re.MULTILINE)


class Rows(NamedTuple):
    """The first rows of a text, split at one separator.

    :param cells: the cells of each row, stripped; empty for a blank line.
    :param starts: the number of the line on which each row begins, from 0.
    """

    cells: list[list[str]]
    starts: list[int]


def first_lines(text: bytes) -> list[str]:
    """The first lines of a text in UTF-8, with their line ends."""
    start = text[:_HEAD_BYTES].decode(errors="ignore")  # the last character may be cut
    lines = list(itertools.islice(io.StringIO(start, newline=""), _HEAD_LINES))
    if len(text) > _HEAD_BYTES and sum(map(len, lines)) == len(start) and lines[1:]:
        lines.pop()  # cut in the middle
    return lines


def without_remarks(text: bytes) -> bytes:
    """The text with blank lines for lines that begin with ``#``."""
    return _COMMENT.sub("", _open_header(text)).encode() if b"#" in text else text


def _open_header(content: bytes) -> str:
    """The text without the sign of a remark before the names of columns, as NumPy writes it."""
    names, text = "", content.decode()
    for line in first_lines(content):
        if _COMMENT.match(line):
            names = line
        elif line.strip():
            opened = names.lstrip(" \t#")
            for separator in _SEPARATORS if names else ():
                (above, below) = split([opened, line], separator).cells
                if len(above) == len(below) > 1 and TEXT not in map(classify, below):
                    return text.replace(names, opened, 1)
            break
    return text


def split(lines: list[str], separator: str) -> Rows:
    """The cells of lines."""
    if separator == " ":
        lines = [" ".join(line.split()) for line in lines]
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
    return Rows(rows, starts)


def find_separator(head: list[str]) -> str:
    """The separator by which the most rows have the same number of cells, more than one."""
    if _is_one_column(head):
        return "\t"
    shares = {}
    for separator in _SEPARATORS:
        sizes = [len(row) for row in split(head, separator).cells if row][-50:]
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


def find_decimal(name: str, cells: Iterable[str], separator: str) -> str | None:
    """The decimal mark of numbers, ``"."`` or ``","``; None if none of them has a point or a comma.

    Without evidence a comma separates groups of digits in text separated by commas. A point is
    decimal except in text separated by semicolons, which comes from countries with a decimal comma.

    :raises ValueError: if numbers can be read in two ways, as 1,234.
    """
    evidence = [(cell, marks) for cell in cells if (marks := decimal_evidence(cell))]
    certain = {mark for _, marks in evidence if len(marks) == 1 for mark in marks}
    if len(certain) == 1:
        return certain.pop()
    doubtful = [cell for cell, _ in evidence if separator == ";" or "," in cell]
    if not certain and doubtful and separator != ",":
        cell = doubtful[0]
        one, other = cell.replace(",", "").replace(".", ""), cell.replace(",", ".")
        raise ValueError(
            f"{name}: expected numbers that can be read in one way, got {cell!r}, which may be "
            f"{one} or {other}; say decimal='.' or decimal=',' (--decimal)"
        )
    return "." if evidence else None
