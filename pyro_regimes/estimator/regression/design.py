"""From data to the response and the covariates: arrays, or formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression import tables_of_data as tables
from pyro_regimes.estimator.regression.formulas import FormulaDesign
from pyro_regimes.estimator.regression.rows import INTERCEPT, Columns, Rows


class ArrayDesign:
    """Arrays as they are, with a column of ones in front.

    :param fit_intercept: whether X has it; Z always has.
    """

    has_lags = False  #: as of :class:`.FormulaDesign`

    def __init__(self, fit_intercept: bool) -> None:
        self._fit_intercept = fit_intercept

    def learn(self, data: Any, y: Any, Z: Any) -> Rows:
        """The rows of training data; see :meth:`FormulaDesign.learn`."""
        X, names = tables.as_matrix("X", data)
        self._names = names
        self.columns = self._named(X, names, "x", self._fit_intercept)
        self.transition_columns = self._names_of_Z = None
        if Z is not None:
            moves, self._names_of_Z = tables.as_matrix("Z", Z, len(X))
            self.transition_columns = self._named(moves, self._names_of_Z, "z", True)
        return self.read(data, y, Z)

    def read(self, data: Any, y: Any = None, Z: Any = None, *, needs_y: bool = True) -> Rows:
        """The rows of other data; see :meth:`FormulaDesign.read`."""
        X, names = tables.as_matrix("X", data)
        X = self._checked("X", X, names, self._names, self.columns, self._fit_intercept, data)
        y = tables.as_response(y) if needs_y else None
        if y is not None and len(y) != len(X):
            raise ValueError(f"expected y with {len(X)} rows, got {len(y)}")
        return Rows(y, X, self.read_moves(data, Z))

    def read_moves(self, data: Any, Z: Any = None) -> Array | None:
        """The covariates of the transitions alone; see :meth:`FormulaDesign.read_moves`."""
        if (Z is None) != (self.transition_columns is None):
            remedy = "give" if Z is None else "leave out"
            raise ValueError(
                f"expected Z, the covariates of transitions, as in the fit; {remedy} it"
            )
        if self.transition_columns is None:
            return None
        moves, names = tables.as_matrix("Z", Z, None if data is None else len(data))
        return self._checked("Z", moves, names, self._names_of_Z, self.transition_columns, True, Z)

    @staticmethod
    def _named(matrix: Array, names: list[str] | None, letter: str, has_ones: bool) -> Columns:
        given = names or [f"{letter}{j + 1}" for j in range(matrix.shape[1])]
        every = [INTERCEPT] * has_ones + given
        return Columns(every, every)

    @staticmethod
    def _checked(
        name: str, matrix: Array, names: list[str] | None, fitted: list[str] | None,
        columns: Columns, has_ones: bool, data: Any,
    ) -> Array:  # fmt: skip
        if matrix.shape[1] != len(columns.names) - has_ones:
            raise ValueError(
                f"expected {name} with the {len(columns.names) - has_ones} columns of the fit, got "
                f"{matrix.shape[1]}"
            )
        if names is not None and fitted is not None and names != fitted:
            raise ValueError(f"expected {name} with the columns {fitted}, got {names}")
        tables.check_finite(matrix, columns.names[has_ones:], data)
        return np.column_stack([np.ones(len(matrix)), matrix]) if has_ones else matrix


Design = FormulaDesign | ArrayDesign
