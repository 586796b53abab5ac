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

from pyro_regimes.chain import stationary
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


class Seam(NamedTuple):
    """What the rows before and after a piece of a sequence say of its ends, for N rows."""

    #: log-probabilities of the state before the piece, ``(N, K)``; None if a sequence begins there
    before: Array | None
    after: Array | None  #: of the rows after it, given its last state, ``(N, K)``; None at the end


class Sums(NamedTuple):
    """The E-step of P models, on all data or on a chunk of them."""

    log_likelihood: Array  #: ``(P,)``
    starts: Array  #: ``(P, K)``
    counts: Array  #: of transitions, ``(P, K, K)``
    moments: tuple[Array, ...]  #: of the observations, ``(P, ...)``
    log_prior: Array  #: ``(P,)``
    is_sound: Flags  #: whether the densities are known, ``(P,)``
    pseudo: Pseudo

    def plus(self, other: Sums) -> Sums:
        """The sums over two chunks; priors count once."""
        return self._replace(
            log_likelihood=self.log_likelihood + other.log_likelihood,
            starts=self.starts + other.starts,
            counts=self.counts + other.counts,
            moments=tuple(
                one + more for one, more in zip(self.moments, other.moments, strict=True)
            ),
        )


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
    seen: Any = None  #: the value where entries are missing, as kernels take it


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
        self._kernels = ops.fused_em()
        self._dtype, self._shapes = np.dtype(dtype), tuple(shapes)
        self._each = len(lengths) // len(like[0])
        self._least = float(np.finfo(self._dtype).tiny)  #: probability that is not 0
        #: Whether chains start from their stationary distributions, of which ``initial`` is filled.
        self.is_stationary = False
        nothing: npt.NDArray[Any] = np.empty(0, self._dtype)
        #: for density and gamma
        self._room: tuple[npt.NDArray[Any], npt.NDArray[Any]] = nothing, nothing
        self._rows = self._make_rows(value, lengths, pseudo)

    def _make_rows(
        self, value: npt.NDArray[Any], lengths: npt.NDArray[np.int64], pseudo: Pseudo
    ) -> Rows:
        """Rows of data, in the work space of those before if that is large enough."""
        count, (num_steps, size) = len(lengths), value.shape[1:]
        num_models, num_states = pseudo.initial.shape
        models = count if num_models > 1 else 1
        chain = (num_states,), (1, num_states, num_states)
        prepared = tuple(np.empty((models, *shape)) for shape in (*chain, *self._shapes))
        shape = (count, num_steps, num_states)
        if len(self._room[0]) < count * num_steps * num_states:  # of the largest chunk
            room: npt.NDArray[Any] = np.empty(shape, self._dtype).reshape(-1)
            self._room = room, np.empty_like(room)
        used = count * num_steps * num_states
        density: npt.NDArray[Any] = self._room[0][:used].reshape(shape)
        gamma: npt.NDArray[Any] = self._room[1][:used].reshape(shape)
        found = (
            np.empty(lengths.size),
            np.empty((lengths.size, 1, num_states, num_states)),
            np.empty(lengths.size, dtype=np.bool_),
        )
        pair: tuple[npt.NDArray[Any], npt.NDArray[Any]] = value, density
        if models == 1 and len(value) == count:  # all steps of all sequences are alike
            pair = value.reshape(1, -1, size), density.reshape(1, -1, num_states)
        begins = lengths.cumsum(1) - lengths
        return Rows(value, lengths, begins, pseudo, prepared, (density, gamma), found, pair)

    def load(
        self,
        value: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        missing: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Go on with other data of the same models, which these share.

        :param value: as in the constructor, of one model: ``(N / P, T, D)``.
        :param lengths: of the sequences of one model, ``(N / P, S)``.
        :param missing: the missing entries, in the shape of the value; None if there are none.
        """
        num_models = len(self._rows.pseudo.initial)
        self._each = len(lengths)
        every = np.tile(lengths, (num_models, 1))
        self._rows = self._make_rows(value, every, self._rows.pseudo)
        if missing is not None:
            self._rows = self._rows._replace(seen=self._read_missing(value, every, missing))

    def _read_missing(
        self,
        value: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        missing: npt.NDArray[np.bool_],
    ) -> Any:
        """What the kernels take of data with missing entries."""
        raise NotImplementedError(f"{type(self).__name__} takes no missing entries")

    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """One EM step.

        :param models: the models whose parameters these are; None for all.
        """
        return self.maximise(parameters, self.expect(parameters, models)[0])

    def expect(
        self, parameters: Parameters, models: Flags | None = None, seam: Seam | None = None
    ) -> tuple[Sums, Array]:
        """The E-step.

        :param models: as in :meth:`step`.
        :param seam: where the data are a piece of one sequence in each of N rows.
        :return: also the log-probabilities of the states at the last row of each piece given the
            rows up to it, ``(N, K)``; without a seam they are not computed.
        """
        rows = self._rows if models is None else self._select(models)
        num_models = len(parameters[0])
        log_prior, sound = self._fill_densities(parameters, rows, models)
        value, starts, counts, last = self._sweep(rows, num_models, seam)
        moments = self._sum_moments(parameters, rows, models, sound)
        pseudo = rows.pseudo
        log_prior = log_prior + pseudo.constant
        return Sums(value, starts, counts, moments, log_prior, sound, pseudo), last

    def logits(self, parameters: Parameters, models: Flags | None) -> tuple[Array, Array, Array]:
        """Initial ``(N or 1, K)`` and transition ``(N or 1, 1, K, K)`` logits, and densities.

        The densities are ``(N, T, K)``.
        """
        rows = self._rows if models is None else self._select(models)
        self._fill_densities(parameters, rows, models)
        return rows.prepared[0], rows.prepared[1], rows.fields[0]

    def maximise(self, parameters: Parameters, sums: Sums) -> Step:
        """The M-step, from the sums over all data."""
        step = self._make_step(parameters, sums)
        return self._restart(step, parameters, sums) if self.is_stationary else step

    @abstractmethod
    def _make_step(self, parameters: Parameters, sums: Sums) -> Step:
        """The M-step of chains whose initial probabilities do not depend on the others."""

    def _restart(self, step: Step, parameters: Parameters, sums: Sums) -> Step:
        """The step with transitions that take the stationary start into account."""
        initial, transition = step.after[:2]
        known = np.empty(len(initial), dtype=np.bool_)
        given = sums.counts, sums.starts, parameters[1], self._least, stationary.LIMITS
        self._kernels.maximise_stationary(*given, transition, known)
        ordinary = step.is_ordinary & known
        self._kernels.fill_stationary(transition, initial, known)
        ordinary &= known
        return step._replace(is_ordinary=ordinary, is_whole=step.is_whole and bool(ordinary.all()))

    @abstractmethod
    def _fill_densities(
        self, parameters: Parameters, rows: Rows, models: Flags | None
    ) -> tuple[Array, Flags]:
        """Fill what the kernels take of the parameters, and the densities.

        :return: the log densities of the chain's priors, and of which models densities are known.
        """

    @abstractmethod
    def _sum_moments(
        self, parameters: Parameters, rows: Rows, models: Flags | None, sound: Flags
    ) -> tuple[Array, ...]:
        """The sums of the observations by gamma, of each model.

        :param sound: of which models densities are known, ``(P,)``.
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
            rows.seen,
        )

    def _sweep(
        self, rows: Rows, num_models: int, seam: Seam | None
    ) -> tuple[Array, Array, Array, Array]:
        """The E-step of the chain, which fills gamma.

        :return: log-likelihoods ``(P,)``, expected starts ``(P, K)`` and transitions ``(P, K, K)``;
            and the messages of :meth:`expect`.
        """
        (density, smoothed), (log_likelihood, moved, redo) = rows.fields, rows.found
        sequences = rows.lengths.reshape(-1), rows.begins.reshape(-1)
        initial, transition = rows.prepared[:2]
        if seam is not None and seam.after is not None:
            density[:, -1] += seam.after
        if seam is not None and seam.before is not None:
            initial, joint = _predicted(seam.before, transition)
        logits = (initial, transition, density, *sequences)
        self._kernels.sweep_arrays(logits, (log_likelihood, smoothed, moved, redo))
        starts, last = smoothed[:, 0].copy(), np.empty((0, 0))  # as the next chunk overwrites gamma
        if rows.begins.shape[1] > 1:
            starts = smoothed[:, rows.begins[0]].reshape(-1, starts.shape[-1])
        if seam is not None:
            last, size = _filtered(smoothed[:, -1], seam.after)
            log_likelihood += size
            if seam.before is not None:
                moved[:, 0] += joint * starts[:, np.newaxis]
                starts = np.zeros_like(starts)
        value, starts, counts = (
            of_models(each, num_models) for each in (log_likelihood, starts, moved[:, 0])
        )
        return value, starts, counts, last


