"""Arguments of which the entries are products of powers of parameters' shares.

:mod:`pyro_regimes.chain.shares` has the closed form; :mod:`.log_linear` finds such arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Argument, Pooled, blocks
from pyro_regimes.emissions.links import Link
from pyro_regimes.emissions.statistics import Counts
from pyro_regimes.emissions.trials import of_successes
from pyro_regimes.infer.tracing import Slot


class Shares(NamedTuple):
    """How a parameter holds groups of shares that sum to 1."""

    argument: Argument  #: :data:`.ROW` or :data:`.PROBABILITY`
    link: Link

    @property
    def is_row(self) -> bool:
        """Whether a cell is a row of probabilities, and not one probability."""
        return self.argument.event_dim == 1

    def of(self, value: Tensor) -> Tensor:
        """The shares of each cell of a parameter, ``(cells, width)``, float64."""
        cells = self.link.forward(blocks(value.detach().double(), self.argument.event_dim))
        return cells if self.is_row else torch.stack([cells, 1 - cells], -1)

    def pooled(self, counts: Tensor) -> Pooled:
        """The statistics of cells with the counts of their shares, ``(cells, width)``."""
        return Counts(counts) if self.is_row else of_successes(*counts.unbind(-1))


class Powers(NamedTuple):
    """The powers of one parameter's shares in the entries of an argument, without the zeros."""

    entries: Tensor  #: numbers of entries of the argument, ``(P,)``, on the CPU
    places: Tensor  #: numbers of shares, cell by cell
    powers: Tensor  #: positive, float64

    def counts(self, counts: Tensor, num_shares: int) -> Tensor:
        """The counts of the shares, for those of the entries."""
        entries, places, powers = (part.to(counts.device) for part in self)
        pooled = counts.new_zeros(num_shares)
        return pooled.index_add(0, places, powers.to(counts.dtype) * counts[entries])

    def factors(self, shares: Tensor, num_entries: int) -> Tensor:
        """The product of the powers in each entry; 1 where there is none."""
        entries, places, powers = (part.to(shares.device) for part in self)
        out = shares.new_ones(num_entries)
        each = shares.flatten()[places] ** powers
        return out.scatter_reduce(0, entries, each, "prod")


class PowerUse(NamedTuple):
    """Where a parameter's shares stand in one argument."""

    site: str
    argument: str
    cells: Tensor  #: a cell that each block of the argument depends on, or -1: ``(blocks,)``
    pairs: Tensor  #: all of them: blocks and cells, ``(pairs, 2)``
    powers: Powers
    num_shares: int  #: of the parameter

    @property
    def whole(self) -> bool:
        """No block equals a cell."""
        return False


class Products(NamedTuple):
    """One argument as a function of all parameters of which it has powers."""

    site: str
    argument: str
    constants: Tensor  #: the factor of each entry, ``(entries,)``, float64
    is_product: Tensor  #: whether an entry's block has a power of some parameter: ``(entries,)``
    terms: dict[str, tuple[Shares, Powers]]  #: by parameter

    def probs(self, params: Mapping[str, Tensor]) -> Tensor:
        """The probabilities of the entries, ``(entries,)``, float64."""
        device = next(iter(params[name] for name in self.terms)).device
        probs = self.constants.to(device)
        for name, (shares, powers) in self.terms.items():
            probs = probs * powers.factors(shares.of(params[name]), len(self.constants))
        return probs

    def entries(self, slot: Slot, old: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """The probabilities of all entries of the argument, as in :meth:`write`, float64."""
        known = slot.argument.canonical(old).double()
        is_product = self.is_product.reshape(old.shape).to(old.device)
        return torch.where(is_product, self.probs(params).reshape(old.shape), known)

    def write(self, slot: Slot, old: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """The value of the argument for given parameters.

        :param slot: the argument as the model gave it.
        :param old: its value at others.
        """
        argument = slot.argument
        new = argument.written(argument.links[0], self.probs(params).reshape(old.shape))
        is_product = self.is_product.reshape(old.shape).to(old.device)
        return torch.where(is_product, new.to(old.dtype), old)

    def holds(self, slot: Slot | None, params: Mapping[str, Tensor]) -> bool:
        """Whether an argument of a later run has these values."""
        if slot is None or slot.value.numel() != len(self.constants):
            return False
        actual = slot.argument.canonical(slot.value.detach()).double().flatten()
        is_product = self.is_product.to(actual.device)
        expected = self.probs(params)
        tolerance = torch.finfo(slot.value.dtype).eps ** 0.6
        close = (actual - expected).abs() <= tolerance
        return bool((close | ~is_product).all())
