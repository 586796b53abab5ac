"""How packed sequences follow one another along time, and which of them are computed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.kernels.arguments import check_lengths

_SPAN = 1.5  # of the lengths in a padded batch, from the shortest to the longest


class Batch(NamedTuple):
    """Some of the sequences as a padded batch, ``(n, t)``."""

    steps: Tensor  #: ``(n, t)``, the number of each step in the packing; on padding, of the last
    lengths: Tensor  #: ``(n,)``


class Packing:
    """S sequences that follow one another along time.

    :param lengths: the number of steps of each, integers from 1, ``(S,)``.
    :raises ValueError: if they are not.
    """

    def __init__(self, lengths: Tensor) -> None:
        check_lengths(lengths)
        if lengths.dim() != 1 or not len(lengths):
            raise ValueError(
                "expected the lengths of packed sequences to have shape (S,), with S at least 1, "
                f"got shape {tuple(lengths.shape)}"
            )
        self.lengths = lengths.detach()
        self.num_steps = int(lengths.sum())
        self._made: tuple[list[Batch], Tensor] | None = None

    @property
    def firsts(self) -> Tensor:
        """The first step of each sequence, ``(S,)``."""
        lengths = self.lengths.long()
        return lengths.cumsum(0) - lengths

    @property
    def batches(self) -> list[Batch]:
        """All sequences as padded batches."""
        return self._layout[0]

    @property
    def places(self) -> Tensor:
        """Where each step is among those of all batches, with their padding, ``(T,)``."""
        return self._layout[1]

    @property
    def _layout(self) -> tuple[list[Batch], Tensor]:
        if self._made is None:
            self._made = self._make_layout()
        return self._made

    def _make_layout(self) -> tuple[list[Batch], Tensor]:
        device, sizes = self.lengths.device, self.lengths.long().cpu().numpy()
        order = sizes.argsort(kind="stable")
        ascending, firsts = sizes[order], (sizes.cumsum() - sizes)[order]
        places = np.empty(self.num_steps, dtype=np.int64)
        batches, begin, offset = [], 0, 0
        while begin < len(order):
            end = int(ascending.searchsorted(_SPAN * ascending[begin], "right"))
            own, longest = ascending[begin:end, None], ascending[end - 1]
            time = np.arange(longest)
            steps = firsts[begin:end, None] + np.minimum(time, own - 1)
            valid = time < own
            places[steps[valid]] = offset + np.flatnonzero(valid)
            lengths = torch.from_numpy(ascending[begin:end].copy())
            batches.append(Batch(torch.from_numpy(steps).to(device), lengths.to(device)))
            begin, offset = end, offset + steps.size
        return batches, torch.from_numpy(places).to(device)

    def check(self, observation_logits: Tensor) -> None:
        """:raises ValueError: if these do not have the steps of the sequences."""
        if observation_logits.shape[-2] != self.num_steps:
            raise ValueError(
                f"expected observation_logits to have the {self.num_steps} steps of all packed "
                f"sequences at dimension -2, got shape {tuple(observation_logits.shape)}"
            )
        if observation_logits.device != self.lengths.device:
            raise ValueError(
                "expected the lengths of packed sequences on the device of the data, "
                f"{observation_logits.device}, got {self.lengths.device}"
            )

    def join(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """The results of all batches in the order of the steps.

        :param parts: of each batch, with the dims ``(n, t)`` at ``dim - 1`` and ``dim``, which is
            negative.
        """
        every = torch.cat([part.flatten(dim - 1, dim) for part in parts], dim)
        return every.index_select(dim, self.places)
