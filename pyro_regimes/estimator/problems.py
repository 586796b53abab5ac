"""Warnings about a fit: a collapse, a floor that binds, no convergence, doubtful data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.missing import observed_rows
from pyro_regimes.estimator.parameters import Array

_MOST_ROWS = 5  # that a message lists
_MUCH_LOST = 1.0  # nats
_FEW = 5  # observations, which a regime is not made of
_RARE = 0.1  # of the time, which may be outliers
_SINGLE = 2.0  # steps that a spell lasts, below which most rows of a regime stand alone
_FEWEST_ROWS = 30  # that say something of the kind of data
_ZERO_SHARE = 0.05  # of rows without any change, of which trading days have far fewer
_LEVEL_CHANGE = 0.2  # the most that steps of a level vary, as a share of its variance
_LEVEL_TURNS = 0.6  # the most of its steps that turn back; of noise 2/3 do, of a random walk 1/2
_JUMP = 7.4  # in median absolute steps: 5 standard deviations of a normal distribution
_FEW_JUMPS = 0.025  # of the steps; more are no exceptions


class CollapseWarning(ConvergenceWarning):
    """A regime holds too few different observations in every start."""


def of_collapse(
    names: Sequence[str],
    collapsed: Flags,
    smoothed_probs: Array,
    row_name: Callable[[int], str],
    has_covariances: bool,
) -> Warning:
    """The warning that regimes hold too few different observations.

    :param collapsed: which regimes have collapsed, ``(K,)``.
    :param smoothed_probs: ``(T, K)``.
    :param row_name: the name of a row, from its number.
    :param has_covariances: whether the emission has, and so a floor of them.
    """
    remedy = "another covariance_type or min_eigenvalue" if has_covariances else "or drop the rows"
    parts = []
    for name, probs in zip(
        np.array(names)[collapsed], smoothed_probs.T[collapsed], strict=True
    ):
        held = np.flatnonzero(probs > 0.5)
        listed = [row_name(int(row)) for row in held[:_MOST_ROWS]]
        more = ", ..." if len(held) > _MOST_ROWS else ""
        where = f" ({', '.join(listed)}{more})" if listed else ""
        parts.append(f"{name} holds {probs.sum():.3g} of {len(probs)} rows{where}")
    return CollapseWarning(
        f"A regime collapsed onto a few points in every start: {'; '.join(parts)}. They do not "
        f"vary in some direction, so the likelihood has no maximum. Use fewer regimes, {remedy}."
    )


def of_convergence(num_steps: int) -> Warning:
    """The warning that the best start has not converged."""
    return ConvergenceWarning(
        f"The best start did not converge in {num_steps} iterations. Increase max_iter or tol "
        "(in the command --max-iter or --tol)."
    )


def of_regularization(amount: float, before: float, after: float) -> Warning | None:
    """The warning that regularization has changed the model, of which it is to change little."""
    if after >= before - max(_MUCH_LOST, 1e-6 * abs(before)):
        return None
    return UserWarning(
        f"regularization={amount:g} lowers the log-likelihood of the fit from {before:.2f} to "
        f"{after:.2f}, as happens if series are nearly linearly dependent. If this is not "
        "intended, set regularization=0."
    )


def of_floor(names: Sequence[str], floor: float) -> Warning:
    """The warning that ``min_eigenvalue`` is larger than the variance of some regimes."""
    return UserWarning(
        f"min_eigenvalue={floor:g} binds: without it, the variance of {', '.join(names)} would be "
        "smaller in some direction. If it is only meant to prevent a collapse, lower it."
    )


def floor_out_of_reach(data: Array, floor: float) -> ValueError:
    """The error that a floor binds where the variances of X are too different to compute it."""
    deviations = data.std(0)
    low, high = int(deviations.argmin()), int(deviations.argmax())
    return ValueError(
        f"expected columns of X in similar units where min_eigenvalue={floor:g} binds, got "
        f"standard deviations from {deviations[low]:.3g} in column {low} to "
        f"{deviations[high]:.3g} in column {high}, beside which the floor is lost in rounding; "
        "change the units, or set min_eigenvalue=0"
    )


def of_data(
    data: Array, sizes: list[int], names: Sequence[str] | None, rows_of: str = "X"
) -> list[Warning]:
    """Warnings that data look like levels, counts, or days without trade filled with zeros.

    Missing entries, which are NaN, are left out.

    :param sizes: the number of rows of each sequence. Levels are looked for in the longest.
    :param rows_of: what the rows are of, such as "a sample of X".
    """
    found: list[Warning] = []
    if len(data) < _FEWEST_ROWS:
        return found
    levels = find_levels(data, sizes)
    if len(levels):
        columns = ", ".join(str(i) if names is None else repr(str(names[int(i)])) for i in levels)
        looks = (
            f"Column {columns} of X looks like a level (a price, an index, a yield), not a change: "
            "it is positive and moves"
            if len(levels) == 1
            else f"Columns {columns} of X look like levels (prices, indices, yields), not changes: "
            "they are positive and move"
        )
        found.append(
            UserWarning(
                f"{looks} little from step to step. Regimes of levels describe where a series was, "
                "not how it changed. For prices fit the returns, X.pct_change().dropna() (--prices "
                "in the command), and for rates the differences, X.diff().dropna()."
            )
        )
    data = data[observed_rows(data)]
    if _are_counts(data):
        found.append(
            UserWarning(
                f"{rows_of[:1].upper() + rows_of[1:]} holds whole numbers from 0 on, as counts do. "
                "emission='poisson' or 'negative_binomial' (--emission in the command) describes "
                "counts, 'bernoulli' 0 and 1, and 'categorical' the numbers of categories."
            )
        )
        return found
    zeros = int(((data == 0) | np.isnan(data)).all(axis=1).sum())
    if zeros > _ZERO_SHARE * len(data):
        found.append(
            UserWarning(
                f"{zeros} of {len(data)} rows of {rows_of} are 0 in every column, as if weekends "
                "or holidays had been filled. They may form a regime of their own; if so, drop "
                "them."
            )
        )
    return found


def _are_counts(data: Array) -> bool:
    """Whether all values are whole numbers from 0 on, with 0 and others in every column."""
    known = ~np.isnan(data)
    values = data[known]
    if not ((values >= 0) & (values == np.round(values))).all():
        return False
    zero = data == 0
    return bool((zero.any(0) & (known & ~zero).any(0)).all())


def find_levels(data: Array, sizes: list[int]) -> npt.NDArray[np.intp]:
    """The columns of the longest sequence that look like levels."""
    longest = int(np.argmax(sizes))
    first = sum(sizes[:longest])
    sequence = data[first : first + sizes[longest]]
    return np.flatnonzero([_is_level(series[~np.isnan(series)]) for series in sequence.T])


def _is_level(series: Array) -> bool:
    """Whether a series is positive and wanders, apart from jumps such as splits of a stock.

    The logarithm of a level varies much more between two jumps than its steps do. This may hold for
    noise about a few values, too, but two of three steps of noise turn back.
    """
    if len(series) < _FEWEST_ROWS or (series <= 0).any() or np.ptp(series) == 0:
        return False
    values = np.log(series)
    steps = np.diff(values)
    moves = steps[steps != 0]
    turns = np.count_nonzero(np.sign(moves[1:]) != np.sign(moves[:-1]))
    if turns > _LEVEL_TURNS * (len(moves) - 1):
        return False
    jumps = np.abs(steps) > _JUMP * np.median(np.abs(moves))
    if jumps.mean() >= _FEW_JUMPS:
        jumps[:] = False
    between = np.concatenate([[0], jumps.cumsum()])  # the number of jumps before each value
    means = np.bincount(between, values) / np.bincount(between)
    return bool(steps[~jumps].var() < _LEVEL_CHANGE * (values - means[between]).var())


def of_shares(
    names: Sequence[str],
    share_of_time: Array,
    durations: Array,
    num_rows: float,
    fewest: int,
    remedy: str = "Compare fewer regimes (select).",
) -> list[str]:
    """Notes on regimes that may be no regimes.

    These hold fewer than ``fewest`` observations, or than five; or they hold less than a tenth of
    the time in spells that last less than two steps on average. A fit with more regimes than the
    data have often finds outliers, or a few rows that happen to lie on a line.

    :param durations: the expected durations, ``(K,)``.
    :param remedy: what to do about outliers.
    """
    if not num_rows:  # parameters without a fit
        return []
    found = []
    for name, share, duration in zip(names, share_of_time, durations, strict=True):
        holds = f"{name} holds {share * num_rows:.3g} of {num_rows} steps"
        if share * num_rows < max(fewest, _FEW):
            found.append(f"{holds}: an outlier, or an error in the data?")
        elif share < _RARE and duration < _SINGLE:
            found.append(
                f"{holds}, most of them single steps: outliers rather than a regime? {remedy}"
            )
    return found
