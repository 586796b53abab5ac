r"""Stochastic EM: running averages of the expected statistics of minibatches.

If a plate is subsampled, each step uses some of the sequences. Cappe and Moulines (2009) average
the expected sufficient statistics, not the parameters: with :math:`\hat s_n` the statistics of the
n-th minibatch, scaled to all the data,

.. math::
    s_n = s_{n-1} + \rho_n (\hat s_n - s_{n-1}), \qquad \theta_n = \arg\max_\theta Q(\theta; s_n).

This converges to a stationary point of the likelihood of all the data if
:math:`\sum \rho_n = \infty` and :math:`\sum \rho_n^2 < \infty`, as for
:math:`\rho_n = n^{-\kappa}` with :math:`\tfrac12 < \kappa \le 1`.

The statistics of a minibatch are summed over its sequences, so those of all minibatches have the
same blocks: one for each state, and for each time if the model varies in time.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, TypeVar

import torch

from pyro_regimes.emissions.base import Arguments, Family, Stats, apply, over_sequences
from pyro_regimes.infer.em.e_step import Expected, SiteData, SiteStatistics

T = TypeVar("T")

#: The weight of the n-th minibatch, n = 1, 2, ...; 1 for the first.
Schedule = Callable[[int], float]


def default_schedule(step: int) -> float:
    """:math:`n^{-0.6}`, as Cappe and Moulines recommend."""
    return float(step**-0.6)


class Averaged(NamedTuple):
    """A site whose statistics are running averages, about one sequence that stands for all."""

    data: SiteData
    arguments: Arguments
    averages: SiteStatistics

    @property
    def batch_shape(self) -> torch.Size:
        """Of the statistics."""
        return torch.Size([1])

    def statistics(self, names: frozenset[str]) -> SiteStatistics:
        """The averages."""
        return self.averages

    def retake(self, arguments: Arguments, names: frozenset[str]) -> None:
        """The data of other minibatches are gone."""
        return None


def average(
    expected: Expected, names: frozenset[str], old: SiteStatistics | None, share: float
) -> Averaged:
    """Move the running averages of a site by a share of the way to those of a minibatch.

    :param names: the arguments that are to be updated.
    :param old: the averages so far; None for the first minibatch.
    """
    num_batch_dims = len(expected.batch_shape)
    chain = apply(lambda part: over_sequences(part, num_batch_dims), expected.counts())
    if old is not None:
        chain = _mix(old.chain, chain, share)
    emission = expected.retake(expected.arguments, names)
    if emission is not None:
        family = expected.data.site.family
        assert family is not None
        before = None if old is None else old.emission
        emission = mix(family, before, emission, num_batch_dims, share)
    return Averaged(expected.data, expected.arguments, SiteStatistics(chain, emission, names))


def mix(
    family: Family, old: Stats | None, new: Stats, num_batch_dims: int, share: float
) -> Stats:
    """Move averages by a share of the way to the statistics of a minibatch.

    Moments about an origin are expressed about that of the new average. It follows a location that
    moves, and digits are lost only where the data differ by that much.

    :param old: None for the first minibatch.
    :param new: before they are summed over the sequences.
    """
    if old is None:
        return family.total(new, num_batch_dims, None)
    rough = _mix(old, family.total(new, num_batch_dims, old), share)
    like = family.total(rough, 1, None)
    return _mix(family.total(old, 1, like), family.total(new, num_batch_dims, like), share)


def _mix(old: T, new: T, share: float) -> T:
    return apply(lambda before, after: before.lerp(after, share), old, new)
