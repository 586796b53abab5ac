r"""EM steps of a Gaussian hidden Markov model on arrays.

The compiled loops are those of the E-step and the M-step of any model, and of
:mod:`.kernels.cpu.em_step`.

Covariances may be full or diagonal, and shared by states or series. Any parameter may be held
fixed, and probabilities may have Dirichlet priors.

A step is ordinary if that of the chain is (:mod:`.chain_steps`), and if no covariance is nearly
singular or below the floor. (Near singularity two computations of one likelihood differ, and EM
reports that of the model.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.emissions.charts import LEAST_SHARE
from pyro_regimes.infer.em.engines.chain_steps import (
    Array,
    ChainEM,
    Flags,
    Parameters,
    Pseudo,
    Step,
    of_models,
)
from pyro_regimes.kernels import ops


class Updates(NamedTuple):
    """What the M-step sets, alike in all models. Everything else is held fixed."""

    initial: bool  #: whether the initial probabilities
    rows: Flags  #: rows of the transition matrix, ``(K,)``
    loc: Flags  #: entries of the locations, ``(K, D)``
    #: For each matrix ``(K,)``, or each variance ``(K D,)``, the first of those that are the same
    #: parameter; -1 for one that is held fixed.
    owner: npt.NDArray[np.int64]


class GaussianEM(ChainEM):
    """See :class:`.ChainEM`.

    :param value: ``(V, T, D)``, float32 or float64, finite.
    :param like: parameters of the P models: probabilities, locations ``(P, K, D)``, and covariances
        ``(P, K, D, D)`` or variances ``(P, K, D, 1)``.
    :param min_eigenvalue: the floor of the covariances' eigenvalues.
    """

    def __init__(
        self,
        value: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        like: Parameters,
        updates: Updates,
        pseudo: Pseudo,
        min_eigenvalue: float,
    ) -> None:
        shapes = (each.shape[1:] for each in like[2:])
        super().__init__(value, lengths, like, pseudo, value.dtype, shapes)
        self._updates = updates
        info = np.finfo(value.dtype)
        # Of T observations the log-likelihood loses some T eps / (2 least) nats.
        least = float(info.eps) ** (1 / 3)
        self._bounds = (float(info.tiny), min_eigenvalue, least)

    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """See :meth:`.ChainEM.step`."""
        rows = self._rows if models is None else self._select(models)
        kernels, num_models = self._kernels, len(parameters[0])
        pseudo, log_prior = rows.pseudo[:2], np.empty(num_models)
        sound, ordinary = np.empty((2, num_models), dtype=np.bool_)
        all_sound = kernels.prepare(*parameters, *pseudo, *rows.prepared, log_prior, sound)
        mean, factor = rows.prepared[2:]
        x, densities = rows.pair
        kernels.fill_log_density(x, mean, factor, densities)
        log_likelihood, starts, counts = self._sweep(rows, num_models)
        moments = self._moments(rows.value, rows.fields[1], mean, factor.shape[2:])
        sums = tuple(of_models(each, num_models) for each in moments)
        new = Parameters(map(np.empty_like, parameters))
        given = starts + pseudo[0], counts + pseudo[1], *sums
        now = (*parameters, *self._updates, *self._bounds)
        is_whole = kernels.maximise(*given, *now, *new, ordinary)
        total = log_prior + rows.pseudo.constant + log_likelihood
        if not all_sound:
            total[~sound] = np.nan
            ordinary &= sound
        return Step(total, new, ordinary, is_whole and all_sound)

    def _moments(
        self,
        value: npt.NDArray[Any],
        weights: npt.NDArray[Any],
        mean: Array,
        second_shape: tuple[int, ...],
    ) -> tuple[Array, ...]:
        """Weighted moments of each model, or of each row where models share its data."""
        each = self._each
        if len(value) % each == 0:  # the rows of a model as one: many short ones take long
            value = value.reshape(len(value) // each, -1, value.shape[-1])
            weights = weights.reshape(len(weights) // each, -1, weights.shape[-1])
            mean = mean if len(mean) == 1 else np.ascontiguousarray(mean[::each])
        found: tuple[Array, ...] = self._kernels.sum_moments(
            value, weights, mean, None, second_shape
        )
        return found

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """See :meth:`.ChainEM.extrapolate`."""
        new, lengths = Parameters(map(np.empty_like, after)), np.empty(len(bounds))
        given = (*before, *now, *after, *self._updates, *self._bounds, LEAST_SHARE, bounds)
        ops.squarem()(*given, *new, lengths)
        return new, lengths
