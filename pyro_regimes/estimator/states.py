"""Known regimes of rows: one number a row, or the regimes that each row may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyro_regimes.estimator.by_row import by_row
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.sequences import pad, unpad
from pyro_regimes.kernels import ops

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


def check_possible(
    allowed: Bools,
    sizes: list[int],
    initial_probs: Array | None,
    transition_matrix: Array | Bools | None,
    row_name: Callable[[int], str],
) -> None:
    """Check that some path of allowed regimes has a positive probability.

    :param allowed: ``(T, K)``.
    :param initial_probs: given ones, of which some may be 0; None allows all.
    :param transition_matrix: a given one, or the transitions that are allowed, likewise.
    :param row_name: the name of a row, from its number.
    :raises ValueError: if none has, with the first row where it ends.
    """
    if initial_probs is None and transition_matrix is None:
        return
    num_states = allowed.shape[-1]
    initial = np.ones(num_states) if initial_probs is None else initial_probs
    matrix = np.ones((num_states, num_states)) if transition_matrix is None else transition_matrix
    where = torch.device("cpu")
    flags, lengths = pad(allowed, sizes, dtype=torch.bool, device=where)
    logits = torch.where(flags, 0.0, -torch.inf).double()
    first, moves = (torch.from_numpy(probs > 0).double().log() for probs in (initial, matrix[None]))
    reached = unpad(ops.filter_probs(first, moves, logits, lengths).filtered_probs, sizes)
    ends = np.flatnonzero(reached.sum(-1) == 0)
    if len(ends):
        raise ValueError(
            "expected states that the initial and transition probabilities allow, got an "
            f"impossible sequence of states at row {row_name(int(ends[0]))}"
        )
