"""Pooled statistics of the cells of a parameter.

Each type is a NamedTuple whose first field is the weight. Statistics of one type can be added.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    """Statistics of rows of probabilities: expected counts ``(..., K)``."""

    counts: Tensor


class WeightedSum(NamedTuple):
    """Statistics of locations: weights and weighted sums of the observations.

    If a cell is used for blocks of different spread, both are weighted with precisions, which are
    numbers for elements and matrices for vectors.
    """

    weight: Tensor  #: n, or n times the precisions of elements
    total: Tensor
    precision: Tensor | None  #: for vectors: n times the precision matrices; None if not weighted


class Spread(NamedTuple):
    """Statistics of scales and covariances: weights, weighted squares or products of deviations."""

    weight: Tensor
    scatter: Tensor


class Totals(NamedTuple):
    """Statistics of rates: weights and weighted sums of the observations."""

    weight: Tensor
    total: Tensor


class Trials(NamedTuple):
    """Statistics of a probability: expected numbers of trials, of successes and of failures."""

    weight: Tensor
    successes: Tensor
    failures: Tensor
