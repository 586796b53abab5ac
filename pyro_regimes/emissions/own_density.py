"""A distribution that no family here knows, as a part of one that has a family.

Its density is the distribution's own. EM sets none of its arguments: they are left to an ``optim``,
while the other parts keep their closed forms.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes.emissions import entries
from pyro_regimes.emissions.base import Arguments, Family, Observed, Stats, without_update
from pyro_regimes.emissions.exact import exact_copy
from pyro_regimes.emissions.wrappers import unwrap


class OwnDensity(Family):
    """A family of one distribution, whose own density is evaluated.

    The model is run again wherever its arguments may have changed, as an optimiser moves them.
    """

    max_event_dim = 1

    def __init__(self, distribution: Distribution) -> None:
        base, mask = unwrap(distribution)
        self.distributions = (type(base),)
        # Without a mask, a row of numbers is a product over its entries.
        self.marginalises = not base.event_shape and mask is None
        # The value may lie outside the support of some states.
        self._whole = exact_copy(distribution, validate_args=False)
        self._entry = exact_copy(base, validate_args=False)
        self._tensors = dict(_tensors(distribution))
        num_lead = len(distribution.batch_shape)
        self.arguments = tuple(
            without_update(name, max(0, value.dim() - num_lead), elementwise=False)
            for name, value in self._tensors.items()
        )

    def read(self, distribution: Distribution) -> Arguments:
        """All tensors that the distribution holds."""
        return dict(self._tensors)

    def read_for_density(self, distribution: Distribution) -> Arguments:
        """None, as the density is the distribution's own."""
        return {}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The distribution's own log density."""
        density: Tensor = self._whole.log_prob(value.unsqueeze(-1 - event_dim))
        return density

    def log_prob_of_seen(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> Tensor:
        """The sum over the entries that are not missing."""
        each = self._entry.log_prob(value.unsqueeze(-1 - event_dim))
        return entries.of_seen(each, missing, event_dim)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Stats:
        """There is nothing to update."""
        raise NotImplementedError("a distribution without a family has no statistics")


def _tensors(distribution: Distribution, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a distribution and of those inside, by the path of attributes."""
    for name, value in vars(distribution).items():
        if isinstance(value, Distribution):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and value.dtype != torch.bool:
            yield prefix + name, value
