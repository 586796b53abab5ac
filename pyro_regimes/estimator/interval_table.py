"""Confidence intervals as a table."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import TitledTable, fixed, titled_html_table, titled_table

if TYPE_CHECKING:
    import pandas as pd

_HEADS = ("estimate", "std. error", "lower", "upper")


class ConfidenceIntervals(NamedTuple):
    """Estimates, standard errors and intervals of Q numbers of a model.

    ``str(intervals)`` is a table of all of them, of 80 letters in a line, :meth:`to_string` one of
    any width. A notebook shows it as HTML. :meth:`to_frame` has the numbers.
    """

    labels: list[tuple[str, str, str]]  #: property, series or what else it is of, regime
    estimate: Array  #: ``(Q,)``
    standard_error: Array  #: ``(Q,)``; NaN of a parameter on a bound, 0 of a fixed one
    lower: Array  #: ``(Q,)``
    upper: Array  #: ``(Q,)``
    level: float  #: probability that an interval covers
    method: str  #: "observed", "sandwich" or "bootstrap"

    def __str__(self) -> str:
        return self.to_string()

    def __repr__(self) -> str:
        return str(self)

    def to_string(self, width: int = 80) -> str:
        """The table as text.

        :param width: letters in a line. Columns that do not fit follow below.
        """
        return titled_table(*self._table(), width)

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        return titled_html_table(*self._table())

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a pandas DataFrame.

        The columns are "estimate", "standard error", "lower" and "upper". The rows have three
        levels, a property, the series or what else it is of, and the regime, so that
        ``to_frame().loc["annualised mean"]`` has the means.

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        pandas = require("pandas", "to_frame")
        names = ["property", "of", "regime"]
        index = pandas.MultiIndex.from_tuples(self.labels, names=names)
        columns = {
            "estimate": self.estimate,
            "standard error": self.standard_error,
            "lower": self.lower,
            "upper": self.upper,
        }
        return pandas.DataFrame(columns, index=index)

    def _table(self) -> TitledTable:
        """The title, the labels, the columns and the notes of the table as text."""
        labels, rows = [], []
        numbers = zip(self.estimate, self.standard_error, self.lower, self.upper, strict=True)
        each = zip(self.labels, numbers, strict=True)
        for name, group in groupby(each, lambda one: one[0][0]):
            parts, values = zip(*group, strict=True)
            labels += [name, *(f"  {_part(*label)}" for label in parts)]
            rows += [[""] * len(_HEADS), *fixed(values)]
        title = f"Confidence intervals, {100 * self.level:g} %, method {self.method!r}"
        return title, labels, list(zip(_HEADS, zip(*rows, strict=True), strict=True)), []


def _part(name: str, of: str, regime: str) -> str:
    """What a number is, below the name of its property."""
    if name == f"transition from {regime}":
        return f"to {of}"
    return ", ".join(filter(None, [of, "all regimes" if regime == "all" else regime]))
