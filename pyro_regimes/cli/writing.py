"""The files that commands write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def make_directory(out: Path) -> None:
    """Create the output directory before the fit, so that an invalid name fails at once."""
    out.mkdir(parents=True, exist_ok=True)


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
    """Write a table of columns."""
    import pandas

    pandas.DataFrame(columns).to_csv(path, index=False)
