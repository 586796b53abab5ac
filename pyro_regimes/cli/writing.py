"""The files that commands write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_FORMULA = tuple("=+-@\t\r")  # where a spreadsheet takes a text for a formula


def make_directory(out: Path) -> None:
    """Create the output directory before the fit, so that an invalid name fails at once.

    :raises ValueError: if there can be no such directory, or it cannot be written.
    """
    reason: object = "cannot be written"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if os.access(out, os.W_OK | os.X_OK):
            return
    except OSError as error:
        reason = error.strerror
    raise ValueError(
        f"expected --out to name a directory for the results, got {str(out)!r} ({reason}); choose "
        "another"
    )


def states_table(
    dates: np.ndarray,
    names: list[str],
    states: np.ndarray,
    filtered_probs: np.ndarray,
    smoothed_probs: np.ndarray,
) -> dict[str, Any]:
    """The columns of states.csv, of which the names say which look ahead.

    :param states: the path, ``(T,)``, -1 where there is none.
    """
    columns = {"date": dates, "viterbi": [names[k] if k >= 0 else "" for k in states]}
    for kind, probs in (("filtered", filtered_probs), ("smoothed", smoothed_probs)):
        columns |= {f"{kind}_{name}": probs[:, k] for k, name in enumerate(names)}
    return columns


def write_csv(path: Path, columns: dict[str, Any]) -> None:
    """Write a table of columns. Names and texts that a spreadsheet would run get an apostrophe."""
    import pandas

    safe = {
        _as_text(name): [_as_text(cell) for cell in cells] if isinstance(cells, list) else cells
        for name, cells in columns.items()
    }
    pandas.DataFrame(safe).to_csv(path, index=False)


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
