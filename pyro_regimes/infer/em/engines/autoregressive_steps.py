"""EM steps of Hamilton's autoregression on arrays.

Between compiled loops there is one matrix product, for the moments. A step is ordinary if every
regime has weight and is left, normal equations determine their solution, and second moments about
the means keep their digits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pyro_regimes.chain.stationary import LIMITS
from pyro_regimes.emissions.charts import LEAST_SHARE
from pyro_regimes.infer.em.engines.chain_steps import Array, Flags, Parameters, Step, of_models
from pyro_regimes.kernels import ops

_TINY = float(np.finfo(np.float64).tiny)


class Updates(NamedTuple):
    """What the M-step sets, alike in all models; an owner is -1 for what is held fixed."""

    initial: bool  #: whether the initial probabilities
    rows: Flags  #: rows of the transition matrix, ``(K,)``; all as one with a stationary start
    loc: bool  #: whether the means
    coefficients: npt.NDArray[np.int64]  #: the owner of those of each regime, ``(K,)``
    scale: npt.NDArray[np.int64]  #: likewise, ``(K,)``


class _Sums(NamedTuple):
    """The E-step of P models."""

    log_likelihood: Array  #: ``(P,)``, NaN where it is not known
    first: Array  #: probabilities of the first tuple, ``(P, S)``
    counts: Array  #: of the steps between rows, ``(P, K, K)``
    moments: Array  #: of each tuple, ``(P, S, p + 2, p + 2)``
    origin: Array  #: of these, ``(P or 1,)``


class AutoregressiveEM:
    """EM steps for N series of P independent models, N / P to each in turn.

    Parameters are initial ``(P, K)`` and transition probabilities ``(P, K, K)``, means
    ``(P, K, K)`` of which all rows are alike, coefficients ``(P, K, p)`` and scales ``(P, K)``.
    Without the first the chain starts from its stationary distribution.

    :param rows: the observations with those before them, ``(V, T, p + 1)``; series n has those of n
        mod V.
    :param num_series: N.
    :param min_eigenvalue: the floor of the variances.
    """

    def __init__(
        self,
        rows: Array,
        num_series: int,
        like: Parameters,
        updates: Updates,
        min_eigenvalue: float,
    ) -> None:
        self._kernels = ops.lagged_em()
        num_models = len(like[-1])
        self._each, self._updates, self._floor = num_series // num_models, updates, min_eigenvalue
        num_states, order = like[-2].shape[1:]
        self._num_tuples = num_states ** (order + 1)
        self._models: npt.NDArray[np.int64] = np.arange(num_models)
        #: with the rows before the first, ``(V, p + T)``
        self._series = np.concatenate([rows[:, 0, :0:-1], rows[..., 0]], 1)
        #: of the data of one model, or of each
        tables = rows.reshape((-1, min(len(rows), self._each)) + rows.shape[1:])
        self._origin = tables[..., 0].reshape(len(tables), -1).mean(1)
        centred = tables - self._origin[:, None, None, None]
        full = np.concatenate([np.ones_like(centred[..., :1]), centred], -1)
        left, right = np.tril_indices(order + 2)
        self._products = full[..., left] * full[..., right]  # (1 or P, 1 or each, T, M)
        self._place = np.empty((order + 2, order + 2), dtype=np.int64)
        self._place[left, right] = self._place[right, left] = np.arange(len(left))

    def keep(self, models: Flags) -> None:
        """Go on with some of the models."""
        self._models = self._models[models]

    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """One EM step.

        :param models: those of the kept models whose parameters these are; None for all.
        """
        chosen = self._models if models is None else self._models[models]
        given = _with_start(parameters)
        sums = self._expect(given, chosen)
        new, ordinary = self._maximise_chain(sums.first, sums.counts, given)
        found, is_set = tuple(map(np.empty_like, given[2:])), np.empty_like(ordinary)
        now = (sums.moments, sums.origin, *given[2:], *self._updates[2:], self._floor, _TINY)
        self._kernels.maximise(*now, *found, is_set)
        ordinary &= is_set & np.isfinite(sums.log_likelihood)
        after = _without_start((*new, *found), parameters)
        return Step(sums.log_likelihood, after, ordinary, bool(ordinary.all()))

    def _expect(self, given: tuple[Array, ...], chosen: npt.NDArray[np.int64]) -> _Sums:
        """The E-step of some models."""
        num_models, each, has_own = len(chosen), self._each, len(self._products) > 1
        start, logits = np.empty((num_models, self._num_tuples)), np.empty_like(given[1])
        initial = given[0]
        if not initial.shape[1]:
            initial = np.full_like(given[1][:, 0], np.nan)  # stays where there is none
            self._kernels.fill_stationary(given[1], initial)
        self._kernels.prepare(initial, given[1], logits, start)
        series, products, origin = self._series, self._products, self._origin
        if has_own:
            products, origin = products[chosen], origin[chosen]
            series = series.reshape(-1, each, series.shape[1])[chosen].reshape(-1, series.shape[1])
        elif len(series) > 1:
            series = np.tile(series, (num_models, 1))
        parts = (start, logits[:, np.newaxis], *given[2:])
        if each > 1 and num_models > 1:
            parts = tuple(part.repeat(each, 0) for part in parts)
        first, matrices, *normal = map(torch.from_numpy, parts)
        found = ops.autoregression_expectations(
            first, matrices, torch.from_numpy(series), *normal
        )
        value, gamma, moved = (part.numpy() for part in found)
        weights = gamma.reshape((num_models, each) + gamma.shape[1:])
        sums = np.matmul(weights.swapaxes(-1, -2), products).sum(1)  # (P, S, M)
        return _Sums(
            np.where(np.isfinite(initial).all(1), of_models(value, num_models), np.nan),
            weights[:, :, 0].sum(1),
            of_models(moved[:, 0], num_models).copy(),
            np.ascontiguousarray(sums[..., self._place]),
            origin,
        )

    def _maximise_chain(
        self, first: Array, counts: Array, given: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Flags]:
        """The M-step of the chain, and of which models it is ordinary.

        :param first: probabilities of the first tuple, ``(P, S)``.
        :param counts: of the steps between rows, ``(P, K, K)``; overwritten.
        """
        initial, transition = given[:2]
        starts, free = np.empty(counts.shape[:2]), self._updates.rows
        self._kernels.count(first, counts, starts)
        new, is_set = np.empty_like(transition), np.ones(len(first), dtype=np.bool_)
        if initial.shape[1]:
            size = counts.shape[1]
            flat = (each.reshape(-1, size) for each in (counts, transition))
            self._kernels.fill_shares(*flat, _TINY, new.reshape(-1, size))
            new = np.where(free[:, np.newaxis], new, transition)
            if self._updates.initial:
                initial = starts / starts.sum(1, keepdims=True)
        elif free[0]:
            given = counts, starts, transition
            self._kernels.maximise_stationary(*given, _TINY, LIMITS, new, is_set)
        else:
            new = transition
        is_left = (counts.sum(-1) > _TINY) | ~free
        return (initial, new), is_set & is_left.all(1) & np.isfinite(new).all((1, 2))

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """Extrapolate two steps of any models; see :func:`.cpu.lagged_extrapolation.squarem`."""
        given = tuple(map(_with_start, (before, now, after)))
        new, lengths = _like(given[2]), np.empty(len(bounds))
        limits = self._floor, _TINY, LEAST_SHARE
        self._kernels.squarem(*given, tuple(self._updates), *limits, bounds, new, lengths)
        return _without_start(new, after), lengths


def _with_start(parameters: Parameters) -> tuple[Array, ...]:
    """What the kernels take: means ``(P, K)``, and initial probabilities, of no regime if none."""
    *chain, loc, coefficients, scale = parameters
    first = [] if len(chain) > 1 else [np.empty((len(scale), 0))]
    return *first, *chain, np.ascontiguousarray(loc[:, 0]), coefficients, scale


def _like(given: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(np.empty_like, given))


def _without_start(given: tuple[Array, ...], like: Parameters) -> Parameters:
    """The parameters of what the kernels return."""
    initial, transition, loc, coefficients, scale = given
    wide = np.repeat(loc[:, np.newaxis], loc.shape[1], 1)
    chain = (initial, transition) if len(like) > 4 else (transition,)
    return Parameters((*chain, wide, coefficients, scale))
