"""Sums over the processes of a torch.distributed group, each with its own sequences.

Expected statistics and log-likelihoods are additive over sequences. All ranks gather them in one
float64 buffer and add them in the order of the ranks, so that a run repeats to the bit and every
rank continues from the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Mapping, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pyro_regimes.emissions.base import apply

T = TypeVar("T")


class Ranks:
    """The processes among which the sequences of a run are split.

    :param group: the process group; None for the default one.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        #: The process group itself.
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        is_nccl = "nccl" in dist.get_backend(group)
        self._device = torch.device("cpu")
        if is_nccl:
            self._device = torch.device("cuda", torch.cuda.current_device())

    @property
    def is_first(self) -> bool:
        """Whether this rank counts what is the same on all of them: priors and constants."""
        return self.rank == 0

    def _gather(self, buffer: Tensor) -> list[Tensor]:
        """The buffers of all ranks, which have the same size, in their order.

        :raises RuntimeError: if a rank has ended, or does not answer within the timeout.
        """
        own = buffer.to(self._device).contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._clear_error():
            dist.all_gather(found, own, group=self._group)
        return [each.to(buffer.device) for each in found]

    @contextmanager
    def _clear_error(self) -> Iterator[None]:
        """:raises RuntimeError: saying what an error of the process group means."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"EM: rank {self.rank} of {self.size} could not add up its statistics with the "
                "others: a rank has ended, or did not answer within the timeout of the process "
                "group. Look for the first error among the ranks, and start all of them again"
            ) from error

    def gather(self, values: list[Tensor]) -> list[list[Tensor]]:
        """Tensors of the same shapes from every rank, in one message."""
        flat = torch.cat([value.detach().double().flatten() for value in values])
        return [_unpacked(each, values) for each in self._gather(flat)]

    def add(self, values: list[Tensor]) -> list[Tensor]:
        """The sums of tensors over the ranks, in float64 and then in the dtype given."""
        if not values:
            return []
        flat = torch.cat([value.detach().double().flatten() for value in values])
        first, *others = self._gather(flat)
        for each in others:
            first = first + each
        return _unpacked(first, values)

    def add_fields(self, pooled: T) -> T:
        """The sum of a NamedTuple of tensors over the ranks."""
        fields: list[Tensor] = []

        def note(part: Tensor) -> Tensor:
            fields.append(part)
            return part

        apply(note, pooled)
        sums = iter(self.add(fields))
        return apply(lambda part: next(sums), pooled)

    def all(self, flag: bool) -> bool:
        """Whether something holds on every rank."""
        own = torch.tensor([float(flag)], dtype=torch.float64)
        return all(bool(each) for each in self._gather(own))

    def as_first(self, flags: np.ndarray[Any, np.dtype[np.bool_]]) -> Any:
        """What rank 0 has decided."""
        return self._gather(torch.from_numpy(flags.astype(np.float64)))[0].numpy() != 0

    def objects(self, own: Any) -> list[Any]:
        """Small picklable objects of all ranks."""
        found: list[Any] = [None] * self.size
        with self._clear_error():
            dist.all_gather_object(found, own, group=self._group)
        return found

    def check_same(self, described: Mapping[str, str], remedy: str) -> None:
        """Check that all ranks describe everything alike.

        :param described: by name, what must be the same.
        :raises ValueError: on every rank, naming the first difference.
        """
        own = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in described.items()}
        found = self.objects(own)
        for rank, other in enumerate(found):
            names = [name for name in found[0] | other if found[0].get(name) != other.get(name)]
            if names:
                raise ValueError(
                    f"expected {names[0]} to be the same on every rank, got another one on rank "
                    f"{rank} than on rank 0: {remedy}"
                )


def _unpacked(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The tensors of a buffer, in the shapes, dtypes and devices of others."""
    parts = flat.split([value.numel() for value in like])
    return [part.reshape(value.shape).to(value) for part, value in zip(parts, like, strict=True)]


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within it, no fit joins the default group: each process makes some of its own."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def ranks_of(group: Any) -> Ranks | None:
    """The ranks of a group, or of the default one; None if there is one process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        if group is not None:
            raise ValueError(
                f"expected process_group to be None as torch.distributed is not initialised, got "
                f"{group!r}: call torch.distributed.init_process_group first"
            )
        return None
    if group is None and _ALONE.get():
        return None
    if dist.get_rank(group) < 0:
        raise ValueError("expected process_group to contain this rank, got one without it")
    found = Ranks(group)
    return found if found.size > 1 else None
