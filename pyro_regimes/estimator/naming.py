"""The order of regimes, and their names."""

from __future__ import annotations

from itertools import combinations
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from pyro_regimes.estimator.parameters import Array, Moments, Parameters
from pyro_regimes.estimator.spec import Spec

ORDERS = ("volatility", "mean")

_NAMES = {
    ("mean", 2): ["Bull", "Bear"],
    ("mean", 3): ["Bull", "Sideways", "Bear"],
    ("volatility", 2): ["Calm", "Turbulent"],
    ("volatility", 3): ["Calm", "Normal", "Turbulent"],
}


_SAME = 1e-9  # relative difference of volatilities that are equal
_MUCH = 0.02  # relative difference of volatilities that is seen
_ERRORS = 3.0  # standard errors by which means differ that are more than chance


class Reference(NamedTuple):
    """The regimes of a fitted model, whose order and names another one takes over."""

    names: list[str]
    moments: Moments


class Order(NamedTuple):
    """An order of regimes."""

    order: npt.NDArray[np.int64]  #: ``(K,)``, the old numbers in the new order
    names: list[str]  #: in the new order
    doubt: str | None = None  #: a warning about the names

    def kept(self) -> Order:
        """The same names for regimes that keep their numbers."""
        names = [""] * len(self.names)
        for name, regime in zip(self.names, self.order, strict=True):
            names[regime] = name
        numbered = [f"Regime {i + 1}" for i in range(len(names))]
        names = numbered if sorted(names) == sorted(numbered) else names
        return Order(np.arange(len(names)), names, self.doubt)


def sort_regimes(
    parameters: Parameters, spec: Spec, order_by: str | Reference, weights: Callable[[], Array]
) -> Order:
    r"""Sort and name the regimes of a model.

    Means and volatilities are averaged over the series in multiples of the overall deviation
    :math:`u_d` of each, so that units do not matter. The standard error of the average mean of a
    regime of n effective observations is :math:`\sqrt{w^\top \Sigma w / n}`, with
    :math:`w_d = 1 / (D u_d)`.

    :param order_by: "volatility" for the lowest average volatility first, with ties sorted by the
        highest mean; "mean" for the highest average mean first, named Bull and Bear only where the
        means differ by more than three standard errors of the difference (three, because the fit
        has chosen the regimes to differ); or a reference, whose order and names the regimes take so
        that the sum of squared 2-Wasserstein distances is least.
    :param weights: computes the effective number of observations of each regime, ``(K,)``, which
        only an order by mean needs.
    """
    moments = spec.moments(parameters.emission)
    means, variances = moments.means, moments.variances
    unit = np.sqrt(variances.mean(0) + means.var(0))
    if isinstance(order_by, Reference):
        distances = _distances(_scaled(order_by.moments, unit), _scaled(moments, unit))
        order = linear_sum_assignment(distances)[1]
        before = (np.sqrt(order_by.moments.variances) / unit).mean(-1)
        after = (np.sqrt(variances) / unit).mean(-1)[order]
        return Order(order, list(order_by.names), _doubt_of(order_by.names, before, after))
    mean = ((means - means.mean(0)) / unit).mean(-1)
    volatility = (np.sqrt(variances) / unit).mean(-1)
    keys = (-mean,) if order_by == "mean" else (-mean, volatility)  # last key is primary
    order = np.lexsort(keys)
    numbered = [f"Regime {i + 1}" for i in range(len(order))]
    if order_by == "volatility" and np.ptp(volatility) <= _SAME * volatility.max():
        return Order(order, numbered)  # as tied covariances have it
    names = list(_NAMES.get((order_by, len(order)), numbered))
    if order_by == "mean" and names != numbered:
        covariances = _scaled(moments, unit).covariances
        squared = covariances.reshape(len(means), -1).sum(-1) / len(unit) ** 2
        with np.errstate(divide="ignore"):
            errors = np.sqrt(squared / weights())[order]
        gaps = -np.diff(mean[order])
        if (gaps <= _ERRORS * np.hypot(errors[1:], errors[:-1])).any():
            doubt = (
                "The mean returns of the regimes differ by no more than chance explains, so "
                f"they are not named {', '.join(names)}. order_by='volatility' names them by what "
                "tells them apart."
            )
            return Order(order, numbered, doubt)
    return Order(order, names)


def _doubt_of(names: list[str], before: Array, after: Array) -> str | None:
    """A warning where two regimes have changed places by volatility since the reference."""
    for i, j in combinations(range(len(names)), 2):
        low, high = (i, j) if before[i] < before[j] else (j, i)
        if after[low] > after[high] * (1 + _MUCH) and before[high] > before[low] * (1 + _MUCH):
            return (
                f"{names[low]} is more volatile than {names[high]} now, which it was not in the "
                "model in order_by: each name is that of the regime most like it, and the regimes "
                "have changed. order_by='volatility' names them anew."
            )
    return None


def own_names(parameters: Parameters, spec: Spec, order_by: str | Reference) -> list[str]:
    """The names of regimes that keep their order, as if estimated without error."""
    found = sort_regimes(
        parameters, spec, order_by, lambda: np.full(len(parameters.initial_probs), np.inf)
    )
    return found.kept().names


def _scaled(moments: Moments, unit: Array) -> Moments:
    """The moments of the series in these units, ``(D,)``."""
    square = unit**2 if moments.are_independent else np.outer(unit, unit)
    return Moments(moments.means / unit, moments.covariances / square)


def _distances(reference: Moments, moments: Moments) -> Array:
    r"""Squared 2-Wasserstein distances of normal distributions, ``(K of the reference, K)``.

    .. math::
        |\mu_1 - \mu_2|^2 + \mathrm{tr}\big(\Sigma_1 + \Sigma_2
            - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\big)
    """
    between = np.square(reference.means[:, None] - moments.means).sum(-1)
    if reference.are_independent and moments.are_independent:
        roots, others = np.sqrt(reference.variances), np.sqrt(moments.variances)
        spread: Array = np.square(roots[:, None] - others).sum(-1)
        return between + spread
    spread = reference.variances.sum(-1)[:, None] + moments.variances.sum(-1)
    others = moments.matrices()
    for i, covariance in enumerate(reference.matrices()):
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        for k, other in enumerate(others):
            shared = np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)
            spread[i, k] -= 2 * np.sqrt(shared).sum()
    return between + spread


def reordered(
    parameters: Parameters, spec: Spec, order: npt.NDArray[np.int64]
) -> Parameters:
    """The same model with its regimes in another order."""
    return Parameters(
        parameters.initial_probs[order],
        parameters.transition_matrix[np.ix_(order, order)],
        spec.select(parameters.emission, order),
    )
