"""Tables of covariates: pandas, polars, dicts of columns, arrays."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.inputs import check_dates, is_missing, row_name
from pyro_regimes.estimator.parameters import Array

_MOST = 5  # rows that a message lists


def as_frame(data: Any) -> Any:
    """A table with names of columns as a pandas DataFrame.

    :param data: a DataFrame of pandas, polars or another library that narwhals knows, or a dict of
        columns.
    :return: columns of numbers are of float64, also those of nullable and object dtypes.
    :raises ValueError: if it is no such table, or has dates that are not in order.
    """
    import pandas

    if isinstance(data, pandas.DataFrame):
        check_dates(data)
        frame = data
    elif isinstance(data, Mapping):
        frame = pandas.DataFrame({name: np.asarray(column) for name, column in data.items()})
    else:
        frame = pandas.DataFrame(_columns(data))
    if not frame.columns.is_unique:
        repeated = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(
            f"expected a table with a name of its own for each column, got {repeated!r} more than "
            "once; rename the columns"
        )
    numbers = {str(name): _numbers(frame[name]) for name in frame if _holds_numbers(frame[name])}
    flags = {str(name): _flags(frame[name]) for name in frame if _holds_flags(frame[name])}
    return frame.assign(**numbers, **flags)


def _columns(data: Any) -> dict[str, npt.NDArray[Any]]:
    import narwhals

    try:
        table = narwhals.from_native(data, eager_only=True)
    except TypeError:
        raise ValueError(
            "expected data to be a DataFrame (pandas or polars) or a dict of columns where the "
            f"model has a formula, got {type(data).__name__}; give arrays to a model without a "
            "formula, as fit(X, y)"
        ) from None
    return {name: table[name].to_numpy() for name in table.columns}


def _holds_numbers(column: Any) -> bool:
    """Whether a column is of numbers, though its dtype need not say so."""
    kind = column.dtype.kind
    if kind == "O":
        found = [value for value in column if not is_missing(value)]
        return bool(found) and all(
            isinstance(each, numbers.Real) and not isinstance(each, bool) for each in found
        )
    return bool(kind in "iuf")


def _holds_flags(column: Any) -> bool:
    """Whether a column is of True, False and missing values, in a dtype that may have these."""
    if column.dtype.kind == "b":
        return not isinstance(column.dtype, np.dtype)
    if column.dtype.kind != "O":
        return False
    found = [value for value in column if not is_missing(value)]
    return bool(found) and all(isinstance(each, (bool, np.bool_)) for each in found)


def _flags(column: Any) -> npt.NDArray[Any]:
    """Flags, or numbers if some are missing."""
    if column.isna().any():
        return _numbers(column.astype("boolean"))
    found: npt.NDArray[Any] = column.to_numpy(dtype=np.bool_)
    return found


def _numbers(column: Any) -> Array:
    found: Array = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return found


def check_complete(frame: Any, names: Sequence[str], data: Any) -> None:
    """:raises ValueError: if a covariate is missing in some row; it names columns and rows."""
    _refuse({name: frame[name].isna().to_numpy() for name in names}, "NaN", data)


def check_finite(matrix: Array, names: Sequence[str], data: Any, first: int = 0) -> None:
    """The same for the columns of a matrix, which may have become NaN or infinite.

    :param data: of which the matrix was made; its rows may have dates.
    :param first: the row from which on they are checked.
    """
    wrong = ~np.isfinite(matrix)
    wrong[:first] = False
    _refuse(dict(zip(names, wrong.T, strict=True)), "NaN or infinity", data)


def _refuse(flags: Mapping[str, npt.NDArray[np.bool_]], what: str, data: Any) -> None:
    found = {name: np.flatnonzero(flag) for name, flag in flags.items() if flag.any()}
    if not found:
        return
    of_row = row_name(data)
    parts = []
    for name, rows in found.items():
        listed = ", ".join(of_row(int(row)) for row in rows[:_MOST])
        more = ", ..." if len(rows) > _MOST else ""
        parts.append(f"{name!r} in {len(rows)} of {len(flags[name])} rows ({listed}{more})")
    raise ValueError(
        f"expected covariates without missing values, got {what} in {'; '.join(parts)}; drop these "
        "rows or fill them (only the response may be missing)"
    )


def as_matrix(name: str, value: Any, num_rows: int | None = None) -> tuple[Array, list[str] | None]:
    """An array or a table of numbers as a matrix ``(T, P)``, with the names of its columns.

    :param name: of the argument, for messages.
    :param num_rows: that it must have.
    :return: the matrix, whose entries may be NaN, and its names if it is a DataFrame.
    :raises ValueError: if it is no table of numbers.
    """
    names = None
    if hasattr(value, "columns"):
        frame = as_frame(value)
        names, value = [str(each) for each in frame.columns], frame
    try:
        matrix: Array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected {name} to hold numbers, got others: {error}; a formula makes columns of "
            "categories"
        ) from error
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"expected {name} of shape (T, P), got shape {matrix.shape}")
    if num_rows is not None and len(matrix) != num_rows:
        raise ValueError(f"expected {name} with {num_rows} rows, got {len(matrix)}")
    return matrix, names


def as_response(y: Any, width: int = 1) -> tuple[Array, Array | None]:
    """The response as a vector ``(T,)``, NaN where it is missing, and the number of trials.

    :param width: 2 if it has a column of successes and one of failures.
    :raises ValueError: if it is no table of so many columns of numbers, or infinite somewhere.
    """
    if y is None:
        raise ValueError("expected y, the response, where the model has no formula, got None")
    matrix, _ = as_matrix("y", y)
    if matrix.shape[1] != width:
        expected = "one number" if width == 1 else "a number of successes and one of failures"
        raise ValueError(f"expected y with {expected} for each row, got shape {matrix.shape}")
    return split_response(matrix)


def split_response(numbers: Array) -> tuple[Array, Array | None]:
    """The response ``(T,)`` of one or two columns, and the number of trials of two.

    :raises ValueError: if a value is infinite.
    """
    rows, columns = np.nonzero(np.isinf(numbers))
    if len(rows):
        raise ValueError(
            f"expected a finite response, or NaN where missing, got {numbers[rows[0], columns[0]]} "
            f"in row {rows[0]}"
        )
    if numbers.shape[1] == 1:
        return numbers[:, 0], None
    trials = numbers.sum(-1)
    return np.where(np.isnan(trials), np.nan, numbers[:, 0]), trials
