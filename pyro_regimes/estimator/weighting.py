"""Weighted sequences as padded batches, as a weight belongs to a sequence of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.kernels import ops


class WeightedBatch(NamedTuple):
    """Sequences of similar lengths."""

    x: Tensor  #: ``(n, t, D)``, padded
    weights: Tensor  #: ``(n,)``
    beside: dict[str, Tensor | None]  #: further arguments of the distribution of the sequences


def weighted_batches(
    x: Tensor,
    lengths: Tensor | None,
    weights: Tensor,
    allowed_states: Tensor | None = None,
    gaps: Tensor | None = None,
) -> Iterator[WeightedBatch]:
    """All sequences; there are as many batches as the lengths have orders of magnitude.

    :param x: ``(T, D)``, of sequences that follow one another.
    :param lengths: ``(N,)``; None for one sequence.
    :param weights: ``(N,)``.
    :param allowed_states: ``(T, K)``.
    :param gaps: ``(T-1,)``.
    """
    packing = ops.Packing(torch.tensor([len(x)], device=x.device) if lengths is None else lengths)
    for batch in packing.batches:
        which = torch.searchsorted(packing.firsts, batch.steps[:, 0].contiguous())
        into = (batch.steps[:, 1:] - 1).clamp(min=0)
        beside = {
            "lengths": batch.lengths,
            "allowed_states": None if allowed_states is None else allowed_states[batch.steps],
            "gaps": None if gaps is None else gaps[into],
        }
        yield WeightedBatch(x[batch.steps], weights[which], beside)
