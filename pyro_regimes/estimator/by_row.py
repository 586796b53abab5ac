"""Values that a user gives for the rows of X, in the forms that X itself may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.messages import shown


def by_row(name: str, values: Any, X: Any, sizes: list[int]) -> npt.NDArray[Any]:
    """One entry for each row of the data, ``(T, ...)``, concatenated over the sequences.

    :param name: of the argument, for messages.
    :param values: for all rows at once, or a list or dict with those of each sequence.
    :param X: the data, whose keys and pandas index the values must have.
    :param sizes: the number of rows of each sequence.
    :raises ValueError: if they do not suit the data.
    """
    parts = _parts(name, values, X, sizes)
    if parts is None:
        _check_same_index(name, values, X)
        found = _array(name, values)
    else:
        arrays = [_array(name, part) for part in parts]
        rows = [len(each) if each.ndim else 0 for each in arrays]
        if rows != sizes:
            raise ValueError(
                f"expected {name} of {len(sizes)} sequences of {shown(sizes)} rows, got "
                f"{len(rows)} of {shown(rows)}"
            )
        if len({each.shape[1:] for each in arrays}) > 1:
            raise ValueError(f"expected {name} of one form in all sequences, got several")
        found = np.concatenate(arrays)
    if found.ndim == 0 or len(found) != sum(sizes):
        raise ValueError(
            f"expected {name} to have an entry for each of the {sum(sizes)} rows of X, got shape "
            f"{found.shape}"
        )
    return found


def _parts(name: str, values: Any, X: Any, sizes: list[int]) -> list[Any] | None:
    """The values of each sequence, if they are given so; None if they are of all rows at once."""
    if isinstance(values, Mapping):
        check_keys(name, values, X)
        for key, each in values.items():
            _check_same_index(name, each, X[key])
        return list(values.values())
    if not isinstance(values, (list, tuple)) or not values or np.ndim(values[0]) == 0:
        return None
    are_arrays = all(hasattr(each, "ndim") for each in values)
    if not are_arrays and (len(sizes) == 1 or [len(each) for each in values] != sizes):
        return None  # rows of flags
    if isinstance(X, (list, tuple)) and len(X) == len(values):
        for own, rows in zip(values, X, strict=True):
            _check_same_index(name, own, rows)
    return list(values)


def check_keys(name: str, values: Mapping[Any, Any], X: Any) -> None:
    """:raises ValueError: if X is not a dict with the same keys in the same order."""
    if not isinstance(X, Mapping) or list(values) != list(X):
        raise ValueError(
            f"expected {name} to be a dict only where X is one with the same keys in the same "
            f"order, got the keys {shown(list(values))}"
        )


def _check_same_index(name: str, values: Any, X: Any) -> None:
    """:raises ValueError: if both are pandas' and their indexes differ."""
    both = hasattr(values, "iloc") and hasattr(X, "iloc")
    if both and len(values) == len(X) and not values.index.equals(X.index):
        raise ValueError(
            f"expected {name} to have the index of X, got another; use {name}.reindex(X.index)"
        )


def _array(name: str, values: Any) -> npt.NDArray[Any]:
    """The values as an array; masked numbers are NaN, as those of X are."""
    if np.ma.is_masked(values):
        if values.dtype.kind == "b":
            raise ValueError(f"expected {name} without masked flags, got some; use .filled(True)")
        values = values.astype(np.float64).filled(np.nan)
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of different lengths
        raise ValueError(
            f"expected {name} to have one entry for each row of X, got {shown(values)}"
        ) from error
