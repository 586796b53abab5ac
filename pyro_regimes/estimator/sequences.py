"""Sequences that are concatenated: where each begins, and their conversion to torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def first_rows(sizes: list[int]) -> npt.NDArray[np.int64]:
    """The first row of each sequence, ``(N,)``."""
    return np.cumsum([0, *sizes[:-1]])


def pack(
    data: npt.NDArray[np.float64], sizes: list[int], *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The data of all sequences ``(T, D)``, and the length of each; None if there is only one.

    Nothing is padded: see ``packed_lengths`` of :class:`.RegimeHMM`.
    """
    x = torch.tensor(np.ascontiguousarray(data), dtype=dtype, device=device)
    return x, None if len(sizes) == 1 else torch.tensor(sizes, device=device)
