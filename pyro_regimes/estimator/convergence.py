"""Convergence of starts, judged by the losses of their steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

Flags = npt.NDArray[np.bool_]


def steady_starts(losses: Tensor, tol: float | None, window: int) -> Flags:
    """Which starts changed their loss by less than ``tol`` in each of the last ``window`` steps."""
    if tol is None or len(losses) <= window:
        return np.zeros(losses.shape[1], dtype=bool)
    steady: Flags = np.abs(np.diff(to_numpy(losses[-window - 1 :]), axis=0)) < tol
    return np.all(steady, axis=0)


def to_numpy(losses: Tensor) -> npt.NDArray[np.float64]:
    """Convert losses to a float64 array."""
    array: npt.NDArray[np.float64] = losses.detach().cpu().double().numpy()
    return array
