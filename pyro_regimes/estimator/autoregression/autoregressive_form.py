r"""Hamilton's autoregression as a Pyro model, in units of the data.

.. math:: y_t - \mu_{q_t} = \sum_{j=1}^p \phi_{q_t j} (y_{t-j} - \mu_{q_{t-j}}) + \sigma_{q_t} e_t

The model is computed for :math:`(y - c) / u`, with the mean c and the deviation u of the series.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.distributions import SwitchingAutoregression
from pyro_regimes.estimator.parameters import Array

#: The range of the probability to stay in a regime, at a start.
_STAYS = (0.6, 0.97)


class AutoregressiveParameters(NamedTuple):
    """The parameters in the units of the data."""

    means: Array  #: ``(K,)``
    coefficients: Array  #: ``(K, p)``; equal if they do not switch
    scale: Array  #: ``(K,)``, standard deviations; equal if they do not switch
    transition_matrix: Array  #: ``(K, K)``, (old, new)

    def reordered(self, order: Any) -> AutoregressiveParameters:
        """The same model with its regimes in another order."""
        return AutoregressiveParameters(
            self.means[order],
            self.coefficients[order],
            self.scale[order],
            self.transition_matrix[np.ix_(order, order)],
        )


class AutoregressiveForm(NamedTuple):
    """What switches, and the coordinates of the computation."""

    num_regimes: int
    order: int
    switching_autoregression: bool
    switching_variance: bool
    centre: float  #: c
    unit: float  #: u

    @property
    def num_parameters(self) -> int:
        """The number of free parameters."""
        number = self.num_regimes
        coefficients = self.order * (number if self.switching_autoregression else 1)
        scales = number if self.switching_variance else 1
        return number + coefficients + scales + number * (number - 1)

    def to_arguments(self, parameters: AutoregressiveParameters) -> dict[str, Tensor]:
        """The arguments of the Pyro model."""
        own = slice(None) if self.switching_autoregression else slice(1)
        scales = slice(None) if self.switching_variance else slice(1)
        arrays = {
            "loc": (parameters.means - self.centre) / self.unit,
            "coefficients": parameters.coefficients[own],
            "scale": parameters.scale[scales] / self.unit,
            "transition_probs": parameters.transition_matrix,
        }
        return {name: torch.tensor(value) for name, value in arrays.items()}

    def from_arguments(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fields of :class:`AutoregressiveParameters`, differentiable in the arguments."""
        number = self.num_regimes
        return {
            "means": self.centre + self.unit * arguments["loc"],
            "coefficients": arguments["coefficients"].expand(number, -1),
            "scale": (self.unit * arguments["scale"]).expand(number),
            "transition_matrix": arguments["transition_probs"],
        }

    def parameters(self, arguments: Mapping[str, Tensor]) -> AutoregressiveParameters:
        """The parameters in the units of the data."""
        found = self.from_arguments(arguments)
        return AutoregressiveParameters(*(each.detach().numpy().copy() for each in found.values()))

    def values(self, y: Array) -> Tensor:
        """The series in the coordinates of the computation."""
        return torch.from_numpy((y - self.centre) / self.unit)

    def distribution(self, arguments: Mapping[str, Tensor], y: Tensor) -> SwitchingAutoregression:
        """The distribution of the rows after the first p, given these.

        :param y: all rows, of :meth:`values`.
        """
        return SwitchingAutoregression(
            y[: self.order], arguments["transition_probs"], arguments["loc"],
            arguments["coefficients"], arguments["scale"],
        )  # fmt: skip

    def pyro_model(self, arguments: Mapping[str, Tensor], y: Tensor) -> Callable[[], None]:
        """A Pyro model function with a parameter for each argument, which start at these values."""
        domains = {"scale": constraints.positive, "transition_probs": constraints.simplex}

        def model() -> None:
            held = {
                name: pyro.param(name, value.clone(), domains.get(name, constraints.real))
                for name, value in arguments.items()
            }
            pyro.sample("y", self.distribution(held, y), obs=y[self.order :])

        return model

    def start(self, y: Tensor, rng: np.random.RandomState) -> dict[str, Tensor]:
        """Means about that of the series, the autoregression of each, and a chain that stays."""
        number, order = self.num_regimes, self.order
        means = rng.normal(size=number) if number > 1 else np.zeros(1)
        stay = rng.uniform(*_STAYS, size=number) if number > 1 else np.ones(1)
        matrix = np.repeat((1 - stay)[:, None] / max(number - 1, 1), number, axis=1)
        np.fill_diagonal(matrix, stay)
        # The nearest mean of each row; the lags of what is left.
        rows = y.numpy()
        left = rows - means[np.abs(rows[:, None] - means).argmin(-1)]
        lags = np.column_stack([left[order - j : len(left) - j] for j in range(1, order + 1)])
        found = np.linalg.lstsq(lags, left[order:], rcond=None)[0]
        rest = left[order:] - lags @ found
        scale = float(np.sqrt(np.square(rest).mean())) or 1.0
        arrays = {
            "loc": means,
            "coefficients": np.tile(found, (number if self.switching_autoregression else 1, 1)),
            "scale": np.full(number if self.switching_variance else 1, scale),
            "transition_probs": matrix,
        }
        return {name: torch.tensor(value) for name, value in arrays.items()}
