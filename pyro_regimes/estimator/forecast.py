"""The predictive distribution of the steps that follow a sequence, and its risk figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.distributions import MixtureSameFamily

from pyro_regimes.estimator import validation
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.forecast_table import LEVEL, as_frame, as_text, parts_of
from pyro_regimes.estimator.labels import in_order
from pyro_regimes.estimator.marginals import is_circular
from pyro_regimes.estimator.parameters import Array, Parameters, finite_numbers, numbers
from pyro_regimes.estimator.predictive import Mixture
from pyro_regimes.estimator.sampling import Paths, draw_paths
from pyro_regimes.estimator.spec import Spec

if TYPE_CHECKING:
    import pandas as pd


class Forecast(NamedTuple):
    r"""The distribution of each of the n observations that follow a sequence.

    Given the rows so far, the observation at step h is a mixture over the regimes:

    .. math:: P(x_{T+h} \le x \mid x_{1:T}) = \sum_k p(q_{T+h} = k \mid x_{1:T}) \, F_k(x)

    The methods are about each series on its own, and have results ``(n, D)``; or, with
    ``weights``, about the weighted sum of the series at each step, ``(n,)``. With weights that are
    shares of wealth and simple returns, this sum is the return of a portfolio that is rebalanced at
    every step. Sums have a distribution of this form if the regimes are "gaussian",
    "gaussian_mixture", or "student_t" with scale matrices ("full", "tied"); others are refused.
    They are sums of series at one step: for sums over steps draw paths. Weights in a dict, or in a
    pandas Series, have the names of the series, in any order.

    **Signs.** :meth:`value_at_risk` and :meth:`expected_shortfall` are losses, minus the quantile
    and minus the mean of the lower tail: a positive number is a loss, in the unit of the data. A
    negative one says that even there is a gain. Their ``level`` is the probability of the tail:
    0.01 for what is often called the 99 % value at risk.

    Parameters are taken as known: the error of their estimates is not in these figures.

    ``print`` shows the steps as tables; :meth:`to_frame` has the numbers.
    """

    regime_probs: Array  #: ``(n, K)``, p(q_{T+h} given x_1..T)
    mean: Array  #: ``(n, D)`` of the mixture
    covariance: Array  #: ``(n, D, D)`` of the mixture, for diagonal models too
    distribution: MixtureSameFamily  #: the mixture itself, batch shape ``(n,)``
    deviation: Array  #: ``(n, D)``, standard deviations; the circular ones of angles
    last_probs: Array  #: ``(K,)``, p(q_T given x_1..T)
    parameters: Parameters  #: of the model
    spec: Spec  #: the emission of the model
    random_state: Any = None  #: seed of paths that are drawn without one
    series_names: list[str] | None = None  #: D names of columns; None if there were none
    regime_names: list[str] | None = None  #: K names; None numbers them

    def __str__(self) -> str:
        labels = [f"step {step}" for step in range(1, len(self.mean) + 1)]
        return as_text(self, parts_of(self, LEVEL), *self._names(), labels)

    def __repr__(self) -> str:
        return str(self)

    def to_frame(self, level: float = LEVEL) -> pd.DataFrame:
        """The numbers as a pandas DataFrame with a row for each step, from 1.

        The columns have two levels, a property and the regime or the series that it is of:
        "probability", "mean", "deviation" (the standard deviation), the quantiles "lower" and
        "upper", and of returns "value_at_risk" and "expected_shortfall" as positive losses.

        :param level: the probability of each tail, above 0 and below 0.5.
        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        :raises ValueError: if the level is not valid.
        """
        tail = _levels("level", level, 0.5, "it is the probability of each tail, such as 0.05")
        return as_frame(self, parts_of(self, float(tail)), *self._names())

    def _names(self) -> tuple[list[str], list[str]]:
        """Those of the regimes and of the series."""
        num_regimes, num_series = self.regime_probs.shape[1], self.mean.shape[1]
        regimes = self.regime_names or [f"Regime {k + 1}" for k in range(num_regimes)]
        return regimes, self.series_names or [f"series {d + 1}" for d in range(num_series)]

    def cdf(self, x: npt.ArrayLike, *, weights: npt.ArrayLike | None = None) -> Array:
        """The probability of a value of at most x.

        At the value that is then observed, it is the probability integral transform of that step.
        Of an angle, it is the probability of one from -pi to x, with x from -pi to pi.

        :param x: numbers that broadcast with the result, such as one, or a row ``(D,)``.
        :param weights: of the series in a sum, ``(D,)``; None is each series.
        :return: ``(n, D)``, or ``(n,)`` with weights.
        :raises ValueError: if an argument is not valid, or the sum has no known distribution.
        """
        each, is_sum = self._mixtures(weights)
        values = numbers("x", x)
        own = (len(self.mean),) if is_sum else self.mean.shape
        try:
            values = np.broadcast_to(values, np.broadcast_shapes(values.shape, own))
        except ValueError:
            raise ValueError(
                f"expected x to broadcast with the forecast's shape {own}, got shape {values.shape}"
            ) from None
        if is_sum:
            return each[0].cdf(values)
        return np.stack([one.cdf(values[..., d]) for d, one in enumerate(each)], -1)

    def quantile(self, p: npt.ArrayLike, *, weights: npt.ArrayLike | None = None) -> Array:
        """The least value x of which P(X <= x) is at least p; an integer for counts.

        :param p: probabilities above 0 and below 1, of any shape ``(...)``.
        :param weights: of the series in a sum, ``(D,)``; None is each series.
        :return: ``(..., n, D)``, or ``(..., n)`` with weights. Angles among other series are NaN.
        :raises ValueError: if an argument is not valid, the sum has no known distribution, or all
            series are angles, which have no order.
        """
        levels = _levels("p", p, 1.0, "use numbers such as 0.05")
        return self._of_each(lambda mixture: mixture.ppf(levels[..., None]), weights)

    def interval(
        self, level: float, *, weights: npt.ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """The interval that holds an observation with probability ``level``, with equal tails.

        :param level: such as 0.9, for the quantiles of 0.05 and 0.95.
        :param weights: of the series in a sum, ``(D,)``; None is each series.
        :return: the lower and the upper ends, each as :meth:`quantile` returns them.
        :raises ValueError: as :meth:`quantile` does.
        """
        inside = _levels("level", level, 1.0, "use the probability of the interval, such as 0.9")
        tail = (1 - inside) / 2
        return self.quantile(tail, weights=weights), self.quantile(1 - tail, weights=weights)

    def value_at_risk(self, level: npt.ArrayLike, *, weights: npt.ArrayLike | None = None) -> Array:
        r"""The loss that is exceeded with probability ``level``; a positive number is a loss.

        .. math:: \mathrm{VaR} = -F^{-1}(\mathrm{level})

        :param level: the probability of the tail, such as 0.01 or 0.05, at most 0.5; any shape.
        :param weights: of the series in a sum, ``(D,)``; None is each series.
        :return: ``(..., n, D)``, or ``(..., n)`` with weights, in the unit of the data.
        :raises ValueError: if an argument is not valid (0.99 is refused: use 0.01), the sum has no
            known distribution, or the emission is not one of returns.
        """
        tails = self._tails("value_at_risk", level, weights)
        return -self._of_each(lambda mixture: mixture.ppf(tails[..., None]), weights)

    def expected_shortfall(
        self, level: npt.ArrayLike, *, weights: npt.ArrayLike | None = None
    ) -> Array:
        r"""The mean loss in the worst share ``level`` of cases; a positive number is a loss.

        .. math:: \mathrm{ES} = -\frac{1}{\mathrm{level}} \int_0^{\mathrm{level}} F^{-1}(u) \, du

        It is never below the value at risk, and infinite if a regime has Student-t tails of at most
        one degree of freedom.

        :param level: as in :meth:`value_at_risk`.
        :param weights: of the series in a sum, ``(D,)``; None is each series.
        :return: as :meth:`value_at_risk`.
        :raises ValueError: as :meth:`value_at_risk` does.
        """
        tails = self._tails("expected_shortfall", level, weights)
        return -self._of_each(lambda mixture: mixture.tail_mean(tails[..., None]), weights)

    def change_probability(self) -> Array:
        r"""The probability that the regime of the last row has ended by step h.

        .. math:: 1 - \sum_k p(q_T = k \mid x_{1:T}) \, A_{kk}^h

        It is that of at least one change in the h steps, also if the regime comes back.

        :return: ``(n,)``.
        """
        with np.errstate(divide="ignore"):
            log_stay = np.log(np.diagonal(self.parameters.transition_matrix))
        steps = np.arange(1, len(self.mean) + 1)
        found: Array = -np.expm1(np.outer(steps, log_stay)) @ self.last_probs
        return found

    def sample_paths(
        self, n_paths: int, random_state: int | np.random.RandomState | None = None
    ) -> Paths:
        """Draw what may follow: regimes and observations of all n steps together.

        Quantiles of any function of a path, such as its sum or its largest fall, are those of the
        draws.

        :param n_paths: number of paths, at least 1.
        :param random_state: seed of the draws; None uses that of the model.
        :return: observations ``(n_paths, n, D)`` and their regimes ``(n_paths, n)``.
        :raises ValueError: if an argument is not valid.
        """
        n_paths = validation.integer("n_paths", n_paths, 1)
        seed = self.random_state if random_state is None else random_state
        rng = validation.random_state(seed)
        shape = (n_paths, len(self.mean))
        return draw_paths(self.regime_probs[0], self.parameters, self.spec, shape, rng)

    def _mixtures(self, weights: npt.ArrayLike | None) -> tuple[list[Mixture], bool]:
        """The distribution of each series, or of their sum alone; and whether it is the sum."""
        emission = self.parameters.emission
        if weights is None:
            marginals = self.spec.marginals(emission)
        else:
            given = read_weights(weights, self.mean.shape[1], self.series_names)
            marginals = [self.spec.portfolio(emission, given)]
        return [Mixture(self.regime_probs, each) for each in marginals], weights is not None

    def _of_each(self, function: Any, weights: npt.ArrayLike | None) -> Array:
        """A function of each series, ``(..., n, D)``, or of the sum, ``(..., n)``."""
        mixtures, is_sum = self._mixtures(weights)
        if is_sum:
            found: Array = function(mixtures[0])
            return found
        known = [not is_circular(mixture.components) for mixture in mixtures]
        if not any(known):
            return np.asarray(function(mixtures[0]))  # which says that angles have no quantiles
        each = [function(one) if has else None for one, has in zip(mixtures, known, strict=True)]
        shape = next(one.shape for one in each if one is not None)
        return np.stack([np.full(shape, np.nan) if one is None else one for one in each], -1)

    def _tails(self, name: str, level: npt.ArrayLike, weights: npt.ArrayLike | None) -> Array:
        """Levels of the tails of losses.

        :param name: of the method.
        """
        if weights is None and not self.spec.of_changes:
            raise ValueError(
                f"expected {name} of returns, got {self.spec.title}; use quantile, or weights for "
                "those of several series that are returns"
            )
        remedy = "give the probability of the tail, such as 0.01 for a confidence of 99 %"
        return _levels("level", level, 0.5, remedy)


def forecast(
    hmm: FittedHMM,
    last_probs: Array,
    n_steps: int,
    random_state: Any = None,
    series_names: list[str] | None = None,
    regime_names: list[str] | None = None,
) -> Forecast:
    """The forecast of the steps that follow a sequence.

    :param last_probs: probabilities of the regimes at the last row, given all rows, ``(K,)``.
    :param random_state: seed of paths that are drawn without one.
    :param series_names: names of columns, if they have some.
    :param regime_names: names of the regimes.
    """
    parameters, probs = hmm.parameters, np.empty((n_steps, len(last_probs)))
    for step in range(n_steps):
        probs[step] = (probs[step - 1] if step else last_probs) @ parameters.transition_matrix
    probs /= probs.sum(-1, keepdims=True)
    mean, covariance = hmm.spec.mixture_moments(probs, parameters.emission)
    return Forecast(
        probs,
        mean,
        covariance,
        hmm.mixture(probs),
        hmm.spec.deviations_of(covariance.diagonal(axis1=-2, axis2=-1)),
        last_probs,
        parameters,
        hmm.spec,
        random_state,
        series_names,
        regime_names,
    )


def read_weights(weights: Any, num_series: int, series_names: list[str] | None) -> Array:
    """The weights of series in a sum, in their order.

    :raises ValueError: if they are not one finite number for each series, or all 0.
    """
    given = finite_numbers("weights", in_order("weights", weights, series_names))
    if given.shape != (num_series,) or not given.any():
        raise ValueError(
            f"expected weights to be one number for each of {num_series} series, not all "
            f"0, got {given.tolist()}"
        )
    return given


def _levels(name: str, value: npt.ArrayLike, most: float, remedy: str) -> Array:
    """:raises ValueError: if probabilities are not above 0 and at most ``most``, and below 1."""
    levels = finite_numbers(name, value)
    wrong = (levels <= 0) | (levels >= 1) | (levels > most)
    if wrong.any():
        limit = "below 1" if most == 1 else f"at most {most:g}"
        raise ValueError(
            f"expected {name} to be above 0 and {limit}, got {levels[wrong].flat[0]:g}; {remedy}"
        )
    return levels
