"""What a user has to know of a fit: a collapse, a floor that binds, no convergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.parameters import Array

_MOST_ROWS = 5  # that a message lists
_MUCH_LOST = 1.0  # nats
_FEW = 5  # observations, which a regime is not made of
_FEWEST_ROWS = 30  # that say something of the kind of data
_ZERO_SHARE = 0.05  # of rows without any change, of which trading days have far fewer
_LEVEL_CHANGE, _LEVEL_JUMP = 0.2, 0.7  # variance of steps over that of values; largest log ratio


def of_collapse(
    names: Sequence[str],
    collapsed: Flags,
    smoothed_probs: Array,
    row_name: Callable[[int], str],
) -> Warning:
    """The warning that regimes hold too few different observations.

    :param collapsed: which regimes have collapsed, ``(K,)``.
    :param smoothed_probs: ``(T, K)``.
    :param row_name: the name of a row, from its number.
    """
    parts = []
    for name, probs in zip(
        np.array(names)[collapsed], smoothed_probs.T[collapsed], strict=True
    ):
        held = np.flatnonzero(probs > 0.5)
        listed = [row_name(int(row)) for row in held[:_MOST_ROWS]]
        more = ", ..." if len(held) > _MOST_ROWS else ""
        where = f" ({', '.join(listed)}{more})" if listed else ""
        parts.append(f"{name} holds {probs.sum():.3g} of {len(probs)} rows{where}")
    return ConvergenceWarning(
        f"A regime collapsed onto a few points in every start: {'; '.join(parts)}. They do not "
        "vary in some direction, so the likelihood has no maximum. Use fewer regimes, another "
        "covariance_type or min_eigenvalue."
    )


def of_convergence(num_steps: int) -> Warning:
    """The warning that the best start was still climbing."""
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
        f"{after:.2f}, as where series nearly depend on each other. If this is not meant, set "
        "regularization=0."
    )


def of_floor(names: Sequence[str], floor: float) -> Warning:
    """The warning that ``min_eigenvalue`` is larger than the variance of some regimes."""
    return UserWarning(
        f"min_eigenvalue={floor:g} holds up the variance of {', '.join(names)} in some direction. "
        "If it is meant to prevent a collapse only, lower it."
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


def of_data(data: Array, sizes: list[int], names: Sequence[str] | None) -> list[Warning]:
    """Warnings that data look like price levels, or like days without trade filled with zeros.

    :param sizes: the number of rows of each sequence. Levels are looked for in the longest.
    """
    found: list[Warning] = []
    if len(data) < _FEWEST_ROWS:
        return found
    longest = int(np.argmax(sizes))
    first = sum(sizes[:longest])
    sequence = data[first : first + sizes[longest]]
    levels = np.flatnonzero([_is_level(series) for series in sequence.T])
    if len(levels):
        columns = ", ".join(str(i) if names is None else repr(str(names[int(i)])) for i in levels)
        found.append(
            UserWarning(
                f"The columns {columns} of X look like prices: positive, with little change "
                "from step to step. A regime model is for their returns: X.pct_change().dropna(), "
                "or --prices in the command."
            )
        )
    zeros = int((data == 0).all(axis=1).sum())
    if zeros > _ZERO_SHARE * len(data):
        found.append(
            UserWarning(
                f"{zeros} of {len(data)} rows of X are 0 in every column, as where weekends or "
                "holidays were filled. They may take a regime of their own; drop them if so."
            )
        )
    return found


def _is_level(series: Array) -> bool:
    if len(series) < _FEWEST_ROWS or (series <= 0).any() or np.ptp(series) == 0:
        return False
    steps = np.diff(series)
    jump = np.abs(np.diff(np.log(series))).max()
    return bool(steps.var() < _LEVEL_CHANGE * series.var() and jump < _LEVEL_JUMP)


def of_shares(
    names: Sequence[str], share_of_time: Array, num_rows: int, fewest: int
) -> list[str]:
    """Notes on regimes that hold fewer than ``fewest`` observations, or than five."""
    held = share_of_time * num_rows
    return [
        f"{name} holds {count:.3g} of {num_rows} steps: an outlier, or an error in the data?"
        for name, count in zip(names, held, strict=True)
        if count < max(fewest, _FEW)
    ]
