"""The parameters of a regime model in NumPy, as the user sees them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: The parameters of the observations, by name: of a Gaussian ``means`` and ``covariances``.
Emission = dict[str, Array]


class Parameters(NamedTuple):
    """A hidden Markov model; ``...`` is empty, or the number of starts."""

    initial_probs: Array  #: ``(..., K)``
    transition_matrix: Array  #: ``(..., K, K)``, (old, new)
    emission: Emission  #: with the same ``...`` in front; a :class:`.Spec` says what it holds

    def select(self, start: int) -> Parameters:
        """One of several starts."""
        emission = {name: value[start] for name, value in self.emission.items()}
        return Parameters(self.initial_probs[start], self.transition_matrix[start], emission)

    @classmethod
    def stack(cls, starts: list[Parameters]) -> Parameters:
        """Several starts as one batch."""
        return cls(
            np.stack([each.initial_probs for each in starts]),
            np.stack([each.transition_matrix for each in starts]),
            {
                name: np.stack([each.emission[name] for each in starts])
                for name in starts[0].emission
            },
        )
