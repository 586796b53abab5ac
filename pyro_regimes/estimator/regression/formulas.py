"""From tables to the response and the covariates by formulas."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression import formula_state
from pyro_regimes.estimator.regression import tables_of_data as tables
from pyro_regimes.estimator.regression.rows import INTERCEPT, Columns, Rows
from pyro_regimes.messages import shown


class FormulaDesign:
    """Formulas with what they remember of the training data: levels, splines, centres.

    :param formula: such as "y ~ 1 + x".
    :param transition_formula: such as "~ z", or None.
    :raises ValueError: if a formula is not valid.
    """

    def __init__(self, formula: str, transition_formula: str | None) -> None:
        self.formula, self.transition_formula = formula, transition_formula
        means = _parse("formula", formula)
        if not hasattr(means, "lhs") or not hasattr(means, "rhs"):
            raise ValueError(
                f"expected formula with a response, such as 'y ~ 1 + x', got {shown(formula)}"
            )
        # The formulas before :meth:`learn`, and then what they have become with training data.
        self._response, self._covariates, self._moves = means.lhs, means.rhs, None
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
        frame = _frame(data, y, Z)
        response = _matrix(self._response, frame)
        covariates = _matrix(self._covariates, frame, data)
        moves = None if self._moves is None else _matrix(self._moves, frame, data)
        self._set(
            response.model_spec,
            covariates.model_spec,
            None if moves is None else moves.model_spec,
        )
        self._first_row = frame.iloc[:1]
        return self._rows(response, covariates, moves, data)

    def _set(self, response: Any, covariates: Any, moves: Any) -> None:
        """What the formulas have become with training data."""
        self._response, self._covariates, self._moves = response, covariates, moves
        self.columns = _columns(covariates)
        self.transition_columns = None if moves is None else _columns(moves)

    def state(self) -> dict[str, Any]:
        """What :meth:`learn` has kept, as JSON has it.

        :raises ValueError: if it holds what is no number, text or date.
        """
        specs = self._specs()
        row = formula_state.row_of(self._first_row, list(specs.values()))
        return {"row": row} | {name: formula_state.state_of(s) for name, s in specs.items()}

    def restore(self, state: dict[str, Any], trust: bool) -> None:
        """Set what :meth:`state` returned.

        :param trust: whether the formulas may have any code.
        :raises ValueError: if they have other code than functions of formulas and is not trusted,
            or the state is not theirs.
        """
        specs = self._specs()
        for formula in () if trust else specs.values():
            formula_state.check_safe(formula)
        self._first_row = formula_state.frame_of(state["row"])
        found = {
            name: formula_state.spec_from(formula, state[name], self._first_row)
            for name, formula in specs.items()
        }
        self._set(found["response"], found["covariates"], found.get("moves"))

    def _specs(self) -> dict[str, Any]:
        found = {"response": self._response, "covariates": self._covariates}
        return found if self._moves is None else {**found, "moves": self._moves}

    def read(self, data: Any, y: Any = None, Z: Any = None, *, needs_y: bool = True) -> Rows:
        """The rows of other data.

        :param needs_y: whether the response must be there.
        :raises ValueError: if the data are not valid.
        """
        frame = _frame(data, y, Z)
        specs = [self._response] * needs_y + [self._covariates] + [self._moves]
        _check_columns(frame, [spec for spec in specs if spec is not None])
        response = _matrix(self._response, frame) if needs_y else None
        covariates = _matrix(self._covariates, frame, data)
        moves = None if self._moves is None else _matrix(self._moves, frame, data)
        return self._rows(response, covariates, moves, data)

    def read_moves(self, data: Any, Z: Any = None) -> Array | None:
        """The covariates of the transitions alone; None where these are constant."""
        frame = _frame(data, None, Z)
        if self._moves is None:
            return None
        _check_columns(frame, [self._moves])
        return _finite(_matrix(self._moves, frame, data), data)

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
        X = np.asarray(covariates, dtype=np.float64)
        first = 0
        if y is not None and self.has_lags:
            # Rows before the first one whose lags are known are steps without an observation.
            known = np.isfinite(X).all(-1)
            first = int(known.argmax())
            y[:first], X[:first] = np.nan, np.nan
        tables.check_finite(X, covariates.model_spec.column_names, data, first)
        return Rows(y, X, None if moves is None else _finite(moves, data))

    @property
    def has_lags(self) -> bool:
        """Whether a covariate is a lag, which is not known in the first rows."""
        return "lag" in self._covariates.variables_by_source.get("transforms", ())


def _frame(data: Any, y: Any, Z: Any) -> Any:
    for name, value in (("y", y), ("Z", Z)):
        if value is not None:
            raise ValueError(
                f"expected {name}=None where the model has a formula, which names the columns of "
                f"data, got {shown(value)}"
            )
    frame = tables.as_frame(data)
    if not len(frame):
        raise ValueError("expected data with at least one row, got none")
    return frame


def _variables(spec: Any) -> list[str]:
    """The columns of data that a formula has used."""
    return sorted({str(each.root) for each in spec.variables_by_source.get("data", ())})


def _check_columns(frame: Any, specs: list[Any]) -> None:
    """:raises ValueError: if a column that a formula uses is not there."""
    absent = sorted({name for spec in specs for name in _variables(spec)} - {*frame.columns})
    if absent:
        raise _absent(absent, frame)


def _absent(names: list[str], frame: Any) -> ValueError:
    named, there = ", ".join(map(repr, names)), shown(list(map(str, frame.columns)))
    return ValueError(
        f"expected data with the columns of the formulas, got none named {named} among {there}"
    )


def _matrix(formula: Any, frame: Any, data: Any = None) -> Any:
    """The matrix of a formula, or of what it has become.

    :param data: of the caller, if the columns may not be missing; those of a response may.
    :raises ValueError: if there is none.
    """
    from formulaic.errors import DataMismatchWarning, FormulaicError

    try:
        # Numbers that are not finite are refused afterwards, by name.
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
            warnings.simplefilter("error", DataMismatchWarning)
            found = formula.get_model_matrix(frame, na_action="ignore", output="numpy")
    except DataMismatchWarning as error:
        levels = re.search(r"\{.*\}", str(error))
        raise ValueError(
            "expected the categories of the training data, got "
            f"{levels.group() if levels else error}; fit the model with rows of each"
        ) from None
    except (FormulaicError, ValueError, TypeError, ArithmeticError) as error:
        absent = re.search(r"NameError: (?:name )?[`'](.*)[`'] is not", str(error))
        if absent is not None and absent[1] not in frame.columns:
            raise _absent([absent[1]], frame) from None
        if data is not None:  # what cannot be computed may be so because of missing values
            words = {*re.findall(r"\w+", str(formula))}
            tables.check_complete(frame, [n for n in frame.columns if n in words], data)
        raise ValueError(f"expected a formula of the data, got {_plain(error)}") from error
    if data is not None:
        tables.check_complete(frame, _variables(found.model_spec), data)
    return found


def _finite(matrix: Any, data: Any) -> Array:
    """:raises ValueError: if an entry is not finite."""
    numbers = np.asarray(matrix, dtype=np.float64)
    tables.check_finite(numbers, matrix.model_spec.column_names, data)
    return numbers


def _columns(spec: Any) -> Columns:
    terms = [""] * len(spec.column_names)
    for term, places in spec.term_indices.items():
        for place in places:
            terms[place] = INTERCEPT if str(term) == "1" else str(term)
    return Columns([str(name) for name in spec.column_names], terms)


def _parse(name: str, text: Any) -> Any:
    from formulaic import Formula, SimpleFormula
    from formulaic.errors import FormulaicError

    if not isinstance(text, str):
        raise ValueError(f"expected {name} to be a text such as 'y ~ 1 + x', got {shown(text)}")
    try:
        found = Formula(text)
        parts = [getattr(found, "lhs", found), getattr(found, "rhs", found)]
        if not all(isinstance(part, SimpleFormula) for part in parts):
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
