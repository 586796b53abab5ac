"""Tables of plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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


def percent(rows: Any) -> list[list[str]]:
    """Probabilities in percent, row by row."""
    return [[f"{value:.1%}" for value in row] for row in rows]


def fixed(rows: Any) -> list[list[str]]:
    """Numbers with the same number of decimals, which shows four digits of the largest one."""
    largest = max(abs(value) for row in rows for value in row)
    decimals = 3 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 0
    decimals = min(max(decimals, 0), 17)
    return [[f"{value:.{decimals}f}" for value in row] for row in rows]
