"""Independent standard coordinates of vectors, each series given those before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from pyro_regimes.estimator.emissions.levels import Levels, student_t_levels
from pyro_regimes.estimator.parameters import Array


class Whitened(NamedTuple):
    """Deviations from the mean given the series before it; NaN where missing."""

    standard: Array  #: ``(T, K, D)``, in standard deviations given the series before
    log_scale: Array  #: ``(T, K, D)``, the logarithms of these

    @classmethod
    def of(cls, data: Array, means: Array, covariances: Array) -> Whitened:
        r"""The solution u of :math:`L_k u = x - \mu_k`, with the Cholesky factor of the covariance.

        The diagonal of L has the standard deviations. Of a row with missing entries, those of the
        observed ones.

        :param data: ``(T, D)``.
        :param means: ``(K, D)``.
        :param covariances: ``(K, D, D)``.
        """
        shape = (len(data), *means.shape)
        standard, log_scale = np.full(shape, np.nan), np.full(shape, np.nan)
        patterns, of_row = np.unique(~np.isnan(data), axis=0, return_inverse=True)
        for number, seen in enumerate(patterns):
            places = np.flatnonzero(seen)
            if not len(places):
                continue
            rows = np.flatnonzero(of_row.reshape(-1) == number)
            for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
                factor = np.linalg.cholesky(covariance[np.ix_(places, places)])
                deviations = data[np.ix_(rows, places)] - mean[places]
                solved = solve_triangular(factor, deviations.T, lower=True, check_finite=False)
                standard[rows[:, None], k, places] = solved.T
                log_scale[rows[:, None], k, places] = np.log(factor.diagonal())
        return cls(standard, log_scale)

    def student_t(self, freedom: Array) -> list[Levels]:
        r"""The levels of multivariate Student-t observations, each series given those before it.

        Given n of them, with squared length :math:`\delta = \sum_{i<d} u_i^2`, series d has
        :math:`\nu + n` degrees of freedom, and the square of its scale is multiplied by
        :math:`(\nu + \delta) / (\nu + n)`.

        :param freedom: ``(K,)``.
        """
        seen = ~np.isnan(self.standard)
        number = seen.cumsum(-1) - seen
        squares = np.where(seen, self.standard, 0.0) ** 2
        later = freedom[:, None] + number
        factor = (freedom[:, None] + squares.cumsum(-1) - squares) / later
        levels = student_t_levels(
            self.standard / np.sqrt(factor), self.log_scale + 0.5 * np.log(factor), later
        )
        return by_series(levels)


def by_series(levels: Levels) -> list[Levels]:
    """Levels ``(T, K, D)`` as those of each series, ``(T, K)``."""
    return [Levels(*each) for each in zip(*(np.moveaxis(part, -1, 0) for part in levels))]
