"""The result of :func:`.select`: a table, the best model by a criterion, and a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_regimes.estimator import validation
from pyro_regimes.estimator.candidates import Candidate, Sample, num_observed
from pyro_regimes.estimator.intervals import check_level
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.selection_plot import plot_selection
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import Row, html_table, text_table, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The criteria by which a candidate may be the best, and whether higher is better.
CRITERIA = {"aic": False, "aicc": False, "bic": False, "icl": False, "held_out": True}

_COLUMNS = {
    "log_likelihood": "log-lik",
    "n_parameters": "params",
    "aic": "AIC",
    "aicc": "AICc",
    "bic": "BIC",
    "icl": "ICL",
    "held_out": "held-out",
    "p_value": "p-value",
}


class Selection(NamedTuple):
    """Several fitted models and their criteria.

    ``print(selection)`` shows a table, :meth:`to_string` one of any width, and a notebook shows it
    as HTML. :meth:`to_frame` has the numbers.
    """

    candidates: list[Candidate]  #: by family, and in each by the number of regimes
    title: str
    notes: list[str]  #: on fits that failed, collapsed or did not converge, and on the columns

    def best(self, criterion: str = "bic", level: float = 0.05) -> RegimeModel:
        """The best fitted model by a criterion. Fits that collapsed are never the best.

        :param criterion: "aic", "aicc", "bic", "icl", "held_out", or "p_value": the smallest number
            of regimes that the bootstrap does not reject at this level against one more, for
            candidates of one family.
        :param level: of that test.
        :return: the model.
        :raises ValueError: if the criterion is not known, or no candidate has a value of it.
        """
        validation.one_of("criterion", criterion, (*CRITERIA, "p_value"))
        found = self._best(criterion) if criterion in CRITERIA else self._by_tests(level)
        if found is None or found.model is None:
            remedy = {"held_out": "set folds", "p_value": "set bootstrap"}.get(criterion)
            why = "" if remedy is None else f"; {remedy} in select"
            raise ValueError(f"expected a candidate with a value of {criterion}, got none{why}")
        return found.model

    def _best(self, criterion: str) -> Candidate | None:
        sign = -1 if CRITERIA[criterion] else 1
        found = [
            each for each in self.candidates
            if not each.is_collapsed and math.isfinite(each.value(criterion))
        ]  # fmt: skip
        return min(found, key=lambda each: sign * each.value(criterion), default=None)

    def _by_tests(self, level: float) -> Candidate | None:
        level = check_level(level)
        if len({each.family.name for each in self.candidates}) > 1:
            raise ValueError(
                "expected candidates of one family for criterion='p_value', got several; tests of "
                "different families do not compare"
            )
        numbers = {each.n_regimes for each in self.candidates}
        for place, candidate in enumerate(self.candidates):
            if candidate.ratio is None:  # the largest one, if all before are rejected
                more = candidate.n_regimes + 1
                if place and more not in numbers and more < max(numbers):
                    raise ValueError(
                        "expected candidates of all numbers of regimes for criterion='p_value', "
                        f"got none of {more}, against which {more - 1} are to be tested"
                    )
                return candidate if place and not candidate.is_collapsed else None
            if candidate.ratio.p_value > level:
                return candidate
        return None

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a pandas DataFrame, with a row for each candidate.

        Beside the criteria it has the likelihood ratio of the test, whether EM has converged and
        whether a regime has collapsed; NaN where there is no value.

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        pandas = require("pandas", "to_frame")
        return pandas.DataFrame([_record(each) for each in self.candidates])

    def __str__(self) -> str:
        return self.to_string()

    def __repr__(self) -> str:
        return str(self)

    def to_string(self, width: int = 80) -> str:
        """The table as text.

        :param width: letters in a line. Columns that do not fit follow below.
        :return: the text, of several lines.
        """
        head, *rows = self._rows()
        labels = [f"  {row.label}" if row.is_part else row.label for row in rows]
        columns = zip(head.cells, zip(*(row.cells for row in rows), strict=True), strict=True)
        table = text_table(head.label, labels, columns, width)
        notes = [wrapped(note, width) for note in self.notes]
        return "\n".join([wrapped(self.title, width), "", table, "", *notes])

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        head, *rows = self._rows()
        return html_table(self.title, head, rows, self.notes)

    def plot(self, *, ax: Axes | Iterable[Axes] | None = None) -> Figure:
        """Plot AIC, BIC, ICL and the held-out score against the number of regimes.

        Each is shown as its difference from the best candidate of all, so that 0 is the best; the
        held-out score times -2, in the unit of the others. The scale is linear to 10, and
        logarithmic above. There is a panel for each family. Fits that collapsed are left out.

        :param ax: one matplotlib Axes for each family, or one alone, in which the families have
            lines of different styles. None makes a figure.
        :return: a matplotlib figure, of ``ax`` if it is given.
        :raises ImportError: if matplotlib is not installed.
        :raises ValueError: if ``ax`` is not so many Axes, or no candidate has a criterion.
        """
        return plot_selection(self.candidates, ax)

    def _rows(self) -> list[Row]:
        """The table as text, from the row of the names of the columns on."""
        names = [
            name for name in _COLUMNS
            if name not in ("held_out", "p_value")
            or any(not math.isnan(each.value(name)) for each in self.candidates)
        ]  # fmt: skip
        stars = {name: self._best(name) for name in names if name in CRITERIA}
        families = list(dict.fromkeys(each.family.name for each in self.candidates))
        rows = [Row("regimes", [f"{_COLUMNS[name]} " for name in names])]
        for family in families:
            if len(families) > 1:
                rows.append(Row(family, [""] * len(names)))
            for each in self.candidates:
                if each.family.name == family:
                    cells = [_cell(each, name, stars.get(name) is each) for name in names]
                    rows.append(Row(str(each.n_regimes), cells, is_part=len(families) > 1))
        return rows


def _cell(candidate: Candidate, name: str, is_best: bool) -> str:
    value = candidate.value(name)
    if math.isnan(value):
        return "- "
    decimals = {"n_parameters": 0, "p_value": 3}.get(name, 1)
    return f"{value:.{decimals}f}{'*' if is_best else ' '}"


def _record(candidate: Candidate) -> dict[str, Any]:
    """A row of the frame."""
    ratio, model = candidate.ratio, candidate.model
    return {
        "n_regimes": candidate.n_regimes,
        "emission": candidate.family.emission_name,
        "covariance_type": candidate.family.covariance_type or "",
        **{name: candidate.value(name) for name in _COLUMNS if name != "p_value"},
        "likelihood_ratio": math.nan if ratio is None else ratio.statistic,
        "p_value": candidate.value("p_value"),
        "converged": model is not None and model.converged_,
        "collapsed": candidate.is_collapsed,
    }


def notes_of(
    candidates: list[Candidate], sample: Sample, folds: int, bootstrap: int
) -> tuple[str, list[str]]:
    """The title and the notes of a selection."""
    rows, series = num_observed(sample), sample.data.shape[1]
    families = list(dict.fromkeys(each.family.name for each in candidates))
    of = f"{families[0]}; " if len(families) == 1 else ""
    title = f"{of}{rows} rows of {series} series; * marks the best of each column"
    notes = []
    if folds:
        notes.append(
            f"held-out: the log-likelihood of {folds} blocks of about {len(sample.data) // folds} "
            "rows, each given all other rows by a fit without it; higher is better."
        )
    if bootstrap:
        notes.append(
            f"p-value: of this number of regimes against one more, by {bootstrap} replicates."
        )
    return title, [*notes, *_at_the_end(candidates), *_problems(candidates)]


def _at_the_end(candidates: list[Candidate]) -> list[str]:
    """A note that more regimes than the most may be better."""
    most = max(each.n_regimes for each in candidates)
    if most == min(each.n_regimes for each in candidates):
        return []
    selection = Selection(candidates, "", [])
    best = {name: selection._best(name) for name in CRITERIA}
    named = [
        _COLUMNS[name] for name, each in best.items() if each is not None and each.n_regimes == most
    ]
    if not named:
        return []
    listed = ", ".join(named)
    return [f"{most} regimes, the most that were fitted, are the best by {listed}: try more."]


def _problems(candidates: list[Candidate]) -> list[str]:
    """Notes on fits; those that all have are not repeated."""
    fitted = [each for each in candidates if each.model is not None]
    common = [
        text for text in (fitted[0].problems if len(fitted) > 1 else ())
        if all(text in each.problems for each in fitted)
    ]  # fmt: skip
    notes = list(common)
    for each in candidates:
        if each.model is None:
            notes.append(f"{each.name} not fitted: {each.error}.")
        notes += [f"{each.name}: {text}" for text in each.problems if text not in common]
    return notes
