"""The table of a regression's estimates, and its summary."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import norm

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.errors import RegressionErrors
from pyro_regimes.estimator.regression.form import Form, RegressionParameters
from pyro_regimes.estimator.regression.rows import Columns
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import TitledTable, titled_html_table, titled_table

if TYPE_CHECKING:
    import pandas as pd

ALL = "all regimes"

#: A label, an estimate, its standard error, and "coefficient", "scale" or "probability".
TableRow = tuple[tuple[str, str], float, float, str]


class CoefficientTable(NamedTuple):
    r"""Estimates with standard errors, z statistics, p-values and intervals.

    The Q rows are the coefficients and sigma of each regime, those that do not switch ("all
    regimes"), and the transitions: probabilities, or coefficients of the log-odds of leaving.

    For coefficients :math:`z = \hat\beta / s`, the p-value is :math:`2 \Phi(-|z|)`, and the
    interval is :math:`\hat\beta \pm z_{1 - \alpha / 2} s`. A sigma and a probability have no z and
    no p-value, as 0 is on their bound; their intervals are symmetric in the logarithm and in the
    log-odds, so that they stay inside.

    ``print`` shows the table; :meth:`to_frame` has the numbers.
    """

    labels: list[tuple[str, str]]  #: what a row belongs to, and the term
    estimate: Array  #: ``(Q,)``
    standard_error: Array  #: ``(Q,)``; NaN of a parameter on a bound
    z: Array  #: ``(Q,)``; NaN of a sigma and a probability
    p_value: Array  #: ``(Q,)``
    lower: Array  #: ``(Q,)``
    upper: Array  #: ``(Q,)``
    level: float  #: probability that an interval covers
    method: str  #: of the standard errors

    def __str__(self) -> str:
        return titled_table(*self.parts(self.title()))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return titled_html_table(*self.parts(self.title()))

    def title(self) -> str:
        """What the table shows."""
        return f"Estimates, intervals of {100 * self.level:g} %, standard errors: {self.method}"

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a pandas DataFrame.

        The rows have two levels, the regime (or "all regimes", or the transition) and the term.

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        pandas = require("pandas", "to_frame")
        index = pandas.MultiIndex.from_tuples(self.labels, names=["of", "term"])
        columns = {
            "estimate": self.estimate,
            "standard error": self.standard_error,
            "z": self.z,
            "p-value": self.p_value,
            "lower": self.lower,
            "upper": self.upper,
        }
        return pandas.DataFrame(columns, index=index)

    def parts(self, title: str, notes: list[str] | None = None) -> TitledTable:
        """The title, the labels, the columns and the notes of the table as text."""
        tail = (1 - self.level) / 2
        heads = ["coef", "std err", "z", "P>|z|", f"[{tail:.3g}", f"{1 - tail:.3g}]"]
        labels, rows = [], []
        numbers = zip(*self[1:7], strict=True)
        each = zip(self.labels, numbers, strict=True)
        for of, group in groupby(each, lambda one: one[0][0]):
            terms, values = zip(*group, strict=True)
            labels += [of, *(f"  {term}" for _, term in terms)]
            rows += [[""] * len(heads), *(_cells(row) for row in values)]
        return title, labels, list(zip(heads, zip(*rows, strict=True), strict=True)), notes or []


class RegressionSummary(NamedTuple):
    """What :meth:`.RegimeRegression.summary` returns; ``print`` shows it."""

    facts: list[tuple[str, str]]  #: names and values of the head
    table: CoefficientTable
    notes: list[str]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.facts) + 2
        head = [f"{name:<{width}}{value}" for name, value in self.facts]
        return "\n".join([*head, "", titled_table(*self._parts())])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n"
            for name, value in self.facts
        )
        return f"<table>\n{rows}</table>\n{titled_html_table(*self._parts())}"

    def _parts(self) -> TitledTable:
        return self.table.parts(self.table.title(), self.notes)


def coefficient_table(
    form: Form,
    parameters: RegressionParameters,
    errors: RegressionErrors | None,
    names: list[str],
    columns: Columns,
    moves: Columns | None,
    spread: Columns | None,
    level: float,
) -> CoefficientTable:
    """The table of all estimates.

    :param errors: None for NaN in their place.
    :param names: those of the regimes.
    :param moves: the columns of the covariates of transitions, if these vary.
    :param spread: those of the covariates of the scale, if it varies.
    :param level: the probability that an interval covers.
    """
    rows: list[TableRow] = []

    def add(of: str, term: str, field: str, place: tuple[int, ...], kind: str) -> None:
        value = getattr(parameters, field)[place]
        error = np.nan if errors is None else getattr(errors.values, field)[place]
        rows.append(((of, term), float(value), float(error), kind))

    def add_scale(of: str, k: int) -> None:
        scale = form.response.scale
        if spread is not None:
            for s, term in enumerate(spread.names):
                add(of, f"log {scale}: {term}", "scale_coefficients", (k, s), "coefficient")
        elif scale is not None:
            add(of, scale, "scale", (k,), "scale")

    for k, name in enumerate(names):
        for p, term in enumerate(columns.names):
            if form.switching[p]:
                add(name, term, "coefficients", (k, p), "coefficient")
        if form.switching_variance:
            add_scale(name, k)
    for p, term in enumerate(columns.names):
        if not form.switching[p]:
            add(ALL, term, "coefficients", (0, p), "coefficient")
    if not form.switching_variance:
        add_scale(ALL, 0)
    for i, old in enumerate(names):
        for j, new in enumerate(names):
            if moves is None and len(names) > 1:
                add("transition probabilities", f"{old} to {new}", "transition_matrix", (i, j),
                    "probability")  # fmt: skip
            elif moves is not None and i != j:
                for q, term in enumerate(moves.names):
                    add(f"{old} to {new}", term, "transition_coefficients", (i, j, q),
                        "coefficient")  # fmt: skip
    return table_of(rows, level, "none" if errors is None else errors.method)


def table_of(rows: list[TableRow], level: float, method: str) -> CoefficientTable:
    """The table of some estimates.

    :param method: of the standard errors.
    """
    labels, estimate, error, kinds = zip(*rows, strict=True)
    numbers = _inference(np.array(estimate), np.array(error), list(kinds), level)
    return CoefficientTable(list(labels), *numbers, level, method)


def _inference(
    estimate: Array, error: Array, kinds: list[str], level: float
) -> tuple[Array, Array, Array, Array, Array, Array]:
    of = np.array(kinds)
    times = norm.ppf((1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.where(of == "coefficient", estimate / error, np.nan)
        lower, upper = estimate - times * error, estimate + times * error
        factor = np.exp(times * error / estimate)
        lower = np.where(of == "scale", estimate / factor, lower)
        upper = np.where(of == "scale", estimate * factor, upper)
        odds = estimate / (1 - estimate)
        move = np.exp(times * error / (estimate * (1 - estimate)))
        is_probability = of == "probability"
        lower = np.where(is_probability, 1 / (1 + move / odds), lower)
        upper = np.where(is_probability, 1 / (1 + 1 / (odds * move)), upper)
    return estimate, error, z, 2 * norm.sf(np.abs(z)), lower, upper


def _cells(values: tuple[float, ...]) -> list[str]:
    estimate, error, z, p, lower, upper = values
    unit = [_number(value) for value in (estimate, error)]
    of_z = "" if math.isnan(z) else f"{z:.3f}"
    of_p = "" if math.isnan(p) else f"{p:.3f}"
    return [*unit, of_z, of_p, _number(lower), _number(upper)]


def _number(value: float) -> str:
    """Four decimals, or four digits where these would hide the number."""
    if math.isnan(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}"
    return f"{value:.3e}"
