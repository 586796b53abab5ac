"""Units of the data in which a model is computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pyro_regimes.estimator.parameters import Array


class Units(NamedTuple):
    r"""Coordinates :math:`z = (x - c) / u`, so that the units of the series do not matter.

    .. math:: \log p(x) = \log p(z) - T \sum_d \log u_d
    """

    center: Array  #: ``(D,)``
    unit: Array  #: ``(D,)``, positive

    @classmethod
    def of(cls, center: Array, variances: Array, *, equal: bool) -> Units:
        """Units from standard deviations; the same unit for all series if ``equal``."""
        unit = np.sqrt(np.full_like(variances, variances.mean()) if equal else variances)
        return cls(center, np.where(unit > 0, unit, 1.0))

    def scale(self, data: Array) -> Array:
        """Convert x to z."""
        return (data - self.center) / self.unit

    def unscale(self, data: Array) -> Array:
        """Convert z to x."""
        return self.center + self.unit * data

    def log_jacobian(self, num_steps: float) -> float:
        """log p(z) - log p(x)."""
        return num_steps * float(np.log(self.unit).sum())
