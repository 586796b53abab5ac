"""Batch shapes, broadcast without more ado where they are alike."""

from __future__ import annotations

import torch


def broadcast(*shapes: torch.Size | tuple[int, ...]) -> torch.Size:
    """``torch.broadcast_shapes``, which takes longer than a short recursion, where it is needed.

    :raises RuntimeError: if the shapes do not broadcast.
    """
    longest = max(shapes, key=len)
    if all(not shape or shape == longest for shape in shapes):
        return torch.Size(longest)
    return torch.broadcast_shapes(*shapes)
