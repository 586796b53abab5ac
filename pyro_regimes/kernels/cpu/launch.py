"""The CPU kernel: the scaled sweep, and log space for sequences where that is not exact.

:mod:`pyro_regimes.kernels.ops` checks and flattens the arguments: ``initial_logits``
``(N or 1, K)``, ``transition_logits`` ``(N or 1, 1 or T-1, K, K)``, ``observation_logits``
``(N, T, K)`` and ``lengths`` ``(N,)`` or None. Inputs and results may be float32; all arithmetic is
float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any, Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.kernels.cpu import filtering, log_space, moves, sampling, scaled
from pyro_regimes.kernels.cpu import tangent as tangents
from pyro_regimes.kernels.cpu import viterbi as viterbi_kernels
from pyro_regimes.kernels.cpu.jit import spread, spread_rows

Array = npt.NDArray[Any]

#: The fewest numbers in ``observation_logits`` that are worth waking another thread for.
_GRAIN = 20_000
#: The fewest states for which it is worth looking whether a chain goes from left to right.
_FEWEST = 5


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate results; tests fill them with NaN to detect unwritten elements."""
    return torch.empty(shape, dtype=dtype, device="cpu")  # whatever the default device


def _arrays(*tensors: Tensor) -> list[npt.NDArray[np.generic]]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _lengths(lengths: Tensor | None, num_sequences: int, num_steps: int) -> npt.NDArray[np.int64]:
    if lengths is None:
        return np.full(num_sequences, num_steps)
    sizes = lengths.to(torch.int64).contiguous().numpy()
    if num_sequences and not (1 <= sizes.min() and sizes.max() <= num_steps):
        # Compiled graphs come here unchecked, and a kernel would go beyond its memory.
        raise ValueError(
            f"expected lengths from 1 to {num_steps}, got from {sizes.min()} to {sizes.max()}"
        )
    return sizes


def _grain(observation_logits: Tensor) -> int:
    """The fewest sequences that are worth a thread."""
    return 1 + _GRAIN // max(1, observation_logits[:1].numel())


def _run(
    chain: tuple[Tensor, Tensor, Tensor],
    lengths: Tensor | None,
    smoothed: Tensor,
    moved: Tensor,
    filtered: Tensor | None = None,
) -> Tensor:
    """Fill ``smoothed`` and ``moved``, unless they are empty, and ``filtered``, if given.

    :return: log-likelihoods ``(N,)``, float64.
    """
    given = _arrays(*chain)
    num_sequences, num_steps, _ = given[2].shape
    log_likelihood = _empty((num_sequences,), torch.float64)
    redo = np.ones(num_sequences, dtype=np.bool_)
    out = (log_likelihood.numpy(), smoothed.numpy(), moved.numpy(), redo)
    sizes = _lengths(lengths, num_sequences, num_steps)
    every = (*given, sizes, np.zeros_like(sizes))
    if filtered is None:
        sweep_arrays(every, out)
        return log_likelihood
    unfiltered = sweep_arrays(every, out, filtered.numpy())
    if unfiltered.any():
        again = torch.from_numpy(unfiltered)
        initial, transition, observation = (
            each[again] if len(each) == num_sequences else each for each in chain
        )
        remaining = torch.from_numpy(sizes)[again]
        probs = filter_logits(initial, transition, observation, remaining).exp()
        padding = torch.arange(num_steps, device="cpu") >= remaining.unsqueeze(-1)
        filtered[again] = probs.masked_fill(padding.unsqueeze(-1), 0.0)
    return log_likelihood


def sweep_arrays(
    given: tuple[Array, ...], out: tuple[Array, ...], filtered: Array | None = None
) -> npt.NDArray[np.bool_]:
    """The E-step on arrays: the scaled sweep, then log space for the sequences that it reports.

    :param given: initial, transition and observation logits ``(N, T, K)``, and the lengths and
        beginnings of S sequences (:mod:`.cpu.chain`).
    :param out: log-likelihoods, gamma, xi and the reports; see :func:`.scaled.sweep`.
    :param filtered: filled with the filtered probabilities by the scaled sweep.
    :return: the sequences that are left out of ``filtered``.
    """
    num_states, lengths = given[2].shape[2], given[3]
    redo = out[3]
    unfiltered = np.ones(len(lengths), dtype=np.bool_)
    if filtered is None:
        filtered = np.empty((0, 0, 0), dtype=out[1].dtype)
    grain = 1 + _GRAIN // max(1, num_states)
    if num_states <= scaled.MAX_STATES:
        every = (*out, filtered, unfiltered)
        for first, last, kind in _kinds(given[1], len(lengths)):
            task = partial(_call, scaled.sweep(num_states, kind), given, every)
            spread_rows(task, lengths, grain, first, last)
    if redo.any():
        spread_rows(partial(_call, log_space.sweep, given, out), lengths, grain)
    return unfiltered


