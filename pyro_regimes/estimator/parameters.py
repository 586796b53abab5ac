"""The parameters of a regime model as NumPy arrays."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pyro_regimes.messages import shown

Array = npt.NDArray[np.float64]

#: Names of the parameters of the chain: fitted attributes, without the underscore.
CHAIN_ATTRIBUTES = ("initial_probs", "transition_matrix")

#: The parameters of the observations, by name; for a Gaussian ``means`` and ``covariances``.
Emission = dict[str, Array]

_ROUNDING = 1e-6  # of the sum of probabilities that a user gives
_PRINTED = 0.01 + 1e-9  # error of the sum of probabilities that are printed with two digits


class Parameters(NamedTuple):
    """Parameters of a hidden Markov model; ``...`` is empty, or the number of starts."""

    initial_probs: Array  #: ``(..., K)``
    transition_matrix: Array  #: ``(..., K, K)``, (old, new)
    emission: Emission  #: with the same ``...`` in front; a :class:`.Spec` defines its entries

    def select(self, starts: int | slice) -> Parameters:
        """The parameters of one or some of several starts."""
        emission = {name: value[starts] for name, value in self.emission.items()}
        return Parameters(self.initial_probs[starts], self.transition_matrix[starts], emission)

    @classmethod
    def concatenate(cls, parts: list[Parameters]) -> Parameters:
        """The starts of several batches in one."""
        return cls._joined(np.concatenate, parts)

    @classmethod
    def stack(cls, starts: list[Parameters]) -> Parameters:
        """Stack several starts in one batch."""
        return cls._joined(np.stack, starts)

    @classmethod
    def _joined(cls, join: Callable[[list[Array]], Array], parts: list[Parameters]) -> Parameters:
        return cls(
            join([each.initial_probs for each in parts]),
            join([each.transition_matrix for each in parts]),
            {name: join([each.emission[name] for each in parts]) for name in parts[0].emission},
        )


class Moments(NamedTuple):
    """Means and covariances of one observation in each regime."""

    means: Array  #: ``(K, D)``
    covariances: Array  #: ``(K, D, D)``, or the variances ``(K, D)`` of independent series

    @property
    def are_independent(self) -> bool:
        """Whether the series are independent of each other in every regime."""
        return self.covariances.ndim == 2

    @property
    def variances(self) -> Array:
        """The variance of each series in each regime, ``(K, D)``."""
        if self.are_independent:
            return self.covariances
        variances: Array = np.diagonal(self.covariances, axis1=-2, axis2=-1)
        return variances

    def matrices(self) -> Array:
        """Covariance matrices ``(K, D, D)``, of independent series too."""
        if not self.are_independent:
            return self.covariances
        return self.covariances[:, :, None] * np.eye(self.covariances.shape[-1])


def probabilities(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Non-negative numbers that sum to 1 over the last dim, to the last digit.

    :raises ValueError: if they are not, or have another shape.
    """
    try:
        probs = finite_numbers(name, value)
    except ValueError:
        probs = np.full(1, np.nan)
    problem = _problem(probs) if probs.shape == shape else ""
    if problem is not None:
        rows = f"{shape[0]} rows of " if len(shape) > 1 else ""
        raise ValueError(
            f"expected {name} to be {rows}{shape[-1]} probabilities that sum to 1, got "
            f"{shown(value)}{problem}"
        )
    sums = probs.sum(-1, keepdims=True)
    return np.where(abs(sums - 1) < 1e-12, probs, probs / sums)


def _problem(probs: Array) -> str | None:
    """What is wrong with probabilities, and the remedy, for a message; None if nothing is."""
    if (probs < 0).any():
        return f", with the negative {probs.min():.10g}"
    errors = abs(probs.sum(-1) - 1)
    if (errors <= _ROUNDING).all():
        return None
    row = np.unravel_index(errors.argmax(), errors.shape)
    of_row = f" of row {row[0]}," if row else ""
    problem = f", with the sum{of_row} {probs[row].sum():.10g}"
    if errors.max() > _PRINTED:
        return problem
    return problem + ("; divide each row by its sum" if row else "; divide them by their sum")


def in_shape(value: Array, shape: tuple[int, ...]) -> Array:
    """Add the trailing dims of length 1 that values of one series may leave out.

    A value that does not have this shape then is returned as it is.
    """
    full = value.shape + (1,) * (len(shape) - value.ndim)
    return value.reshape(full) if full == shape else value


def numbers(name: str, value: Any) -> Array:
    """:raises ValueError: if they are not real numbers, of which some may be infinite or NaN."""
    if np.ma.is_masked(value):
        raise ValueError(f"expected {name} without masked values, got some; fill them by .filled()")
    try:
        value = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        found = np.asarray(value)
        if found.dtype.kind in "cmM":
            raise TypeError("complex numbers, or times")
        return np.array(found, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"expected {name} to be an array of numbers, got {shown(value)}"
        ) from error


def finite_numbers(name: str, value: Any) -> Array:
    """:raises ValueError: if they are not finite numbers."""
    found = numbers(name, value)
    if not np.isfinite(found).all():
        raise ValueError(f"expected {name} to be finite, got {shown(value)}")
    return found
