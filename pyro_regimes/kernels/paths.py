"""Paths of states, with checks of their arguments, which :mod:`.ops` describes."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from pyro_regimes.kernels import decoding, dispatch
from pyro_regimes.kernels.arguments import check, flatten


def viterbi(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """The most likely path; see :func:`.decoding.viterbi`.

    :return: LongTensor ``(..., T)``; -1 on padding and where a sequence has probability 0.
    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    chain = check(initial_logits, transition_logits, observation_logits, lengths)
    with torch.no_grad():
        kernel = dispatch.decoder(*chain)
        if kernel is None:
            return decoding.viterbi(*chain)
        path: Tensor = kernel.viterbi(*flatten(chain))
        return path.reshape(chain.observation_logits.shape[:-1])


def sample_posterior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
    sample_shape: torch.Size = torch.Size(),  # noqa: B008 (immutable)
) -> Tensor:
    """Draw paths given the whole sequence; see :func:`.decoding.sample_posterior`.

    :return: LongTensor ``sample_shape + (..., T)``; -1 on padding and where a sequence has
        probability 0.
    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    chain = check(initial_logits, transition_logits, observation_logits, lengths)
    with torch.no_grad():
        kernel = dispatch.decoder(*chain)
        if kernel is None:
            return decoding.sample_posterior(*chain, sample_shape)
        paths: Tensor = kernel.sample_posterior(*flatten(chain), torch.Size(sample_shape).numel())
        return paths.reshape(torch.Size(sample_shape) + chain.observation_logits.shape[:-1])


def sample_prior(
    initial_logits: Tensor, transition_logits: Tensor, num_steps: int, shape: torch.Size
) -> Tensor:
    """Draw paths from the chain, without observations.

    :param num_steps: T, at least 1.
    :param shape: shape of the result without the time dim.
    :return: LongTensor ``shape + (T,)``.
    :raises ValueError: if shapes, dtypes or devices do not fit.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 1:
        raise ValueError(f"expected num_steps to be a positive integer, got {num_steps!r}")
    num_states = initial_logits.shape[-1:].numel()
    nothing = initial_logits.new_zeros((num_steps, num_states))
    chain = check(initial_logits, transition_logits, nothing, None)
    batch_shape = chain.observation_logits.shape[:-2]
    if not _expands_to(batch_shape, torch.Size(shape)):
        raise ValueError(
            f"expected shape to be one that the batch shape {tuple(batch_shape)} expands to, got "
            f"{tuple(shape)}"
        )
    with torch.no_grad():
        kernel = dispatch.decoder(*chain)
        if kernel is None:
            return decoding.sample_prior(*chain[:2], num_steps, shape)
        shape = torch.Size(shape)
        # The last dims of the shape are the batch dims of the chain.
        batch_dim = len(shape) - (chain.observation_logits.dim() - 2)
        batch_shape = shape[batch_dim:]
        nothing = nothing[:1, :1].expand(batch_shape + (1, 1))
        initial, transition, *_ = flatten(chain._replace(observation_logits=nothing))
        count, num_samples = batch_shape.numel(), shape[:batch_dim].numel()
        paths: Tensor = kernel.sample_prior(initial, transition, count, num_steps, num_samples)
        return paths.reshape(shape + (num_steps,))


def _expands_to(shape: torch.Size, wanted: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, wanted) == wanted
    except RuntimeError:
        return False
