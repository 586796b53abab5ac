"""What a formula remembers of its training data, as JSON has it.

That are the states of its functions (knots, centres), the categories of its factors, and one row of
its columns: it says which names are columns of the data, and of which kind.
"""

from __future__ import annotations

import ast
import re
import reprlib
from typing import Any

import numpy as np

#: Functions of formulas that numbers and categories go into and come out of.
_SAFE = (
    "log", "log10", "log2", "exp", "exp10", "exp2", "bs", "cc", "cr", "cs", "center", "standardize",
    "lag", "poly", "scale", "C", "I", "Q", "hashed", "Treatment", "Poly", "Sum", "Helmert", "Diff",
)  # fmt: skip

_SAFE_NODES = (
    ast.Expression, ast.Name, ast.Constant, ast.Load, ast.Call, ast.keyword, ast.Attribute,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop,
    ast.cmpop, ast.List, ast.Tuple,
)  # fmt: skip


def state_of(spec: Any) -> dict[str, Any]:
    """The state of a formula that has seen training data.

    :raises ValueError: if it has an object in it that is no number, text or collection of these.
    """
    return {
        "transform": _to_plain(spec.transform_state),
        "encoder": [
            [expression, kind.value, _to_plain(state)]
            for expression, (kind, state) in spec.encoder_state.items()
        ],
        "columns": list(spec.column_names),
    }


def row_of(frame: Any, specs: list[Any]) -> dict[str, list[Any]]:
    """The first row of the columns that some formulas use: the kind of each, and its value.

    :raises ValueError: if a value is no number, text or date.
    """
    names = {str(v.root) for spec in specs for v in spec.variables_by_source.get("data", ())}
    return {str(name): _cell(str(name), frame[name]) for name in frame if str(name) in names}


def frame_of(row: dict[str, list[Any]]) -> Any:
    """The inverse of :func:`row_of`."""
    import pandas

    return pandas.DataFrame({name: _column(*cell) for name, cell in row.items()})


def spec_from(formula: Any, state: dict[str, Any], frame: Any) -> Any:
    """The formula with its state.

    :param frame: of :func:`frame_of`.
    :raises ValueError: if they do not belong together.
    """
    from formulaic import ModelSpec
    from formulaic.errors import FormulaicError
    from formulaic.parser.types import Factor

    encoder = {
        expression: (Factor.Kind(kind), _from_plain(each))
        for expression, kind, each in state["encoder"]
    }
    spec = ModelSpec(
        formula, transform_state=_from_plain(state["transform"]), encoder_state=encoder
    )
    try:
        with np.errstate(all="ignore"):
            matrix = spec.get_model_matrix(frame, na_action="ignore", output="numpy")
    except FormulaicError as error:
        raise ValueError(f"{formula}: {error}") from error
    found = list(matrix.model_spec.column_names)
    if found != state["columns"]:
        raise ValueError(
            f"the formula {formula} has the columns {reprlib.repr(found)}, not "
            f"{reprlib.repr(state['columns'])}"
        )
    return matrix.model_spec


def check_safe(formula: Any) -> None:
    """:raises ValueError: if a formula calls more than functions of formulas and of NumPy."""
    for term in formula:
        for factor in term.factors:
            if factor.eval_method.value != "python":
                continue
            words = re.sub("`[^`]*`", "_", str(factor.expr))  # names that are no words
            tree = ast.parse(words.strip(), mode="eval")
            if not all(map(_is_safe, ast.walk(tree))):
                raise ValueError(
                    f"expected a formula of functions of formulaic and NumPy, got {factor.expr!r}, "
                    "which may run any code; set trust_formula=True if you know who wrote the file"
                )


def _is_safe(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        is_numpy = isinstance(node.value, ast.Name) and node.value.id == "np"
        is_contrast = isinstance(node.value, ast.Name) and node.value.id == "contr"
        is_function = isinstance(getattr(np, node.attr, None), (np.ufunc, float))
        return (is_numpy and is_function) or (is_contrast and not node.attr.startswith("_"))
    if isinstance(node, ast.Call):
        called = node.func
        return isinstance(called, ast.Attribute) or (
            isinstance(called, ast.Name) and called.id in _SAFE
        )
    return isinstance(node, _SAFE_NODES)


def _to_plain(value: Any) -> Any:
    """Numbers and texts as they are; collections as a list of what they are, and their items."""
    from formulaic.transforms.contrasts import ContrastsState

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        items = [
            [_to_plain(key), _to_plain(each)]
            for key, each in value.items()
            if not isinstance(each, ContrastsState)  # which the categories say again
        ]
        return ["dict", items]
    if isinstance(value, (list, tuple)):
        return ["list", [_to_plain(each) for each in value]]
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        return ["array", value.tolist()]
    raise ValueError(
        "expected formulas that remember numbers and texts of their data, got "
        f"{type(value).__name__} ({reprlib.repr(value)}); make such columns before the fit"
    )


def _from_plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, items = value
    if kind == "dict":
        return {_from_plain(key): _from_plain(each) for key, each in items}
    if kind == "list":
        return [_from_plain(each) for each in items]
    if kind == "array":
        return np.array(items)
    raise ValueError(f"there is no kind {kind!r} of a state")


def _cell(name: str, column: Any) -> list[Any]:
    value = column.iloc[0]
    if isinstance(value, np.generic):
        value = value.item() if column.dtype.kind not in "mM" else value
    if column.dtype.kind == "M":
        return ["date", column.iloc[0].isoformat()]
    if isinstance(value, float) and np.isnan(value):
        return ["number", None]
    if isinstance(value, (bool, str)):
        return ["as is", value]
    if isinstance(value, (int, float)):
        return ["number", float(value)]
    raise ValueError(
        f"expected columns of numbers, texts or dates, got {type(value).__name__} in {name!r}; "
        "make such a column before the fit"
    )


def _column(kind: str, value: Any) -> Any:
    import pandas

    if kind == "date":
        return [pandas.Timestamp(value)]
    if kind == "number":
        return [np.nan if value is None else float(value)]
    return [value]
