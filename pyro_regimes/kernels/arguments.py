"""Checks of the arguments of the recursions, and their conversion for compiled kernels.

:mod:`.ops` describes the arguments.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.kernels import shapes

_NAMES = ("initial_logits", "transition_logits", "observation_logits")
#: The number of dims of each argument for one sequence, and its shape as text.
_SHAPES = ((1, "(..., K)"), (3, "(..., 1 or T-1, K, K)"), (2, "(..., T, K)"))
_WITHOUT_ARITHMETIC = (torch.uint16, torch.uint32, torch.uint64)


class Chain(NamedTuple):
    """The checked arguments, with one dtype and their lengths broadcast to the batch."""

    initial_logits: Tensor
    transition_logits: Tensor
    observation_logits: Tensor
    lengths: Tensor | None


def promoted_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to which all of them promote."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def check_lengths(lengths: Tensor, num_steps: int | None = None) -> None:
    """Check that lengths are integers from 1 to ``num_steps``, if their values are known.

    :raises ValueError: if they are not.
    """
    if not isinstance(lengths, Tensor):
        raise ValueError(f"expected lengths to be an integer tensor, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"expected lengths to be an integer tensor, got dtype {lengths.dtype}")
    if lengths.dtype in _WITHOUT_ARITHMETIC:
        raise ValueError(
            f"expected lengths of uint8 or signed integers, got dtype {lengths.dtype}, for which "
            "torch lacks arithmetic: use lengths.long()"
        )
    if lengths.device.type == "meta":
        raise ValueError(
            f"expected lengths to hold values, got a tensor of shape {tuple(lengths.shape)} on the "
            "device meta, which has none"
        )
    if not lengths.numel() or torch.compiler.is_compiling():
        return  # values are unknown while a graph is compiled; the operators check them
    if torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        return  # nor under vmap
    least, largest = torch.stack(lengths.aminmax()).tolist()  # one transfer from the device
    if least < 1 or (num_steps is not None and largest > num_steps):
        upper = "" if num_steps is None else f" to the {num_steps} time steps of the data"
        raise ValueError(f"expected lengths from 1{upper}, got from {least} to {largest}")


def check(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> Chain:
    """Check the arguments of a recursion.

    :raises ValueError: if they are invalid or do not match.
    """
    logits = (initial_logits, transition_logits, observation_logits)
    for name, (event_dim, shape), each in zip(_NAMES, _SHAPES, logits):
        if not isinstance(each, Tensor) or not each.is_floating_point():
            came = each.dtype if isinstance(each, Tensor) else type(each).__name__
            raise ValueError(f"expected {name} to be a floating point tensor, got {came}")
        if each.dim() < event_dim:
            raise ValueError(
                f"expected {name} to have shape {shape}, got shape {tuple(each.shape)}"
            )
    _check_sizes(*logits)
    if lengths is not None:
        check_lengths(lengths, observation_logits.shape[-2])
    _check_devices(*logits, lengths)
    batch_shape = _broadcast_batches(*logits, lengths)
    dtype = promoted_dtype(*logits)
    return Chain(
        initial_logits.to(dtype),
        transition_logits.to(dtype),
        observation_logits.to(dtype).expand(batch_shape + observation_logits.shape[-2:]),
        None if lengths is None else lengths.expand(batch_shape),
    )


def _check_sizes(
    initial_logits: Tensor, transition_logits: Tensor, observation_logits: Tensor
) -> None:
    """Check the numbers of states and of time steps."""
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
    # A tuple, since sizes are tensors under torch.jit.trace, which are not equal in a set.
    if transition_logits.shape[-3] not in (1, num_steps - 1):
        raise ValueError(
            f"expected transition_logits to have 1 or T - 1 = {num_steps - 1} time slices at "
            f"dimension -3, got shape {tuple(transition_logits.shape)}; for a batch of chains that "
            "do not vary in time use .unsqueeze(-3)"
        )


def _check_devices(*tensors: Tensor | None) -> None:
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.device != given[0].device for tensor in given):
        devices = sorted({str(tensor.device) for tensor in given})
        raise ValueError(f"expected all arguments on one device, got {devices}")


def _broadcast_batches(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> torch.Size:
    logits = (initial_logits, transition_logits, observation_logits)
    batches = [each.shape[:-event_dim] for each, (event_dim, _) in zip(logits, _SHAPES)]
    if lengths is not None:
        batches.append(lengths.shape)
    try:
        return shapes.broadcast(*batches)
    except RuntimeError as error:
        came = dict(zip((*_NAMES, "lengths"), map(tuple, batches)))
        raise ValueError(f"expected batch shapes that broadcast, got {came}") from error


def check_path(path: Tensor, shape: torch.Size) -> None:
    """Check a path of states.

    :param shape: shape of the observation logits, ``(..., T, K)``; batch dims must broadcast.
    :raises ValueError: if the dtype, the shape or a state is invalid.
    """
    num_steps, num_states = shape[-2:]
    if not isinstance(path, Tensor) or path.dtype != torch.long:
        came = path.dtype if isinstance(path, Tensor) else type(path).__name__
        raise ValueError(f"expected path to be a tensor of torch.long, got {came}")
    try:
        fits = path.dim() > 0 and path.shape[-1] == num_steps
        shapes.broadcast(path.shape[:-1], shape[:-2])
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"expected path to have a shape that broadcasts with {tuple(shape[:-1])}, got "
            f"{tuple(path.shape)}"
        )
    if not path.numel():
        return
    least, largest = torch.stack(path.aminmax()).tolist()
    if not (0 <= least and largest < num_states):
        raise ValueError(
            f"expected the states of path from 0 to {num_states - 1}, got from {least} to {largest}"
        )


class Flat(NamedTuple):
    """The arguments of the compiled kernels, with one batch dim, in float32 or float64."""

    initial_logits: Tensor  # (N or 1, K)
    transition_logits: Tensor  # (N or 1, 1 or T-1, K, K)
    observation_logits: Tensor  # (N, T, K)
    lengths: Tensor | None  # (N,)


def flatten(chain: Chain) -> Flat:
    """Flatten to one batch dim; a chain that all sequences share is not copied."""
    batch_shape = chain.observation_logits.shape[:-2]
    initial = shapes.flatten(chain.initial_logits, 1, batch_shape)
    transition = shapes.flatten(chain.transition_logits, 3, batch_shape)
    observation = chain.observation_logits
    count = batch_shape.numel()
    observation = observation.reshape((count,) + observation.shape[-2:])
    if observation.dtype not in (torch.float32, torch.float64):
        initial, transition, observation = (
            part.float() for part in (initial, transition, observation)
        )
    lengths = None if chain.lengths is None else chain.lengths.reshape(count)
    return Flat(initial, transition, observation, lengths)
