"""Tables of plain text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def text_table(
    title: str, labels: Sequence[str], columns: Iterable[tuple[str, Sequence[str]]], width: int
) -> str:
    """A table with a label for each row; columns that do not fit into the width follow below.

    :param title: stands above the labels.
    :param columns: the name and the cells of each.
    """
    first = [title, *labels]
    first_width = max(map(len, first))
    blocks: list[list[str]] = []
    used = width + 1
    for name, cells in columns:
        size = 2 + max(map(len, [name, *cells]))
        if used + size > width or not blocks:
            blocks.append([label.ljust(first_width) for label in first])
            used = first_width
        used += size
        blocks[-1] = [
            line + cell.rjust(size) for line, cell in zip(blocks[-1], [name, *cells], strict=True)
        ]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def titled_table(
    title: str,
    labels: Sequence[str],
    columns: Iterable[tuple[str, Sequence[str]]],
    notes: Sequence[str] = (),
    width: int = 80,
) -> str:
    """A table below a title, above notes that are wrapped to the width.

    :param labels: as in :func:`text_table`, and ``columns``.
    """
    wrapped = [
        textwrap.fill(note, width, break_long_words=False, break_on_hyphens=False)
        for note in notes
    ]
    table = text_table("", labels, columns, width)
    return "\n".join([title, "", table, *([""] if notes else []), *wrapped])


def as_html(text: str) -> str:
    """Text for a notebook, in letters of equal width."""
    return f"<pre>{escape(text)}</pre>"


def percent(rows: Any) -> list[list[str]]:
    """Probabilities in percent, row by row."""
    return [[f"{value:.1%}" for value in row] for row in rows]


def fixed(rows: Any) -> list[list[str]]:
    """Numbers with the same number of decimals, which shows four digits of the largest one."""
    largest = max(abs(value) for row in rows for value in row)
    decimals = 3 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 0
    decimals = min(max(decimals, 0), 17)
    return [[f"{value:.{decimals}f}" for value in row] for row in rows]
