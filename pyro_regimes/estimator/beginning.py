"""The probabilities of the first regime of a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.csgraph import connected_components

from pyro_regimes.estimator.parameters import Array, probabilities
from pyro_regimes.kernels import ops

NUM_ROWS = 3  # by which a sequence is known to begin as the training data did
_NEVER = 1e-12  # a transition with a lower probability does not connect two regimes
_SAME = 1e-4  # of a deviation: what six decimals leave of returns of one percent
_FLOAT32 = float(np.finfo(np.float32).eps)
_DOUBLINGS = 64  # of the steps after which the long run has come

START = ("auto", "fitted", "stationary")


def initial_probs(
    start: Any,
    after: Any,
    fitted: Array,
    transition_matrix: Array,
    training_start: Array | None,
    unit: Array,
    data: Array,
    sizes: list[int],
    first_gaps: npt.NDArray[np.int64],
) -> Array:
    """Probabilities of the regimes at the first step of each sequence, ``(K,)`` or ``(N, K)``.

    :param start: "fitted", "stationary", probabilities ``(K,)``, or "auto". That is as fitted where
        the sequence begins with the rows with which training began, where training had several
        sequences, and where some regimes cannot be reached from others; elsewhere it is stationary.
    :param after: probabilities of the regimes before the first step, or None.
    :param first_gaps: the number of steps after those, ``(N,)``.
    :param training_start: the first rows of the training data; None if it had several sequences.
    :param unit: the typical deviation of each series from its mean, ``(D,)``.
    :raises ValueError: if these are not valid.
    """
    if after is not None:
        if not (isinstance(start, str) and start == "auto"):
            raise ValueError(f"expected start='auto' where after is given, got {start!r}")
        before = probabilities("after", after, (len(fitted),))
        distinct, index = np.unique(first_gaps, return_inverse=True)
        following = np.stack(
            [before @ np.linalg.matrix_power(transition_matrix, gap) for gap in distinct]
        )
        following /= following.sum(-1, keepdims=True)
        found: Array = following[0] if len(distinct) == 1 else following[index]
        return found
    if not isinstance(start, str):
        return probabilities("start", start, (len(fitted),))
    if start not in START:
        listed = ", ".join(map(repr, START))
        raise ValueError(f"expected start to be one of {listed} or probabilities, got {start!r}")
    if start == "stationary":
        return stationary_probs(transition_matrix, "transition_matrix_", "use start='fitted'")
    if start == "fitted" or training_start is None or not is_irreducible(transition_matrix):
        return fitted
    stationary = stationary_probs(transition_matrix, "transition_matrix_", "use start='fitted'")
    begins = _begin_with(data, np.array(sizes), training_start, unit)
    if len(begins) == 1:
        return fitted if begins[0] else stationary
    return np.where(begins[:, None], fitted, stationary)


def _begin_with(
    data: Array, sizes: npt.NDArray[np.int64], training_start: Array, unit: Array
) -> npt.NDArray[np.bool_]:
    """Whether each sequence begins as training did, in float32 or with a few digits, too, ``(N,)``.

    A shorter one does if all its rows are those of training. The same entries must be missing.
    """
    firsts, begins = sizes.cumsum() - sizes, np.ones(len(sizes), dtype=np.bool_)
    for step, trained in enumerate(training_start[:NUM_ROWS]):
        there = sizes > step
        tolerance = _SAME * unit + _FLOAT32 * np.abs(trained)
        rows = data[firsts[there] + step]
        same = np.abs(rows - trained) <= tolerance
        begins[there] &= (same | np.isnan(rows) & np.isnan(trained)).all(-1)
    return begins


def is_irreducible(transition_matrix: Array) -> bool:
    """Whether every regime can be reached from every other."""
    count, _ = connected_components(transition_matrix > _NEVER, connection="strong")
    return bool(count == 1)


def stationary_probs(transition_matrix: Array, name: str, remedy: str) -> Array:
    r"""The distribution :math:`\pi = \pi A` of a chain.

    :param name: what the matrix is called in an error.
    :param remedy: what the caller can do where there is more than one such distribution.
    :raises ValueError: if there is more than one.
    """
    try:
        probs: Array = ops.stationary_probs(torch.tensor(transition_matrix, device="cpu")).numpy()
    except ValueError:
        raise ValueError(
            f"expected {name} with one stationary distribution, got a matrix with several: some "
            f"regimes cannot be reached from others; {remedy}"
        ) from None
    return probs


def implied_probs(initial: str, transition_matrix: Array, name: str, remedy: str) -> Array:
    """The distribution of the first regime where ``initial`` is "stationary" or "uniform".

    :param name: as in :func:`stationary_probs`, and ``remedy``.
    :raises ValueError: if it is "stationary" and there is more than one such distribution.
    """
    if initial == "stationary":
        return stationary_probs(transition_matrix, name, remedy)
    return np.full(len(transition_matrix), 1 / len(transition_matrix))


def long_run_share(initial: Array, transition_matrix: Array) -> Array:
    """The share of time of each regime in the long run, where it may depend on the first one."""
    # The average of a step and no step has the same limit, and no period.
    power = (transition_matrix + np.eye(len(initial))) / 2
    for _ in range(_DOUBLINGS):
        power = power @ power
        power /= power.sum(-1, keepdims=True)
    share: Array = initial @ power
    return share
