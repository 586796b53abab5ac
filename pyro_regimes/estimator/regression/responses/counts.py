r"""Counts: Poisson responses, :math:`\log E[y_t] = \eta_t`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
from scipy.stats import poisson
from torch import Tensor

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.responses.base import Response, as_counts


class Poisson(Response):
    """``Poisson(exp(eta))``."""

    name = "poisson"
    links = ("log",)

    def check(self, y: Array, trials: Array | None) -> None:
        """Counts are integers from 0 on."""
        self._refuse(y, as_counts(y), "counts (0, 1, 2, ...)", "try family='gamma' or 'gaussian'")

    def working(self, y: Array, trials: Array | None) -> Array:
        """The logarithm, of a number that is no 0."""
        found: Array = np.log(y + 0.5)
        return found

    def distribution(self, eta: Tensor, scale: Any, trials: Any) -> Any:
        """A Poisson."""
        return dist.Poisson(eta.exp())

    def mean(self, eta: Array) -> Array:
        """The rate."""
        found: Array = np.exp(eta)
        return found

    def marginal(self, eta: Array, scale: Array | None, trials: Array | None) -> Any:
        """A Poisson distribution."""
        return poisson(self.mean(eta))
