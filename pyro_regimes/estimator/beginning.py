"""The probabilities of the first regime of a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.validation import shown

NUM_ROWS = 3  # by which a sequence is known to begin as the training data did
_NEVER = 1e-12  # a transition with a lower probability does not connect two regimes
_ROUNDING = 1e-6  # of the sum of probabilities that a user gives

START = ("auto", "fitted", "stationary")


def initial_probs(
    start: Any,
    after: Any,
    fitted: Array,
    transition_matrix: Array,
    training_start: Array | None,
    data: Array,
    sizes: list[int],
) -> Array:
    """Probabilities of the regimes at the first step of each sequence, ``(K,)`` or ``(N, K)``.

    :param start: "fitted", "stationary", probabilities ``(K,)``, or "auto". That is as fitted where
        the sequence begins with the rows with which training began, where training had several
        sequences, and where some regimes cannot be reached from others; elsewhere it is stationary.
    :param after: probabilities of the regimes before the first step, or None.
    :param training_start: the first rows of the training data; None if it had several sequences.
    :raises ValueError: if these are not valid.
    """
    if after is not None:
        if not (isinstance(start, str) and start == "auto"):
            raise ValueError(f"expected start='auto' where after is given, got {start!r}")
        following: Array = _probabilities("after", after, len(fitted)) @ transition_matrix
        return following / following.sum()
    if not isinstance(start, str):
        return _probabilities("start", start, len(fitted))
    if start not in START:
        listed = ", ".join(map(repr, START))
        raise ValueError(f"expected start to be one of {listed} or probabilities, got {start!r}")
    if start == "stationary":
        return stationary_probs(transition_matrix)
    if start == "fitted" or training_start is None or not is_irreducible(transition_matrix):
        return fitted
    stationary = stationary_probs(transition_matrix)
    firsts = np.cumsum([0, *sizes[:-1]])
    begins = [
        _begins_with(data[first : first + min(size, NUM_ROWS)], training_start)
        for first, size in zip(firsts, sizes, strict=True)
    ]
    if len(begins) == 1:
        return fitted if begins[0] else stationary
    return np.where(np.array(begins)[:, None], fitted, stationary)


def _begins_with(rows: Array, training_start: Array) -> bool:
    known = min(len(rows), len(training_start))
    return bool((rows[:known] == training_start[:known]).all())


def _probabilities(name: str, value: Any, num_regimes: int) -> Array:
    try:
        probs = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        probs = np.full(1, np.nan)
    valid = probs.shape == (num_regimes,) and (probs >= 0).all()
    if not valid or abs(probs.sum() - 1) > _ROUNDING:
        raise ValueError(
            f"expected {name} to be {num_regimes} probabilities that sum to 1, got {shown(value)}"
        )
    normalised: Array = probs / probs.sum()
    return normalised


def is_irreducible(transition_matrix: Array) -> bool:
    """Whether every regime can be reached from every other."""
    count, _ = connected_components(transition_matrix > _NEVER, connection="strong")
    return bool(count == 1)


def stationary_probs(transition_matrix: Array) -> Array:
    r"""The distribution :math:`\pi = \pi A` of a chain, by elimination without subtractions.

    The method is that of Grassmann, Taksar and Heyman (1985).

    :raises ValueError: if there is more than one.
    """
    reduced = transition_matrix.copy()
    probs = np.zeros(len(reduced))
    order = _closed_first(reduced)
    reduced = reduced[np.ix_(order, order)]
    for last in range(len(reduced) - 1, 0, -1):
        leaving = reduced[last, :last].sum()
        if leaving == 0:
            raise ValueError(
                "expected a transition matrix with one stationary distribution, got one with "
                "several: some regimes cannot be reached from others; use start='fitted'"
            )
        reduced[:last, last] /= leaving
        reduced[:last, :last] += np.outer(reduced[:last, last], reduced[last, :last])
    weights = np.zeros(len(reduced))
    weights[0] = 1.0
    for state in range(1, len(reduced)):
        weights[state] = weights[:state] @ reduced[:state, state]
    probs[order] = weights / weights.sum()
    return probs


def _closed_first(transition_matrix: Array) -> Any:
    """An order of the states that begins with one in a class that is never left."""
    count, labels = connected_components(transition_matrix > 0, connection="strong")
    for label in range(count):
        inside = labels == label
        if not (transition_matrix[np.ix_(inside, ~inside)] > 0).any():
            return np.argsort(~inside, kind="stable")
    return np.arange(len(transition_matrix))  # never: some class is closed
