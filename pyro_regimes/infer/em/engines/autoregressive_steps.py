"""EM steps of Hamilton's autoregression on arrays.

There are no tensor operations or matrix products between the compiled loops: these would wake
threads of other libraries. A step is ordinary if every regime has weight and is left, normal
equations determine their solution, and second moments about the means keep their digits.
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
    rows: Flags  #: rows of the transition matrix, ``(K,)``
    loc: bool  #: whether the means
    coefficients: npt.NDArray[np.int64]  #: the owner of those of each regime, ``(K,)``
    scale: npt.NDArray[np.int64]  #: likewise, ``(K,)``


class _Sums(NamedTuple):
    """The E-step of P models."""

    log_likelihood: Array  #: ``(P,)``
    first: Array  #: probabilities of the first tuple, ``(P, S)``
    counts: Array  #: of the steps between rows, ``(P, K, K)``
    moments: Array  #: of each tuple, ``(P, S, p + 2, p + 2)``
    origin: Array  #: of these, ``(P or 1,)``


class AutoregressiveEM:
    """EM steps for N series of P independent models, N / P to each in turn.

    Parameters are initial ``(P, K)`` and transition probabilities ``(P, K, K)``, means
    ``(P, K, K)`` of which all rows are alike, coefficients ``(P, K, p)`` and scales ``(P, K)``.

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
        #: Whether chains start from their stationary distributions, of which ``initial`` is filled.
        self.is_stationary = False
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
        # (1 or P, 1 or each, T, M)
        self._products = np.ascontiguousarray(full[..., left] * full[..., right])
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
        given = _narrow(parameters)
        sums = self._expect(given, chosen)
        new, ordinary = self._maximise_chain(sums, *given[:2])
        found, is_set = tuple(map(np.empty_like, given[2:])), np.empty_like(ordinary)
        now = (sums.moments, sums.origin, *given[2:], *self._updates[2:], self._floor, _TINY)
        self._kernels.maximise(*now, *found, is_set)
        ordinary &= is_set & np.isfinite(sums.log_likelihood)
        after = _wide((*new, *found))
        return Step(sums.log_likelihood, after, ordinary, bool(ordinary.all()))

    def _expect(self, given: tuple[Array, ...], chosen: npt.NDArray[np.int64]) -> _Sums:
        """The E-step of some models."""
        num_models, each, has_own = len(chosen), self._each, len(self._products) > 1
        start, logits = np.empty((num_models, self._num_tuples)), np.empty_like(given[1])
        self._kernels.prepare(*given[:2], logits, start)
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
        products = products.reshape((-1,) + products.shape[2:])
        sums = of_models(ops.fused_em().sum_products(products, gamma), num_models)  # (P, S, M)
        return _Sums(
            of_models(value, num_models),
            of_models(gamma[:, 0], num_models),
            of_models(moved[:, 0], num_models).copy(),
            np.ascontiguousarray(sums[..., self._place]),
            origin,
        )

    def _maximise_chain(
        self, sums: _Sums, initial: Array, transition: Array
    ) -> tuple[tuple[Array, Array], Flags]:
        """The M-step of the chain, and of which models it is ordinary; overwrites the counts."""
        counts, free, kernels = sums.counts, self._updates.rows, self._kernels
        starts, new, size = np.empty_like(initial), np.empty_like(transition), counts.shape[1]
        kernels.count(sums.first, counts, starts)
        ordinary: Flags = np.ones(len(counts), dtype=np.bool_)
        if not free.any():
            new = transition
        elif self.is_stationary:
            kernels.maximise_stationary(counts, starts, transition, _TINY, LIMITS, new, ordinary)
            known = np.empty_like(ordinary)
            initial = np.empty_like(initial)
            kernels.fill_stationary(new, initial, known)
            ordinary &= known
        else:
            flat = (each.reshape(-1, size) for each in (counts, transition))
            kernels.fill_shares(*flat, _TINY, new.reshape(-1, size))
            new = np.where(free[:, np.newaxis], new, transition)
        if self._updates.initial:
            initial = starts / starts.sum(1, keepdims=True)
        is_left = (counts.sum(-1) > _TINY) | ~free
        return (initial, new), ordinary & is_left.all(1) & np.isfinite(new).all((1, 2))

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """Extrapolate two steps of any models; see :func:`.cpu.lagged_extrapolation.squarem`."""
        every = [_narrow(each) for each in (before, now, after)]
        new, lengths = tuple(map(np.empty_like, every[2])), np.empty(len(bounds))
        out, limits = new, (self._floor, _TINY, LEAST_SHARE)
        if self.is_stationary:  # the initial probabilities are no parameters
            *every, out = ((each[0][:, :0], *each[1:]) for each in (*every, new))
        self._kernels.squarem(*every, tuple(self._updates), *limits, bounds, out, lengths)
        if self.is_stationary:
            known = np.empty(len(bounds), dtype=np.bool_)
            self._kernels.fill_stationary(new[1], new[0], known)
            lengths[~known] = 0.0
        return _wide(new), lengths


def _narrow(parameters: Parameters) -> tuple[Array, ...]:
    """With means ``(P, K)``, as the kernels take them."""
    initial, transition, loc, coefficients, scale = parameters
    return initial, transition, np.ascontiguousarray(loc[:, 0]), coefficients, scale


def _wide(given: tuple[Array, ...]) -> Parameters:
    """The parameters of what the kernels return."""
    initial, transition, loc, coefficients, scale = given
    wide = np.repeat(loc[:, np.newaxis], loc.shape[1], 1)
    return Parameters((initial, transition, wide, coefficients, scale))
