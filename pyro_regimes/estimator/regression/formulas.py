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
    :param scale_formula: likewise.
    :param width: the number of columns of the response: 2 for successes and failures.
    :raises ValueError: if a formula is not valid.
    """

    def __init__(
        self, formula: str, transition_formula: str | None, scale_formula: str | None = None,
        *, width: int = 1,
    ) -> None:  # fmt: skip
        self.formula, self._width = formula, width
        self.transition_formula, self.scale_formula = transition_formula, scale_formula
        means = _parse("formula", formula)
        if not hasattr(means, "lhs") or not hasattr(means, "rhs"):
            raise ValueError(
                f"expected formula with a response, such as 'y ~ 1 + x', got {shown(formula)}"
            )
        # The formulas before :meth:`learn`, and then what they have become with training data.
        self._specs = {"response": means.lhs, "covariates": means.rhs}
        others = {"moves": transition_formula, "spread": scale_formula}
        arguments = {"moves": "transition_formula", "spread": "scale_formula"}
        for name, text in others.items():
            if text is not None:
                self._specs[name] = _parse(arguments[name], text)
                if hasattr(self._specs[name], "lhs"):
                    raise ValueError(
                        f"expected {arguments[name]} without a response, such as '~ z', got "
                        f"{shown(text)}"
                    )

    def learn(self, data: Any, y: Any, Z: Any) -> Rows:
        """The rows of training data, whose levels and splines are kept.

        :raises ValueError: if the data are not valid.
        """
        frame = _frame(data, y, Z)
        found = self._matrices(frame, data, [*self._specs])
        self._set({name: matrix.model_spec for name, matrix in found.items()})
        self._first_row = frame.iloc[:1]
        return self._rows(found, data)

    def _set(self, specs: dict[str, Any]) -> None:
        """What the formulas have become with training data."""
        self._specs = specs
        self.columns = _columns(specs["covariates"])
        moves, spread = specs.get("moves"), specs.get("spread")
        self.transition_columns = None if moves is None else _columns(moves)
        self.scale_columns = None if spread is None else _columns(spread)

    def state(self) -> dict[str, Any]:
        """What :meth:`learn` has kept, as JSON has it.

        :raises ValueError: if it holds what is no number, text or date.
        """
        row = formula_state.row_of(self._first_row, list(self._specs.values()))
        states = {name: formula_state.state_of(spec) for name, spec in self._specs.items()}
        return {"row": row, **states}

    def restore(self, state: dict[str, Any], trust: bool) -> None:
        """Set what :meth:`state` returned.

        :param trust: whether the formulas may have any code.
        :raises ValueError: if they have other code than functions of formulas and is not trusted,
            or the state is not theirs.
        """
        for formula in () if trust else self._specs.values():
            formula_state.check_safe(formula)
        self._first_row = formula_state.frame_of(state["row"])
        self._set(
            {
                name: formula_state.spec_from(formula, state[name], self._first_row)
                for name, formula in self._specs.items()
            }
        )

    def read(self, data: Any, y: Any = None, Z: Any = None, *, needs_y: bool = True) -> Rows:
        """The rows of other data.

        :param needs_y: whether the response must be there.
        :raises ValueError: if the data are not valid.
        """
        frame = _frame(data, y, Z)
        names = [name for name in self._specs if needs_y or name != "response"]
        _check_columns(frame, [self._specs[name] for name in names])
        return self._rows(self._matrices(frame, data, names), data)

    def read_moves(self, data: Any, Z: Any = None) -> Array | None:
        """The covariates of the transitions alone; None where these are constant."""
        frame = _frame(data, None, Z)
        if "moves" not in self._specs:
            return None
        _check_columns(frame, [self._specs["moves"]])
        return _finite(_matrix(self._specs["moves"], frame, data), data)

    def _matrices(self, frame: Any, data: Any, names: list[str]) -> dict[str, Any]:
        return {
            name: _matrix(self._specs[name], frame, None if name == "response" else data)
            for name in names
        }

    def _rows(self, found: dict[str, Any], data: Any) -> Rows:
        y = trials = None
        if "response" in found:
            y, trials = self._response(found["response"])
        lagged = {
            name: np.asarray(found[name], dtype=np.float64)
            for name in ("covariates", "spread")
            if name in found
        }
        first = 0
        if y is not None and self.has_lags:
            # Rows before the first one whose lags are known are steps without an observation.
            known = np.isfinite(np.column_stack([*lagged.values()])).all(-1)
            first = int(known.argmax())
            for each in (y, *lagged.values()):
                each[:first] = np.nan
        for name, matrix in lagged.items():
            tables.check_finite(matrix, found[name].model_spec.column_names, data, first)
        moves = None if "moves" not in found else _finite(found["moves"], data)
        return Rows(y, lagged["covariates"], moves, lagged.get("spread"), trials)

    def _response(self, response: Any) -> tuple[Array, Array | None]:
        """The response, and the number of trials if it is a number of successes in these."""
        numbers = np.array(response, dtype=np.float64)
        if numbers.shape[1] != self._width:
            expected = (
                "one number as the response"
                if self._width == 1
                else "successes and failures as the response, such as 'yes + no ~ x',"
            )
            raise ValueError(
                f"expected formula with {expected}, got the columns "
                f"{list(response.model_spec.column_names)}"
            )
        return tables.split_response(numbers)

    @property
    def has_lags(self) -> bool:
        """Whether a covariate is a lag, which is not known in the first rows."""
        specs = [self._specs[name] for name in ("covariates", "spread") if name in self._specs]
        return any("lag" in each.variables_by_source.get("transforms", ()) for each in specs)


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
