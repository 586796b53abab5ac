"""Validation of the parameters and the data of :class:`.RegimeModel`."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from pyro_regimes.estimator.beginning import is_irreducible, long_run_share
from pyro_regimes.estimator.given import Given, read_given
from pyro_regimes.estimator.inputs import as_tables, check_are_numbers, row_name
from pyro_regimes.estimator.lengths import checked_lengths, lengths_given
from pyro_regimes.estimator.mask import read_mask
from pyro_regimes.estimator.naming import ORDERS, Earlier, Reference
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.spec import (
    COVARIANCE_TYPES,
    EMISSIONS,
    covariance_types,
    has_components,
)
from pyro_regimes.estimator.states import Bools
from pyro_regimes.messages import shown

_DTYPES = {"float32": torch.float32, "float64": torch.float64}

#: The rows in which enough distinct ones are looked for first.
_FIRST_ROWS = 1_000


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """:raises ValueError: if the value is not one of the choices."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"expected {name} to be one of {listed}, got {shown(value)}")


def integer(name: str, value: Any, least: int) -> int:
    """:raises ValueError: if the value is not an integer of at least ``least``, below 2^63."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise ValueError(f"expected {name} to be an integer, got {shown(value)}")
    if value < least:
        raise ValueError(f"expected {name} to be at least {least}, got {shown(value)}")
    if operator.index(value) >= 2**63:
        raise ValueError(f"expected {name} to be below 2**63, got {shown(value)}")
    return operator.index(value)


def number(name: str, value: Any, *, positive: bool = False) -> None:
    """:raises ValueError: if it is not a finite real number, of that sign."""
    real = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    try:
        finite = real and math.isfinite(value)
    except OverflowError:  # a number that no float holds
        finite = False
    if not finite or value < 0 or (positive and value == 0):
        sign = "positive" if positive else "non-negative"
        raise ValueError(f"expected {name} to be a {sign} finite number, got {shown(value)}")


def names(name: str, value: Any, number: int) -> list[str]:
    """:raises ValueError: if these are not so many strings."""
    try:
        listed = None if isinstance(value, str) else list(value)
    except TypeError:
        listed = None
    if listed is None or len(listed) != number or not all(isinstance(n, str) for n in listed):
        raise ValueError(f"expected {name} to be {number} strings, got {shown(value)}")
    return [str(each) for each in listed]


def torch_dtype(dtype: object) -> torch.dtype:
    """:raises ValueError: if it is not float32 or float64, as a name or a torch dtype."""
    name = "" if isinstance(dtype, numbers.Number) else str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"expected dtype to be 'float32' or 'float64', got {shown(dtype)}")
    return _DTYPES[name]


def torch_device(device: Any) -> torch.device:
    """:raises ValueError: if torch does not know the device; None is the CPU."""
    try:
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        message = f"expected device to be a torch device, got {shown(device)}"
        raise ValueError(message) from error


def present_device(device: Any) -> torch.device:
    """:raises ValueError: if there is no such device, or it holds no values, as "meta"."""
    found = torch_device(device)
    try:
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"expected device to be available to torch, got {str(device)!r}: {error}"
        ) from error
    return found


def random_state(value: Any) -> np.random.RandomState:
    """A private random generator, or the caller's own if one is given.

    In scikit-learn None means NumPy's global generator, which this package does not use.

    :raises ValueError: if it is neither None, an integer from 0 to 2^32 - 1 nor a RandomState.
    """
    if isinstance(value, np.random.RandomState):
        return value
    if value is not None and not 0 <= integer("random_state", value, 0) < 2**32:
        raise ValueError(f"expected random_state to be below 2**32, got {shown(value)}")
    return np.random.RandomState(value)


def check_parameters(model: BaseEstimator) -> Given:
    """Check the parameters of the constructor.

    :return: the values of ``init_params``.
    :raises ValueError: if a parameter is not valid.
    """
    integer("n_regimes", model.n_regimes, 1)
    integer("n_init", model.n_init, 1)
    integer("max_iter", model.max_iter, 0)
    if model.tol is not None:
        number("tol", model.tol, positive=True)
    number("regularization", model.regularization)
    one_of("regularization_scale", model.regularization_scale, ("relative", "absolute"))
    number("min_eigenvalue", model.min_eigenvalue)
    check_emission(model)
    one_of("inference", model.inference, ("em", "svi"))
    one_of("initial", model.initial, ("free", "stationary", "uniform"))
    acceleration = model.acceleration
    if acceleration is not None and not (
        isinstance(acceleration, str) and acceleration == "squarem"
    ):
        came = shown(acceleration)
        raise ValueError(f"expected acceleration to be None or 'squarem', got {came}")
    number("stickiness", model.stickiness)
    reference(model)
    given = read_given(model, model._spec())
    if model.periods_per_year is not None:
        number("periods_per_year", model.periods_per_year, positive=True)
    torch_dtype(model.dtype)
    torch_device(model.device)
    random_state(model.random_state)
    return given


def check_emission(model: BaseEstimator) -> None:
    """:raises ValueError: if emission, covariance_type, n_components and a floor do not agree."""
    _check_families(model.emission)
    one_of("covariance_type", model.covariance_type, COVARIANCE_TYPES)
    _check_components(model)
    emission, kinds = model.emission, covariance_types(model.emission)
    if model.covariance_type not in kinds:
        listed = " or ".join(map(repr, kinds))
        raise ValueError(
            f"expected covariance_type={listed} where emission={emission!r}, got "
            f"{model.covariance_type!r}; leave it out"
        )
    if model.min_eigenvalue > 0 and model._spec().spread is None:
        reason = ", which has no covariances"
        if isinstance(emission, Mapping):
            reason = ": a floor holds for all columns, of one family that has covariances"
        raise ValueError(
            f"expected min_eigenvalue=0 where emission={shown(emission)}{reason}, got "
            f"{model.min_eigenvalue:g}; leave it out, and lower n_regimes if a regime collapses"
        )


def _check_components(model: BaseEstimator) -> None:
    """:raises ValueError: if n_components is no number, or is above 1 without a mixture."""
    if model.n_components is None:
        return
    integer("n_components", model.n_components, 1)
    if model.n_components > 1 and not has_components(model.emission):
        raise ValueError(
            "expected n_components together with emission='gaussian_mixture', as it is the number "
            f"of Gaussians in each regime, got n_components={model.n_components} where "
            f"emission={shown(model.emission)}; n_regimes is the number of regimes"
        )


def _check_families(emission: Any) -> None:
    """:raises ValueError: if it is no family, nor families by the names or numbers of columns."""
    if not isinstance(emission, Mapping):
        one_of("emission", emission, EMISSIONS)
        return
    kinds = {isinstance(key, str) for key in emission}
    are_keys = all(isinstance(key, (str, numbers.Integral)) for key in emission)
    if len(kinds) != 1 or not are_keys:
        raise ValueError(
            "expected emission to be a family, or a dict from the names or the numbers of all "
            f"columns to families, got {shown(emission)}"
        )
    for key, family in emission.items():
        one_of(f"emission of column {key!r}", family, EMISSIONS)


def reference(model: BaseEstimator) -> str | Reference:
    """``order_by``, of a fitted model its regimes.

    :raises ValueError: if it is neither the name of an order nor a fitted model with as many
        regimes, and, if the model has seen data, as many series.
    """
    other = model.order_by
    if not isinstance(other, type(model)):
        listed = ", ".join(map(repr, ORDERS))
        if not isinstance(other, str) or other not in ORDERS:
            raise ValueError(
                f"expected order_by to be one of {listed} or a fitted model, got {shown(other)}"
            )
        return other
    names = getattr(other, "regime_names_", None)
    if names is None or len(names) != model.n_regimes:
        came = "one without a fit" if names is None else f"one with {len(names)}"
        raise ValueError(
            f"expected order_by to be a fitted model with {model.n_regimes} regimes, got {came}"
        )
    hmm = other._hmm()
    if is_irreducible(other.transition_matrix_):  # data need not begin as those of the reference
        share = long_run_share(other.initial_probs_, other.transition_matrix_)
        hmm = hmm._replace(first_probs=share)
    return Reference(list(names), hmm)


class Settings(NamedTuple):
    """The validated parameters of the constructor."""

    n_regimes: int
    n_init: int
    max_iter: int
    tol: float | None
    regularization: float
    regularization_scale: str
    min_eigenvalue: float
    inference: str
    acceleration: str | None
    order_by: str | Reference | Earlier
    given: Given
    initial: str
    transition_mask: Bools | None
    stickiness: float
    dtype: torch.dtype
    device: torch.device
    verbose: bool


def read_settings(model: BaseEstimator) -> Settings:
    """Check and read the settings of a model.

    :raises ValueError: if one of them is not valid, or the device is not available.
    """
    given = check_parameters(model)
    own = {name: getattr(model, name) for name in Settings._fields if name != "given"}
    own |= {"order_by": reference(model), "given": given}
    own |= {"transition_mask": read_mask(model.transition_mask, model.n_regimes)}
    own |= {"dtype": torch_dtype(model.dtype), "device": present_device(model.device)}
    return Settings(**own)


def num_distinct(data: Array, most: int) -> int:
    """The number of distinct rows, or ``most`` if there are as many."""
    found = 0
    for rows in (data[:_FIRST_ROWS], data):
        found = len(np.unique(rows, axis=0))
        if found >= most:
            return most
    return found


def check_data(
    model: BaseEstimator,
    X: Any,
    lengths: npt.ArrayLike | None,
    y: Any = None,
    *,
    reset: bool = False,
) -> tuple[Array, list[int]]:
    """Check X and concatenate its sequences, ``(T, D)``; also return their lengths.

    :param y: a target, which is ignored, or the lengths, as :func:`.lengths_given` decides.
    :param reset: whether X sets ``n_features_in_`` (in a fit) or must agree with it.
    :return: NaN where entries are missing.
    :raises ValueError: if X is not two-dimensional and in order of time, has infinite entries, or
        the lengths do not fit it.
    """
    tables, are_several = as_tables(X)
    if are_several:
        if lengths is not None:
            raise ValueError("expected lengths to be None where X is a list of arrays, got both")
        parts = [
            _validated(model, each, reset and i == 0)
            for i, each in enumerate(tables)
        ]
        return np.concatenate(parts), [len(part) for part in parts]
    (X,) = tables
    data = _validated(model, X, reset)
    lengths = lengths_given(y, lengths, len(data))
    if lengths is None:
        return data, [len(data)]
    return data, checked_lengths(lengths, len(data))


def _validated(model: BaseEstimator, X: Any, reset: bool) -> Array:
    """A table as float64, by scikit-learn's ``validate_data``."""
    check_are_numbers(X)
    try:
        data: Array = validate_data(
            model, X, dtype=np.float64, reset=reset, ensure_all_finite="allow-nan"
        )
    except OverflowError as error:
        raise ValueError(f"expected X to hold numbers of float64, got others: {error}") from error
    except ValueError as error:
        if "contains infinity" in str(error):
            raise _of_infinity(X, error) from None
        if not str(error).startswith("could not convert"):
            raise
        raise ValueError(f"expected X to hold numbers, got others: {error}") from error
    return data


def _of_infinity(X: Any, error: ValueError) -> ValueError:
    """The error that names the first infinite entry of a table."""
    values = np.asarray(X, dtype=np.float64)
    places = np.argwhere(np.isinf(values))
    if not len(places):
        return error
    row, column = map(int, places[0])
    columns = getattr(X, "columns", range(values.shape[1]))
    return ValueError(
        f"expected X to hold numbers, or NaN where they are missing, got a table that contains "
        f"infinity: {values[row, column]} in row {row_name(X)(row)}, column {columns[column]!r}"
    )
