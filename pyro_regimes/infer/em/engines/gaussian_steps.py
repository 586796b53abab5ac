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
    Rows,
    Step,
    Sums,
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


class _Seen(NamedTuple):
    """Data with missing entries, which the kernels take as tables of all rows of a model."""

    value: npt.NDArray[Any]  #: ``(U, S, D)``
    patterns: Any  #: the rows by what is missing in them, :class:`.cpu.missing.Patterns`
    tables: npt.NDArray[np.int64]  #: the table of each model

    @classmethod
    def of(
        cls,
        value: npt.NDArray[Any],
        missing: npt.NDArray[np.bool_],
        lengths: npt.NDArray[np.int64],
        num_models: int,
    ) -> _Seen:
        """Sort the rows of each table; arguments as those of :class:`GaussianEM`."""
        num_steps, size = value.shape[1:]
        counts = np.arange(num_steps) < lengths.reshape(len(lengths), -1).sum(1)[:, np.newaxis]
        counts = counts.reshape(-1, len(value), num_steps).any(0)
        num_tables = len(value) // (len(lengths) // num_models)
        tables = np.arange(num_models) if num_tables > 1 else np.zeros(num_models, np.int64)
        patterns = ops.fused_em().find_patterns(
            missing.reshape(num_tables, -1, size), counts.reshape(num_tables, -1)
        )
        return cls(value.reshape(num_tables, -1, size), patterns, tables)


class GaussianEM(ChainEM):
    """See :class:`.ChainEM`.

    :param value: ``(V, T, D)``, float32 or float64, finite.
    :param like: parameters of the P models: probabilities, locations ``(P, K, D)``, and covariances
        ``(P, K, D, D)`` or variances ``(P, K, D, 1)``.
    :param min_eigenvalue: the floor of the covariances' eigenvalues.
    :param missing: the missing entries, in the shape of the value, which is then that of one model
        or of all; None if there are none.
    """

    def __init__(
        self,
        value: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        like: Parameters,
        updates: Updates,
        pseudo: Pseudo,
        min_eigenvalue: float,
        missing: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        shapes = (each.shape[1:] for each in like[2:])
        self._models = np.arange(len(like[0]))
        super().__init__(value, lengths, like, pseudo, value.dtype, shapes)
        if missing is not None:
            self._rows = self._rows._replace(seen=self._read_missing(value, lengths, missing))
        self._updates = updates
        info = np.finfo(value.dtype)
        # Of T observations the log-likelihood loses some T eps / (2 least) nats.
        least = float(info.eps) ** (1 / 3)
        self._bounds = (self._least, min_eigenvalue, least)

    def _read_missing(
        self,
        value: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        missing: npt.NDArray[np.bool_],
    ) -> _Seen:
        """See :meth:`.ChainEM._read_missing`."""
        return _Seen.of(value, missing, lengths, len(lengths) // self._each)

    def keep(self, models: Flags) -> None:
        """See :meth:`.ChainEM.keep`."""
        super().keep(models)
        self._models = self._models[models]

    def _seen_of(self, rows: Rows, models: Flags | None) -> _Seen | None:
        """The data with missing entries, of the models that take a step."""
        if rows.seen is None:
            return None
        if len(rows.seen.value) == 1:  # a table that all models share
            count = len(self._models) if models is None else int(models.sum())
            return rows.seen._replace(tables=np.zeros(count, np.int64))
        chosen = self._models if models is None else self._models[models]
        return rows.seen._replace(tables=rows.seen.tables[chosen])

    def _fill_densities(
        self, parameters: Parameters, rows: Rows, models: Flags | None
    ) -> tuple[Array, Flags]:
        """See :meth:`.ChainEM._fill_densities`."""
        seen, num_models = self._seen_of(rows, models), len(parameters[0])
        log_prior = np.empty(num_models)
        sound = np.empty(num_models, dtype=np.bool_)
        given = (*parameters, *rows.pseudo[:2], *rows.prepared)
        self._kernels.prepare(*given, log_prior, sound)
        mean, factor = rows.prepared[2:]
        if seen is None:
            self._kernels.fill_log_density(rows.pair[0], mean, factor, rows.pair[1])
        else:
            at = parameters[2], _sound(parameters[3], sound)
            by_model = rows.fields[0].reshape(num_models, -1, rows.fields[0].shape[2])
            self._kernels.fill_seen_log_density(*seen, *at, by_model)
        return log_prior, sound

    def _sum_moments(
        self, parameters: Parameters, rows: Rows, models: Flags | None, sound: Flags
    ) -> tuple[Array, ...]:
        """See :meth:`.ChainEM._sum_moments`."""
        seen, num_models = self._seen_of(rows, models), len(parameters[0])
        mean, factor = rows.prepared[2:]
        if seen is None:
            moments = self._moments(rows.value, rows.fields[1], mean, factor.shape[2:])
        else:
            at = parameters[2], _sound(parameters[3], sound)
            by_model = rows.fields[1].reshape(num_models, -1, rows.fields[1].shape[2])
            moments = self._kernels.sum_expected_moments(*seen, by_model, *at)
        return tuple(of_models(each, num_models) for each in moments)

    def _make_step(self, parameters: Parameters, sums: Sums) -> Step:
        """See :meth:`.ChainEM._make_step`."""
        ordinary = np.empty(len(parameters[0]), dtype=np.bool_)
        new = Parameters(map(np.empty_like, parameters))
        given = sums.starts + sums.pseudo[0], sums.counts + sums.pseudo[1], *sums.moments
        now = (*parameters, *self._updates, *self._bounds)
        is_whole = self._kernels.maximise(*given, *now, *new, ordinary)
        total, sound = sums.log_prior + sums.log_likelihood, sums.is_sound
        all_sound = bool(sound.all())
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
        return found[0][..., np.newaxis], *found[1:]

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """See :meth:`.ChainEM.extrapolate`."""
        new, lengths = Parameters(map(np.empty_like, after)), np.empty(len(bounds))
        given = (*before, *now, *after, *self._updates, *self._bounds, LEAST_SHARE, bounds)
        ops.squarem()(*given, *new, lengths)
        if self.is_stationary:
            known = np.empty(len(bounds), dtype=np.bool_)
            self._kernels.fill_stationary(new[1], new[0], known)
            lengths[~known] = 0.0
        return new, lengths


def _sound(spread: Array, sound: Flags) -> Array:
    """The spreads, with the identity for models of which one is not positive definite."""
    if sound.all():
        return spread
    size, columns = spread.shape[2:]
    one = np.eye(size) if columns == size else np.ones((size, 1))
    return np.where(sound[:, np.newaxis, np.newaxis, np.newaxis], spread, one)
