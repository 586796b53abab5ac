"""The order of regimes, and the usual names of two or three regimes."""

from __future__ import annotations

import numpy as np

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
) -> tuple[Parameters, list[str]]:
    """Sort the regimes of a model and name them.

    :param order_by: "mean" for the highest average mean first; "volatility" for the lowest average
        volatility first, with ties sorted by the highest mean.
    """
    means, covariances = spec.moments(parameters.emission)
    mean = means.mean(-1)
    volatility = np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1)).mean(-1)
    keys = (-mean,) if order_by == "mean" else (-mean, volatility)  # last key is primary
    order = np.lexsort(keys)
    ordered = Parameters(
        parameters.initial_probs[order],
        parameters.transition_matrix[np.ix_(order, order)],
        spec.select(parameters.emission, order),
    )
    numbered = [f"Regime {i + 1}" for i in range(len(order))]
    return ordered, list(_NAMES.get((order_by, len(order)), numbered))
