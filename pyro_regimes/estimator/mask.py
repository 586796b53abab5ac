"""Forbidden transitions between regimes."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.states import Bools
from pyro_regimes.messages import shown


def read_mask(mask: Any, n_regimes: int) -> Bools | None:
    """The transitions that a chain may make, ``(K, K)``; None if it may make all.

    :param mask: ``transition_mask`` of :class:`.RegimeModel`.
    :raises ValueError: if it is no such matrix, or a row allows nothing.
    """
    if mask is None:
        return None
    try:
        values = np.asarray(mask)
    except ValueError:  # rows of different lengths
        values = np.zeros(0)
    is_binary = values.dtype.kind in "biuf" and bool(np.isin(values, (0, 1)).all())
    if values.shape != (n_regimes, n_regimes) or not is_binary:
        raise ValueError(
            f"expected transition_mask to be a bool matrix ({n_regimes}, {n_regimes}), (old, new), "
            f"got {shown(mask)}"
        )
    allowed: Bools = values.astype(np.bool_)
    nowhere = np.flatnonzero(~allowed.any(-1))
    if len(nowhere):
        raise ValueError(
            "expected each row of transition_mask to allow a transition, got none from regime "
            f"{nowhere[0]}; a regime that is never left stays itself: allow its diagonal"
        )
    return None if allowed.all() else allowed


def masked(matrix: Array, mask: Bools | None) -> Array:
    """Transition matrices ``(..., K, K)`` without the forbidden transitions.

    A row of which nothing is left becomes uniform.
    """
    if mask is None:
        return matrix
    kept = np.where(mask, matrix, 0.0)
    sums = kept.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(sums > 0, kept / sums, mask / mask.sum(-1, keepdims=True))


def check_masked(name: str, matrix: Array, mask: Bools | None) -> None:
    """:raises ValueError: if a given transition matrix has forbidden transitions."""
    if mask is None or not (matrix[~mask] != 0).any():
        return
    old, new = np.argwhere(~mask & (matrix != 0))[0]
    raise ValueError(
        f"expected {name} to be 0 where transition_mask is False, got {matrix[old, new]:g} from "
        f"regime {old} to {new}"
    )


def num_free(mask: Bools | None, n_regimes: int) -> int:
    """The number of free parameters of a transition matrix."""
    return (n_regimes**2 if mask is None else int(mask.sum())) - n_regimes
