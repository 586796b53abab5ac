"""The CPU kernel: the scaled sweep, and in log space whatever that could not do exactly.

Arguments arrive checked and flat from :mod:`pyro_regimes.kernels.ops`: ``initial_logits``
``(N or 1, K)``, ``transition_logits`` ``(N or 1, 1 or T-1, K, K)``, ``observation_logits``
``(N, T, K)`` and ``lengths`` ``(N,)`` or None. float32 is read and written as it is; all arithmetic
in between is float64.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.kernels import cpu_log, cpu_scaled
from pyro_regimes.kernels.jit import spread

#: The fewest numbers in ``observation_logits`` that are worth waking another thread for.
_GRAIN = 20_000

_NOTHING = torch.empty(0, 0, 0)


def _arrays(*tensors: Tensor) -> list[npt.NDArray[np.generic]]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _lengths(lengths: Tensor | None, num_sequences: int, num_steps: int) -> npt.NDArray[np.int64]:
    if lengths is None:
        return np.full(num_sequences, num_steps)
    return lengths.to(torch.int64).contiguous().numpy()


def _grain(observation_logits: Tensor) -> int:
    """The fewest sequences that are worth a thread."""
    return 1 + _GRAIN // max(1, observation_logits[:1].numel())


def _run(
    chain: tuple[Tensor, Tensor, Tensor],
    lengths: Tensor | None,
    smoothed: Tensor,
    moved: Tensor,
) -> Tensor:
    """Fill ``smoothed`` and ``moved``, unless they are empty.

    :return: log-likelihoods ``(N,)``, float64.
    """
    initial, transition, observation = _arrays(*chain)
    num_sequences, num_steps, num_states = observation.shape
    log_likelihood = np.empty(num_sequences)
    redo = np.ones(num_sequences, dtype=np.bool_)
    out = (log_likelihood, smoothed.numpy(), moved.numpy(), redo)
    sizes = _lengths(lengths, num_sequences, num_steps)
    given = (initial, transition, observation, sizes)

    def work(sweep, first: int, last: int) -> None:  # type: ignore[no-untyped-def]
        sweep(*given, first, last, *out)

    grain = _grain(chain[2])
    if num_states <= cpu_scaled.MAX_STATES:
        spread(partial(work, cpu_scaled.sweep(num_states)), num_sequences, grain)
    if redo.any():
        spread(partial(work, cpu_log.sweep), num_sequences, grain)
    return torch.from_numpy(log_likelihood)


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> Tensor:
    """:math:`\\log p(x)` by the forward sweep alone, ``(N,)``, float64."""
    nothing = observation_logits.new_empty((0, 0, 0))
    moved = observation_logits.new_empty((0, 0, 0, 0))
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


def tangent(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
    along_transition: Tensor,
    along_observation: Tensor,
) -> tuple[Tensor, Tensor]:
    """Derivatives of gamma and xi along a direction; see :func:`.cpu_log.tangent`.

    :param along_transition: of the shape of xi.
    :param along_observation: ``(N, T, K)``.
    """
    smoothed, moved = _empty_posterior(transition_logits, observation_logits)
    given = _arrays(initial_logits, transition_logits, observation_logits)
    sizes = _lengths(lengths, *given[2].shape[:2])
    along = _arrays(along_transition, along_observation)
    out = smoothed.numpy(), moved.numpy()

    def work(first: int, last: int) -> None:
        cpu_log.tangent(*given, sizes, *along, first, last, *out)

    spread(work, len(smoothed), _grain(observation_logits))
    return smoothed, moved


def _empty_posterior(transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
    smoothed = torch.empty_like(observation, memory_format=torch.contiguous_format)
    return smoothed, observation.new_empty((len(observation),) + transition.shape[1:])
