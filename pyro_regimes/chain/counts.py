"""Expected counts of the hidden chain."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ChainCounts(NamedTuple):
    """Expected counts of one site."""

    initial: Tensor  #: gamma at the first step, ``(..., K)``
    transitions: Tensor  #: summed xi, ``(..., 1 or T-1, K, K)``
