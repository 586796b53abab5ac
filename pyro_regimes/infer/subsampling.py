"""Plates that hold some of the data."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class SameSubsamples(Messenger):
    """Draw the subsample of each plate by its name, from a private random generator.

    The global generator is not used. Restoring its state would make another thread draw the same
    numbers twice.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) or msg["value"] is not None:
            return
        plate = msg["fn"]
        if plate.subsample_size is not None and plate.subsample_size < plate.size:
            generator = torch.Generator().manual_seed(zlib.crc32(msg["name"].encode()))
            order = torch.randperm(plate.size, generator=generator, device="cpu")
            msg["value"] = order[: plate.subsample_size].to(plate.device)


def is_subsampled(trace: Any) -> bool:
    """Whether some plate is subsampled."""
    plates = [node for node in trace.nodes.values() if site_is_subsample(node)]
    return any(not _is_whole(node["fn"].size, node["value"]) for node in plates)


def _is_whole(size: int, subsample: Any) -> bool:
    """Whether a plate's subsample contains all of its elements, in any order.

    This checks the subsample, because Pyro leaves ``subsample_size`` empty if the caller passes
    ``subsample``. The subsample need not be indices: Pyro accepts "anything supporting len()".
    """
    if len(subsample) < size:
        return False
    if isinstance(subsample, Tensor):
        if subsample.dim() != 1 or subsample.is_floating_point():
            return True  # the data themselves
        everything = torch.arange(size, device=subsample.device)
        return torch.equal(subsample, everything) or len(subsample.unique()) == size
    indices = np.asarray(subsample)
    return indices.ndim != 1 or indices.dtype.kind not in "iu" or len(np.unique(indices)) == size
