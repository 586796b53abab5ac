"""Shapes: batch dims broadcast and flattened, with a fast path for equal shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.kernels import transforms


def broadcast(*shapes: torch.Size | tuple[int, ...]) -> torch.Size:
    """Broadcast shapes, without ``torch.broadcast_shapes``, which is slow, if they are equal.

    :raises RuntimeError: if the shapes do not broadcast.
    """
    longest = max(shapes, key=len)
    if all(not shape or shape == longest for shape in shapes):
        return torch.Size(longest)
    return torch.broadcast_shapes(*shapes)


def flatten(tensor: Tensor, event_dim: int, batch_shape: torch.Size) -> Tensor:
    """``(N, *event)``, or ``(1, *event)`` without a copy where the whole batch shares it."""
    batch = tensor.shape[: tensor.dim() - event_dim]
    event = tensor.shape[tensor.dim() - event_dim :]
    if batch.numel() == 1:
        return tensor.reshape((1,) + event)
    return tensor.expand(batch_shape + event).reshape((batch_shape.numel(),) + event)


def without_repeats(tensor: Tensor, event_dim: int) -> Tensor:
    """A tensor in which leading dims along which it was expanded have size 1.

    Masks and plates expand a distribution. This avoids repeating a computation for each copy. A
    tensor that is differentiated, traced or transformed is returned unchanged, because each copy
    has its own gradient.
    """
    repeated = [
        dim
        for dim in range(tensor.dim() - event_dim)
        if tensor.shape[dim] > 1 and tensor.stride(dim) == 0
    ]
    if not repeated or not transforms.is_plain(tensor):
        return tensor
    for dim in repeated:
        tensor = tensor.narrow(dim, 0, 1)
    return tensor


def without_time(argument: Tensor, event_dim: int) -> Tensor:
    """Remove the time dim of size 1 from ``(..., 1, K, *event)``, if present.

    :param event_dim: the number of dims of state and event, which are always kept.
    """
    if argument.dim() < event_dim:
        return argument.reshape((1,) * (event_dim - argument.dim()) + argument.shape)
    return argument if argument.dim() == event_dim else argument.squeeze(-1 - event_dim)
