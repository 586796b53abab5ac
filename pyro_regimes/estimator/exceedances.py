r"""Tests of a value at risk by the rows whose loss exceeded it.

Let the losses of x of n rows exceed a value at risk of probability p, and :math:`\hat p = x / n`.
The likelihood ratio of Kupiec (1995) tests whether their share is p, and that of Christoffersen
(1998) whether the probability of an exceedance depends on whether the row before was one:

.. math::
    LR_{uc} = 2 \log \frac{\hat p^x (1 - \hat p)^{n - x}}{p^x (1 - p)^{n - x}}, \qquad
    LR_{ind} = 2 \log \frac{\prod_i \hat p_i^{n_{i1}} (1 - \hat p_i)^{n_{i0}}}
        {\hat p^{n_{01} + n_{11}} (1 - \hat p)^{n_{00} + n_{10}}}

:math:`n_{ij}` is the number of pairs of adjacent rows of which the first is (i = 1) or is not
(i = 0) an exceedance, and the second likewise (j). Both are about chi-squared with one degree of
freedom.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy
from scipy.stats import binomtest, chi2

from pyro_regimes.estimator.predictive import Bools
from pyro_regimes.messages import shown

#: The columns of :func:`row_of_tests`.
COLUMNS = ["rows", "exceedances", "share", "lower", "upper", "p-value", "Kupiec", "Christoffersen"]


def row_of_tests(
    exceeded: Bools, counts: Bools, level: float, is_adjacent: bool
) -> tuple[float, ...]:
    """The numbers of one series, by the names of :data:`COLUMNS`.

    :param exceeded: which rows are exceedances, ``(n,)``.
    :param counts: which rows have a loss and a value at risk, ``(n,)``.
    :param level: p.
    :param is_adjacent: whether exceedances of adjacent rows are independent if all is right.
    """
    rows, number = int(counts.sum()), int((exceeded & counts).sum())
    if not rows:
        return (0, 0, *[np.nan] * (len(COLUMNS) - 2))
    binomial = binomtest(number, rows, level)
    limits = binomial.proportion_ci(0.95, method="exact")
    pairs = christoffersen(exceeded, counts) if is_adjacent else np.nan
    share = number / rows
    p_values = binomial.pvalue, kupiec(number, rows, level), pairs
    return (rows, number, share, limits.low, limits.high, *p_values)


def kupiec(number: int, rows: int, level: float) -> float:
    """The p-value of the likelihood ratio of the share of exceedances.

    :param number: the number of exceedances in ``rows`` rows.
    :param level: their probability if the value at risk is right.
    """
    most, given = (_log_likelihood(number, rows - number, p) for p in (number / rows, level))
    return float(chi2.sf(2 * max(most - given, 0.0), 1))


def christoffersen(exceeded: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> float:
    """The p-value of the likelihood ratio of independence of adjacent rows.

    :param exceeded: which rows are exceedances, ``(n,)``.
    :param counts: which rows count, ``(n,)``; both rows of a pair must. None is all.
    :return: NaN if there are no pairs that begin with an exceedance, or none that begin without.
    """
    is_one = np.asarray(exceeded, dtype=np.bool_)
    known = np.ones(is_one.shape, np.bool_) if counts is None else np.asarray(counts, np.bool_)
    pairs = known[:-1] & known[1:]
    before, after = is_one[:-1][pairs], is_one[1:][pairs]
    table = np.array([[np.sum((before == i) & (after == j)) for j in (0, 1)] for i in (0, 1)])
    if not table.sum(1).all():
        return np.nan
    apart = sum(_log_likelihood(yes, no, yes / (no + yes)) for no, yes in table.tolist())
    no, yes = table.sum(0).tolist()
    together = _log_likelihood(yes, no, yes / (no + yes))
    return float(chi2.sf(2 * max(apart - together, 0.0), 1))


def _log_likelihood(yes: float, no: float, probability: float) -> float:
    return float(xlogy(yes, probability) + xlogy(no, 1 - probability))


def read_levels(levels: Any, most: float) -> list[float]:
    """One level, or several.

    :raises ValueError: if they are not numbers between 0 and ``most``.
    """
    try:
        several = isinstance(levels, Iterable) and getattr(levels, "ndim", 1) > 0
        listed = [float(level) for level in (levels if several else [levels])]
    except (TypeError, ValueError):
        listed = []
    if not listed or not all(0 < level < 1 and level <= most for level in listed):
        raise ValueError(
            f"expected levels to be numbers between 0 and {most:g}, got {shown(levels)}"
        )
    return listed
