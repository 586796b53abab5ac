"""The parameters of a regime model as NumPy arrays."""

from __future__ import annotations

from typing import NamedTuple

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

    def select(self, start: int) -> Parameters:
        """The parameters of one of several starts."""
        emission = {name: value[start] for name, value in self.emission.items()}
        return Parameters(self.initial_probs[start], self.transition_matrix[start], emission)

    @classmethod
    def stack(cls, starts: list[Parameters]) -> Parameters:
        """Stack several starts in one batch."""
        return cls(
            np.stack([each.initial_probs for each in starts]),
            np.stack([each.transition_matrix for each in starts]),
            {
                name: np.stack([each.emission[name] for each in starts])
                for name in starts[0].emission
            },
        )
