"""From data to the response and the covariates: arrays, or formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_regimes.estimator.json_files import names_of
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression import tables_of_data as tables
from pyro_regimes.estimator.regression.formulas import FormulaDesign
from pyro_regimes.estimator.regression.rows import INTERCEPT, Columns, Rows


class ArrayDesign:
    """Arrays as they are, with a column of ones in front.

    :param fit_intercept: whether X has it; Z always has.
    :param width: the number of columns of y: 2 for successes and failures.
    """

    has_lags = False  #: as of :class:`.FormulaDesign`
    formula = transition_formula = scale_formula = None
    scale_columns: Columns | None = None

    def __init__(self, fit_intercept: bool, width: int = 1) -> None:
        self._fit_intercept, self._width = fit_intercept, width

    def learn(self, data: Any, y: Any, Z: Any) -> Rows:
        """The rows of training data; see :meth:`FormulaDesign.learn`."""
        X, names = tables.as_matrix("X", data)
        width, names_of_Z = None, None
        if Z is not None:
            moves, names_of_Z = tables.as_matrix("Z", Z, len(X))
            width = moves.shape[1]
        self._set(names, X.shape[1], names_of_Z, width)
        return self.read(data, y, Z)

    def _set(
        self, names: list[str] | None, width: int, names_of_Z: list[str] | None,
        width_of_Z: int | None,
    ) -> None:  # fmt: skip
        self._names, self._names_of_Z = names, names_of_Z
        self.columns = self._named(width, names, "x", self._fit_intercept)
        self.transition_columns = None
        if width_of_Z is not None:
            self.transition_columns = self._named(width_of_Z, names_of_Z, "z", True)

    def state(self) -> dict[str, Any]:
        """What :meth:`learn` has kept, as JSON has it."""
        moves = self.transition_columns
        return {
            "names": self._names,
            "width": len(self.columns.names) - self._fit_intercept,
            "names_of_Z": self._names_of_Z,
            "width_of_Z": None if moves is None else len(moves.names) - 1,
        }

    def restore(self, state: dict[str, Any], trust: bool = False) -> None:
        """Set what :meth:`state` returned; there is nothing to trust.

        :raises ValueError: if it is no such state.
        """
        widths = [state["width"], state["width_of_Z"]]
        for name, number in zip(("names", "names_of_Z"), widths, strict=True):
            if number is not None and (type(number) is not int or not 0 < number < 2**31):
                raise ValueError(f"the number of columns is {number!r}")
            if state[name] is not None:
                names_of(name, state[name], number or 0)
        self._set(state["names"], widths[0], state["names_of_Z"], widths[1])

    def read(self, data: Any, y: Any = None, Z: Any = None, *, needs_y: bool = True) -> Rows:
        """The rows of other data; see :meth:`FormulaDesign.read`."""
        X, names = tables.as_matrix("X", data)
        X = self._checked("X", X, names, self._names, self.columns, self._fit_intercept, data)
        y, trials = tables.as_response(y, self._width) if needs_y else (None, None)
        if y is not None and len(y) != len(X):
            raise ValueError(f"expected y with {len(X)} rows, got {len(y)}")
        return Rows(y, X, self.read_moves(data, Z), None, trials)

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
    def _named(width: int, names: list[str] | None, letter: str, has_ones: bool) -> Columns:
        given = names or [f"{letter}{j + 1}" for j in range(width)]
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
