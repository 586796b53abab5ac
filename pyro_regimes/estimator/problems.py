"""What a user has to know of a fit: a collapse, a floor that binds, no convergence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.parameters import Array

_MOST_ROWS = 5  # that a message lists
_MOST_RANGE = 1e12  # of variances among which an eigenvalue near the least can be computed


def of_collapse(
    names: Sequence[str], collapsed: Flags, smoothed_probs: Array, rows: Sequence[str] | None
) -> Warning:
    """The warning that regimes hold too few different observations.

    :param collapsed: which regimes have collapsed, ``(K,)``.
    :param smoothed_probs: ``(T, K)``.
    :param rows: names of the T rows; None for their numbers.
    """
    parts = []
    for name, probs in zip(
        np.array(names)[collapsed], smoothed_probs.T[collapsed], strict=True
    ):
        held = np.flatnonzero(probs > 0.5)
        listed = [str(row) if rows is None else rows[row] for row in held[:_MOST_ROWS]]
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
        f"The best start did not converge in {num_steps} iterations. Increase max_iter or tol."
    )


def of_floor(names: Sequence[str], floor: float) -> Warning:
    """The warning that ``min_eigenvalue`` is larger than the variance of some regimes."""
    return UserWarning(
        f"min_eigenvalue={floor:g} holds up the variance of {', '.join(names)} in some direction. "
        "If it is meant to prevent a collapse only, lower it."
    )


def refuse_floor(
    data: Array, feature_names: npt.NDArray[np.object_] | None, names: str, floor: float
) -> ValueError:
    """The error that a floor binds where its effect would be lost in rounding."""
    deviations = data.std(0)
    low, high = int(deviations.argmin()), int(deviations.argmax())
    columns = [low, high] if feature_names is None else [feature_names[i] for i in (low, high)]
    return ValueError(
        f"expected variances of X within a factor of {_MOST_RANGE:.0e} where min_eigenvalue="
        f"{floor:g} binds, as it does in {names}; got standard deviations from "
        f"{deviations[low]:.3g} (column {columns[0]!r}) to {deviations[high]:.3g} (column "
        f"{columns[1]!r}); give the columns similar units"
    )
