"""The one public door to the recursions: checks of shape, dtype and lengths, then the kernel.

The kernel is the compiled one of the tensors' device (:mod:`.cpu.launch`, :mod:`.cuda.launch`) or
the reference (:mod:`.reference`): :func:`backend` decides otherwise for a block of code.

Every function takes log tensors of one hidden Markov chain, or of a batch of them:

=======================  ===========================  ==========================================
argument                 shape                        meaning
=======================  ===========================  ==========================================
``initial_logits``       ``(..., K)``                 log initial probabilities
``transition_logits``    ``(..., 1 or T-1, K, K)``    log transition probabilities, (old, new)
``observation_logits``   ``(..., T, K)``              log density of each observation in each state
``lengths``              ``(...)`` integer            true lengths, 1 to T; None: all are T
=======================  ===========================  ==========================================

Batch dims ``...`` broadcast. None of the three needs to be normalised: they are free terms of the
path sum of :mod:`pyro_regimes.kernels.reference`. An entry of -inf is legal everywhere; NaN and
+inf are not checked for, and give NaN. Padding may hold anything.
"""

from __future__ import annotations

import functools
from numbers import Integral
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.kernels import autograd, decoding, dispatch, reference
from pyro_regimes.kernels.dispatch import backend
from pyro_regimes.kernels.shapes import broadcast

__all__ = [
    "Expectations",
    "backend",
    "check_lengths",
    "complete_log_likelihood",
    "expectations",
    "filter_logits",
    "has_fused_em",
    "log_likelihood",
    "predict_probs",
    "promoted_dtype",
    "sample_posterior",
    "sample_prior",
    "viterbi",
]


class Expectations(NamedTuple):
    """What the E-step knows of the hidden path."""

    log_likelihood: Tensor  #: ``(...)``, float64 whatever the dtype of the logits
    smoothed_probs: Tensor  #: ``(..., T, K)``, 0 on padding
    expected_transitions: Tensor  #: ``(..., K, K)``, or ``(..., T-1, K, K)`` where A varies in time


class _Chain(NamedTuple):
    """The checked arguments, with one dtype and their lengths broadcast to the batch."""

    initial_logits: Tensor
    transition_logits: Tensor
    observation_logits: Tensor
    lengths: Tensor | None


