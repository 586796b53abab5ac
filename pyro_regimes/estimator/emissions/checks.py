"""Checks of data and parameters that several emissions make."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array, Emission

#: Names of the columns of X, ``(D,)``, or None.
Names = npt.NDArray[np.object_]


def column_name(column: int, names: Names | Sequence[str] | None) -> str:
    """A column in a message."""
    name = column if names is None else names[column]
    return repr(str(name)) if isinstance(name, str) else str(name)


def refuse(
    expected: str, data: Array, wrong: npt.NDArray[np.bool_], names: Names | None, remedy: str
) -> None:
    """Refuse data of which some are wrong, and say where the first is.

    :param expected: what an entry must be, for "expected X to hold ...".
    :param wrong: which entries are wrong, in the shape of the data.
    :raises ValueError: if any is.
    """
    if not wrong.any():
        return
    row, column = np.argwhere(wrong)[0]
    raise ValueError(
        f"expected X to hold {expected}, got {data[row, column]:g} in row {row} of column "
        f"{column_name(int(column), names)}; {remedy}"
    )


def has_constant(data: Array) -> bool:
    """Whether the observed entries of some column are all equal."""
    seen = data[:, ~np.isnan(data).all(0)]
    return bool((np.nanmax(seen, 0) == np.nanmin(seen, 0)).any()) if seen.size else False


def refuse_constant(data: Array, names: Names | None, remedy: str) -> None:
    """:raises ValueError: if a column does not vary."""
    constant = np.flatnonzero(np.nanmax(data, 0) == np.nanmin(data, 0))
    if len(constant):
        raise ValueError(
            f"expected every column of X to vary, got the constant {data[0, constant[0]]} in "
            f"column {column_name(int(constant[0]), names)}; {remedy}"
        )


def positive(name: str, emission: Emission) -> None:
    """:raises ValueError: if a parameter of this name is there and not positive."""
    within(name, emission, 0.0, np.inf)


def within(name: str, emission: Emission, low: float, high: float) -> None:
    """:raises ValueError: if a parameter of this name is not strictly between two numbers."""
    if name not in emission:
        return
    values = emission[name]
    wrong = ~((values > low) & (values < high))
    if wrong.any():
        where = "positive" if high == np.inf else f"between {low:g} and {high:g}"
        place = np.argwhere(wrong)[0]
        raise ValueError(
            f"expected {name} to be {where}, got {values[tuple(place)]:g} in regime {place[0]}"
        )
