"""The numbers of a walk, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.windows import Integers


class Walk(NamedTuple):
    """Numbers of the n rows from the first refit on, NaN where there are none.

    ``ahead``, ``mean`` and ``deviation`` belong to the row at which a forecast is made;
    ``log_score``, ``pit`` and ``crps`` belong to the row that is forecast.
    """

    refit: Integers  #: ``(n,)``, the number of the refit that serves the row
    filtered: Array  #: ``(n, K)``, probabilities of the regimes
    ahead: Array  #: ``(n, K)``, those ``horizon`` rows later
    mean: Array  #: ``(n, D)``
    deviation: Array  #: ``(n, D)``
    log_score: Array  #: ``(n,)``
    pit: Array  #: ``(n, D)``
    crps: Array  #: ``(n, D)``

    @classmethod
    def empty(cls, num_rows: int, num_regimes: int, num_series: int) -> Walk:
        """All NaN."""
        filtered, ahead = np.full((2, num_rows, num_regimes), np.nan)
        mean, deviation, pit, crps = np.full((4, num_rows, num_series), np.nan)
        refit, scores = np.zeros(num_rows, dtype=np.int64), np.full(num_rows, np.nan)
        return cls(refit, filtered, ahead, mean, deviation, scores, pit, crps)
