"""The numbers of a regime model that have confidence intervals, with their names and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from torch.distributions import constraints

from pyro_regimes.estimator.beginning import long_run_share
from pyro_regimes.estimator.changes import are_changes
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.spec import Spec

#: The scales on which intervals are symmetric.
REAL, POSITIVE, PROBABILITY, ABOVE_ONE = "real", "positive", "probability", "above one"


class Label(NamedTuple):
    """What one number is."""

    property: str  #: such as "means" or "transition from Calm"
    of: str  #: the series, the pair of series, or the regime that a transition leads to
    regime: str  #: "all" if regimes share it
    scale: str


class Quantities(NamedTuple):
    """The names of everything that is reported, in the order of :meth:`of`."""

    spec: Spec
    labels: list[Label]
    periods: float  #: P, that annualise means and volatilities

    @classmethod
    def make(
        cls,
        spec: Spec,
        parameters: Parameters,
        regimes: list[str],
        series: list[str],
        periods: float,
    ) -> Quantities:
        """Those of models with parameters of these shapes.

        :param periods: number of periods per year.
        """
        of_changes = are_changes(spec, parameters.emission)
        periods = periods if of_changes else 1.0
        names = "annualised mean", "annualised volatility"
        if not of_changes:
            names = "mean", "standard deviation"
        labels = [
            *_of_attributes(spec, parameters, regimes, series),
            *(Label("initial probability", "", k, PROBABILITY) for k in regimes),
            *(Label(f"transition from {k}", j, k, PROBABILITY) for k in regimes for j in regimes),
            *(Label("stationary share", "", k, PROBABILITY) for k in regimes),
            *(Label("expected duration", "", k, ABOVE_ONE) for k in regimes),
            *(Label(names[0], s, k, REAL) for k in regimes for s in series),
            *(Label(names[1], s, k, POSITIVE) for k in regimes for s in series),
        ]
        return cls(spec, labels, periods)

    def of(self, parameters: Parameters) -> Array:
        """The values of one set of parameters, ``(Q,)``."""
        matrix, emission = parameters.transition_matrix, parameters.emission
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            moments = self.spec.moments(emission)
            deviations = self.spec.deviations(emission)
            parts = [
                self._direct(parameters),
                long_run_share(parameters.initial_probs, matrix),
                1 / np.maximum(1 - np.diagonal(matrix), 0),
                moments.means * self.periods,
                deviations * self.periods**0.5,
            ]
        return np.concatenate([np.ravel(part) for part in parts])

    def on_bound(
        self, errors: Mapping[str, Array], known: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which numbers have no standard error, as they are a parameter on a bound, ``(Q,)``.

        :param errors: of the attributes by name, NaN where there are none.
        :param known: the numbers that move with no free parameter, ``(Q,)``.
        """
        matrix = np.isnan(errors["transition_matrix"])
        values = {name: errors[name] for name in self.spec.attributes}
        of = Parameters(errors["initial_probs"], errors["transition_matrix"], values)
        direct, n_regimes = np.isnan(self._direct(of)), len(matrix)
        missing = np.zeros(len(self.labels), dtype=np.bool_)
        missing[: len(direct)] = direct
        shares = slice(len(direct), len(direct) + n_regimes)
        missing[shares] = known[shares] & matrix.any()
        durations = slice(shares.stop, shares.stop + n_regimes)
        missing[durations] = np.diagonal(matrix)
        return missing

    def _direct(self, parameters: Parameters) -> Array:
        """The entries of the parameters themselves."""
        emission = parameters.emission
        parts = [_entries(self.spec, name, emission[name]) for name in self.spec.attributes]
        parts += [parameters.initial_probs, parameters.transition_matrix.ravel()]
        return np.concatenate(parts)


def interval(
    estimates: Array, errors: Array, scales: list[str], quantile: float
) -> tuple[Array, Array]:
    r"""Symmetric intervals on the scale of each number, mapped back.

    They are :math:`g^{-1}(g(\hat\theta) \pm z\, g'(\hat\theta)\, s)`, with g the log-odds of a
    probability, the logarithm of a positive number or of the excess over 1, and else the identity.

    :param errors: s, the standard errors.
    :param quantile: z, of the standard normal distribution.
    :return: the lower and the upper ends. Both are the estimate where the error is 0, and NaN
        where it is NaN.
    """
    lower, upper = np.empty_like(estimates), np.empty_like(estimates)
    kinds = np.array(scales)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for kind, (forward, slope, back) in _SCALES.items():
            own = kinds == kind
            value, step = estimates[own], quantile * errors[own]
            middle, half = forward(value), step * slope(value)
            lower[own], upper[own] = back(middle - half), back(middle + half)
    known = errors == 0
    lower[known], upper[known] = estimates[known], estimates[known]
    return lower, upper


_SCALES: dict[str, Any] = {
    REAL: (lambda x: x, np.ones_like, lambda y: y),
    POSITIVE: (np.log, lambda x: 1 / x, np.exp),
    PROBABILITY: (logit, lambda p: 1 / (p * (1 - p)), expit),
    ABOVE_ONE: (lambda x: np.log(x - 1), lambda x: 1 / (x - 1), lambda y: 1 + np.exp(y)),
}


def _of_attributes(
    spec: Spec, parameters: Parameters, regimes: list[str], series: list[str]
) -> list[Label]:
    """The labels of the entries of the emission's own parameters."""
    labels = []
    for name, argument in zip(spec.attributes, spec.arguments, strict=True):
        own, names = spec.constraint(argument, 0.0), spec.place_names(name, regimes, series)
        shared = not names or names[0] is not regimes
        for index in _places(spec, name, parameters.emission[name]):
            words = [along[i] for along, i in zip(names, index, strict=True)]
            regime = "all" if shared else words.pop(0)
            label = Label(name.replace("_", " "), ", ".join(words), regime, _scale(own, index))
            labels.append(label)
    return labels


def _scale(constraint: constraints.Constraint, index: tuple[int, ...]) -> str:
    if constraint in (constraints.simplex, constraints.unit_interval):
        return PROBABILITY
    if constraint is constraints.positive_definite:
        return POSITIVE if index[-1] == index[-2] else REAL
    is_positive = getattr(constraint, "lower_bound", None) == 0
    return POSITIVE if is_positive else REAL


def _places(spec: Spec, name: str, value: Array) -> list[tuple[int, ...]]:
    """The entries of an attribute; of symmetric matrices the lower triangles."""
    argument = dict(zip(spec.attributes, spec.arguments, strict=True))[name]
    every = product(*map(range, value.shape))
    if spec.constraint(argument, 0.0) is constraints.positive_definite:
        return [index for index in every if index[-2] >= index[-1]]
    return list(every)


def _entries(spec: Spec, name: str, value: Array) -> Array:
    return np.array([value[index] for index in _places(spec, name, value)])