def promoted_dtype(*tensors: Tensor) -> torch.dtype:
    """The least dtype that holds all of theirs."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def check_lengths(lengths: Tensor, num_steps: int | None = None) -> None:
    """Refuse lengths that are not integers from 1 to ``num_steps``, where that is known.

    :raises ValueError: naming what was expected and what came.
    """
    if not isinstance(lengths, Tensor):
        raise ValueError(f"expected lengths to be an integer tensor, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"expected lengths to be an integer tensor, got dtype {lengths.dtype}")
    if not lengths.numel() or torch.compiler.is_compiling():
        return  # numbers are not known while a graph is compiled: the operators look at them
    if torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        return  # nor under vmap
    least, largest = int(lengths.min()), int(lengths.max())
    if least < 1 or (num_steps is not None and largest > num_steps):
        upper = "" if num_steps is None else f" to the {num_steps} time steps of the data"
        raise ValueError(f"expected lengths from 1{upper}, got from {least} to {largest}")


def _check(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> _Chain:
    named = {
        "initial_logits": (initial_logits, 1, "(..., K)"),
        "transition_logits": (transition_logits, 3, "(..., 1 or T-1, K, K)"),
        "observation_logits": (observation_logits, 2, "(..., T, K)"),
    }
    for name, (logits, event_dim, shape) in named.items():
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            came = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"expected {name} to be a floating point tensor, got {came}")
        if logits.dim() < event_dim:
            raise ValueError(
                f"expected {name} to have shape {shape}, got shape {tuple(logits.shape)}"
            )
    num_steps, num_states = observation_logits.shape[-2:]
    if num_steps < 1 or num_states < 1:
        raise ValueError(
            "expected observation_logits to hold at least one time step and one state, got shape "
            f"{tuple(observation_logits.shape)}"
        )
    if initial_logits.shape[-1] != num_states:
        raise ValueError(
            f"expected initial_logits to end in ({num_states},), got shape "
            f"{tuple(initial_logits.shape)}"
        )
    if transition_logits.shape[-2:] != (num_states, num_states):
        raise ValueError(
            f"expected transition_logits to end in ({num_states}, {num_states}), got shape "
            f"{tuple(transition_logits.shape)}"
        )
    # A tuple, since under torch.jit.trace sizes are tensors, which no set finds again.
    if transition_logits.shape[-3] not in (1, num_steps - 1):
        raise ValueError(
            f"expected transition_logits to have 1 or T - 1 = {num_steps - 1} time slices at "
            f"dimension -3, got shape {tuple(transition_logits.shape)}; for a batch of chains that "
            "do not vary in time use .unsqueeze(-3)"
        )
    tensors = [initial_logits, transition_logits, observation_logits]
    if lengths is not None:
        check_lengths(lengths, num_steps)
        tensors.append(lengths)
    device = observation_logits.device
    if any(tensor.device != device for tensor in tensors):
        devices = sorted({str(tensor.device) for tensor in tensors})
        raise ValueError(f"expected all arguments on one device, got {devices}")
    shapes = [logits.shape[:-dim] for logits, dim, _ in named.values()]
    if lengths is not None:
        shapes.append(lengths.shape)
    try:
        batch_shape = broadcast(*shapes)
    except RuntimeError as error:
        batches = dict(zip((*named, "lengths"), map(tuple, shapes)))
        raise ValueError(f"expected batch shapes that broadcast, got {batches}") from error
    dtype = promoted_dtype(initial_logits, transition_logits, observation_logits)
    return _Chain(
        initial_logits.to(dtype),
        transition_logits.to(dtype),
        observation_logits.to(dtype).expand(batch_shape + observation_logits.shape[-2:]),
        None if lengths is None else lengths.expand(batch_shape),
    )


def _check_path(path: Tensor, shape: torch.Size) -> None:
    num_steps, num_states = shape[-2:]
    if not isinstance(path, Tensor) or path.dtype != torch.long:
        came = path.dtype if isinstance(path, Tensor) else type(path).__name__
        raise ValueError(f"expected path to be a tensor of torch.long, got {came}")
    try:
        fits = path.dim() > 0 and path.shape[-1] == num_steps
        broadcast(path.shape[:-1], shape[:-2])
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"expected path to have a shape that broadcasts with {tuple(shape[:-1])}, got "
            f"{tuple(path.shape)}"
        )
    if path.numel() and not (0 <= int(path.min()) and int(path.max()) < num_states):
        raise ValueError(
            f"expected the states of path from 0 to {num_states - 1}, got from {int(path.min())} "
            f"to {int(path.max())}"
        )


class _Flat(NamedTuple):
    """The arguments as the compiled kernels take them: one batch dim, float32 or float64."""

    initial_logits: Tensor  # (N or 1, K)
    transition_logits: Tensor  # (N or 1, 1 or T-1, K, K)
    observation_logits: Tensor  # (N, T, K)
    lengths: Tensor | None  # (N,)


def _flatten(chain: _Chain) -> _Flat:
    initial, transition, observation, lengths = chain
    batch_shape = observation.shape[:-2]
    count = batch_shape.numel()

    def flat(logits: Tensor, event_dim: int) -> Tensor:
        event = logits.shape[logits.dim() - event_dim :]
        batch = logits.shape[: logits.dim() - event_dim]
        if batch.numel() == 1:  # shared by all sequences, and not copied
            return logits.reshape((1,) + event)
        return logits.expand(batch_shape + event).reshape((count,) + event)

    initial, transition = flat(initial, 1), flat(transition, 3)
    observation = observation.reshape((count,) + observation.shape[-2:])
    if observation.dtype not in (torch.float32, torch.float64):
        initial, transition, observation = (
            part.float() for part in (initial, transition, observation)
        )
    lengths = None if lengths is None else lengths.reshape(count)
    return _Flat(initial, transition, observation, lengths)


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """:math:`\\log p(x)`, summed over all paths; see :func:`.reference.log_likelihood`.

    Without a gradient to come it is one forward sweep.

    :return: ``(...)``, float64 whatever the dtype of the logits; -inf, with gradient 0, where a
        sequence has probability 0.
    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    chain = _check(initial_logits, transition_logits, observation_logits, lengths)
    name = dispatch.choose(chain.observation_logits)
    if name == "reference":
        return reference.log_likelihood(*chain)
    flat = _flatten(chain)
    if dispatch.is_plain(*flat):
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
    chain = _check(initial_logits, transition_logits, observation_logits, lengths)
    name = dispatch.choose(chain.observation_logits)
    if name == "reference":
        return Expectations(*reference.expectations(*chain))
    flat = _flatten(chain)
    if dispatch.is_plain(*flat):
        kernel = dispatch.kernel(name, flat.observation_logits.device)
        value, smoothed, moved = kernel.expectations(*flat)
    else:
        value, smoothed, moved = autograd.expectations(*flat, name)
    if transition_logits.shape[-3] == 1:
        moved = moved.squeeze(1)
    dtype, batch_shape = chain.observation_logits.dtype, chain.observation_logits.shape[:-2]
    return Expectations(
        value.reshape(batch_shape),
        *(part.to(dtype).reshape(batch_shape + part.shape[1:]) for part in (smoothed, moved)),
    )


