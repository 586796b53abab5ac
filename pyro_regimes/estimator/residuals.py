r"""Normal pseudo-residuals of a fitted model.

If an observation x has the continuous distribution function F, then :math:`\Phi^{-1}(F(x))` is
standard normal. F is that of the observation given others (Zucchini, MacDonald and Langrock, Hidden
Markov Models for Time Series, 2nd ed., chapter 6):

.. math::
    F_t(x) = \sum_k w_{tk} F_k(x), \qquad
    w_{tk} = p(q_t = k \mid x_1, ..., x_{t-1}) \text{ or } p(q_t = k \mid x_{s}, s \ne t)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from pyro_regimes.estimator import validation
from pyro_regimes.estimator.emissions.levels import Levels, averaged_in_turn, normal_quantile
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.residual_tests import ResidualTests, run_tests

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("forecast", "ordinary")
ORDERS = ("series", "rosenblatt")
_MOST_ROWS = 2**15  # whose levels are computed at once
_STREAM = 1952  # of random numbers


class Residuals(NamedTuple):
    """Normal pseudo-residuals: standard normal if the model is right. NaN where X is missing.

    A discrete observation has a segment, from the normal quantile of :math:`P(X < x)` to that of
    :math:`P(X \\le x)`, of which an end may be infinite; its value is the quantile of the mean of
    both probabilities.
    """

    values: Array  #: ``(T, D)``
    lower: Array | None  #: ``(T, D)``, where segments begin; None if all series are continuous
    upper: Array | None  #: ``(T, D)``, where they end
    kind: str  #: "forecast" or "ordinary"
    by: str  #: "series" or "rosenblatt"
    series_names: list[str]
    lengths: list[int]  #: the number of rows of each sequence
    dates: Any = None  #: of the rows, for plots; None numbers them

    def __repr__(self) -> str:
        rows, series = self.values.shape
        return f"<Residuals: {rows} rows of {series} series, kind={self.kind!r}, by={self.by!r}>"

    @property
    def is_discrete(self) -> npt.NDArray[np.bool_]:
        """Which series have segments, ``(D,)``."""
        if self.lower is None or self.upper is None:
            return np.zeros(len(self.series_names), np.bool_)
        return np.asarray((self.lower < self.upper).any(0))

    def randomized(self, random_state: int | np.random.RandomState | None = None) -> Residuals:
        """Randomised quantile residuals (Dunn and Smyth 1996).

        The value of a discrete observation is the normal quantile of a uniform number between
        :math:`P(X < x)` and :math:`P(X \\le x)`. So it is standard normal if the model is right, as
        that of a continuous one is. Continuous series stay as they are.

        :param random_state: seed of the uniform numbers.
        :return: residuals without segments.
        """
        if self.lower is None or self.upper is None:
            return self
        rng = validation.random_state(random_state)
        if not isinstance(random_state, np.random.RandomState) and random_state is not None:
            # Data that were simulated with the same seed come from other numbers.
            rng = np.random.RandomState([random_state, _STREAM])
        share = rng.random_sample(self.values.shape)
        with np.errstate(divide="ignore", invalid="ignore"):  # of 0, and of missing entries
            log_upper, log_lower = np.log(share), np.log1p(-share)
            drawn = normal_quantile(
                np.logaddexp(log_ndtr(self.lower) + log_lower, log_ndtr(self.upper) + log_upper),
                np.logaddexp(log_ndtr(-self.lower) + log_lower, log_ndtr(-self.upper) + log_upper),
            )
        values = np.where(self.lower < self.upper, drawn, self.values)
        return self._replace(values=values, lower=None, upper=None)

    def tests(
        self, lags: int = 10, random_state: int | np.random.RandomState | None = 0
    ) -> ResidualTests:
        """Test each series for a standard normal distribution and for autocorrelation.

        Jarque-Bera compares skewness and kurtosis with the normal ones, Kolmogorov-Smirnov the
        distribution with N(0, 1), and Ljung-Box tests the autocorrelations of the residuals, and of
        their squares, up to a lag. Discrete series are tested by :meth:`randomized` residuals.

        "ordinary" residuals depend on each other even if the model is right, so they have no
        Ljung-Box tests, and the p-values of the other two are approximate. In all tests the
        parameters count as known: those of the training data are a little too close to normal.

        :param lags: the number of autocorrelations of a Ljung-Box test.
        :param random_state: seed for discrete series.
        :return: a :class:`.ResidualTests`, which prints as a table.
        :raises ValueError: if lags is not a positive integer.
        """
        values = self.randomized(random_state).values
        return run_tests(values, self.lengths, self.kind, lags, self.series_names)

    def plot(
        self,
        series: int | str = 0,
        *,
        ax: Axes | Iterable[Axes] | None = None,
        lags: int = 30,
        random_state: int | np.random.RandomState | None = 0,
    ) -> Figure:
        """Plot the residuals of a series over time, their quantiles, histogram and correlations.

        :param series: the number or the name of the series.
        :param ax: four matplotlib Axes, for residuals over time, quantiles beside those of the
            normal distribution, histogram with its density, and autocorrelations of the residuals
            and of their squares; or one Axes for the quantiles alone. None makes a figure.
        :param lags: the number of autocorrelations.
        :param random_state: seed for a discrete series, of which :meth:`randomized` residuals are
            shown.
        :return: a matplotlib figure, of ``ax`` if it is given.
        :raises ImportError: if matplotlib is not installed.
        :raises ValueError: if there is no such series, or it has no residuals.
        """
        from pyro_regimes.estimator.residual_plots import plot_residuals

        column = self._column(series)
        return plot_residuals(
            self.randomized(random_state).values[:, column],
            self.lengths,
            title=f"{self.kind.capitalize()} residuals of {self.series_names[column]}"
            + (" (randomised)" if self.is_discrete[column] else ""),
            dates=self.dates,
            lags=lags,
            ax=ax,
        )

    def _column(self, series: int | str) -> int:
        names = self.series_names
        if isinstance(series, str) and series in names:
            return names.index(series)
        is_number = isinstance(series, (int, np.integer)) and not isinstance(series, bool)
        if is_number and 0 <= int(series) < len(names):
            return int(series)
        raise ValueError(
            f"expected series to be a number below {len(names)} or one of "
            f"{', '.join(map(repr, names))}, got {series!r}"
        )


def find_residuals(
    hmm: FittedHMM, data: Array, sizes: list[int], kind: str, by: str
) -> tuple[Array, Array, Array]:
    """The beginning and the end of each segment, and its middle, ``(T, D)`` each.

    :param kind: one of :data:`KINDS`.
    :param by: "series", each given other rows alone; "rosenblatt", given also the series before it
        in the same row.
    """
    log_weights = hmm.log_weights(data, sizes, kind)
    emission = hmm.parameters.emission
    parts = []
    for first in range(0, len(data), _MOST_ROWS):
        rows, weights = (each[first : first + _MOST_ROWS] for each in (data, log_weights))
        # A row of probability zero has no residual.
        with np.errstate(invalid="ignore", under="ignore"):
            if by == "series":
                found = [each.averaged(weights) for each in hmm.spec.levels(emission, rows)]
            else:
                found = averaged_in_turn(hmm.spec.levels_in_turn(emission, rows), weights)
            parts.append(_stacked(found))
    lower, upper, middle = (np.concatenate(each) for each in zip(*parts, strict=True))
    return lower, upper, middle


def _stacked(levels: list[Levels]) -> list[Array]:
    each = [level.quantiles() for level in levels]
    return [np.stack(part, axis=1) for part in zip(*each, strict=True)]
