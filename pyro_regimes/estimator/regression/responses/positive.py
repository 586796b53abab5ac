r"""Positive responses: :math:`\log E[y_t] = \eta_t`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
from scipy.stats import expon, gamma
from torch import Tensor

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.responses.base import Response
from pyro_regimes.observed.mean_gamma import MeanGamma

_LEAST = 1e-3


class Exponential(Response):
    """``Exponential(exp(-eta))``."""

    name = "exponential"
    links = ("log",)

    def check(self, y: Array, trials: Array | None) -> None:
        """Responses are above 0."""
        wrong = ~(np.isnan(y) | (y > 0))
        self._refuse(y, wrong, "positive numbers", "shift it, or try family='gaussian'")

    def working(self, y: Array, trials: Array | None) -> Array:
        """The logarithm."""
        found: Array = np.log(y)
        return found

    def distribution(self, eta: Tensor, scale: Any, trials: Any) -> Any:
        """An Exponential."""
        return dist.Exponential((-eta).exp())

    def mean(self, eta: Array) -> Array:
        """The mean."""
        found: Array = np.exp(eta)
        return found

    def marginal(self, eta: Array, scale: Array | None, trials: Array | None) -> Any:
        """An exponential distribution."""
        return expon(scale=self.mean(eta))


class Gamma(Exponential):
    """``MeanGamma(exp(eta), shape)``, of variance ``mean^2 / shape``."""

    name = "gamma"
    scale = "shape"

    def first_scale(self, deviation: float) -> float:
        """The inverse of the variance of the logarithm, within bounds."""
        return float(np.clip(1 / max(deviation, _LEAST) ** 2, _LEAST, 1 / _LEAST))

    def distribution(self, eta: Tensor, scale: Any, trials: Any) -> Any:
        """A gamma distribution."""
        return MeanGamma(eta.exp(), scale)

    def marginal(self, eta: Array, scale: Array | None, trials: Array | None) -> Any:
        """A gamma distribution."""
        assert scale is not None
        return gamma(scale, scale=self.mean(eta) / scale)
