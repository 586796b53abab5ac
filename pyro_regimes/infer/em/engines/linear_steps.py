r"""EM steps on arrays where the density is linear in functions of the observation.

The functions, the coefficients and the updates are those of the family (:class:`.Linear`); the
functions of the data are computed once. The loops over the data are compiled. What has the size of
an argument is left to the family, in a few tensor operations.

A step is ordinary if that of the chain is (:mod:`.chain_steps`), and if the new argument is valid
and all coefficients by which numbers are multiplied are finite.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.emissions.base import Argument, Linear, apply, blocks
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


class Updates(NamedTuple):
    """What the M-step sets, alike in all models. Everything else is held fixed."""

    initial: bool  #: whether the initial probabilities
    rows: Flags  #: rows of the transition matrix, ``(K,)``
    blocks: Tensor | None  #: blocks of the observations' argument, ``(B,)``; None for all


class Emission(NamedTuple):
    """How the observations depend on their argument."""

    linear: Linear
    argument: Argument
    event_shape: torch.Size
    dtype: torch.dtype  #: of the argument


class LinearEM(ChainEM):
    """See :class:`.ChainEM`.

    :param value: the functions of the data, ``(V, T, S)``, or rows of the table, ``(V, T, D)``:
        that of element d and category c is d C + c, and the last one, D C, is for missing
        observations.
    :param like: parameters of the P models: probabilities, and the argument of the observations
        ``(P, K, *event, *block)``.
    :param dtype: that of densities, float32 or float64.
    """

    def __init__(
        self,
        value: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        like: Parameters,
        updates: Updates,
        pseudo: Pseudo,
        emission: Emission,
        dtype: Any,
    ) -> None:
        super().__init__(value, lengths, like, pseudo, dtype, ())
        self._updates, self._emission = updates, emission
        self._natural_shape = self._natural(like).shape[1:]
        self._num_rows = 1 + self._natural_shape[1:].numel()  # of a table

    def _natural(self, parameters: Parameters) -> Tensor:
        """The coefficients of the functions of the data, ``(P, K, *event, ...)``."""
        linear, _, event_shape, _ = self._emission
        return linear.natural(torch.from_numpy(parameters[2]), len(event_shape))

    def _fill_densities(
        self, parameters: Parameters, rows: Rows, models: Flags | None
    ) -> tuple[Array, Flags]:
        """See :meth:`.ChainEM._fill_densities`."""
        log_prior = np.empty(len(parameters[0]))
        given = (*parameters[:2], *rows.pseudo[:2], *rows.prepared)
        self._kernels.prepare_chain(*given, log_prior)
        return log_prior, self._fill_density(rows.pair, self._natural(parameters))

    def _sum_moments(
        self, parameters: Parameters, rows: Rows, models: Flags | None, sound: Flags
    ) -> tuple[Array, ...]:
        """See :meth:`.ChainEM._sum_moments`."""
        return (self._sums(rows.value, rows.fields[1], len(parameters[0])),)

    def _make_step(self, parameters: Parameters, sums: Sums) -> Step:
        """See :meth:`.ChainEM._make_step`."""
        initial, transition, argument = parameters
        pseudo, is_sound = sums.pseudo, sums.is_sound
        given = sums.starts + pseudo[0], sums.counts + pseudo[1], initial, transition
        new, ordinary = Parameters(map(np.empty_like, parameters)), np.empty(len(initial), np.bool_)
        self._kernels.maximise_chain(
            *given, *self._updates[:2], self._least, *new[:2], ordinary
        )
        moments = sums.moments[0].reshape((len(initial), *self._natural_shape))
        ordinary &= self._maximise(argument, moments, new[2])
        total = sums.log_prior + sums.log_likelihood
        if not is_sound.all():
            total[~is_sound] = np.nan
            ordinary &= is_sound
        return Step(total, new, ordinary, bool(ordinary.all()))

    def _fill_density(
        self, pair: tuple[npt.NDArray[Any], npt.NDArray[Any]], natural: Tensor
    ) -> Flags:
        """Fill the densities; of which models they are known, ``(P,)``."""
        if self._emission.linear.is_table:
            table = np.zeros((len(natural), self._num_rows, natural.shape[1]))
            table[:, :-1] = natural.flatten(2).mT.numpy()
            self._kernels.fill_lookups(pair[0], table, pair[1])
            return np.ones(len(natural), dtype=np.bool_)
        self._kernels.fill_products(pair[0], natural.contiguous().numpy(), pair[1])
        finite: Flags = natural.isfinite().flatten(1).all(-1).numpy()
        return finite

    def _sums(self, value: npt.NDArray[Any], weights: npt.NDArray[Any], num_models: int) -> Array:
        """The expected sums of the functions of the data, ``(P, K, S)``."""
        if self._emission.linear.is_table:
            sums = self._kernels.sum_lookups(value, weights, num_models, self._num_rows)
            return sums[:, :-1].swapaxes(1, 2)
        return of_models(self._kernels.sum_products(value, weights), num_models)

    def _maximise(self, old: Array, sums: Array, new: Array) -> Flags:
        """Fill the new argument; of which models it is valid, ``(P,)``.

        :param sums: of the shape of the coefficients.
        """
        linear, argument, event_shape, dtype = self._emission
        stats = linear.statistics(torch.from_numpy(sums), event_shape)
        num_lead = old.ndim - argument.event_dim
        stats = argument.reduce(stats, {}, False)
        pooled = apply(lambda part: blocks(part, part.dim() - num_lead), stats)
        now = blocks(torch.from_numpy(old), argument.event_dim).to(dtype)
        found = argument.maximise(pooled, now, 0.0).to(dtype)
        valid = argument.sound(found)
        if self._updates.blocks is not None:
            free = self._updates.blocks.repeat(len(old)).reshape((-1,) + (1,) * argument.event_dim)
            found, valid = torch.where(free, found, now), valid | ~free
        new[:] = found.numpy().reshape(old.shape)
        flags: Flags = valid.reshape(len(old), -1).all(-1).numpy()
        return flags
