"""What the sections of the page are about, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from pyro_regimes.estimator.forecast import Forecast
from pyro_regimes.estimator.page.words import step_name
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.plots.figure import regime_colors
from pyro_regimes.estimator.report import Summary
from pyro_regimes.estimator.residuals import Residuals
from pyro_regimes.estimator.spec import Spec


class Facts(NamedTuple):
    """A fitted model with rows of data."""

    summary: Summary
    spec: Spec
    emission: dict[str, Array]
    data: Array  #: ``(T, D)``
    time: npt.NDArray[Any] | None  #: dates of the rows, or other numbers
    path: npt.NDArray[Any]  #: ``(T,)``, the most likely one
    filtered: Array  #: ``(T, K)``
    smoothed: Array  #: ``(T, K)``
    forecast: Forecast  #: of the steps that follow
    unit: str | None  #: of the data
    prices: Any  #: of the rows, to show
    periods_per_year: float
    intervals: Any  #: a table of :meth:`.UncertainModel.conf_int`, or None
    level: float | None  #: of the intervals
    residuals: Residuals  #: of the data given the rows before
    selection: Any  #: a :class:`.Selection`, or None
    settings: Sequence[tuple[str, str]]  #: of the fit, with their values
    notes: Sequence[str]  #: on the data

    @property
    def names(self) -> list[str]:
        """Names of the regimes."""
        return self.summary.regime_names

    @property
    def series(self) -> list[str]:
        """Names of the series."""
        return self.summary.series_names

    @property
    def is_dated(self) -> bool:
        """Whether the rows have dates."""
        return self.time is not None and self.time.dtype.kind == "M"

    @property
    def colors(self) -> list[str]:
        """A colour for each regime."""
        return regime_colors(len(self.names))

    @property
    def current(self) -> int:
        """The most probable regime of the last row, given the rows up to it."""
        return int(self.filtered[-1].argmax())

    @property
    def step(self) -> str:
        """What a step is called."""
        return step_name(self.time)

    @property
    def spread_name(self) -> str:
        """What the spread of a series is called."""
        return "annualised volatility" if self.summary.is_annualised else "standard deviation"

    @property
    def mean_name(self) -> str:
        """What the mean of a series is called."""
        return "annualised mean" if self.summary.is_annualised else "mean"

    @property
    def in_unit(self) -> str:
        """The unit in a sentence."""
        return "the unit of the data" if self.unit is None else self.unit
