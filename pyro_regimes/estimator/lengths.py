"""The lengths of the sequences of X."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.inputs import as_tables
from pyro_regimes.messages import shown


def lengths_given(y: Any, lengths: Any, num_rows: int) -> npt.ArrayLike | None:
    """The lengths of the sequences, which hmmlearn takes in the place of y.

    A y with one entry for each row is a target, which scikit-learn passes; it is ignored.
    """
    if y is None or lengths is not None or np.asarray(y).shape[:1] == (num_rows,):
        given: npt.ArrayLike | None = lengths
        return given
    return np.asarray(y)


def checked_lengths(lengths: npt.ArrayLike, num_rows: int) -> list[int]:
    """The lengths of the sequences in a table.

    :raises ValueError: if they are not positive integers whose sum is the number of rows.
    """
    given = np.asarray(lengths)
    are_whole = given.dtype.kind in "iu" and not np.ma.is_masked(lengths)
    if given.ndim != 1 or not len(given) or not are_whole or given.min() < 1:
        came = shown(lengths)
        raise ValueError(f"expected lengths to be a list of positive integers, got {came}")
    sizes: list[int] = given.tolist()  # whose sum cannot wrap around
    if sum(sizes) != num_rows:
        raise ValueError(
            f"expected lengths to sum to the {num_rows} rows of X, got a sum of {sum(sizes)}"
        )
    return sizes


def sequences_of(X: Any, lengths: Any, y: Any) -> list[Any]:
    """The tables of X, one for each sequence.

    :raises ValueError: if X or the lengths are not valid.
    """
    tables, are_several = as_tables(X)
    if are_several and lengths is not None:
        raise ValueError("expected lengths to be None where X is a list of arrays, got both")
    if are_several:
        return tables
    (table,) = tables
    lengths = lengths_given(y, lengths, len(table))
    if lengths is None:
        return tables
    rows, begin, found = getattr(table, "iloc", table), 0, []
    for size in checked_lengths(lengths, len(table)):
        found.append(rows[begin : begin + size])
        begin += size
    return found


def choice_and_lengths(
    name: str, args: tuple[Any, ...], choice: Any, lengths: Any
) -> tuple[Any, Any]:
    """A choice and the lengths of sequences, which may be given by position in either order.

    hmmlearn has the lengths first.

    :param name: the name of the choice.
    :param args: those given by position.
    :param choice: the choice if it is given by name, and ``lengths``.
    :return: both, None if not given.
    :raises ValueError: if one of them is given twice.
    """
    given = [("lengths" if _is_sequence(arg) else name, arg) for arg in args]
    found: dict[str, Any] = {}
    for key, value in [*given, (name, choice), ("lengths", lengths)]:
        if value is None:
            continue
        if key in found:
            raise ValueError(f"expected {key} once, got {shown(found[key])} and {shown(value)}")
        found[key] = value
    return found.get(name), found.get("lengths")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
