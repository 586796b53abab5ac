"""What a user knows of the rows and sequences of X besides their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.estimator.by_row import check_keys
from pyro_regimes.estimator.parameters import Array, numbers
from pyro_regimes.estimator.sequences import first_rows
from pyro_regimes.estimator.spacing import Steps, read_gaps
from pyro_regimes.estimator.states import Bools, read_states
from pyro_regimes.estimator.units import Units
from pyro_regimes.messages import shown


class Annotations(NamedTuple):
    """What is known of data ``(T, D)``, concatenated from N sequences; None where nothing is."""

    allowed: Bools | None = None  #: the regimes that each row may have, ``(T, K)``
    weights: Array | None = None  #: of each sequence, ``(N,)``, positive
    gaps: Steps | None = None  #: the steps from the row before to each row, ``(T,)``

    def first_gaps(self, sizes: list[int]) -> Steps:
        """The steps to the first row of each sequence from what is known before it, ``(N,)``."""
        if self.gaps is None:
            return np.ones(len(sizes), np.int64)
        return self.gaps[first_rows(sizes)]

    @property
    def are_complete(self) -> bool:
        """Whether the regime of every row is known."""
        return self.allowed is not None and bool((self.allowed.sum(-1) == 1).all())

    def sum(self, values: Array, sizes: list[int]) -> Array:
        """The sum of ``(T, ...)`` over the rows, each by the weight of its sequence."""
        total: Array
        if self.weights is None:
            total = values.sum(0)
        else:
            total = np.repeat(self.weights, sizes) @ values
        return total

    def num_rows(self, sizes: list[int], counted: npt.NDArray[np.bool_] | None = None) -> float:
        """The number of rows, each counted by its weight; an int if it is whole.

        :param counted: which rows, ``(T,)``; None for all.
        """
        rows = np.ones(sum(sizes)) if counted is None else counted.astype(np.float64)
        total = float(self.sum(rows, sizes))
        return int(total) if total.is_integer() else total

    def log_jacobian(self, units: Units, data: Array, sizes: list[int]) -> float:
        """log p(z) - log p(x) of all rows, each by its weight."""
        if self.weights is None:
            return units.log_jacobian_of(data)
        return float(self.sum(units.log_jacobians(data), sizes))

    def of_distribution(self, device: torch.device) -> dict[str, Tensor]:
        """The annotations that are arguments of :class:`.RegimeHMM`, by name."""
        found = {}
        if self.allowed is not None:
            found["allowed_states"] = torch.tensor(self.allowed, device=device)
        if self.gaps is not None:
            found["gaps"] = torch.tensor(self.gaps[1:], device=device)
        return found

    def of_model(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """All annotations as arguments of the function of :func:`.pyro_model`, by name."""
        found = self.of_distribution(device)
        if self.weights is not None:
            found["weights"] = torch.tensor(self.weights, dtype=dtype, device=device)
        return found


def read_weights(sample_weight: Any, X: Any, sizes: list[int]) -> Array | None:
    """The weight of each sequence, ``(N,)``; None if all are 1.

    :param sample_weight: one for each sequence, or for each row and equal within each sequence; a
        dict where X is one.
    :raises ValueError: if they are not non-negative numbers, or all are 0.
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Mapping):
        check_keys("sample_weight", sample_weight, X)
        sample_weight = list(sample_weight.values())
    weights = numbers("sample_weight", sample_weight)
    if weights.ndim == 1 and len(weights) == sum(sizes) != len(sizes):
        firsts = first_rows(sizes)
        if (weights != np.repeat(weights[firsts], sizes)).any():
            raise ValueError(
                "expected one sample_weight for each sequence, got weights that differ between the "
                "rows of one: a weight counts a whole sequence, as its rows depend on each other"
            )
        weights = weights[firsts]
    if weights.shape != (len(sizes),):
        raise ValueError(
            f"expected one sample_weight for each of {len(sizes)} sequences, got shape "
            f"{weights.shape}"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(
            "expected sample_weight to be non-negative finite numbers, got "
            f"{shown(sample_weight)}"
        )
    if not weights.any():
        raise ValueError("expected some sample_weight to be positive, got only zero")
    return None if (weights == 1).all() else weights


class Present(NamedTuple):
    """The sequences that have a positive weight."""

    data: Array
    sizes: list[int]
    annotations: Annotations
    rows: npt.NDArray[np.int64]  #: the number in X of each row of the data

    def naming(self, row_name: Callable[[int], str]) -> Callable[[int], str]:
        """The name of a row of the data, from that of a row of X."""
        return lambda row: row_name(int(self.rows[row]))


def annotate(
    data: Array,
    sizes: list[int],
    X: Any,
    n_regimes: int,
    *,
    states: Any = None,
    sample_weight: Any = None,
    gaps: Any = None,
    is_after: bool = False,
    to_fit: bool = False,
) -> Present:
    """Read what is known of data, and leave out the sequences of weight 0: they are as if absent.

    :param states: as in :meth:`.RegimeModel.fit`, and ``sample_weight`` and ``gaps``.
    :param X: the data as the user gave them.
    :param is_after: as in :func:`.read_gaps`.
    :param to_fit: as in :func:`.read_states`.
    :raises ValueError: if they are not valid.
    """
    allowed = read_states(states, X, sizes, n_regimes, to_fit=to_fit)
    weights = read_weights(sample_weight, X, sizes)
    steps = read_gaps(gaps, X, sizes, is_after=is_after)
    annotations = Annotations(allowed, weights, steps)
    if weights is None or weights.all():
        return Present(data, sizes, annotations, np.arange(len(data)))
    kept = weights > 0
    rows = np.flatnonzero(np.repeat(kept, sizes))
    weights = weights[kept]
    annotations = Annotations(
        None if allowed is None else allowed[rows],
        None if (weights == 1).all() else weights,
        None if steps is None or (steps[rows] == 1).all() else steps[rows],
    )
    return Present(data[rows], np.asarray(sizes)[kept].tolist(), annotations, rows)
