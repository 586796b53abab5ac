"""EM steps of independent hidden Markov models on arrays: what all observations have in common.

Here no tensor operations are executed between the compiled loops, nor anything allocated that grows
with the data. A step is ordinary if every state has weight and is left, and if the parameters of
the observations are as :mod:`.gaussian_steps` and :mod:`.linear_steps` require. Models for which a
step is not ordinary are reported, and the general path takes over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pyro_regimes.kernels import ops

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

P = TypeVar("P", bound="Parameters")


class Parameters(tuple[Array, ...]):
    """Of P independent models: initial and transition probabilities, then the observations'.

    All are float64: ``(P, K)``, ``(P, K, K)`` and ``(P, ...)``.
    """

    def select(self: P, models: Flags) -> P:
        """Those of some models."""
        return type(self)(each[models] for each in self)

    def where(self: P, models: Flags, others: P) -> P:
        """Those of some models, and others elsewhere."""
        return others.replaced(models, self.select(models))

    def replaced(self: P, models: Flags, new: P) -> P:
        """New ones of some models."""
        copies = type(self)(each.copy() for each in self)
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


class Pseudo(NamedTuple):
    """Dirichlet priors of P models: concentrations less one, and the logarithms of constants."""

    initial: Array  #: ``(P, K)``; 0 without a prior
    transition: Array  #: ``(P, K, K)``, likewise
    constant: Array  #: ``(P,)``


class Rows(NamedTuple):
    """The data and the work space of some models' sequences."""

    value: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]  #: ``(N, S)``
    begins: npt.NDArray[np.int64]  #: the first step of each sequence, ``(N, S)``
    pseudo: Pseudo
    prepared: tuple[Array, ...]  #: what the kernels take
    fields: tuple[npt.NDArray[Any], ...]  #: density and gamma, ``(N, T, K)``
    #: log-likelihoods, xi and which to do again, of N S sequences
    found: tuple[npt.NDArray[Any], ...]
    pair: tuple[npt.NDArray[Any], npt.NDArray[Any]]  #: the value and the densities, as kernels run


class ChainEM(ABC):
    """EM steps for N rows of P independent models, N / P to each in turn.

    :param value: ``(V, T, D)``; row n has that of n mod V.
    :param lengths: of the S sequences in each row, ``(N, S)``: one with its padding, or several
        that follow one another, the same in all rows.
    :param like: parameters of the P models.
    :param dtype: that of densities and gamma, float32 or float64.
    :param shapes: of what the kernels take of one model, after the logits of its chain.
    """

    def __init__(
        self,
        value: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        like: Parameters,
        pseudo: Pseudo,
        dtype: Any,
        shapes: Iterable[tuple[int, ...]],
    ) -> None:
        count, (num_steps, size) = len(lengths), value.shape[1:]
        num_models, num_states = like[0].shape
        self._each = count // num_models
        models = count if num_models > 1 else 1
        chain = (num_states,), (1, num_states, num_states)
        prepared = tuple(np.empty((models, *shape)) for shape in (*chain, *shapes))
        density = np.empty((count, num_steps, num_states), dtype)
        fields = density, np.empty_like(density)
        found = (
            np.empty(lengths.size),
            np.empty((lengths.size, 1, num_states, num_states)),
            np.empty(lengths.size, dtype=np.bool_),
        )
        self._kernels = ops.fused_em()
        pair = value, density
        if models == 1 and len(value) == count:  # all steps of all sequences are alike
            pair = value.reshape(1, -1, size), density.reshape(1, -1, num_states)
        begins = lengths.cumsum(1) - lengths
        self._rows = Rows(value, lengths, begins, pseudo, prepared, fields, found, pair)

    @abstractmethod
    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """One EM step.

        :param models: the models whose parameters these are; None for all.
        """

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """Extrapolate two steps of any models; see :func:`.cpu.extrapolation.squarem`."""
        raise NotImplementedError(f"{type(self).__name__} does not extrapolate")

    def keep(self, models: Flags) -> None:
        """Go on with some of the models."""
        self._rows = self._select(models)

    def _select(self, models: Flags) -> Rows:
        rows, chosen = self._rows, models.repeat(self._each)
        value, lengths = rows.value, rows.lengths[chosen]
        if len(value) > self._each:  # more than what every model has
            value = value[chosen]
        fields = tuple(part[: len(lengths)] for part in rows.fields)
        return Rows(
            value,
            lengths,
            rows.begins[chosen],
            Pseudo(*(each[models] for each in rows.pseudo)),
            tuple(part[: len(lengths)] for part in rows.prepared),
            fields,
            tuple(part[: lengths.size] for part in rows.found),
            (value, fields[0]),
        )

    def _sweep(self, rows: Rows, num_models: int) -> tuple[Array, Array, Array]:
        """The E-step, which fills gamma.

        :return: log-likelihoods ``(P,)``, expected starts ``(P, K)`` and transitions ``(P, K, K)``.
        """
        (density, smoothed), (log_likelihood, moved, redo) = rows.fields, rows.found
        sequences = rows.lengths.reshape(-1), rows.begins.reshape(-1)
        logits = (*rows.prepared[:2], density, *sequences)
        self._kernels.sweep_arrays(logits, (log_likelihood, smoothed, moved, redo))
        starts = smoothed[:, 0]
        if rows.begins.shape[1] > 1:
            starts = smoothed[:, rows.begins[0]].reshape(-1, starts.shape[-1])
        value, starts, counts = (
            of_models(each, num_models) for each in (log_likelihood, starts, moved[:, 0])
        )
        return value, starts, counts


def of_models(part: npt.NDArray[Any], num_models: int) -> Array:
    """The sums over the sequences or the rows of each model, float64."""
    if len(part) == num_models:
        return part
    parts = part.reshape((num_models, -1) + part.shape[1:])
    total: Array = parts.sum(1, dtype=np.float64)
    return total
