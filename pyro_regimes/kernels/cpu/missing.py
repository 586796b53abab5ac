r"""Densities and expected moments of Gaussian rows with missing entries, compiled for the CPU.

Let O and M be the observed and the missing entries of a row. The log density of a state is that of
:math:`x_O`, and the expected moments that an M-step needs are those of the row with :math:`x_M`
replaced by its regression on :math:`x_O`, plus the residual covariance of the regression:

.. math::
    \hat x_M = \mu_M + \Sigma_{MO} \Sigma_{OO}^{-1} (x_O - \mu_O), \qquad
    C_{MM} = \Sigma_{MM} - \Sigma_{MO} \Sigma_{OO}^{-1} \Sigma_{OM}.

The functions here distribute the rows, which :mod:`.patterns` sorts, over threads. The loops are in
:mod:`.missing_densities` and :mod:`.missing_moments`.

A spread may be diagonal, ``(D, 1)``. Then a missing entry counts in no sum, and each series has
weights of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels.cpu.densities import WIDTH, grain_of
from pyro_regimes.kernels.cpu.jit import spread
from pyro_regimes.kernels.cpu.missing_densities import density_sweep
from pyro_regimes.kernels.cpu.missing_moments import moment_sweep
from pyro_regimes.kernels.cpu.patterns import Integers, Patterns, find_patterns

__all__ = ["fill_seen_log_density", "find_patterns", "sum_expected_moments"]


def fill_seen_log_density(
    value: npt.NDArray[Any],  # (U, S, D)
    patterns: Patterns,
    tables: Integers,  # (P,)
    loc: npt.NDArray[np.float64],  # (P, K, D)
    covariance: npt.NDArray[np.float64],  # (P, K, D, D or 1), positive definite
    out: npt.NDArray[Any],  # (P, S, K)
) -> None:
    """The log densities of the observed entries; 0 for a row without any.

    Padding is not written.
    """

    def work(first: int, last: int) -> None:
        density_sweep(value, tuple(patterns), tables, loc, covariance, first, last, out)

    for p, table in enumerate(tables.tolist()):
        begin, end = patterns.first_empty[table : table + 2]
        out[p, patterns.empty[begin:end]] = 0.0
    number = int(np.diff(patterns.first_blocks)[tables].sum())
    spread(work, number, _grain(loc, covariance))


def sum_expected_moments(
    value: npt.NDArray[Any],  # (U, S, D)
    patterns: Patterns,
    tables: Integers,  # (P,)
    weights: npt.NDArray[Any],  # (P, S, K)
    loc: npt.NDArray[np.float64],  # (P, K, D)
    covariance: npt.NDArray[np.float64],  # (P, K, D, D or 1), positive definite
) -> tuple[npt.NDArray[np.float64], ...]:
    """The expected moments about the locations, as :func:`.moments.sum_moments` has them.

    The weights are ``(P, K, 1)``, or ``(P, K, D)`` of independent series. As there, sums do not
    depend on the number of threads or on other models.
    """
    num_states, size = loc.shape[1:]
    grain = _grain(loc, covariance)
    pieces = []
    for p, table in enumerate(tables.tolist()):
        begin, end = patterns.first_blocks[table : table + 2].tolist()
        edges = [*range(begin, end, grain), end] if end > begin else [begin, end]
        pieces += [(p, low, high) for low, high in zip(edges, edges[1:])]
    chunks = np.array(pieces, np.int64)
    columns = covariance.shape[3]
    shape = (len(chunks), num_states)
    own = (1,) if columns == size else (size,)
    sums = np.zeros(shape + own), np.zeros(shape + (size,)), np.zeros(shape + (size, columns))

    def work(first: int, last: int) -> None:
        moment_sweep(
            value, tuple(patterns), tables, weights, loc, covariance, chunks, first, last, *sums
        )

    spread(work, len(chunks), 1)
    if len(chunks) == len(tables):
        return sums
    firsts = np.flatnonzero(np.diff(chunks[:, 0], prepend=-1))
    return tuple(np.add.reduceat(each, firsts) for each in sums)


def _grain(loc: npt.NDArray[np.float64], covariance: npt.NDArray[np.float64]) -> int:
    num_states, size = loc.shape[1:]
    # A pattern may have one row; then its factorisation takes longer.
    return grain_of(WIDTH, num_states, size, covariance.shape[3] > 1)
