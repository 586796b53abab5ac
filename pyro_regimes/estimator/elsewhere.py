"""Models with parameters from elsewhere: published ones, or those of another package."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from pyro_regimes.estimator.beginning import long_run_share, stationary_probs
from pyro_regimes.estimator.fitting import FittedRegimes
from pyro_regimes.estimator.parameters import Array, Parameters, finite_numbers, probabilities
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, Spec


def of_values(
    initial_probs: Any,
    transition_matrix: Any,
    emission: Mapping[str, Any],
    n_regimes: int,
    spec: Spec,
) -> Parameters:
    """Check values and make them parameters.

    :param initial_probs: None is the stationary distribution.
    :param emission: in the order of the attributes of the spec; the first one is ``(K, D)``, or
        ``(K,)`` for one series.
    :raises ValueError: if they are not valid.
    """
    matrix = probabilities("transition_matrix", transition_matrix, (n_regimes, n_regimes))
    if initial_probs is None:
        initial = stationary_probs(matrix)
    else:
        initial = probabilities("initial_probs", initial_probs, (n_regimes,))
    values = {name: finite_numbers(name, value) for name, value in emission.items()}
    first = spec.attributes[0]
    if values[first].ndim == 1:
        values[first] = values[first][:, None]
    num_series = values[first].shape[-1] if values[first].ndim else 1
    for name, shape in spec.shapes(n_regimes, max(num_series, 1)).items():
        if values[name].shape != shape:
            raise ValueError(f"expected {name} to have shape {shape}, got {values[name].shape}")
    spec.check_values(values)
    return Parameters(initial, matrix, values)


def without_fit(parameters: Parameters, names: list[str]) -> FittedRegimes:
    """What a fit would say of parameters that no fit has found."""
    share = long_run_share(parameters.initial_probs, parameters.transition_matrix)
    return FittedRegimes(
        parameters,
        names,
        fixed=[],
        history=np.zeros(0),
        converged=False,
        log_likelihood=float("nan"),
        smoothed_probs=share[None],
        problems=[],
    )


def hmmlearn_parameters(other: Any) -> dict[str, Any]:
    """The arguments of :meth:`.RegimeModel.from_parameters` for a fitted ``GaussianHMM``.

    :raises ValueError: if it has no parameters of Gaussian emissions.
    """
    kind = getattr(other, "covariance_type", None)
    needed = ("startprob_", "transmat_", "means_", "covars_")
    missing = [name for name in needed if not hasattr(other, name)]
    if missing or kind not in COVARIANCE_TYPES or np.ndim(other.means_) != 2:
        came = f"{type(other).__name__} without {', '.join(missing)}" if missing else repr(other)
        raise ValueError(f"expected a fitted hmmlearn.hmm.GaussianHMM, got {came}")
    covariances: Array = np.asarray(other.covars_)  # (K, D, D) for every covariance type
    if kind == "diag":
        covariances = np.diagonal(covariances, axis1=-2, axis2=-1)
    elif kind == "spherical":
        # Some versions repeat the matrix of each regime for every series.
        covariances = covariances[:: len(covariances) // len(other.means_), 0, 0]
    elif kind == "tied":
        covariances = covariances[0]
    return {
        "initial_probs": other.startprob_,
        "transition_matrix": other.transmat_,
        "means": other.means_,
        "covariances": covariances,
        "covariance_type": kind,
    }
