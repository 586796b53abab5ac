"""Tables of plain text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

_LEFT, _RIGHT = "text-align: left", "text-align: right"
_INDENTED = "text-align: left; padding-left: 2em; font-weight: normal"

#: A title, the labels of the rows, the names and the cells of columns, and notes.
TitledTable = tuple[str, Sequence[str], Sequence[tuple[str, Sequence[str]]], Sequence[str]]


class Row(NamedTuple):
    """A row of a table as text."""

    label: str
    cells: list[str]
    is_part: bool = False  #: of the row above it, and indented


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


def html_table(title: str, head: Row, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table for a notebook, with a title above it and notes below."""
    columns = "".join([_cell("th", head.label, _LEFT), *_cells("th", head.cells)])
    body = "\n".join(
        f"<tr>{_cell('th', row.label, _INDENTED if row.is_part else _LEFT)}"
        f"{''.join(_cells('td', row.cells))}</tr>"
        for row in rows
    )
    below = "".join(f"\n<p>{escape(note)}</p>" for note in notes)
    caption = f'<caption style="text-align: left">{escape(title)}</caption>'
    return (
        f"<div>\n<table>\n{caption}\n<thead>\n<tr>{columns}</tr>\n</thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>{below}\n</div>"
    )


def _cells(tag: str, cells: Sequence[str]) -> list[str]:
    return [_cell(tag, cell, _RIGHT) for cell in cells]


def _cell(tag: str, text: str, style: str) -> str:
    return f'<{tag} style="{style}">{escape(text)}</{tag}>'


def wrapped(note: str, width: int) -> str:
    """A note in lines of so many letters; no word is cut."""
    return textwrap.fill(note, width, break_long_words=False, break_on_hyphens=False)


def titled_table(
    title: str,
    labels: Sequence[str],
    columns: Iterable[tuple[str, Sequence[str]]],
    notes: Sequence[str] = (),
    width: int = 80,
) -> str:
    """A :func:`text_table` below a title, above notes."""
    table = text_table("", labels, columns, width)
    below = [wrapped(note, width) for note in notes]
    return "\n".join([title, "", table, *([""] if below else []), *below])


def titled_html_table(
    title: str,
    labels: Sequence[str],
    columns: Iterable[tuple[str, Sequence[str]]],
    notes: Sequence[str] = (),
) -> str:
    """What :func:`titled_table` shows, for a notebook; a label that begins with a space is part."""
    names, cells = zip(*columns, strict=True)
    rows = [
        Row(label.strip(), list(row), label.startswith(" "))
        for label, row in zip(labels, zip(*cells, strict=True), strict=True)
    ]
    return html_table(title, Row("", list(names)), rows, notes)


def percent(rows: Any) -> list[list[str]]:
    """Probabilities in percent, row by row."""
    return [[f"{value:.1%}" for value in row] for row in rows]


def fixed(rows: Any) -> list[list[str]]:
    """Numbers with the same number of decimals, which shows four digits of the largest one.

    Where all are integers, as quantiles of counts are, there are no decimals.
    """
    finite = [abs(value) for row in rows for value in row if math.isfinite(value)]
    largest = max(finite, default=0.0)
    if all(value == round(value) for value in finite):
        return [[f"{value:.0f}" for value in row] for row in rows]
    decimals = 3 - math.floor(math.log10(largest)) if largest > 0 else 0
    decimals = min(max(decimals, 0), 17)
    return [[f"{value:.{decimals}f}" for value in row] for row in rows]
