"""Several sequences of one data set: concatenated in NumPy, padded to a batch in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.estimator.parameters import Array


def pad(
    data: Array, sizes: list[int], *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """``(T, D)`` of one sequence and None, or ``(N, T, D)`` of several and their lengths."""
    x = torch.tensor(np.ascontiguousarray(data), dtype=dtype, device=device)
    if len(sizes) == 1:
        return x, None
    padded = torch.nn.utils.rnn.pad_sequence(list(x.split(sizes)), batch_first=True)
    return padded, torch.tensor(sizes, device=device)


def unpad(values: Tensor, sizes: list[int]) -> Any:
    """Results over time ``(T, ...)`` or ``(N, T, ...)``, concatenated as the data were."""
    array = values.detach().cpu().numpy()
    if len(sizes) == 1:
        return array
    return np.concatenate([each[:size] for each, size in zip(array, sizes, strict=True)])
