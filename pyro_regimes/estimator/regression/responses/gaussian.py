r"""Gaussian responses: :math:`y_t = \eta_t + \sigma \varepsilon_t`."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from scipy.stats import norm
from torch import Tensor

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.responses.base import Response


class Gaussian(Response):
    """``Normal(eta, sigma)``."""

    name = "gaussian"
    links = ("identity",)
    scale = "sigma"
    marginalises = True
    has_unit = True

    def working(self, y: Array, trials: Array | None) -> Array:
        """The response itself."""
        return y

    def distribution(self, eta: Tensor, scale: Any, trials: Any) -> Any:
        """A Normal."""
        return dist.Normal(eta, scale)

    def mean(self, eta: Array) -> Array:
        """The predictor itself."""
        return eta

    def marginal(self, eta: Array, scale: Array | None, trials: Array | None) -> Any:
        """A normal distribution."""
        return norm(eta, scale)