def _decoder(chain: _Chain) -> ModuleType | None:
    """The compiled CPU kernel, or None: other devices, and transforms, have tensor code."""
    observation_logits = chain.observation_logits
    if dispatch.choose(observation_logits) == "cpu" and dispatch.is_plain(*chain):
        return dispatch.kernel("cpu", observation_logits.device)
    return None


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
    chain = _check(initial_logits, transition_logits, observation_logits, lengths)
    kernel = _decoder(chain)
    if kernel is None:
        logits = reference.filter_logits(*chain)
    else:
        logits = kernel.filter_logits(*_flatten(chain)).reshape(chain.observation_logits.shape)
    return logits.to(chain.observation_logits.dtype)


def predict_probs(
    initial_logits: Tensor, transition_logits: Tensor, filtered_probs: Tensor
) -> Tensor:
    """:math:`p(q_t \\mid x_1, \\dots, x_{t-1})`, one transition after each filtered probability.

    :param filtered_probs: ``(..., T, K)``, the exponential of :func:`filter_logits`.
    :return: ``(..., T, K)``.
    :raises ValueError: if shapes, dtypes or devices do not fit.
    """
    chain = _check(initial_logits, transition_logits, filtered_probs, None)
    return reference.predict_probs(*chain[:3])


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
    chain = _check(initial_logits, transition_logits, observation_logits, lengths)
    _check_path(path, chain.observation_logits.shape)
    return reference.complete_log_likelihood(*chain[:3], path, chain.lengths)


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
    chain = _check(initial_logits, transition_logits, observation_logits, lengths)
    with torch.no_grad():
        kernel = _decoder(chain)
        if kernel is None:
            return decoding.viterbi(*chain)
        path: Tensor = kernel.viterbi(*_flatten(chain))
        return path.reshape(chain.observation_logits.shape[:-1])


def sample_posterior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
    sample_shape: torch.Size = torch.Size(),  # noqa: B008 (immutable)
) -> Tensor:
    """Paths drawn given the whole sequence; see :func:`.decoding.sample_posterior`.

    :return: LongTensor ``sample_shape + (..., T)``; -1 on padding and where a sequence has
        probability 0.
    :raises ValueError: if shapes, dtypes, devices or lengths do not fit.
    """
    chain = _check(initial_logits, transition_logits, observation_logits, lengths)
    with torch.no_grad():
        kernel = _decoder(chain)
        if kernel is None:
            return decoding.sample_posterior(*chain, sample_shape)
        paths: Tensor = kernel.sample_posterior(*_flatten(chain), torch.Size(sample_shape).numel())
        return paths.reshape(torch.Size(sample_shape) + chain.observation_logits.shape[:-1])


def sample_prior(
    initial_logits: Tensor, transition_logits: Tensor, num_steps: int, shape: torch.Size
) -> Tensor:
    """Paths drawn from the chain alone.

    :param num_steps: T, at least 1.
    :param shape: of the result but for time.
    :return: LongTensor ``shape + (T,)``.
    :raises ValueError: if shapes, dtypes or devices do not fit.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 1:
        raise ValueError(f"expected num_steps to be a positive integer, got {num_steps!r}")
    num_states = initial_logits.shape[-1:].numel()
    nothing = initial_logits.new_zeros((num_steps, num_states))
    chain = _check(initial_logits, transition_logits, nothing, None)
    batch_shape = chain.observation_logits.shape[:-2]
    if not _expands_to(batch_shape, torch.Size(shape)):
        raise ValueError(
            f"expected shape to be one that the batch shape {tuple(batch_shape)} expands to, got "
            f"{tuple(shape)}"
        )
    with torch.no_grad():
        kernel = _decoder(chain)
        if kernel is None:
            return decoding.sample_prior(*chain[:2], num_steps, shape)
        shape = torch.Size(shape)
        # The last dims of the shape are the batch, as many as the chain has.
        batch_dim = len(shape) - (chain.observation_logits.dim() - 2)
        batch_shape = shape[batch_dim:]
        nothing = nothing[:1, :1].expand(batch_shape + (1, 1))
        initial, transition, *_ = _flatten(chain._replace(observation_logits=nothing))
        count, num_samples = batch_shape.numel(), shape[:batch_dim].numel()
        paths: Tensor = kernel.sample_prior(initial, transition, count, num_steps, num_samples)
        return paths.reshape(shape + (num_steps,))


def _expands_to(shape: torch.Size, wanted: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, wanted) == wanted
    except RuntimeError:
        return False


def has_fused_em(value: Tensor, num_states: int) -> bool:
    """Whether :mod:`.cpu.em_step` serves Gaussian data, whose iterations it makes in one go."""
    if value.device.type != "cpu" or value.is_inference():
        return False
    if dispatch.choose(value) != "cpu":
        return False
    from pyro_regimes.kernels.cpu import scaled

    return num_states <= scaled.MAX_STATES
