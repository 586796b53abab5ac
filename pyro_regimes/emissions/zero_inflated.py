r"""The families of distributions with additional zeros: a base of another family, and a gate.

An observation is a structural zero with the probability :math:`\pi_k` (the gate), and otherwise
one of the base distribution :math:`b_k`. Whether a zero is structural is hidden. Given a zero it
has the probability

.. math:: w_k = \frac{\pi_k}{\pi_k + (1 - \pi_k) \, b_k(0)}

of counts (``ZeroInflatedDistribution``, Lambert 1992), and 1 of continuous observations
(``ZeroInflatedContinuous``), as a density has no mass at 0. With the expected number
:math:`z_k = \sum_t \gamma_t(k) [x_t = 0] w_k` of structural zeros, :math:`\pi_k = z_k / n_k`. The
base has the updates of its own family, of observations with the weights
:math:`\gamma_t(k) (1 - [x_t = 0] w_k)`. Its arguments have the name of the attribute before their
own: ``base_dist.concentration``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, Optional

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes.emissions import counts, entries, nested, totals
from pyro_regimes.emissions.arithmetic import as_real
from pyro_regimes.emissions.base import (
    Argument,
    Arguments,
    Family,
    Observed,
    Stats,
    over_sequences,
)
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.emissions.statistics import Trials
from pyro_regimes.emissions.trials import LOGITS, PROBS, outcomes
from pyro_regimes.emissions.wrappers import unwrap
from pyro_regimes.observed.zero_inflated import ZeroInflatedContinuous, stand_in

_COUNTS = (dist.ZeroInflatedDistribution, dist.ZeroInflatedNegativeBinomial)
_BASE = "base_dist."


class ZeroInflated(NamedTuple):
    """Expected statistics, ``(..., 1 or T, K, *event)``."""

    structural: Tensor  #: number of structural zeros
    others: Tensor  #: number of the other observations
    base: Stats | None  #: of the family of the base


# ---- the arguments -----------------------------------------------------------------------------


def _reduce_gate(stats: ZeroInflated, given: Arguments, weighted: bool) -> Trials:
    return Trials(stats.structural + stats.others, stats.structural, stats.others)


@lru_cache(maxsize=None)
def gate(name: str) -> Argument:
    """The gate or its logits."""
    return replace(
        PROBS if name == "gate" else LOGITS,
        name=name,
        what="share of structural zeros",
        reduce=_reduce_gate,
        rebuild=(gate, (name,)),
    )


def _own(given: Arguments) -> Arguments:
    """The arguments of the base, by the names of its family."""
    return nested.own(given, _BASE)


@lru_cache(maxsize=None)
def of_base(argument: Argument) -> Argument:
    """An argument of the base as one of the whole; the same object at every call."""
    return nested.of_whole(argument, _BASE, attrgetter("base"), rebuild=(of_base, (argument,)))


# ---- the family --------------------------------------------------------------------------------


def build(
    base: Distribution,
    event_dim: int,
    find_family: Callable[[Distribution, int], Optional[Family]],
) -> Family | None:
    """The family of a distribution with additional zeros; None if its base has none.

    :param event_dim: number of event dims of the observation distribution that contains it.
    :param find_family: finds the family of the base.
    """
    if type(base) not in (*_COUNTS, ZeroInflatedContinuous):
        return None
    whole: Any = base
    inner, mask = unwrap(whole.base_dist)
    family = find_family(inner, event_dim)
    if family is None or mask is not None or not entries.is_independent(family):
        return None
    return ZeroInflatedFamily(type(base), family, inner)


class ZeroInflatedFamily(Family):
    """A distribution with additional zeros; built anew for each distribution."""

    max_event_dim = math.inf

    def __init__(self, kind: type[Distribution], family: Family, inner: Distribution) -> None:
        self.distributions = (kind,)
        self._family, self._is_continuous = family, kind is ZeroInflatedContinuous
        self._inner = inner
        # No cache holds arguments without an update, which may be made anew for each distribution.
        own = ((of_base if each.links else of_base.__wrapped__)(each) for each in family.arguments)
        self.arguments = (*own, gate("gate"), gate("gate_logits"))

    def read(self, distribution: Any) -> Arguments:
        """The arguments of the base, and the gate or its logits."""
        return self._read(distribution, self._family.read)

    def read_for_density(self, distribution: Any) -> Arguments:
        """The same, for the density."""
        return self._read(distribution, self._family.read_for_density)

    def _read(
        self, distribution: Any, reader: Callable[[Distribution], Arguments]
    ) -> Arguments:
        own = reader(unwrap(distribution.base_dist).base)
        found = {_BASE + name: value for name, value in own.items()}
        return found | read_given(distribution, "gate", "gate_logits")

    def _without_zeros(self, value: Tensor, zero: Tensor) -> Tensor:
        """Values with a number of the base's support in the place of zeros."""
        return torch.where(zero, stand_in(self._inner, value).flatten()[0], value)

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log (\pi_k [x_t = 0] + (1 - \pi_k) b_k(x_t))`, without the second term if
        x is continuous and 0.
        """
        if event_dim:
            return entries.log_prob_by_entry(self, value, None, given, event_dim)
        trial, own = outcomes(given, "gate", "gate_logits"), _own(given)
        if not self._is_continuous:
            density = self._family.log_prob(value, own, 0)
            return counts.zero_inflated(value.unsqueeze(-1), density, trial)
        value, zero = as_real(value, next(iter(own.values()))), value == 0
        density = self._family.log_prob(self._without_zeros(value, zero), own, 0)
        rest = trial.failure.to(density.dtype) + density
        return torch.where(zero.unsqueeze(-1), trial.success.to(density.dtype), rest)

    def statistics(
        self, observed: Observed, given: Arguments, names: frozenset[str]
    ) -> ZeroInflated:
        """Expected numbers of structural zeros and of others, and the base's statistics."""
        if observed.event_dim:
            return entries.statistics_by_entry(self, observed, given, names)
        zero, own = observed.value == 0, _own(given)  # (..., T, 1)
        value = observed.value
        if self._is_continuous:
            structural = zero.to(observed.weights.dtype)
            value = self._without_zeros(value, zero)
        else:
            trial = outcomes(given, "gate", "gate_logits")
            at_zero = self._family.log_prob(torch.zeros_like(value.squeeze(-1)), own, 0)
            odds = trial.success - trial.failure - at_zero.double()
            structural = torch.where(zero, odds.sigmoid(), 0.0).to(observed.weights.dtype)
        wanted = nested.own_names(names, _BASE)
        base = None
        if wanted:
            rest = observed._replace(value=value, weights=observed.weights * (1 - structural))
            base = self._family.statistics(rest, own, wanted)
        zeros, others = (totals.over_time(observed, each) for each in (structural, 1 - structural))
        return ZeroInflated(zeros, others, base)

    def is_accurate(self, stats: ZeroInflated, given: Arguments, name: str) -> Tensor | bool:
        """As the family of the base says."""
        if not name.startswith(_BASE):
            return True
        if stats.base is None:
            return False
        return self._family.is_accurate(stats.base, _own(given), name.removeprefix(_BASE))

    def merge(self, accurate: Tensor, stats: ZeroInflated, again: ZeroInflated) -> ZeroInflated:
        """As the family of the base merges."""
        return stats._replace(base=self._family.merge(accurate, stats.base, again.base))

    def renew(self, stats: ZeroInflated, again: ZeroInflated) -> ZeroInflated:
        """As the family of the base does."""
        if again.base is None:
            return again._replace(base=stats.base)
        if stats.base is None:
            return again
        return again._replace(base=self._family.renew(stats.base, again.base))

    def add(self, one: ZeroInflated, other: ZeroInflated) -> ZeroInflated:
        """The sums of the numbers, and the sum of the base."""
        base = None if one.base is None else self._family.add(one.base, other.base)
        return ZeroInflated(one.structural + other.structural, one.others + other.others, base)

    def total(
        self, stats: ZeroInflated, num_batch_dims: int, like: ZeroInflated | None
    ) -> ZeroInflated:
        """The sum over all sequences."""
        base = None
        if stats.base is not None:
            about = None if like is None else like.base
            base = self._family.total(stats.base, num_batch_dims, about)
        zeros, others = (over_sequences(each, num_batch_dims) for each in stats[:2])
        return ZeroInflated(zeros, others, base)
