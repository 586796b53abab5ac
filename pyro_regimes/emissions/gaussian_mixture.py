r"""The families of Gaussian mixtures, ``MixtureSameFamily`` of Normals or MultivariateNormals.

.. math::
    b_k(x) = \sum_m w_{km} N(x; \mu_{km}, \Sigma_{km}), \qquad
    r_t(k, m) = \frac{w_{km} N(x_t; \mu_{km}, \Sigma_{km})}{b_k(x_t)}, \qquad
    w_{km} = \frac{\sum_t \gamma_t(k) r_t(k, m)}{\sum_t \gamma_t(k)}

The component is hidden as the state is: with the weights :math:`\gamma_t(k) r_t(k, m)` in place of
:math:`\gamma_t(k)`, locations and spreads have the updates of the Gaussian families, of
:math:`K M` states (Juang, Levinson and Sondhi 1986). Arguments have the names of the attributes:
``mixture_distribution.probs`` or ``.logits``, ``component_distribution.loc``,
``component_distribution.scale`` or one of the three matrices.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, Callable, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from pyro_regimes.emissions import rows
from pyro_regimes.emissions.base import (
    Argument,
    Arguments,
    Family,
    Observed,
    Pooled,
    Stats,
    apply,
    over_sequences,
)
from pyro_regimes.emissions.charts import Chart
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.normal import NORMAL
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.emissions.statistics import Counts
from pyro_regimes.emissions.wrappers import unwrap
from pyro_regimes.kernels import ops
from pyro_regimes.kernels.ops import logsumexp

_MIXTURE, _COMPONENT = "mixture_distribution.", "component_distribution."


class MixtureStats(NamedTuple):
    """Expected statistics."""

    counts: Tensor  #: of the components, ``(..., 1 or T, K, M)``
    components: Stats | None  #: of the Gaussian family, of K M states


def _reduce_rows(stats: MixtureStats, given: Arguments, weighted: bool) -> Counts:
    return Counts(stats.counts)


_PROBS = replace(
    rows.PROBS_OF_VECTOR,
    name=f"{_MIXTURE}probs",
    kind="weights of a mixture",
    what="shares of the components",
    reduce=_reduce_rows,
)
_LOGITS = replace(
    rows.LOGITS_OF_VECTOR,
    name=f"{_MIXTURE}logits",
    kind=_PROBS.kind,
    what=_PROBS.what,
    reduce=_reduce_rows,
)


def _of_components(inner: Family, given: Arguments) -> list[tuple[Argument, Tensor]]:
    return [
        (argument, given[_COMPONENT + argument.name])
        for argument in inner.arguments
        if _COMPONENT + argument.name in given
    ]


def _num_tail(argument: Argument, event_dim: int) -> int:
    """The number of dims of an argument after those of states and components."""
    return argument.event_dim + (event_dim if argument.elementwise else 0)


def _fold(
    inner: Family, given: Arguments, event_dim: int, num_lead: int, sizes: tuple[int, int]
) -> Arguments:
    """Arguments of the components as those of K M states, by the names of their family.

    :param num_lead: number of dims before that of the states.
    :param sizes: K and M.
    """
    folded = {}
    for argument, value in _of_components(inner, given):
        missing = num_lead + 2 + _num_tail(argument, event_dim) - value.dim()
        whole = (1,) * missing + value.shape
        lead, tail = whole[:num_lead], whole[num_lead + 2 :]
        value = value.expand(lead + sizes + tail)
        folded[argument.name] = value.reshape(lead + (math.prod(sizes),) + tail)
    return folded


def _fold_for(inner: Family, stats: MixtureStats, given: Arguments) -> Arguments:
    """Arguments with the dims that statistics have."""
    num_states, num_components = stats.counts.shape[-2:]
    num_lead = stats.counts.dim() - 2
    assert stats.components is not None
    event_dim = stats.components.weight.dim() - num_lead - 1
    return _fold(inner, given, event_dim, num_lead, (num_states, num_components))


def _reduce(
    stats: MixtureStats, given: Arguments, weighted: bool, inner: Family, argument: Argument
) -> Pooled:
    """The statistics of an argument of the components, ``(..., 1 or T, K, M, ...)``."""
    pooled = argument.reduce(stats.components, _fold_for(inner, stats, given), weighted)
    dim, sizes = stats.counts.dim() - 2, stats.counts.shape[-2:]
    return apply(lambda part: part.unflatten(dim, sizes), pooled)


def _unit_of(given: Arguments, inner: Family, chart: Chart) -> Tensor:
    """The unit of a chart, from the arguments of a mixture."""
    assert chart.unit is not None
    return chart.unit({each.name: value for each, value in _of_components(inner, given)})


def _in_mixture(inner: Family, argument: Argument) -> Argument:
    """An argument of the components as one of the mixture."""
    chart = argument.chart
    if chart is not None and chart.unit is not None:
        chart = chart._replace(unit=partial(_unit_of, inner=inner, chart=chart))
    return replace(
        argument,
        name=_COMPONENT + argument.name,
        kind=f"{argument.kind} in a mixture",
        reduce=partial(_reduce, inner=inner, argument=argument),
        num_own_dims=3,
        chart=chart,
    )


class _Family(Family):
    """``MixtureSameFamily`` of distributions of one family."""

    distributions = (MixtureSameFamily, dist.MixtureSameFamily)
    inner: ClassVar[Family]  #: the family of the components
    marginalises = True  # as Gaussians do

    def serves(self, distribution: Distribution, event_dim: int) -> bool:
        """Whether the components are of the family, and mixed as whole observations."""
        mixture: Any = distribution
        if type(mixture) not in self.distributions or len(mixture.event_shape) != event_dim:
            return False
        base, mask = unwrap(mixture._component_distribution)
        is_plain = type(mixture._mixture_distribution) in (Categorical, dist.Categorical)
        return is_plain and mask is None and self.inner.serves(base, event_dim)

    def read(self, distribution: MixtureSameFamily) -> Arguments:
        """The probabilities or logits of the components, and their arguments."""
        return self._read(distribution, self.inner.read)

    def read_for_density(self, distribution: MixtureSameFamily) -> Arguments:
        """The same, for the density of the components."""
        return self._read(distribution, self.inner.read_for_density)

    def _read(
        self, distribution: MixtureSameFamily, read: Callable[[Distribution], Arguments]
    ) -> Arguments:
        weights = read_given(_at_one_time(distribution._mixture_distribution))
        inner = read(unwrap(distribution._component_distribution).base)
        given = {_MIXTURE + name: value for name, value in weights.items()}
        return given | {_COMPONENT + name: value for name, value in inner.items()}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log \sum_m w_{km} N(x_t; \mu_{km}, \Sigma_{km})`."""
        return logsumexp(self._joint(value, None, given, event_dim))

    def log_prob_of_seen(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> Tensor:
        """The same of the entries that are not missing."""
        return logsumexp(self._joint(value, missing, given, event_dim))

    def _joint(
        self, value: Tensor, missing: Tensor | None, given: Arguments, event_dim: int
    ) -> Tensor:
        """The log density of each observation with each component, ``(..., T, K, M)``."""
        folded, sizes = self._folded(given, event_dim)
        if missing is None:
            density = self.inner.log_prob(value, folded, event_dim)
        else:
            density = self.inner.log_prob_of_seen(value, missing, folded, event_dim)
        return density.reshape(density.shape[:-1] + sizes) + _log_weights(given)

    def _folded(self, given: Arguments, event_dim: int) -> tuple[Arguments, tuple[int, int]]:
        """The arguments of the components as those of K M states, with K and M."""
        leads = [
            value.shape[: value.dim() - _num_tail(argument, event_dim)]
            for argument, value in _of_components(self.inner, given)
        ]
        num_states, num_components = torch.broadcast_shapes(*(lead[-2:] for lead in leads))
        sizes = (num_states, num_components)
        return _fold(self.inner, given, event_dim, max(map(len, leads)) - 2, sizes), sizes

    def moments_of_missing(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Those of the components, averaged by their probabilities given the observed entries."""
        shares = responsibilities(self._joint(value, missing, given, event_dim))
        shares = shares.reshape(shares.shape + (1,) * event_dim)  # (..., T, K, M, *event)
        folded, sizes = self._folded(given, event_dim)
        found = self.inner.moments_of_missing(value, missing, folded, event_dim)
        if found is None:  # entries are independent given the component
            found = (folded["loc"], folded["scale"].square())
        dim = -1 - event_dim
        means, variances = (each.unflatten(dim, sizes) for each in found)
        mean = (shares * means).sum(dim)
        spread = (means - mean.unsqueeze(dim)).square()
        return mean, (shares * (variances + spread)).sum(dim)

    def statistics(
        self, observed: Observed, given: Arguments, names: frozenset[str]
    ) -> MixtureStats:
        """Expected counts of the components, and the statistics of their family."""
        event_dim = observed.event_dim
        missing = None if observed.missing is None else observed.missing.squeeze(-1 - event_dim)
        value = observed.value.squeeze(-1 - event_dim)
        joint = self._joint(value, missing, given, event_dim)
        weights = observed.weights.unsqueeze(-1) * responsibilities(joint)
        time = observed.weights.dim() - 2
        stats = MixtureStats(weights if observed.varies else ops.sum_over(weights, time), None)
        own = frozenset(
            name.removeprefix(_COMPONENT) for name in names if name.startswith(_COMPONENT)
        )
        if not own:
            return stats
        num_states, num_components = stats.counts.shape[-2:]
        folded = _fold(self.inner, given, event_dim, time + 1, (num_states, num_components))
        each = observed._replace(weights=weights.flatten(-2))
        return stats._replace(components=self.inner.statistics(each, folded, own))

    def is_accurate(self, stats: MixtureStats, given: Arguments, name: str) -> Tensor | bool:
        """Whether the statistics of the components are, for all components of a state together.

        New statistics have new probabilities of the components, which sum to 1.
        """
        if not name.startswith(_COMPONENT):
            return True
        if stats.components is None:
            return False
        folded, own = _fold_for(self.inner, stats, given), name.removeprefix(_COMPONENT)
        accurate = self.inner.is_accurate(stats.components, folded, own)
        if isinstance(accurate, bool):
            return accurate
        dim = stats.counts.dim() - 2
        by_state = accurate.unflatten(dim, stats.counts.shape[-2:])
        for each in range(dim + 1, by_state.dim()):
            by_state = by_state.all(each, keepdim=True)
        every = by_state.expand(stats.counts.shape + (1,) * (accurate.dim() - dim - 1))
        return every.flatten(dim, dim + 1)

    def merge(self, accurate: Tensor, stats: MixtureStats, again: MixtureStats) -> MixtureStats:
        """Combine the statistics of the components, whose weights are others as well."""
        one: Any = stats.components
        other: Any = again.components
        merged = self.inner.merge(accurate, one, other)
        weight = torch.where(accurate, one.weight, other.weight)
        return stats._replace(components=merged._replace(weight=weight))

    def add(self, one: MixtureStats, other: MixtureStats) -> MixtureStats:
        """The sums of the counts, and those of the components."""
        components = None
        if one.components is not None:
            components = self.inner.add(one.components, other.components)
        return MixtureStats(one.counts + other.counts, components)

    def total(
        self, stats: MixtureStats, num_batch_dims: int, like: MixtureStats | None
    ) -> MixtureStats:
        """The sum over all sequences."""
        counts, components = over_sequences(stats.counts, num_batch_dims), None
        if stats.components is not None:
            about = None if like is None else like.components
            components = self.inner.total(stats.components, num_batch_dims, about)
        return MixtureStats(counts, components)


def _at_one_time(weights: Categorical) -> Categorical:
    """Weights that were expanded over time, as a mask does, at one time.

    Torch has computed logits from probabilities, so that :func:`.read_given` compares the two.
    """
    copied: Categorical = Categorical.__new__(Categorical)
    copied.__dict__.update(vars(weights))
    for name in ("probs", "logits"):
        value = vars(weights).get(name)
        if value is not None and value.dim() > 2 and value.shape[-3] > 1 and value.stride(-3) == 0:
            copied.__dict__[name] = value.narrow(-3, 0, 1)
    return copied


def _log_weights(given: Arguments) -> Tensor:
    named = {
        name.removeprefix(_MIXTURE): value
        for name, value in given.items()
        if name.startswith(_MIXTURE)
    }
    return rows.log_probs(named)


def responsibilities(joint: Tensor) -> Tensor:
    """The probabilities of the components given an observation; 0 for an impossible one."""
    probs = joint.softmax(-1)
    return probs.masked_fill((joint == -torch.inf).all(-1, keepdim=True), 0.0)


class MixtureOfNormals(_Family):
    """``MixtureSameFamily(Categorical(...), Normal(...).to_event(n))``."""

    inner = NORMAL
    max_event_dim = NORMAL.max_event_dim
    arguments = (_PROBS, _LOGITS, *(_in_mixture(NORMAL, each) for each in NORMAL.arguments))


class MixtureOfMultivariateNormals(_Family):
    """``MixtureSameFamily(Categorical(...), MultivariateNormal(...))``."""

    inner = MULTIVARIATE_NORMAL
    max_event_dim = MULTIVARIATE_NORMAL.max_event_dim
    arguments = (
        _PROBS,
        _LOGITS,
        *(_in_mixture(MULTIVARIATE_NORMAL, each) for each in MULTIVARIATE_NORMAL.arguments),
    )


MIXTURE_OF_NORMALS = MixtureOfNormals()
MIXTURE_OF_MULTIVARIATE_NORMALS = MixtureOfMultivariateNormals()
