"""Known regimes of rows: one number a row, or the regimes that each row may have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.by_row import by_row

Bools = npt.NDArray[np.bool_]

UNKNOWN = -1  # the number of a row of which nothing is known


def read_states(
    states: Any, X: Any, sizes: list[int], n_regimes: int, *, to_fit: bool = False
) -> Bools | None:
    """The regimes that each row may have, ``(T, K)``; None if every row may have any.

    :param states: as in :meth:`.RegimeModel.fit`.
    :param X: the data, whose index and keys those of ``states`` must equal.
    :param sizes: the number of rows of each sequence.
    :param to_fit: whether every regime must be allowed at some row, as a fit needs it.
    :raises ValueError: if they are not valid.
    """
    if states is None:
        return None
    values = by_row("states", states, X, sizes)
    if values.ndim == 1:
        numbers = _numbers(values, n_regimes)
        allowed = np.ones((len(numbers), n_regimes), np.bool_)
        known = numbers != UNKNOWN
        allowed[known] = np.eye(n_regimes, dtype=np.bool_)[numbers[known]]
    else:
        allowed = _flags(values, n_regimes)
    never = np.flatnonzero(~allowed.any(0))
    if to_fit and len(never):
        raise ValueError(
            f"expected states to allow each of the n_regimes={n_regimes} regimes at some row, got "
            f"no row that may have regime {never[0]}"
        )
    return None if allowed.all() else allowed


def _flags(values: npt.NDArray[Any], n_regimes: int) -> Bools:
    if values.dtype != np.bool_ or values.shape[1:] != (n_regimes,):
        raise ValueError(
            f"expected states to be integers (T,), or a bool array (T, {n_regimes}), got shape "
            f"{values.shape} of dtype {values.dtype}"
        )
    none = np.flatnonzero(~values.any(-1))
    if len(none):
        raise ValueError(f"expected states to allow a regime at every row, got none at {none[0]}")
    return values


def _numbers(values: npt.NDArray[Any], n_regimes: int) -> npt.NDArray[np.int64]:
    """Numbers of regimes; NaN is unknown, too."""
    if values.dtype.kind == "O" and not any(isinstance(each, bool) for each in values):
        try:
            values = values.astype(np.float64)  # pandas' integers of which some are missing
        except (TypeError, ValueError):
            pass
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), UNKNOWN, values)
    if values.dtype.kind not in "iuf" or (values != np.floor(values)).any():
        remedy = "; use states.astype(int)" if values.dtype == np.bool_ else ""
        if values.dtype.kind in "OUS":
            remedy = '; number the regimes: states.map({"calm": 0, "crisis": 1}).fillna(-1)'
        raise ValueError(
            f"expected states to be integers (T,), or a bool array (T, {n_regimes}), got shape "
            f"{values.shape} of dtype {values.dtype}{remedy}"
        )
    wrong = np.flatnonzero((values < UNKNOWN) | (values >= n_regimes))
    if len(wrong):
        raise ValueError(
            f"expected states from 0 to {n_regimes - 1}, or -1 where unknown, got "
            f"{values[wrong[0]]} at row {wrong[0]}"
        )
    return values.astype(np.int64)
