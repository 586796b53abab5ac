"""Parameters that the user gives: where the starts begin, and what a fit leaves as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator

from pyro_regimes.estimator.beginning import stationary_probs
from pyro_regimes.estimator.mask import check_masked, masked, read_mask
from pyro_regimes.estimator.parameters import (
    CHAIN_ATTRIBUTES,
    Array,
    Parameters,
    finite_numbers,
    in_shape,
    probabilities,
)
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.units import Units
from pyro_regimes.messages import shown


class Given(NamedTuple):
    """Values by the names of the fitted attributes, without the underscore."""

    values: dict[str, Array]  #: in the units of the data
    fixed: frozenset[str]  #: names of those that the fit does not change

    def is_complete(self, spec: Spec) -> bool:
        """Whether they leave nothing random in a start."""
        return {"transition_matrix", *spec.attributes} <= self.values.keys()

    def into(self, starts: Parameters, spec: Spec, units: Units) -> Parameters:
        """Put the values into starts.

        :param starts: with the starts in front, in ``units``.
        """
        if not self.values:
            return starts
        num_starts = len(starts.initial_probs)

        def given(name: str, made: Array) -> Array:
            if name not in self.values:
                return made
            value = self.values[name]
            return np.broadcast_to(value, (num_starts, *value.shape)).copy()

        emission = spec.unscale(starts.emission, units)
        emission = {name: given(name, made) for name, made in emission.items()}
        return Parameters(
            given("initial_probs", starts.initial_probs),
            given("transition_matrix", starts.transition_matrix),
            spec.scale(emission, units),
        )

    def restored(self, fitted: Parameters) -> Parameters:
        """Put the fixed values, which units may have rounded, into the parameters of a fit."""
        held = {name: self.values[name] for name in self.fixed}
        return Parameters(
            held.get("initial_probs", fitted.initial_probs),
            held.get("transition_matrix", fitted.transition_matrix),
            {name: held.get(name, value) for name, value in fitted.emission.items()},
        )


def read_given(model: BaseEstimator, spec: Spec) -> Given:
    """Read ``init_params`` and ``fixed`` of a model.

    :raises ValueError: if they are not valid, as far as that can be told without data.
    """
    values = _values(model, spec)
    names = CHAIN_ATTRIBUTES + spec.attributes
    fixed = model.fixed
    listed = [fixed] if isinstance(fixed, str) else list(fixed) if _is_listed(fixed) else [fixed]
    for name in listed:
        if not isinstance(name, str) or name not in names:
            listed_names = ", ".join(names)
            raise ValueError(
                f"expected fixed to hold names among {listed_names}, got {shown(name)}"
            )
        if name not in values:
            raise ValueError(
                f"expected init_params to hold the values of the fixed {name!r}, got "
                f"{', '.join(values) or 'none'}"
            )
    if len({*listed} | ({"initial_probs"} if model.initial != "free" else set())) == len(names):
        raise ValueError(
            "expected at least one parameter not to be fixed, got all; RegimeModel.from_parameters "
            "makes a model without a fit"
        )
    if spec.spread is not None and spec.spread in listed and model.min_eigenvalue > 0:
        what = spec.spread.replace("_", " ")
        raise ValueError(
            f"expected min_eigenvalue=0 where {what} are fixed, got {model.min_eigenvalue:g}"
        )
    if "transition_matrix" in listed and model.stickiness > 0:
        raise ValueError(
            f"expected stickiness=0 where transition_matrix is fixed, got {model.stickiness:g}"
        )
    if model.initial == "stationary" and "transition_matrix" in values:
        stationary_probs(
            values["transition_matrix"],
            "transition_matrix in init_params",
            "give another one, or set initial='free' or initial='uniform'",
        )
    mask = read_mask(model.transition_mask, model.n_regimes)
    if "transition_matrix" in values:
        check_masked("transition_matrix in init_params", values["transition_matrix"], mask)
    elif model.initial == "stationary" and mask is not None:
        stationary_probs(
            masked(np.ones(mask.shape), mask),
            "transition_mask",
            "allow more transitions, or set initial='free' or initial='uniform'",
        )
    return Given(values, frozenset(listed))


def for_series(given: Given, spec: Spec, n_regimes: int, num_series: int) -> Given:
    """The values in the shapes of data of so many series.

    :raises ValueError: if they do not suit such data.
    """
    emission = {}
    for name, shape in spec.shapes(n_regimes, num_series).items():
        if name in given.values:
            emission[name] = in_shape(spec.complete(name, given.values[name]), shape)
            if emission[name].shape != shape:
                raise ValueError(
                    f"expected {name} in init_params to have shape {shape} for X of {num_series} "
                    f"columns, got {np.shape(given.values[name])}"
                )
    spec.check_values(emission)
    return given._replace(values=given.values | emission)


def _values(model: BaseEstimator, spec: Spec) -> dict[str, Array]:
    given, n_regimes = model.init_params, model.n_regimes
    if given is None:
        return {}
    names = CHAIN_ATTRIBUTES + spec.attributes
    if isinstance(given, type(model)):
        given = _of_fitted(given, model, names)
    if not isinstance(given, Mapping):
        raise ValueError(
            f"expected init_params to be a dict of {', '.join(names)}, a fitted model or None, "
            f"got {shown(given)}"
        )
    values = {}
    if model.initial != "free":  # no parameter then
        if "initial_probs" in given and given is model.init_params:
            raise ValueError(
                f"expected no initial_probs in init_params where initial={model.initial!r}, got "
                f"{given['initial_probs']!r}"
            )
        given = {name: value for name, value in given.items() if name != "initial_probs"}
    for name, value in given.items():
        where = f"{name} in init_params"
        if name == "initial_probs":
            values[name] = probabilities(where, value, (n_regimes,))
        elif name == "transition_matrix":
            values[name] = probabilities(where, value, (n_regimes, n_regimes))
        elif name in names:
            values[name] = finite_numbers(where, value)
        else:
            raise ValueError(
                f"expected the keys of init_params among {', '.join(names)}, got {shown(name)}"
            )
    return values


def _of_fitted(other: Any, model: BaseEstimator, names: Iterable[str]) -> dict[str, Array]:
    """The parameters of a fitted model with which another one starts."""
    if not hasattr(other, "initial_probs_"):
        raise ValueError("expected init_params to be a fitted model, got one without a fit")
    for name, has, wanted in (
        ("regimes", len(other.initial_probs_), model.n_regimes),
        ("emission", other.emission_, model.emission),
        ("covariance_type", other.covariance_type_, model.covariance_type),
    ):
        if has != wanted:
            raise ValueError(
                f"expected the model in init_params to have the same {name}, {wanted!r}, got "
                f"{has!r}"
            )
    return {name: getattr(other, f"{name}_") for name in names}


def _is_listed(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping))
