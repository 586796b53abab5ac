"""The files that commands write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_regimes.files import file_name

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

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


def make_room_for(out: Path) -> None:
    """Create the directory of an output file before a fit, so that a bad name fails at once.

    :raises ValueError: if there can be no such file, or it cannot be written.
    """
    name = file_name("--out", out)
    if name.is_dir():
        raise ValueError(f"expected --out to name a file, got the directory {str(out)!r}")
    make_directory(name.parent)


def write_states(path: Path, dates: np.ndarray, regimes: pd.DataFrame) -> None:
    """Write states.csv: the table of :meth:`.RegimeModel.regimes` beside the dates."""
    columns: dict[str, Any] = {"date": dates}
    for name in regimes:
        cells = regimes[name]
        columns[str(name)] = cells.to_numpy() if cells.dtype.kind in "fi" else list(cells)
    write_csv(path, columns)


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
