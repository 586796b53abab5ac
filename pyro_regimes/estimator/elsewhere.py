"""Models with parameters from elsewhere: published ones, or those of another package."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from pyro_regimes.estimator.beginning import implied_probs, long_run_share
from pyro_regimes.estimator.fitting import FittedRegimes
from pyro_regimes.estimator.parameters import (
    Array,
    Parameters,
    finite_numbers,
    in_shape,
    probabilities,
)
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, EMISSIONS, Spec, find_spec
from pyro_regimes.messages import shown

_ROUNDING = 1e-6  # of probabilities that a user gives


def of_values(
    initial_probs: Any,
    transition_matrix: Any,
    emission: Mapping[str, Any],
    n_regimes: int,
    spec: Spec,
    initial: str,
) -> tuple[Parameters, Spec]:
    """Check values and make them parameters.

    :param initial_probs: None is the distribution that ``initial`` implies, and the stationary one
        where that is "free".
    :param emission: the values of the attributes of the spec. For one series trailing dims of
        length 1 may be left out.
    :return: the parameters, and the object for values of these shapes.
    :raises ValueError: if they are not valid.
    """
    matrix = probabilities("transition_matrix", transition_matrix, (n_regimes, n_regimes))
    first_probs = _first_probs(initial_probs, matrix, initial)
    values = {name: finite_numbers(name, value) for name, value in emission.items()}
    values = {name: spec.complete(name, value) for name, value in values.items()}
    shapes = {name: value.shape for name, value in values.items()}
    try:
        spec, num_series = spec.with_shapes(shapes)
    except ValueError as error:
        raise ValueError(f"expected values of every regime and series, got: {error}") from None
    for name, shape in spec.shapes(n_regimes, num_series).items():
        values[name] = in_shape(values[name], shape)
        if values[name].shape != shape:
            raise ValueError(f"expected {name} to have shape {shape}, got {values[name].shape}")
    spec.check_values(values)
    return Parameters(first_probs, matrix, values), spec


def emission_values(
    settings: Mapping[str, Any], means: Any, covariances: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of the emission's attributes, and the other settings.

    :raises ValueError: if one is missing, or is an attribute of another emission.
    """
    emission = settings.get("emission", "gaussian")
    families = emission.values() if isinstance(emission, Mapping) else [emission]
    if not {*families} <= {*EMISSIONS}:  # which the settings' own check refuses
        return {}, dict(settings)
    given = {"means": means, "covariances": covariances}
    given = {name: value for name, value in given.items() if value is not None}
    names = find_spec("full", emission).attributes
    given |= {name: value for name, value in settings.items() if name in names}
    if set(given) != set(names):
        raise ValueError(
            f"expected the values of {', '.join(names)} where emission={emission!r}, got "
            f"{', '.join(given) or 'none'}"
        )
    return given, {name: value for name, value in settings.items() if name not in names}


def _first_probs(given: Any, matrix: Array, initial: str) -> Array:
    """The distribution of the first regime, which must be the one that ``initial`` implies."""
    if initial == "free" and given is not None:
        return probabilities("initial_probs", given, (len(matrix),))
    remedy = "give initial_probs" + ("" if initial == "free" else ", with initial='free'")
    implied = "stationary" if initial == "free" else initial
    probs = implied_probs(implied, matrix, "transition_matrix", remedy)
    if given is not None:
        found = probabilities("initial_probs", given, (len(matrix),))
        if (abs(found - probs) > _ROUNDING).any():
            raise ValueError(
                f"expected initial_probs to be None or the {initial} distribution "
                f"{shown(probs.tolist())}, got {shown(given)}; give None, or set initial='free'"
            )
    return probs


def without_fit(parameters: Parameters, names: list[str]) -> FittedRegimes:
    """The fitted regimes of a model that was not fitted to data."""
    share = long_run_share(parameters.initial_probs, parameters.transition_matrix)
    return FittedRegimes(
        parameters,
        names,
        fixed=[],
        history=np.zeros(0),
        converged=False,
        log_likelihood=float("nan"),
        share_of_time=share,
        problems=[],
        last_probs=share,
        best=0,
        order=np.arange(len(share)),
    )


#: Of other classes of hmmlearn, what :meth:`.RegimeModel.from_parameters` takes.
_EMISSIONS_OF_HMMLEARN = {
    "PoissonHMM": "'poisson', rates=hmm.lambdas_",
    "CategoricalHMM": "'categorical', probabilities=hmm.emissionprob_[:, None]",
    "GMMHMM": "'gaussian_mixture', weights=hmm.weights_, means=hmm.means_, "
    "covariances=hmm.covars_, covariance_type=hmm.covariance_type",
}


def hmmlearn_parameters(other: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :meth:`.RegimeModel.from_parameters` for a fitted ``GaussianHMM``.

    :param settings: other arguments, which may repeat those of the model.
    :raises ValueError: if it has no parameters of Gaussian emissions, or settings contradict them.
    """
    kind = getattr(other, "covariance_type", None)
    needed = ("startprob_", "transmat_", "means_", "covars_")
    missing = [name for name in needed if not hasattr(other, name)]
    if missing or kind not in COVARIANCE_TYPES or np.ndim(other.means_) != 2:
        came = f"{type(other).__name__} without {', '.join(missing)}" if missing else repr(other)
        emission = _EMISSIONS_OF_HMMLEARN.get(type(other).__name__)
        remedy = emission and (
            "; for this class use RegimeModel.from_parameters(hmm.startprob_, hmm.transmat_, "
            f"emission={emission})"
        )
        raise ValueError(f"expected a fitted hmmlearn.hmm.GaussianHMM, got {came}{remedy or ''}")
    covariances: Array = np.asarray(other.covars_)  # (K, D, D) for every covariance type
    if kind == "diag":
        covariances = np.diagonal(covariances, axis1=-2, axis2=-1)
    elif kind == "spherical":
        # Some versions repeat the matrix of each regime for every series.
        covariances = covariances[:: len(covariances) // len(other.means_), 0, 0]
    elif kind == "tied":
        covariances = covariances[0]
    found = {
        "initial_probs": other.startprob_,
        "transition_matrix": other.transmat_,
        "means": other.means_,
        "covariances": covariances,
        "covariance_type": kind,
    }
    for name, value in found.items():
        if name in settings and not np.array_equal(settings[name], value):
            raise ValueError(
                f"expected {name} to be that of the hmmlearn model, {shown(value)}, got "
                f"{shown(settings[name])}; leave it out"
            )
    return {**settings, **found}
