"""The order of regimes, and the usual names of two or three regimes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.spec import Spec

_NAMES = {
    ("mean", 2): ["Bull", "Bear"],
    ("mean", 3): ["Bull", "Sideways", "Bear"],
    ("volatility", 2): ["Calm", "Turbulent"],
    ("volatility", 3): ["Calm", "Normal", "Turbulent"],
}


def sort_regimes(
    parameters: Parameters, spec: Spec, order_by: str
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The order of the regimes of a model, and their names in this order.

    Means and volatilities are averaged over the series in multiples of the overall deviation of
    each, so that units do not matter.

    :param order_by: "mean" for the highest average mean first; "volatility" for the lowest average
        volatility first, with ties sorted by the highest mean.
    """
    means, covariances = spec.moments(parameters.emission)
    variances = np.diagonal(covariances, axis1=-2, axis2=-1)
    unit = np.sqrt(variances.mean(0) + means.var(0))
    mean = ((means - means.mean(0)) / unit).mean(-1)
    volatility = (np.sqrt(variances) / unit).mean(-1)
    keys = (-mean,) if order_by == "mean" else (-mean, volatility)  # last key is primary
    order = np.lexsort(keys)
    numbered = [f"Regime {i + 1}" for i in range(len(order))]
    return order, list(_NAMES.get((order_by, len(order)), numbered))


def reordered(
    parameters: Parameters, spec: Spec, order: npt.NDArray[np.int64]
) -> Parameters:
    """The same model with its regimes in another order."""
    return Parameters(
        parameters.initial_probs[order],
        parameters.transition_matrix[np.ix_(order, order)],
        spec.select(parameters.emission, order),
    )
