"""Conversion of sequences between concatenated NumPy arrays and padded torch batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def pad(
    data: npt.NDArray[Any], sizes: list[int], *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Pad sequences: ``(T, D)`` and None for one, ``(N, T, D)`` and their lengths for several."""
    x = torch.tensor(np.ascontiguousarray(data), dtype=dtype, device=device)
    if len(sizes) == 1:
        return x, None
    padded = torch.nn.utils.rnn.pad_sequence(list(x.split(sizes)), batch_first=True)
    return padded, torch.tensor(sizes, device=device)


def unpad(values: Tensor, sizes: list[int]) -> Any:
    """Concatenate results over time, ``(T, ...)`` or ``(N, T, ...)``, in the order of the data."""
    array = values.detach().cpu().numpy()
    if len(sizes) == 1:
        return array
    return np.concatenate([each[:size] for each, size in zip(array, sizes, strict=True)])
