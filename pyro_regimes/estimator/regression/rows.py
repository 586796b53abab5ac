"""The response and the covariates of a regression as matrices, and their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.messages import shown

INTERCEPT = "Intercept"

_DEPENDENT = 1e-12  # the share of a column of unit length that others do not explain


class Rows(NamedTuple):
    """The rows of some data as a regression takes them."""

    y: Array | None  #: ``(T,)``, NaN where missing; None where the data have none
    X: Array  #: ``(T, P)``; NaN where lags are not known, in rows of which y is NaN, too
    Z: Array | None  #: ``(T, Q)``, covariates of transitions; None where these are constant
    W: Array | None = None  #: ``(T, S)``, covariates of the scale; None where it is constant
    trials: Array | None = None  #: ``(T,)``, where y is a number of successes in so many

    @property
    def is_known(self) -> Any:
        """Whether each response is not missing, ``(T,)``."""
        assert self.y is not None
        return ~np.isnan(self.y)


class Columns(NamedTuple):
    """The names of the columns of a matrix, and the term of each."""

    names: list[str]
    terms: list[str]


def check_rank(matrix: Array, columns: Columns, argument: str) -> None:
    """:raises ValueError: if a column is a linear combination of others, which it names."""
    lengths = np.linalg.norm(matrix, axis=0)
    for j in np.flatnonzero(lengths == 0):
        raise ValueError(
            f"expected {argument} to vary, got {columns.names[int(j)]!r} that is always 0; leave "
            "it out"
        )
    # The diagonal of R is the length of what the columns before do not explain.
    rest = np.abs(np.diagonal(np.linalg.qr(matrix / lengths, mode="r")))
    dependent = [*np.flatnonzero(rest < _DEPENDENT), *range(len(rest), len(lengths))]
    if dependent:
        named = ", ".join(repr(columns.names[j]) for j in dependent)
        raise ValueError(
            f"expected columns of {argument} that are linearly independent, got {named} as a "
            f"combination of those before it among {columns.names}; leave it out"
        )


def columns_of_terms(columns: Columns, wanted: Sequence[str] | None, name: str) -> Any:
    """Which columns belong to some of the terms, as flags ``(P,)``; None is all.

    :raises ValueError: if there is no such term or column.
    """
    if wanted is None:
        return np.ones(len(columns.names), dtype=np.bool_)
    if isinstance(wanted, str) or not all(isinstance(each, str) for each in wanted):
        raise ValueError(f"expected {name} to be a list of terms, got {shown(wanted)}")
    wanted = [INTERCEPT if each == "1" else each for each in wanted]
    known = {*columns.names, *columns.terms}
    unknown = [each for each in wanted if each not in known]
    if unknown:
        raise ValueError(
            f"expected {name} to list terms of the formula, {sorted({*columns.terms})}, got "
            f"{shown(unknown)}"
        )
    return np.array(
        [n in wanted or t in wanted for n, t in zip(*columns, strict=True)], dtype=np.bool_
    )
