"""From data to the response and the covariates, by formulas or from arrays."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression import tables_of_data as tables
from pyro_regimes.messages import shown

INTERCEPT = "Intercept"

_DEPENDENT = 1e-12  # the share of a column of unit length that others do not explain


class Rows(NamedTuple):
    """The rows of some data as a regression takes them."""

    y: Array | None  #: ``(T,)``, NaN where missing; None where the data have none
    X: Array  #: ``(T, P)``
    Z: Array | None  #: ``(T, Q)``, covariates of transitions; None where these are constant


class Columns(NamedTuple):
    """The names of the columns of a matrix, and the term of each."""

    names: list[str]
    terms: list[str]


class FormulaDesign:
    """Formulas with what they remember of the training data: levels, splines, centres.

    :param formula: such as "y ~ 1 + x".
    :param transition_formula: such as "~ z", or None.
    :raises ValueError: if a formula is not valid.
    """

    def __init__(self, formula: str, transition_formula: str | None) -> None:
        self._means = _parse("formula", formula)
        if not hasattr(self._means, "lhs") or not hasattr(self._means, "rhs"):
            raise ValueError(
                f"expected formula with a response, such as 'y ~ 1 + x', got {shown(formula)}"
            )
        self._moves = None
        if transition_formula is not None:
            self._moves = _parse("transition_formula", transition_formula)
            if hasattr(self._moves, "lhs"):
                raise ValueError(
                    "expected transition_formula without a response, such as '~ z', got "
                    f"{shown(transition_formula)}"
                )

    def learn(self, data: Any, y: Any, Z: Any) -> Rows:
        """The rows of training data, whose levels and splines are kept.

        :raises ValueError: if the data are not valid.
        """
        frame = self._frame(data, y, Z)
        response = self._matrix(self._means.lhs, frame)
        covariates = self._matrix(self._means.rhs, frame)
        moves = None if self._moves is None else self._matrix(self._moves, frame)
        self._response, self._covariates = response.model_spec, covariates.model_spec
        self._of_moves = None if moves is None else moves.model_spec
        self.columns = _columns(self._covariates)
        self.transition_columns = None if moves is None else _columns(self._of_moves)
        return self._rows(response, covariates, moves, data)

    def read(self, data: Any, y: Any = None, Z: Any = None, *, needs_y: bool = True) -> Rows:
        """The rows of other data.

        :param needs_y: whether the response must be there.
        :raises ValueError: if the data are not valid.
        """
        frame = self._frame(data, y, Z, needs_y)
        response = self._matrix(self._response, frame) if needs_y else None
        covariates = self._matrix(self._covariates, frame)
        moves = None if self._of_moves is None else self._matrix(self._of_moves, frame)
        return self._rows(response, covariates, moves, data)

    def _frame(self, data: Any, y: Any, Z: Any, needs_y: bool = True) -> Any:
        for name, value in (("y", y), ("Z", Z)):
            if value is not None:
                raise ValueError(
                    f"expected {name}=None where the model has a formula, which names the columns "
                    f"of data, got {shown(value)}"
                )
        frame = tables.as_frame(data)
        needed = set(self._means.rhs.required_variables)
        if self._moves is not None:
            needed |= set(self._moves.required_variables)
        every = needed | (set(self._means.lhs.required_variables) if needs_y else set())
        absent = sorted(every - set(frame.columns))
        if absent:
            raise ValueError(
                f"expected data with the columns of the formulas, got none named "
                f"{', '.join(map(repr, absent))} among {shown(list(map(str, frame.columns)))}"
            )
        if not len(frame):
            raise ValueError("expected data with at least one row, got none")
        tables.check_complete(frame, sorted(needed), data)
        return frame

    def _matrix(self, formula: Any, frame: Any) -> Any:
        from formulaic.errors import DataMismatchWarning, FormulaicError

        try:
            # Numbers that are not finite are refused afterwards, by name.
            with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
                warnings.simplefilter("error", DataMismatchWarning)
                return formula.get_model_matrix(frame, na_action="ignore", output="numpy")
        except DataMismatchWarning as error:
            levels = re.search(r"\{.*\}", str(error))
            raise ValueError(
                "expected the categories of the training data, got "
                f"{levels.group() if levels else error}; fit the model with rows of each"
            ) from None
        except FormulaicError as error:
            raise ValueError(f"expected a formula of the data, got {_plain(error)}") from error

    def _rows(self, response: Any, covariates: Any, moves: Any, data: Any) -> Rows:
        y = None
        if response is not None:
            numbers = np.asarray(response, dtype=np.float64)
            if numbers.shape[1] != 1:
                raise ValueError(
                    "expected formula with one number as the response, got the columns "
                    f"{list(response.model_spec.column_names)}"
                )
            y = tables.check_response(numbers[:, 0])
        found = []
        for matrix in (covariates, moves):
            if matrix is not None:
                numbers = np.asarray(matrix, dtype=np.float64)
                tables.check_finite(numbers, matrix.model_spec.column_names, data)
                found.append(numbers)
        return Rows(y, found[0], found[1] if len(found) > 1 else None)


class ArrayDesign:
    """Arrays as they are, with a column of ones in front.

    :param fit_intercept: whether X has it; Z always has.
    """

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
        if (Z is None) != (self.transition_columns is None):
            remedy = "give" if Z is None else "leave out"
            raise ValueError(
                f"expected Z, the covariates of transitions, as in the fit; {remedy} it"
            )
        if self.transition_columns is not None:
            moves, names = tables.as_matrix("Z", Z, len(X))
            Z = self._checked(
                "Z", moves, names, self._names_of_Z, self.transition_columns, True, Z
            )
        return Rows(y, X, Z)

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


def _columns(spec: Any) -> Columns:
    terms = [""] * len(spec.column_names)
    for term, places in spec.term_indices.items():
        for place in places:
            terms[place] = INTERCEPT if str(term) == "1" else str(term)
    return Columns([str(name) for name in spec.column_names], terms)


def _parse(name: str, text: Any) -> Any:
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    if not isinstance(text, str):
        raise ValueError(f"expected {name} to be a text such as 'y ~ 1 + x', got {shown(text)}")
    try:
        found = Formula(text)
        parts = [getattr(found, "lhs", found), getattr(found, "rhs", found)]
        if not all(hasattr(part, "required_variables") for part in parts):
            raise SyntaxError("it has several parts")
        return found
    except (FormulaicError, SyntaxError) as error:
        raise ValueError(
            f"expected {name} to be a formula such as 'y ~ 1 + x', got {shown(text)} "
            f"({_plain(error)})"
        ) from error


def _plain(error: BaseException) -> str:
    """The first line of a message, without codes of colours."""
    text = re.sub(r"\x1b\[[0-9;]*m|⧛\[[0-9;]*m|⧚", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
