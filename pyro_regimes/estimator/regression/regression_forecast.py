"""The distribution of the responses that follow, given their covariates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array, finite_numbers
from pyro_regimes.estimator.predictive import Mixture
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import fixed, percent, titled_table

if TYPE_CHECKING:
    import pandas as pd


class RegressionForecast(NamedTuple):
    r"""The distribution of each of the n responses that follow a sequence.

    .. math:: p(y_{T+h} \mid y_{1:T}) = \sum_k p(q_{T+h} = k \mid y_{1:T}) \,
        p(y_{T+h} \mid q_{T+h} = k)

    Each component is the family's at the covariates of the step, such as
    :math:`N(x_{T+h}^\top \beta_k, \sigma_k^2)`. A binomial response is a number of successes.
    Parameters are taken as known: the error of their estimates is not in these figures.
    """

    regime_probs: Array  #: ``(n, K)``
    mean: Array  #: ``(n,)``
    deviation: Array  #: ``(n,)``, standard deviations
    means: Array  #: ``(n, K)``, in each regime
    deviations: Array  #: ``(n, K)``, in each regime
    regime_names: list[str]
    components: Any  #: the distributions in each regime, ``(n, K)``, as of :mod:`scipy.stats`

    def __str__(self) -> str:
        labels = [f"step {step}" for step in range(1, len(self.mean) + 1)]
        low, high = self.interval(0.9)
        numbers = fixed(np.stack([self.mean, self.deviation, low, high], 1))
        probs = list(zip(*percent(self.regime_probs), strict=True))
        names = ["mean", "deviation", "5 %", "95 %"]
        columns = [*zip(self.regime_names, probs, strict=True),
                   *zip(names, zip(*numbers, strict=True), strict=True)]  # fmt: skip
        return titled_table("Forecast", labels, columns)

    def __repr__(self) -> str:
        return str(self)

    def to_frame(self, level: float = 0.9) -> pd.DataFrame:
        """The numbers as a pandas DataFrame with a row for each step, from 1.

        :param level: the probability of the interval.
        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        :raises ValueError: if the level is not valid.
        """
        pandas = require("pandas", "to_frame")
        low, high = self.interval(level)
        columns = dict(zip(self.regime_names, self.regime_probs.T, strict=True))
        numbers = {"mean": self.mean, "deviation": self.deviation, "lower": low, "upper": high}
        index = pandas.RangeIndex(1, len(self.mean) + 1, name="step")
        return pandas.DataFrame({**columns, **numbers}, index=index)

    def quantile(self, p: npt.ArrayLike) -> Array:
        """The quantiles, ``(..., n)``.

        :param p: probabilities above 0 and below 1, of any shape.
        :raises ValueError: if one is not.
        """
        levels = finite_numbers("p", p)
        if ((levels <= 0) | (levels >= 1)).any():
            raise ValueError(f"expected p above 0 and below 1, got {levels.tolist()}")
        return self._mixture().ppf(levels[..., None])

    def interval(self, level: float) -> tuple[Array, Array]:
        """The interval that holds a response with this probability, with equal tails.

        :param level: such as 0.9.
        :return: the lower and the upper ends, ``(n,)``.
        :raises ValueError: if the level is not above 0 and below 1.
        """
        level = float(finite_numbers("level", level))
        if not 0 < level < 1:
            raise ValueError(f"expected level above 0 and below 1, got {level}")
        tail = (1 - level) / 2
        return self.quantile(tail), self.quantile(1 - tail)

    def cdf(self, y: npt.ArrayLike) -> Array:
        """The probability of a response of at most y, ``(n,)``.

        :param y: numbers that broadcast with ``(n,)``.
        """
        return self._mixture().cdf(finite_numbers("y", y))

    def _mixture(self) -> Mixture:
        return Mixture(self.regime_probs, self.components)


def mixture_forecast(
    probs: Array, components: Any, regime_names: list[str]
) -> RegressionForecast:
    """The forecast with these probabilities of regimes ``(n, K)``, and distributions in each."""
    means, deviations = components.mean(), np.sqrt(components.var())
    mean = (probs * means).sum(-1)
    spread = np.square(deviations) + np.square(means - mean[:, None])
    deviation = np.sqrt((probs * spread).sum(-1))
    return RegressionForecast(
        probs, mean, deviation, means, deviations, list(regime_names), components
    )
