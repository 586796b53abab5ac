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

    def log_jacobian(self, num_steps: int) -> float:
        """log p(z) - log p(x) of so many steps without missing entries."""
        return num_steps * float(np.log(self.unit).sum())

    def log_jacobians(self, data: Array) -> Array:
        """The same of each row, of its observed entries, ``(T,)``."""
        found: Array = self.log_jacobian(1) - np.isnan(data) @ np.log(self.unit)
        return found

    def log_jacobian_of(self, data: Array) -> float:
        """The same of all rows."""
        missing = np.isnan(data).sum(0)
        return self.log_jacobian(len(data)) - float(missing @ np.log(self.unit))
