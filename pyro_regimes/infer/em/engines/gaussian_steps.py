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


class _Rows(NamedTuple):
    """The data and the work space of some models' sequences."""

    value: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]  #: ``(N, P)``
    begins: npt.NDArray[np.int64]  #: the first step of each sequence, ``(N, P)``
    pseudo: Pseudo
    prepared: tuple[Array, ...]  #: what the kernels take
    fields: tuple[npt.NDArray[Any], ...]  #: density and gamma, ``(N, T, K)``
    #: xi, log-likelihoods and which to do again, of N P sequences
    found: tuple[npt.NDArray[Any], ...]
    pair: tuple[npt.NDArray[Any], npt.NDArray[Any]]  #: the value and the densities, as kernels run


def _of_models(part: npt.NDArray[Any], num_models: int) -> Array:
    """The sums over the sequences or the rows of each model, float64."""
    parts = part.reshape((num_models, -1) + part.shape[1:])
    total: Array = parts.sum(1, dtype=np.float64)
    return total


class GaussianEM:
    """EM steps for N rows of M independent models, N / M to each in turn.

    :param value: ``(V, T, D)``, float32 or float64, finite; row n has that of n mod V.
    :param lengths: of the P sequences in each row, ``(N, P)``: one with its padding, or several
        that follow one another, the same in all rows.
    :param like: parameters of the M models.
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
        found = (
            np.empty((lengths.size, 1, num_states, num_states)),
            np.empty(lengths.size),
            np.empty(lengths.size, dtype=np.bool_),
        )
        self._kernels = ops.fused_em()
        pair = value, density
        if models == 1 and len(value) == count:  # all steps of all sequences are alike
            pair = value.reshape(1, -1, size), density.reshape(1, -1, num_states)
        fields = density, np.empty_like(density)
        begins = lengths.cumsum(1) - lengths
        self._rows = _Rows(value, lengths, begins, pseudo, prepared, fields, found, pair)

    def keep(self, models: Flags) -> None:
        """Go on with some of the models."""
        self._rows = self._select(models)

    def _select(self, models: Flags) -> _Rows:
        rows, chosen = self._rows, models.repeat(self._each)
        value, lengths = rows.value, rows.lengths[chosen]
        if len(value) > self._each:  # more than what every model has
            value = value[chosen]
        fields = tuple(part[: len(lengths)] for part in rows.fields)
        return _Rows(
            value,
            lengths,
            rows.begins[chosen],
            Pseudo(*(each[models] for each in rows.pseudo)),
            tuple(part[: len(lengths)] for part in rows.prepared),
            fields,
            tuple(part[: lengths.size] for part in rows.found),
            (value, fields[0]),
        )

    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """One EM step.

        :param models: the models whose parameters these are; None for all.
        """
        rows = self._rows if models is None else self._select(models)
        kernels, num_models = self._kernels, len(parameters.initial)
        (density, smoothed), (moved, log_likelihood, redo) = rows.fields, rows.found
        pseudo, log_prior = rows.pseudo[:2], np.empty(num_models)
        sound, ordinary = np.empty((2, num_models), dtype=np.bool_)
        all_sound = kernels.prepare(*parameters, *pseudo, *rows.prepared, log_prior, sound)
        log_initial, log_transition, mean, factor = rows.prepared
        x, densities = rows.pair
        kernels.fill_log_density(x, mean, factor, densities)
        begins, sequences = rows.begins, (rows.lengths.reshape(-1), rows.begins.reshape(-1))
        logits = (log_initial, log_transition, density, *sequences)
        kernels.sweep_arrays(logits, (log_likelihood, smoothed, moved, redo))
        moments = self._moments(rows.value, smoothed, mean, factor.shape[2:])
        starts = smoothed[:, 0]
        if begins.shape[1] > 1:
            starts = smoothed[:, begins[0]].reshape(-1, starts.shape[-1])
        sums = tuple(
            each if len(each) == num_models else _of_models(each, num_models)
            for each in (starts, moved[:, 0], *moments)
        )
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
        """Extrapolate two steps of any models; see :func:`.cpu.extrapolation.squarem`."""
        new, lengths = Parameters(*map(np.empty_like, after)), np.empty(len(bounds))
        given = (*before, *now, *after, *self._updates, *self._bounds, LEAST_SHARE, bounds)
        ops.squarem()(*given, *new, lengths)
        return new, lengths