def _kinds(transition: Array, num_sequences: int) -> Iterator[tuple[int, int, bool]]:
    """Ranges of sequences whose chains go from left to right, or do not."""
    if transition.shape[1] > 1 or transition.shape[2] < _FEWEST or not num_sequences:
        yield 0, num_sequences, False
        return
    found = np.empty(len(transition), dtype=np.bool_)
    moves.find_two_diagonals(transition, found)
    each, first = num_sequences // len(found), 0
    for kind, several in groupby(found.tolist()):
        last = first + each * len(list(several))
        yield first, last, kind
        first = last


def _call(
    sweep: Callable[..., None],
    given: tuple[Array, ...],
    out: tuple[Array, ...],
    first: int,
    last: int,
) -> None:
    sweep(*given, first, last, *out)


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> Tensor:
    """:math:`\\log p(x)` by the forward sweep alone, ``(N,)``, float64."""
    dtype = observation_logits.dtype
    nothing, moved = _empty((0, 0, 0), dtype), _empty((0, 0, 0, 0), dtype)
    chain = (initial_logits, transition_logits, observation_logits)
    return _run(chain, lengths, nothing, moved)


def expectations(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The E-step.

    :return: log-likelihood ``(N,)``, in float64; gamma ``(N, T, K)``; and xi, summed over time
        ``(N, 1, K, K)``, or ``(N, T-1, K, K)`` where A varies in time.
    """
    smoothed, moved = _empty_posterior(transition_logits, observation_logits)
    chain = (initial_logits, transition_logits, observation_logits)
    return _run(chain, lengths, smoothed, moved), smoothed, moved


def packed_expectations(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor,
    both: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The E-step where each of the N rows holds sequences of these lengths ``(S,)``, in turn.

    A is constant in time.

    :param both: False for the forward sweep alone, whose gamma is empty, and xi undefined.
    :return: log-likelihood ``(N,)`` and xi ``(N, 1, K, K)``, of each row the sums over its
        sequences; and gamma ``(N, T, K)``.
    """
    num_rows, num_steps, num_states = observation_logits.shape
    sizes = lengths.to(torch.int64).expand(num_rows, -1).contiguous().numpy()
    begins = sizes.cumsum(1) - sizes
    dtype = observation_logits.dtype
    smoothed = _empty((num_rows, num_steps, num_states) if both else (0, 0, 0), dtype)
    each = (sizes.size, 1, num_states, num_states)
    moved = _empty(each if both else (0, 0, 0, 0), torch.float64)  # to be added up
    value = _empty((sizes.size,), torch.float64)
    redo = np.ones(sizes.size, dtype=np.bool_)
    chain = _arrays(initial_logits, transition_logits, observation_logits)
    given = (*chain, sizes.reshape(-1), begins.reshape(-1))
    sweep_arrays(given, (value.numpy(), smoothed.numpy(), moved.numpy(), redo))
    if both:
        moved = moved.reshape((num_rows, -1) + moved.shape[1:]).sum(1)
    return value.reshape(num_rows, -1).sum(1), smoothed, moved


def posterior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The E-step and the filter, from one forward sweep.

    :return: the results of :func:`expectations`, and the filtered probabilities ``(N, T, K)``, 0 on
        padding.
    """
    smoothed, moved = _empty_posterior(transition_logits, observation_logits)
    filtered = _empty(observation_logits.shape, observation_logits.dtype)
    chain = (initial_logits, transition_logits, observation_logits)
    return _run(chain, lengths, smoothed, moved, filtered), smoothed, moved, filtered


def filter_probs(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The log-likelihood ``(N,)`` and the filtered probabilities, from the forward sweep alone."""
    dtype = observation_logits.dtype
    nothing, moved = _empty((0, 0, 0), dtype), _empty((0, 0, 0, 0), dtype)
    filtered = _empty(observation_logits.shape, dtype)
    chain = (initial_logits, transition_logits, observation_logits)
    return _run(chain, lengths, nothing, moved, filtered), filtered


def tangent(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
    along_transition: Tensor,
    along_observation: Tensor,
) -> tuple[Tensor, Tensor]:
    """Derivatives of gamma and xi along a direction; see :mod:`.cpu.tangent`.

    :param along_transition: of the shape of xi.
    :param along_observation: ``(N, T, K)``.
    """
    smoothed, moved = _empty_posterior(transition_logits, observation_logits)
    given = _arrays(initial_logits, transition_logits, observation_logits)
    sizes = _lengths(lengths, *given[2].shape[:2])
    along = _arrays(along_transition, along_observation)
    out = smoothed.numpy(), moved.numpy()

    def work(first: int, last: int) -> None:
        tangents.tangent(*given, sizes, *along, first, last, *out)

    spread(work, len(smoothed), _grain(observation_logits))
    return smoothed, moved


def _empty_posterior(transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
    moved = _empty((len(observation),) + transition.shape[1:], observation.dtype)
    return _empty(observation.shape, observation.dtype), moved


def filter_logits(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> Tensor:
    """:math:`\\log p(q_t \\mid x_1, \\dots, x_t)`; see :func:`.cpu.filtering.filter_sweep`.

    :return: ``(N, T, K)``, -inf from where a sequence has become impossible on.
    """
    logits = _empty(observation_logits.shape, observation_logits.dtype)
    chain = (initial_logits, transition_logits, observation_logits)
    _filter(chain, lengths, logits, _empty((0, 0, 0), logits.dtype))
    return logits


def _filter(
    chain: tuple[Tensor, Tensor, Tensor], lengths: Tensor | None, logits: Tensor, probs: Tensor
) -> npt.NDArray[np.bool_]:
    """:return: which sequences had to be done again in log space."""
    given = _arrays(*chain)
    sizes = _lengths(lengths, *given[2].shape[:2])
    redo = np.ones(len(logits), dtype=np.bool_)
    out = logits.numpy(), probs.numpy(), redo

    def work(first: int, last: int) -> None:
        filtering.filter_sweep(*given, sizes, first, last, *out)

    def work_again(first: int, last: int) -> None:
        log_space.filter_sweep(*given, sizes, first, last, out[0], redo)

    spread(work, len(logits), _grain(chain[2]))
    if redo.any():
        spread(work_again, len(logits), _grain(chain[2]))
        if len(probs):
            again = torch.from_numpy(redo)
            probs[again] = logits[again].exp().to(probs.dtype)
    return redo


def viterbi(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> Tensor:
    """The most likely path, LongTensor ``(N, T)``; see :func:`.cpu.viterbi.viterbi`."""
    num_sequences, num_steps, num_states = observation_logits.shape
    paths = _empty((num_sequences, num_steps), torch.long)
    given = _arrays(initial_logits, transition_logits, observation_logits)
    sizes = _lengths(lengths, num_sequences, num_steps)
    out = paths.numpy(), np.ones(num_sequences, dtype=np.bool_)

    def work(first: int, last: int) -> None:
        origins = viterbi_kernels.back_pointers(num_steps, num_states)
        viterbi_kernels.viterbi(num_states)(*given, sizes, first, last, origins, *out)

    def work_again(first: int, last: int) -> None:
        viterbi_kernels.exact_viterbi(*given, sizes, first, last, *out)

    spread(work, num_sequences, _grain(observation_logits))
    if out[1].any():
        spread(work_again, num_sequences, _grain(observation_logits))
    return paths


def sample_posterior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
    num_samples: int,
) -> Tensor:
    """Paths given the data, LongTensor ``(num_samples * N, T)``, the sequence varying fastest.

    One uniform number for every step comes from torch's generator; see
    :func:`.cpu.sampling.posterior_paths`.
    """
    shape = observation_logits.shape
    logits, probs = _empty(shape, torch.float64), _empty(shape, torch.float64)
    chain = (initial_logits, transition_logits, observation_logits)
    redone = _filter(chain, lengths, logits, probs)
    matrix = _weights(transition_logits, (-2, -1)).mT
    given = _arrays(logits, probs, transition_logits, matrix)
    sizes = _lengths(lengths, *shape[:2])
    exact = np.where(redone, np.cumsum(redone) - 1, -1)
    shares = _origins(chain, sizes, np.flatnonzero(redone))
    paths = _empty((num_samples * shape[0], shape[1]), torch.long)
    draw = partial(sampling.posterior_paths, *given, sizes, exact, shares)
    sampling.draw_paths(draw, paths, _GRAIN)
    return paths


def _origins(
    chain: tuple[Tensor, Tensor, Tensor],
    sizes: npt.NDArray[np.int64],
    sequences: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """The shares of :func:`.log_space.origins`; empty, with 4 dims, where no sequence needs it."""
    num_steps, num_states = chain[2].shape[1:]
    shares = np.empty((len(sequences), num_steps - 1, num_states, num_states))
    if len(sequences):
        given = _arrays(*chain)

        def work(first: int, last: int) -> None:
            log_space.origins(*given, sizes, sequences, first, last, shares)

        spread(work, len(sequences), _grain(chain[2]))
    return shares


def sample_prior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    num_sequences: int,
    num_steps: int,
    num_samples: int,
) -> Tensor:
    """Paths without data, LongTensor ``(num_samples * N, T)``, the sequence varying fastest.

    One uniform number for every step comes from torch's generator; see
    :func:`.cpu.sampling.prior_paths`.
    """
    given = _arrays(initial_logits, transition_logits, _weights(transition_logits, (-1,)))
    paths = _empty((num_samples * num_sequences, num_steps), torch.long)
    sampling.draw_paths(partial(sampling.prior_paths, *given, num_sequences), paths, _GRAIN)
    return paths


def _weights(transition_logits: Tensor, over: tuple[int, ...]) -> Tensor:
    """:math:`e^A`, the largest entry over some dims scaled to 1; empty where A varies in time.

    There each step is taken once for a path, from logarithms.
    """
    if transition_logits.shape[1] != 1:
        return _empty((0, 0, 0, 0), torch.float64)
    logits = transition_logits.double()
    peak = logits.amax(over, keepdim=True)
    return (logits - peak.masked_fill(peak == -torch.inf, 0.0)).exp()
