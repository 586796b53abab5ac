"""Sums over all paths, with checks of their arguments, which :mod:`.ops` describes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.kernels import autograd, dispatch, reference, transforms
from pyro_regimes.kernels.arguments import Chain, check, check_path, flatten


class Expectations(NamedTuple):
    """The results of the E-step: expectations of the hidden path."""

    log_likelihood: Tensor  #: ``(...)``, float64 whatever the dtype of the logits
    smoothed_probs: Tensor  #: ``(..., T, K)``, 0 on padding
    expected_transitions: Tensor  #: ``(..., K, K)``, or ``(..., T-1, K, K)`` where A varies in time


class Filtered(NamedTuple):
    """The results of the forward pass."""

    log_likelihood: Tensor  #: ``(...)``, float64 whatever the dtype of the logits
    filtered_probs: Tensor  #: ``(..., T, K)``, 0 on padding


class Posterior(NamedTuple):
    """The results of the forward and the backward pass."""

    log_likelihood: Tensor  #: ``(...)``, float64 whatever the dtype of the logits
    filtered_probs: Tensor  #: ``(..., T, K)``, 0 on padding
    smoothed_probs: Tensor  #: ``(..., T, K)``, 0 on padding
    expected_transitions: Tensor  #: ``(..., K, K)``, or ``(..., T-1, K, K)`` where A varies in time


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """:math:`\\log p(x)`, summed over all paths; see :func:`.reference.log_likelihood`.

    If no gradient is required, this is one forward sweep.

    :return: ``(...)``, float64 whatever the dtype of the logits; -inf, with gradient 0, where a
        sequence has probability 0.
    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    return _log_likelihood(check(initial_logits, transition_logits, observation_logits, lengths))


def _log_likelihood(chain: Chain) -> Tensor:
    name = dispatch.choose(chain.observation_logits)
    if name == "reference":
        return reference.log_likelihood(*chain)
    flat = flatten(chain)
    if transforms.is_plain(*flat):
        value = dispatch.kernel(name, flat.observation_logits.device).log_likelihood(*flat)
    else:
        value = autograd.log_likelihood(*flat, name)
    return value.reshape(chain.observation_logits.shape[:-2])


def expectations(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Expectations:
    """The E-step: log-likelihood, gamma and summed xi; see :func:`.reference.expectations`.

    All three are differentiable. The log-likelihood is float64; gamma and xi are of the dtype of
    the logits.

    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    return _expectations(check(initial_logits, transition_logits, observation_logits, lengths))


def _expectations(chain: Chain) -> Expectations:
    name = dispatch.choose(chain.observation_logits)
    if name == "reference":
        return Expectations(*reference.expectations(*chain))
    flat = flatten(chain)
    if transforms.is_plain(*flat):
        kernel = dispatch.kernel(name, flat.observation_logits.device)
        value, smoothed, moved = kernel.expectations(*flat)
    else:
        value, smoothed, moved = autograd.expectations(*flat, name)
    return Expectations(*_unflatten(chain, value, smoothed, _summed(chain, moved)))


def _summed(chain: Chain, moved: Tensor) -> Tensor:
    """Xi of flat sequences, without its time dim where A does not vary in time."""
    return moved.squeeze(1) if chain.transition_logits.shape[-3] == 1 else moved


def _unflatten(chain: Chain, value: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Restore the batch dims, and the dtype of all but the log-likelihood."""
    dtype, batch_shape = chain.observation_logits.dtype, chain.observation_logits.shape[:-2]
    return (
        value.reshape(batch_shape),
        *(part.to(dtype).reshape(batch_shape + part.shape[1:]) for part in parts),
    )


def posterior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Posterior:
    """The E-step and the filter; without gradients, on the CPU, from one forward pass.

    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    chain = check(initial_logits, transition_logits, observation_logits, lengths)
    kernel = dispatch.decoder(*chain)
    if kernel is None:
        value, smoothed, moved = _expectations(chain)
        return Posterior(value, _filter(chain), smoothed, moved)
    value, smoothed, moved, filtered = kernel.posterior(*flatten(chain))
    return Posterior(*_unflatten(chain, value, filtered, smoothed, _summed(chain, moved)))


def filter_probs(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Filtered:
    """:math:`\\log p(x)` and :math:`p(q_t \\mid x_1, \\dots, x_t)`, as in :func:`posterior`.

    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    chain = check(initial_logits, transition_logits, observation_logits, lengths)
    kernel = dispatch.decoder(*chain)
    if kernel is None:
        return Filtered(_log_likelihood(chain), _filter(chain))
    return Filtered(*_unflatten(chain, *kernel.filter_probs(*flatten(chain))))


def _filter(chain: Chain) -> Tensor:
    """The filtered probabilities by the reference, 0 on padding."""
    probs = reference.filter_logits(*chain).exp().to(chain.observation_logits.dtype)
    if chain.lengths is None:
        return probs
    time = torch.arange(probs.shape[-2], device=chain.lengths.device)
    return probs.masked_fill((time >= chain.lengths.unsqueeze(-1)).unsqueeze(-1), 0.0)


def filter_logits(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """:math:`\\log p(q_t \\mid x_1, \\dots, x_t)`; on padding, that of the last observation.

    :return: ``(..., T, K)``.
    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    chain = check(initial_logits, transition_logits, observation_logits, lengths)
    kernel = dispatch.decoder(*chain)
    if kernel is None:
        logits = reference.filter_logits(*chain)
    else:
        logits = kernel.filter_logits(*flatten(chain)).reshape(chain.observation_logits.shape)
    return logits.to(chain.observation_logits.dtype)


def predict_probs(
    initial_logits: Tensor, transition_logits: Tensor, filtered_probs: Tensor
) -> Tensor:
    """:math:`p(q_t \\mid x_1, \\dots, x_{t-1})`, one transition after each filtered probability.

    :param filtered_probs: ``(..., T, K)``.
    :return: ``(..., T, K)``.
    :raises ValueError: if shapes, dtypes or devices do not fit.
    """
    chain = check(initial_logits, transition_logits, filtered_probs, None)
    initial, transition, filtered, _ = chain
    if transition.shape[-3] != 1 or dispatch.decoder(*chain) is None:
        return reference.predict_probs(initial, transition, filtered)
    probs = torch.empty_like(filtered, memory_format=torch.contiguous_format)
    probs[..., 0, :] = initial.softmax(-1)
    with torch.autocast("cpu", enabled=False):  # a probability has more digits
        matrix = transition.softmax(-1).squeeze(-3)
        torch.matmul(filtered[..., :-1, :], matrix, out=probs[..., 1:, :])
    return probs


def complete_log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    path: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """:math:`\\log p(x, q)` of one path of states (equations 4 and 5).

    :param path: LongTensor ``(..., T)``.
    :return: ``(...)``.
    :raises ValueError: if shapes, dtypes, devices, lengths or the path do not fit.
    """
    chain = check(initial_logits, transition_logits, observation_logits, lengths)
    check_path(path, chain.observation_logits.shape)
    return reference.complete_log_likelihood(*chain[:3], path, chain.lengths)
