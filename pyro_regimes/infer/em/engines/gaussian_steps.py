r"""EM steps of a Gaussian hidden Markov model on arrays, with nothing allocated in between.

The compiled loops are those of the E-step and the M-step of any model, and of
:mod:`.kernels.cpu.em_step`. Here no tensor operations are executed between them.

Covariances may be full or diagonal, and shared by states or series. Any parameter may be held
fixed, and probabilities may have Dirichlet priors.

A step is ordinary if every state has weight and is left, and if no covariance is nearly singular
or below the floor. (Near singularity two computations of one likelihood differ, and EM reports that
of the model.) Models for which a step is not ordinary are reported, and the general path takes
over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.emissions.charts import LEAST_SHARE
from pyro_regimes.kernels import ops

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Parameters(NamedTuple):
    """Of P independent models, float64."""

    initial: Array  #: ``(P, K)``, probabilities
    transition: Array  #: ``(P, K, K)``, probabilities
    loc: Array  #: ``(P, K, D)``
    spread: Array  #: covariances ``(P, K, D, D)``, or variances ``(P, K, D, 1)``

    def select(self, models: Flags) -> Parameters:
        """Those of some models."""
        return Parameters(*(each[models] for each in self))

    def where(self, models: Flags, others: Parameters) -> Parameters:
        """Those of some models, and others elsewhere."""
        return others.replaced(models, self.select(models))

    def replaced(self, models: Flags, new: Parameters) -> Parameters:
        """New ones of some models."""
        copies = Parameters(*(each.copy() for each in self))
        for copy, each in zip(copies, new, strict=True):
            copy[models] = each
        return copies


class Step(NamedTuple):
    """One EM step of P models."""

    #: with the log density of the priors, before the step, ``(P,)``; NaN where it is not known
    log_likelihood: Array
    after: Parameters
    is_ordinary: Flags  #: whether these are the parameters after the step, ``(P,)``
    is_whole: bool  #: whether they are of all


class Updates(NamedTuple):
    """What the M-step sets, alike in all models. Everything else is held fixed."""

    initial: bool  #: whether the initial probabilities
    rows: Flags  #: rows of the transition matrix, ``(K,)``
    loc: Flags  #: entries of the locations, ``(K, D)``
    #: For each matrix ``(K,)``, or each variance ``(K D,)``, the first of those that are the same
    #: parameter; -1 for one that is held fixed.
    owner: npt.NDArray[np.int64]


class Pseudo(NamedTuple):
    """Dirichlet priors of P models: concentrations less one, and the logarithms of constants."""

    initial: Array  #: ``(P, K)``; 0 without a prior
    transition: Array  #: ``(P, K, K)``, likewise
    constant: Array  #: ``(P,)``


class _Seen(NamedTuple):
    """Data with missing entries, which the kernels take as tables of all rows of a model."""

    value: npt.NDArray[Any]  #: ``(U, S, D)``
    patterns: Any  #: the rows by what is missing in them, :class:`.cpu.missing.Patterns`
    tables: npt.NDArray[np.int64]  #: the table of each model


class _Rows(NamedTuple):
    """The data and the work space of some models' sequences."""

    value: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    pseudo: Pseudo
    prepared: tuple[Array, ...]  #: what the kernels take
    #: density and gamma, ``(N, T, K)``; xi; log-likelihoods; sequences to be redone
    work: tuple[npt.NDArray[Any], ...]
    pair: tuple[npt.NDArray[Any], npt.NDArray[Any]]  #: the value and the densities, as kernels run
    seen: _Seen | None  #: None if nothing is missing


def _sound(spread: Array, sound: Flags) -> Array:
    """The spreads, with the identity for models of which one is not positive definite."""
    if sound.all():
        return spread
    size, columns = spread.shape[2:]
    one = np.eye(size) if columns == size else np.ones((size, 1))
    return np.where(sound[:, np.newaxis, np.newaxis, np.newaxis], spread, one)


def _of_models(part: npt.NDArray[Any], num_models: int) -> Array:
    """The sums over the sequences of each model, float64."""
    parts = part.reshape((num_models, -1) + part.shape[1:])
    total: Array = parts.sum(1, dtype=np.float64)
    return total


