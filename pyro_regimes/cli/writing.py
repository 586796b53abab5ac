"""The files that commands write."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyro_regimes.datasets import Returns


def make_directory(out: Path) -> None:
    """Create the output directory before the fit, so that an invalid name fails at once."""
    out.mkdir(parents=True, exist_ok=True)


def write_states(
    path: Path,
    returns: Returns,
    names: list[str],
    states: np.ndarray,
    filtered_probs: np.ndarray,
    smoothed_probs: np.ndarray,
) -> None:
    """Write the regimes of each row; the columns say which of them look ahead."""
    import pandas

    columns = {"date": returns.dates, "viterbi": [names[state] for state in states]}
    for kind, probs in (("filtered", filtered_probs), ("smoothed", smoothed_probs)):
        columns |= {f"{kind}_{name}": probs[:, k] for k, name in enumerate(names)}
    pandas.DataFrame(columns).to_csv(path, index=False)
