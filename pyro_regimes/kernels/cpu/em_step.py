r"""EM iterations of a Gaussian hidden Markov model on arrays, with nothing allocated in between.

Densities, the scaled sweep and weighted moments are the kernels that the E-step and the M-step of
any model use; here they follow one another without a tensor operation between them, as a few
hundred short operations take longer than the kernels do for some thousand observations.

Only an ordinary step is made: every state has weight and is left, and no covariance is nearly
singular or below the floor. (Near singularity two computations of one likelihood differ, and EM
reports that of the model.) For any other step it returns None.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels.cpu import launch as cpu_launch
from pyro_regimes.kernels.cpu import log_space, scaled
from pyro_regimes.kernels.cpu.densities import fill_log_density
from pyro_regimes.kernels.cpu.jit import compiled, spread
from pyro_regimes.kernels.cpu.moments import sum_moments

Array = npt.NDArray[np.float64]


class Parameters(NamedTuple):
    """Of P independent models, float64."""

    initial: Array  #: ``(P, K)``, probabilities
    transition: Array  #: ``(P, K, K)``, probabilities
    loc: Array  #: ``(P, K, D)``
    covariance: Array  #: ``(P, K, D, D)``


@compiled
def _cholesky(matrix: Any, floor: float, least: float, factor: Any) -> bool:
    """The lower factor of ``matrix - floor I``.

    :return: whether every pivot's square is more than ``least`` times the matrix's diagonal.
    """
    size = len(matrix)
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j] - (floor if i == j else 0.0)
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if i == j:
                if not total > least * matrix[i, i]:
                    return False
                factor[i, i] = math.sqrt(total)
            else:
                factor[i, j] = total / factor[j, j]
                factor[j, i] = 0.0
    return True


@compiled
def _prepare(
    initial: Any,  # (P, K)
    transition: Any,  # (P, K, K)
    loc: Any,  # (P, K, D)
    covariance: Any,  # (P, K, D, D)
    log_initial: Any,  # (P or N, K)
    log_transition: Any,  # (P or N, 1, K, K)
    mean: Any,  # (P or N, K, D)
    factor: Any,  # (P or N, K, D, D)
) -> bool:
    """What the kernels take; False where a covariance is not positive definite."""
    num_states = initial.shape[1]
    each = len(log_initial) // len(initial)
    for n in range(len(log_initial)):
        p = n // each
        total = 0.0
        for i in range(num_states):
            total += initial[p, i]
        for i in range(num_states):
            row = 0.0
            for j in range(num_states):
                row += transition[p, i, j]
            log_initial[n, i] = math.log(initial[p, i] / total) if initial[p, i] > 0 else -np.inf
            for j in range(num_states):
                entry = transition[p, i, j]
                log_transition[n, 0, i, j] = math.log(entry / row) if entry > 0 else -np.inf
            for d in range(loc.shape[2]):  # numba takes a second to compile an array's assignment
                mean[n, i, d] = loc[p, i, d]
            if not _cholesky(covariance[p, i], 0.0, 0.0, factor[n, i]):
                return False
    return True


@compiled
def _share(counts: Any, old: Any, tiny: float, out: Any) -> bool:
    """Probabilities from counts; one that underflows stays the least number, a zero stays one."""
    total = 0.0
    for k in range(len(counts)):
        total += counts[k]
    if not total > tiny:
        return False
    for k in range(len(counts)):
        out[k] = counts[k] / total
        if old[k] > 0.0:
            out[k] = max(out[k], tiny)
    return True


@compiled
def _maximise(
    smoothed: Any,  # (N, T, K)
    moved: Any,  # (N, 1, K, K)
    weight: Any,  # (N, K)
    first: Any,  # (N, K, D), of the deviations from the old locations
    second: Any,  # (N, K, D, D), likewise
    old_initial: Any,  # (P, K)
    old_transition: Any,  # (P, K, K)
    old_loc: Any,  # (P, K, D)
    tiny: float,
    floor: float,
    least: float,
    initial: Any,
    transition: Any,
    loc: Any,
    covariance: Any,
) -> bool:
    """The M-step (equations 28, 27, 35 and 41), where it is ordinary."""
    num_models, num_states, size = old_loc.shape
    each = len(weight) // num_models
    counts = np.empty((num_states, num_states))
    starts, factor = np.empty(num_states), np.empty((size, size))
    for p in range(num_models):
        starts[:] = 0.0
        counts[:] = 0.0
        for n in range(p * each, (p + 1) * each):
            for k in range(num_states):
                starts[k] += smoothed[n, 0, k]
                for j in range(num_states):
                    counts[k, j] += moved[n, 0, k, j]
        if not _share(starts, old_initial[p], tiny, initial[p]):
            return False
        for k in range(num_states):
            if not _share(counts[k], old_transition[p, k], tiny, transition[p, k]):
                return False
            total = 0.0
            for n in range(p * each, (p + 1) * each):
                total += weight[n, k]
            if not total > tiny:
                return False
            for i in range(size):
                step = 0.0
                for n in range(p * each, (p + 1) * each):
                    step += first[n, k, i]
                loc[p, k, i] = step / total  # for now, from the old location
            for i in range(size):
                for j in range(i + 1):
                    about = 0.0
                    for n in range(p * each, (p + 1) * each):
                        about += second[n, k, i, j]
                    about = about / total - loc[p, k, i] * loc[p, k, j]
                    covariance[p, k, i, j] = about
                    covariance[p, k, j, i] = about
                # About the new location the square is less by that of the step: more than a
                # thousandth of it must be left, lest digits are lost.
                if loc[p, k, i] ** 2 > 1e3 * covariance[p, k, i, i]:
                    return False
            if not _cholesky(covariance[p, k], 0.0, least, factor):
                return False
            if floor > 0.0 and not _cholesky(covariance[p, k], floor, 0.0, factor):
                return False
            for i in range(size):
                loc[p, k, i] += old_loc[p, k, i]
    return True


class GaussianEM:
    """Iterations for N sequences of P models, N / P to each in turn.

    :param value: ``(N or 1, T, D)``, float32 or float64, finite.
    :param lengths: ``(N,)``
    :param num_states: K, at most :data:`.cpu.scaled.MAX_STATES`.
    :param num_models: P.
    :param min_eigenvalue: the floor of the covariances' eigenvalues.
    """

    def __init__(
        self,
        value: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        num_states: int,
        num_models: int,
        min_eigenvalue: float,
    ) -> None:
        count, (num_steps, size) = len(lengths), value.shape[1:]
        self._value, self._lengths = value, lengths
        self._num_models = num_models
        info = np.finfo(value.dtype)
        # Of T observations the log-likelihood loses some T eps / (2 least) nats.
        least = float(info.eps) ** (1 / 3)
        self._bounds = (float(info.tiny), min_eigenvalue, least)
        models = count if num_models > 1 else 1
        self._prepared = (
            np.empty((models, num_states)),
            np.empty((models, 1, num_states, num_states)),
            np.empty((models, num_states, size)),
            np.empty((models, num_states, size, size)),
        )
        self._density = np.empty((count, num_steps, num_states), value.dtype)
        self._log_likelihood = np.empty(count)
        self._smoothed = np.empty_like(self._density)
        self._moved = np.empty((count, 1, num_states, num_states))
        self._redo = np.empty(count, dtype=np.bool_)
        self._sweep = scaled.sweep(num_states)
        self._grain = 1 + cpu_launch._GRAIN // max(1, num_steps * num_states)
        # Of one model all steps of all sequences are alike.
        alike = models == 1 and len(value) == count
        self._flat = (
            (value.reshape(1, -1, size), self._density.reshape(1, -1, num_states))
            if alike
            else (value, self._density)
        )

    def step(self, parameters: Parameters) -> tuple[Array | None, Parameters | None]:
        """One iteration.

        :return: the log-likelihood of each model, ``(P,)``, before it, and the parameters after
            it; None for what is not to be had here.
        """
        if not _prepare(*parameters, *self._prepared):
            return None, None
        log_initial, log_transition, mean, factor = self._prepared
        x, density = self._flat
        fill_log_density(x, mean, factor, density)
        given = (log_initial, log_transition, self._density, self._lengths)
        out = (self._log_likelihood, self._smoothed, self._moved, self._redo)
        spread(partial(_call, self._sweep, given, out), len(self._lengths), self._grain)
        if self._redo.any():
            spread(partial(_call, log_space.sweep, given, out), len(self._lengths), self._grain)
        likelihood = self._log_likelihood.reshape(self._num_models, -1).sum(-1)
        moments = sum_moments(self._value, self._smoothed, mean)
        new = Parameters(*map(np.empty_like, parameters))
        ordinary = _maximise(
            self._smoothed, self._moved, *moments, *parameters[:3], *self._bounds, *new
        )
        return likelihood, new if ordinary else None


def _call(sweep: Any, given: tuple[Any, ...], out: tuple[Any, ...], first: int, last: int) -> None:
    sweep(*given, first, last, *out)
