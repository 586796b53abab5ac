"""The order of regimes, and their names."""

from __future__ import annotations

from itertools import combinations
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from pyro_regimes.estimator.agreement import agreement_without_data
from pyro_regimes.estimator.beginning import long_run_share
from pyro_regimes.estimator.divergence import symmetric_divergence
from pyro_regimes.estimator.fitted_hmm import FittedHMM
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
_TIE = 1e-6  # share of the rows, by which two assignments agree equally
_ERRORS = 3.0  # standard errors by which means differ that are more than chance


class Reference(NamedTuple):
    """The regimes of a fitted model, whose order and names another one takes over."""

    names: list[str]
    hmm: FittedHMM


class Earlier(NamedTuple):
    """The regimes of a fit of earlier rows, of which another one takes the nearest densities."""

    names: list[str]
    hmm: FittedHMM


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
    parameters: Parameters,
    spec: Spec,
    order_by: str | Reference | Earlier,
    weights: Callable[[], Array],
    agreement: Callable[[FittedHMM], Array],
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
        that the two models agree on as many rows as possible, and in a tie by volatility; or an
        earlier fit of rows that are among those of this one, whose order and names they take so
        that the sum of the symmetric divergences of the densities is least.
    :param weights: computes the effective number of observations of each regime, ``(K,)``, which
        only an order by mean needs.
    :param agreement: computes the expected number of rows in each pair of a regime of the reference
        and one of the model, ``(K of the reference, K)``.
    """
    moments = spec.typical(parameters.emission)
    means, variances = moments.means, moments.variances
    unit = np.sqrt(variances.mean(0) + means.var(0))
    unit = np.where(unit > 0, unit, 1.0)
    if isinstance(order_by, (Reference, Earlier)):
        theirs = order_by.hmm.spec.typical(order_by.hmm.parameters.emission).variances
        before, after = ((np.sqrt(each) / unit).mean(-1) for each in (theirs, variances))
        if isinstance(order_by, Reference):
            order = _most_alike(agreement(order_by.hmm), before, after)
        else:
            order = _nearest(order_by.hmm, order_by.hmm._replace(parameters=parameters, spec=spec))
        names, rule = list(order_by.names), _RULES[type(order_by)]
        return Order(order, names, _doubt_of(names, before, after[order], rule))
    mean = ((means - means.mean(0)) / unit).mean(-1)
    volatility = (np.sqrt(variances) / unit).mean(-1)
    keys = (-mean,) if order_by == "mean" else (-mean, volatility)  # last key is primary
    order = np.lexsort(keys)
    numbered = [f"Regime {i + 1}" for i in range(len(order))]
    if not spec.of_changes:
        return Order(order, numbered)  # the names are those of markets
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


def _most_alike(agreement: Array, before: Array, after: Array) -> npt.NDArray[np.int64]:
    """For each regime of a reference the one that has its rows, so that most rows agree.

    :param before: the volatility of each regime of the reference, which decides where the rows do
        not, as for a regime without any; ``after`` that of the others.
    """
    ranks = before.argsort().argsort(), after.argsort().argsort()
    tie = _TIE * agreement.sum() / len(before) ** 2
    found: npt.NDArray[np.int64] = linear_sum_assignment(
        agreement + tie * np.outer(*ranks), maximize=True
    )[1]
    return found


def _nearest(earlier: FittedHMM, later: FittedHMM) -> npt.NDArray[np.int64]:
    """For each regime of an earlier fit the one with the nearest density, by the least sum.

    Where densities do not decide, the shares of time in the long run do.
    """
    divergence = symmetric_divergence(earlier, later)
    one, two = (
        long_run_share(each.parameters.initial_probs, each.parameters.transition_matrix)
        for each in (earlier, later)
    )
    tie = _TIE * np.minimum(divergence, 1.0).mean() + np.finfo(np.float64).tiny
    found: npt.NDArray[np.int64] = linear_sum_assignment(
        divergence + tie * np.square(one[:, np.newaxis] - two)
    )[1]
    return found


#: Why names contradict the volatilities, and the remedy.
_RULES = {
    Reference: (
        "now. Each name is that of the regime with the most rows in common in the model in "
        "order_by, and the regimes have changed. order_by='volatility' names them anew."
    ),
    Earlier: (
        "in this refit. Names follow the nearest density from refit to refit, and the regimes have "
        "changed since the first."
    ),
}


def _doubt_of(
    names: list[str], before: Array, after: Array, rule: str
) -> str | None:
    """A warning where the order of two regimes by volatility contradicts their names.

    The usual names say which is more volatile; of others it is the order of the reference.

    :param rule: of :data:`_RULES`.
    """
    usual = _NAMES.get(("volatility", len(names)))
    if usual is not None and sorted(names) == sorted(usual):
        before = np.array([usual.index(name) for name in names], dtype=np.float64)
    for i, j in combinations(range(len(names)), 2):
        low, high = (i, j) if before[i] < before[j] else (j, i)
        if after[low] > after[high] * (1 + _MUCH) and before[high] > before[low] * (1 + _MUCH):
            return f"{names[low]} is more volatile than {names[high]} {rule}"
    return None


def own_names(parameters: Parameters, spec: Spec, order_by: str | Reference) -> list[str]:
    """The names of regimes that keep their order, as if estimated without error."""
    hmm = FittedHMM(parameters, spec, torch.float64, torch.device("cpu"))
    found = sort_regimes(
        parameters,
        spec,
        order_by,
        lambda: np.full(len(parameters.initial_probs), np.inf),
        lambda reference: agreement_without_data(reference, hmm),
    )
    return found.kept().names


def _scaled(moments: Moments, unit: Array) -> Moments:
    """The moments of the series in these units, ``(D,)``."""
    square = unit**2 if moments.are_independent else np.outer(unit, unit)
    return Moments(moments.means / unit, moments.covariances / square)


def reordered(
    parameters: Parameters, spec: Spec, order: npt.NDArray[np.int64]
) -> Parameters:
    """The same model with its regimes in another order."""
    return Parameters(
        parameters.initial_probs[order],
        parameters.transition_matrix[np.ix_(order, order)],
        spec.select(parameters.emission, order),
    )