class GaussianEM:
    """EM steps for N sequences of P independent models, N / P to each in turn.

    :param value: ``(V, T, D)``, float32 or float64, finite; sequence n has row n mod V.
    :param lengths: ``(N,)``
    :param like: parameters of the P models.
    :param min_eigenvalue: the floor of the covariances' eigenvalues.
    :param missing: the missing entries, in the shape of the value, whose first dim is then that of
        one model or of all; None if there are none.
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
        count, (num_steps, size) = len(lengths), value.shape[1:]
        num_models, num_states = like.initial.shape
        self._updates, self._each = updates, count // num_models
        info = np.finfo(value.dtype)
        # Of T observations the log-likelihood loses some T eps / (2 least) nats.
        least = float(info.eps) ** (1 / 3)
        self._bounds = (float(info.tiny), min_eigenvalue, least)
        models = count if num_models > 1 else 1
        prepared = (
            np.empty((models, num_states)),
            np.empty((models, 1, num_states, num_states)),
            np.empty((models, num_states, size)),
            np.empty((models,) + like.spread.shape[1:]),
        )
        density = np.empty((count, num_steps, num_states), value.dtype)
        work = (
            density,
            np.empty_like(density),
            np.empty((count, 1, num_states, num_states)),
            np.empty(count),
            np.empty(count, dtype=np.bool_),
        )
        self._kernels = ops.fused_em()
        pair = value, density
        if models == 1 and len(value) == count:  # all steps of all sequences are alike
            pair = value.reshape(1, -1, size), density.reshape(1, -1, num_states)
        seen = None if missing is None else self._find_seen(value, missing, lengths, num_models)
        self._rows = _Rows(value, lengths, pseudo, prepared, work, pair, seen)

    def _find_seen(
        self,
        value: npt.NDArray[Any],
        missing: npt.NDArray[np.bool_],
        lengths: npt.NDArray[np.int64],
        num_models: int,
    ) -> _Seen:
        num_steps, size = value.shape[1:]
        counts = np.arange(num_steps) < lengths.reshape(len(lengths), -1).sum(1)[:, None]
        counts = counts.reshape(-1, len(value), num_steps).any(0)
        num_tables = len(value) // self._each
        tables = np.arange(num_models) if num_tables > 1 else np.zeros(num_models, np.int64)
        patterns = self._kernels.find_patterns(
            missing.reshape(num_tables, -1, size), counts.reshape(num_tables, -1)
        )
        return _Seen(value.reshape(num_tables, -1, size), patterns, tables)

    def keep(self, models: Flags) -> None:
        """Go on with some of the models."""
        self._rows = self._select(models)

    def _select(self, models: Flags) -> _Rows:
        rows, sequences = self._rows, models.repeat(self._each)
        value, lengths = rows.value, rows.lengths[sequences]
        if len(value) > self._each:  # more than what every model has
            value = value[sequences]
        work = tuple(part[: len(lengths)] for part in rows.work)
        return _Rows(
            value,
            lengths,
            Pseudo(*(each[models] for each in rows.pseudo)),
            tuple(part[: len(lengths)] for part in rows.prepared),
            work,
            (value, work[0]),
            None if rows.seen is None else rows.seen._replace(tables=rows.seen.tables[models]),
        )

    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """One EM step.

        :param models: the models whose parameters these are; None for all.
        """
        rows = self._rows if models is None else self._select(models)
        kernels, num_models = self._kernels, len(parameters.initial)
        density, smoothed, moved, log_likelihood, redo = rows.work
        pseudo, log_prior = rows.pseudo[:2], np.empty(num_models)
        sound, ordinary = np.empty((2, num_models), dtype=np.bool_)
        all_sound = kernels.prepare(*parameters, *pseudo, *rows.prepared, log_prior, sound)
        log_initial, log_transition, mean, factor = rows.prepared
        x, densities = rows.pair
        at = parameters.loc, _sound(parameters.spread, sound)
        if rows.seen is None:
            kernels.fill_log_density(x, mean, factor, densities)
        else:
            table = density.reshape(num_models, -1, density.shape[2])
            kernels.fill_seen_log_density(*rows.seen, *at, table)
        logits = (log_initial, log_transition, density, rows.lengths)
        kernels.sweep_arrays(logits, (log_likelihood, smoothed, moved, redo))
        if rows.seen is None:
            moments = kernels.sum_moments(rows.value, smoothed, mean, None, factor.shape[2:])
            moments = moments[0][..., np.newaxis], *moments[1:]
        else:
            table = smoothed.reshape(num_models, -1, smoothed.shape[2])
            moments = kernels.sum_expected_moments(*rows.seen, table, *at)
        sums = (smoothed[:, 0], moved[:, 0], *moments)
        if len(smoothed) > num_models:
            sums = tuple(_of_models(each, num_models) for each in sums)
        new = Parameters(*map(np.empty_like, parameters))
        given = sums[0] + pseudo[0], sums[1] + pseudo[1], *sums[2:]
        now = (*parameters, *self._updates, *self._bounds)
        is_whole = kernels.maximise(*given, *now, *new, ordinary)
        total = log_prior + rows.pseudo.constant
        total += (
            log_likelihood
            if len(log_likelihood) == num_models
            else log_likelihood.reshape(num_models, -1).sum(-1)
        )
        if not all_sound:
            total[~sound] = np.nan
            ordinary &= sound
        return Step(total, new, ordinary, is_whole and all_sound)

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """Extrapolate two steps of any models; see :func:`.cpu.extrapolation.squarem`."""
        new, lengths = Parameters(*map(np.empty_like, after)), np.empty(len(bounds))
        given = (*before, *now, *after, *self._updates, *self._bounds, LEAST_SHARE, bounds)
        ops.squarem()(*given, *new, lengths)
        return new, lengths