def _predicted(before: Array, transition: Array) -> tuple[Array, Array]:
    """The log-probabilities of the first states ``(N, K)``, and the shares of those before."""
    joint = before[:, :, np.newaxis] + transition[:, 0]
    peak = joint.max(1, keepdims=True)
    peak[np.isneginf(peak)] = 0.0
    with np.errstate(divide="ignore"):
        found: Array = np.log(np.exp(joint - peak).sum(1)) + peak[:, 0]
    possible = np.where(np.isneginf(found), 0.0, found)
    return found, np.exp(joint - possible[:, np.newaxis])


def _filtered(smoothed: Array, after: Array | None) -> tuple[Array, Array]:
    """The filtered log-probabilities, from smoothed ones without the message from the rows after.

    :return: also what to add to a log-likelihood that has this message, ``(N,)``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(smoothed.astype(np.float64))
        if after is None:
            return found, np.zeros(len(found))
        found = np.where(smoothed > 0, found - after, -np.inf)
        peak = found.max(1, keepdims=True)
        peak[~np.isfinite(peak)] = 0.0
        size = np.log(np.exp(found - peak).sum(1)) + peak[:, 0]
        return found - np.where(np.isfinite(size), size, 0.0)[:, np.newaxis], size


def of_models(part: npt.NDArray[Any], num_models: int) -> Array:
    """The sums over the sequences or the rows of each model, float64."""
    if len(part) == num_models:
        return part
    parts = part.reshape((num_models, -1) + part.shape[1:])
    total: Array = parts.sum(1, dtype=np.float64)
    return total
