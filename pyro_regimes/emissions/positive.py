"""Positive arguments, such as scales, rates and concentrations: which are valid, and how they move.

They are perturbed in e as x (1 + e), which does not depend on the unit of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_positive(value: Tensor) -> Tensor:
    """Which elements are finite, and positive normal numbers."""
    return value.isfinite() & (value >= torch.finfo(value.dtype).tiny)


def stretch(value: Tensor, by: Tensor) -> Tensor:
    """The perturbed value, x (1 + e)."""
    return value * (1 + by)
