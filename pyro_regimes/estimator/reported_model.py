"""The report of a fitted regime model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.estimator.diagnosed_model import DiagnosedModel
from pyro_regimes.estimator.inputs import date_index
from pyro_regimes.estimator.intervals import check_level
from pyro_regimes.estimator.page.document import document
from pyro_regimes.estimator.page.facts import Facts
from pyro_regimes.estimator.page.outlook import STEPS
from pyro_regimes.estimator.page.words import fixed_number
from pyro_regimes.estimator.plots import as_time, new_figure
from pyro_regimes.estimator.plotted_model import PlottedModel
from pyro_regimes.estimator.uncertain_model import UncertainModel
from pyro_regimes.files import file_name, replacing
from pyro_regimes.messages import shown

#: Settings of the fit in the page, where the model has them.
_SETTINGS = (
    "n_init", "max_iter", "tol", "inference", "acceleration", "initial", "stickiness",
    "regularization", "regularization_scale", "min_eigenvalue", "random_state", "dtype",
)  # fmt: skip

#: What is used of a :class:`.Selection`.
_OF_SELECTION = ("to_frame", "notes")


class ReportedModel(PlottedModel, DiagnosedModel, UncertainModel):
    """The report of :class:`.RegimeModel`."""

    history_: npt.NDArray[np.float64]
    converged_: bool
    n_iter_: int

    def report(
        self,
        X: Any,
        path: str | os.PathLike[str],
        *,
        dates: npt.ArrayLike | None = None,
        title: str | None = None,
        unit: str | None = None,
        prices: npt.ArrayLike | None = None,
        level: float | None = None,
        selection: Any = None,
        notes: Sequence[str] = (),
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        states: Any = None,
        gaps: Any = None,
    ) -> None:
        """Write a report of the model and of X: one HTML file that needs no other file.

        It has the regime of the last row, the table of the regimes, the data over time with their
        regimes, the transitions, the forecast of the next step with its risk, the distribution of
        each series, the correlations, tests of the residuals, and a description of the data and
        the fit. Sections that do not apply to the model are left out. The file can be printed, and
        read in light and dark colours and on a phone. An existing file is replaced atomically.

        :param X: ``(T, D)``, one sequence, as in :meth:`predict`.
        :param path: the file to write.
        :param dates: ``(T,)``; None uses the index of X if X has dates, and else numbers the rows.
        :param title: of the page; None names the series.
        :param unit: the unit of the data, such as "%".
        :param prices: prices at the rows of X, ``(T,)`` or ``(T, D)``, to show on a logarithmic
            scale in the place of the cumulative return.
        :param level: of confidence intervals in the tables, such as 0.95, by :meth:`conf_int`. X
            must then be the data of the fit. None leaves the intervals out, as they take some time.
        :param selection: the result of :func:`.select`, to show the table of the candidates.
        :param notes: sentences about the data to show, such as how they were prepared.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param states: known regimes, as in :meth:`predict`; the residuals do not use them.
        :param gaps: as in :meth:`predict`; give those of the fit to report on its data.
        :raises ImportError: if matplotlib is not installed, or pandas is not and ``level`` is given
            (they are part of the ``app`` extra).
        :raises OSError: if the file cannot be written.
        :raises ValueError: if an argument is not valid, X has probability zero, or the model is not
            fitted.
        """
        check_is_fitted(self)
        new_figure(1, 1)  # raises if matplotlib is not installed
        target = file_name("path", path)
        title = _text("title", title)
        unit = _text("unit", unit)
        if isinstance(notes, str) or not all(isinstance(each, str) for each in notes):
            raise ValueError(f"expected notes to be a list of sentences, got {shown(notes)}")
        level = None if level is None else check_level(level)
        if selection is not None and not all(hasattr(selection, name) for name in _OF_SELECTION):
            raise ValueError(
                f"expected selection to be the result of select, got {shown(selection)}"
            )
        data = self._one_sequence(X, "report")
        page = document(
            self._facts(
                X, data, dates, unit, prices, level, selection, list(notes), start, after, states,
                gaps,
            ),  # fmt: skip
            title,
        )
        with replacing(target) as (file,):
            file.write_text(page, encoding="utf-8")

    def _facts(
        self,
        X: Any,
        data: npt.NDArray[np.float64],
        dates: Any,
        unit: str | None,
        prices: Any,
        level: float | None,
        selection: Any,
        notes: list[str],
        start: Any,
        after: Any,
        states: Any,
        gaps: Any,
    ) -> Facts:
        """Everything that the page shows."""
        time = date_index(X) if dates is None else dates
        time = None if time is None else as_time(time)
        if time is not None and len(time) != len(data):
            raise ValueError(
                f"expected dates to have an entry for each of the {len(data)} rows of X, got "
                f"{len(time)}"
            )
        hmm, data, sizes = self._hmm_of(X, None, start, after, states=states, gaps=gaps)
        if states is None:
            forecast = self.forecast(X, STEPS, start=start, after=after, gaps=gaps)
        else:
            last = hmm.posterior(data, sizes, "filtered")[1][-1]
            forecast = self.forecast(None, STEPS, after=last)
        return Facts(
            self.summary(),
            hmm.spec,
            hmm.parameters.emission,
            data,
            time,
            hmm.decode(data, sizes, "viterbi")[1],
            hmm.posterior(data, sizes, "filtered")[1],
            hmm.posterior(data, sizes, "smoothed")[1],
            forecast,
            unit,
            prices,
            self._periods_per_year(),
            None
            if level is None
            else self.conf_int(X, level=level, states=states, gaps=gaps).to_frame(),
            level,
            self.residuals(X, start=start, after=after, gaps=gaps),
            selection,
            self._settings(),
            notes,
        )

    def _settings(self) -> list[tuple[str, str]]:
        """The settings of the fit, and how it ended."""
        spec = self._fitted_spec()
        found = [
            ("regimes", str(len(self.regime_names_))),
            ("emission", _emission(self.emission, spec.title)),
            ("free parameters", str(self.n_parameters_)),
        ]
        if not self.n_samples_fit_:
            return [*found, ("fit", "none: the parameters were given")]
        found.append(("observations in the fit", f"{self.n_samples_fit_:,.0f}"))
        if not self.n_updates_:
            scores = {"log-likelihood": self.log_likelihood_, "AIC": self.aic(), "BIC": self.bic()}
            found += [(name, fixed_number(value, 1)) for name, value in scores.items()]
            end = "converged" if self.converged_ else "stopped before it converged"
            found.append(("iterations", f"{self.n_iter_} ({end})"))
        else:
            found.append(("updates by new rows", str(self.n_updates_)))
        values = self.get_params(deep=False)
        return found + [(name, _setting(values[name])) for name in _SETTINGS]


def _emission(name: Any, title: str) -> str:
    """The family with its covariances; several families have it in their title."""
    return f"Gaussian, {title}" if name == "gaussian" else title


def _text(name: str, value: Any) -> str | None:
    """:raises ValueError: if it is neither a text nor None."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"expected {name} to be a text or None, got {shown(value)}")
    return value


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)
