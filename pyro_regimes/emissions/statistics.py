"""Pooled statistics: of every cell of a parameter, ready to be maximised.

Each is a NamedTuple whose first field is the weight, and each can be added.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    """Of rows of probabilities: expected counts ``(..., K)``."""

    counts: Tensor


class WeightedSum(NamedTuple):
    """Of locations: weights and weighted sums of the observations.

    Where a cell serves blocks of different spread, both are weighted with the precisions: elements
    with their own, and vectors with matrices.
    """

    weight: Tensor  #: n, or n times the precisions of elements
    total: Tensor
    precision: Tensor | None  #: of vectors: n times the precision matrices; None where not weighted


class Spread(NamedTuple):
    """Of scales and covariances: weights, and weighted squares or products of deviations."""

    weight: Tensor
    scatter: Tensor
