"""The parameters of a regime model as NumPy arrays."""

from __future__ import annotations

from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: The parameters of the observations, by name; for a Gaussian ``means`` and ``covariances``.
Emission = dict[str, Array]


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
