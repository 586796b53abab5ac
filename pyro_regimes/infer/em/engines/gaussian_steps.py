r"""EM steps of a Gaussian hidden Markov model on arrays, with nothing allocated in between.

The compiled loops are those of the E-step and the M-step of any model, and of
:mod:`.kernels.cpu.em_step`; here they follow one another without a tensor operation in between.

Only an ordinary step is made: every state has weight and is left, and no covariance is nearly
singular or below the floor. (Near singularity two computations of one likelihood differ, and EM
reports that of the model.) Any other step returns None, and the general path makes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels import ops

Array = npt.NDArray[np.float64]


class Parameters(NamedTuple):
    """Of P independent models, float64."""

    initial: Array  #: ``(P, K)``, probabilities
    transition: Array  #: ``(P, K, K)``, probabilities
    loc: Array  #: ``(P, K, D)``
    covariance: Array  #: ``(P, K, D, D)``


class GaussianEM:
    """EM steps for N sequences of P independent models, N / P to each in turn.

    :param value: ``(N or 1, T, D)``, float32 or float64, finite.
    :param lengths: ``(N,)``
    :param num_states: K, at most what :func:`.ops.has_fused_em` says.
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
        self._kernels = ops.fused_em()
        # Of one model all steps of all sequences are alike.
        alike = models == 1 and len(value) == count
        self._flat = (
            (value.reshape(1, -1, size), self._density.reshape(1, -1, num_states))
            if alike
            else (value, self._density)
        )

    def step(self, parameters: Parameters) -> tuple[Array | None, Parameters | None]:
        """One EM step.

        :return: the log-likelihood of each model, ``(P,)``, before the step, and the parameters
            after it; None in place of either where it cannot be computed here.
        """
        kernels = self._kernels
        if not kernels.prepare(*parameters, *self._prepared):
            return None, None
        log_initial, log_transition, mean, factor = self._prepared
        x, density = self._flat
        kernels.fill_log_density(x, mean, factor, density)
        given = (log_initial, log_transition, self._density, self._lengths)
        out = (self._log_likelihood, self._smoothed, self._moved, self._redo)
        kernels.sweep_arrays(given, out)
        likelihood = self._log_likelihood.reshape(self._num_models, -1).sum(-1)
        moments = kernels.sum_moments(self._value, self._smoothed, mean)
        new = Parameters(*map(np.empty_like, parameters))
        ordinary = kernels.maximise(
            self._smoothed, self._moved, *moments, *parameters[:3], *self._bounds, *new
        )
        return likelihood, new if ordinary else None
