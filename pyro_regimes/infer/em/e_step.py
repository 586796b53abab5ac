"""The E-step on tensors.

Between two runs of the model only the arguments of its sites change. :class:`SiteData` holds
everything else, so that EM can iterate without running the model.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_regimes.chain.counts import ChainCounts
from pyro_regimes.distributions import RegimeHMM, observation, values
from pyro_regimes.emissions import entries
from pyro_regimes.emissions.base import Arguments, Observed, Stats
from pyro_regimes.infer.em.grouping import batch_shape
from pyro_regimes.infer.tracing import Site
from pyro_regimes.infer.tuple_chain import TupleChain
from pyro_regimes.kernels import ops


class SiteData(NamedTuple):
    """The data of a site that do not change between steps."""

    site: Site
    value: Tensor  #: ``(..., T, *event)``, finite numbers on padding and where masked
    batch_shape: torch.Size
    dtype: torch.dtype  #: of its likelihood
    weight: Tensor | None  #: weight of each sequence, ``(...)``; None if all are 1
    chain: tuple[Tensor, Tensor, Tensor]  #: the kernels' logits at which the site was read
    missing: Tensor | None  #: the missing entries, in the shape of ``value``, or None

    @property
    def arguments(self) -> Arguments:
        """The arguments at which the site was read."""
        return {name: value.detach().to(self.dtype) for name, value in self.site.arguments.items()}

    @property
    def is_as_read(self) -> bool:
        """Whether the E-step may use ``chain``: nothing is weighted, masked or converted."""
        given = (*self.chain, *self.site.arguments.values())
        plain = self.weight is None and self.site.observation_mask is None
        return plain and all(each.dtype == self.dtype for each in given)

    def weigh(self, values: Tensor) -> Tensor:
        """Multiply the values of each sequence by its weight; a weight of 0 gives 0."""
        if self.weight is None:
            return values
        weight = self.weight.reshape(self.weight.shape + (1,) * (values.dim() - self.weight.dim()))
        return torch.where(weight == 0, 0.0, values * weight)


class SiteStatistics(NamedTuple):
    """Expected statistics of one site."""

    chain: ChainCounts
    emission: Stats | None  #: statistics of the family; None if not needed
    names: frozenset[str]  #: names of the arguments that ``emission`` updates


class Expected(NamedTuple):
    """A site, its arguments, and the expectations of its hidden path given these."""

    data: SiteData
    arguments: Arguments
    expectations: ops.Expectations
    begins: bool = True  #: whether sequences begin with the data; else these continue others

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the statistics."""
        return self.data.batch_shape

    def statistics(self, names: frozenset[str]) -> SiteStatistics:
        """Expected statistics at the arguments of the E-step.

        :param names: names of the arguments to update.
        """
        site = self.data.site
        if site.family is not None:
            names = names - {each.name for each in site.family.arguments if each.sweep} or names
        if site.family is not None and (site.varies or self.data.value.device.type != "cpu"):
            # Those of spreads are taken when the new locations are known: there would be one for
            # every observation, or to find out whether they may be corrected takes as long.
            first = {each.name for each in site.family.arguments if each.is_quadratic}
            names = names & first or names
        return SiteStatistics(self.counts(), self.retake(self.arguments, names), names)

    def retake(self, arguments: Arguments, names: frozenset[str]) -> Stats | None:
        """Statistics of the observations, taken at other arguments: one more pass over the data."""
        family = self.data.site.family
        if family is None or names.isdisjoint(each.name for each in family.arguments):
            return None
        found = entries.statistics(family, self._observed(), arguments, names)
        if not hasattr(found, "_fields"):
            raise TypeError(
                f"expected {type(family).__name__}.statistics to return a NamedTuple of tensors, "
                f"got {type(found).__name__}"
            )
        return found

    def counts(self) -> ChainCounts:
        """The expected counts of the hidden chain."""
        counts = self.data.site.chain.counts(self.arguments, self.expectations)
        initial, transitions = map(self.data.weigh, counts)
        return ChainCounts(initial if self.begins else torch.zeros_like(initial), transitions)

    def starts(self) -> Tensor:
        """The expected number of sequences that begin in each state of the chain."""
        found = self.data.weigh(self.data.site.chain.starts(self.expectations))
        return found if self.begins else torch.zeros_like(found)

    def _observed(self) -> Observed:
        """The data of the site with the E-step's weights."""
        data, expectations = self.data, self.expectations
        site = data.site
        event_dim = len(site.hmm.observation_dist.event_shape)
        gamma = data.weigh(expectations.smoothed_probs)
        if site.observation_mask is not None:
            mask = torch.as_tensor(site.observation_mask, device=gamma.device).to(gamma.dtype)
            gamma = torch.where(mask == 0, 0.0, gamma * mask)
        gone = None
        if data.missing is not None:
            rows, gone = entries.parts_of(data.missing, event_dim)
            gamma = torch.where(rows.unsqueeze(-1), 0.0, gamma)
        value = data.value.to(gamma.dtype).unsqueeze(-1 - event_dim)  # (..., T, 1, *event)
        # As many batch dims as the weights have: a family tells the event's dims by the difference.
        value = value[(None,) * (gamma.dim() + event_dim - value.dim())]
        if gone is not None:
            gone = gone.unsqueeze(-1 - event_dim).expand(value.shape)
        return Observed(value, gamma, site.varies, gone)


def check_finite(site: Site) -> None:
    """Check that data are finite, except for padding, masked and missing values.

    :raises ValueError: if they are not, with their number and places.
    """
    hmm, mask = site.hmm, site.observation_mask
    value, _ = values.fill_missing(site.value, hmm.observation_dist, hmm.missing)
    if ops.is_finite(value):
        return
    num_lead = value.dim() - hmm.event_dim + 1
    wrong = ~value.isfinite().reshape(value.shape[:num_lead] + (-1,)).all(-1)  # (..., T)
    wrong = wrong & ~values.marginalised(value, hmm.observation_dist)
    counts = torch.ones_like(wrong)
    valid = values.without_padding(value, hmm.lengths, hmm.event_dim)[1]
    if valid is not None:
        counts = counts & valid
    if mask is not None:
        counts = counts & (mask.any(-1) if isinstance(mask, Tensor) else bool(mask))
    ones = torch.ones(batch_shape(site), device=value.device)
    counts = counts & (scale_and_mask(ones, site.scale, site.mask) != 0).unsqueeze(-1)
    wrong = (wrong & counts).double().sum_to_size(wrong.shape) > 0
    if bool(wrong.any()):
        where = wrong.nonzero()
        first = ", ".join(str(tuple(index)) for index in where[:3].tolist())
        raise ValueError(
            f"expected the data of site {site.name!r} to be finite wherever they count, got "
            f"{len(where)} observations that are not, at [{first}{', ...' * (len(where) > 3)}] of "
            f"value of shape {tuple(value.shape)}: leave them out, or mask them with "
            "observation_dist.mask(...)"
        )


def read_site(site: Site, like: SiteData | None = None) -> SiteData:
    """Check the observed value as ``log_prob`` does, and prepare the data of a site.

    :param like: the same site with other data, if densities are not needed. Its are then taken.
    :raises ValueError: if the value has a wrong shape or length, lies outside the support, or is
        not finite, except for padding, masked and missing values.
    """
    hmm, mask = site.hmm, site.observation_mask
    if like is None or isinstance(mask, Tensor):
        initial_logits, transition_logits, logits, _ = hmm.chain(site.value)
        dtype = torch.promote_types(initial_logits.dtype, transition_logits.dtype)
        dtype = torch.promote_types(dtype, logits.dtype)
    else:
        assert isinstance(hmm, RegimeHMM)  # others do not come in chunks
        hmm._check(site.value)
        initial_logits, transition_logits, logits = like.chain
        dtype = like.dtype
    check_finite(site)
    value, _ = values.without_padding(site.value, hmm.lengths, hmm.event_dim)
    value, missing = values.fill_missing(value.detach(), hmm.observation_dist, hmm.missing)
    if isinstance(mask, Tensor):
        event_dim = len(hmm.observation_dist.event_shape)
        counted = mask.expand(torch.broadcast_shapes(mask.shape, logits.shape)).any(-1)
        value = torch.where(counted.reshape(counted.shape + (1,) * event_dim), value, 0.0)
    shape = batch_shape(site)
    weight = _weight(site, logits.new_ones(shape, dtype=dtype))
    if weight is not None:  # of a sequence that does not count, nothing may be NaN
        event_dim = len(hmm.observation_dist.event_shape)
        counts = (weight != 0).reshape(weight.shape + (1,) * (1 + event_dim))
        value = torch.where(counts, value, 0.0)
    chain = (initial_logits, transition_logits, logits)
    return SiteData(site, value, shape, dtype, weight, chain, missing)


def _weight(site: Site, ones: Tensor) -> Tensor | None:
    """The weight of each sequence, from the site's scale and mask; None if all are 1."""
    if site.mask is None and not isinstance(site.scale, Tensor) and site.scale == 1:
        return None
    weight: Tensor = scale_and_mask(ones, site.scale, site.mask)
    return None if bool((weight == 1).all()) else weight


def observation_logits(data: SiteData, arguments: Arguments) -> Tensor:
    """log b_k(x_t) at the given arguments, in each state of the site's chain, ``(..., T, K)``."""
    site = data.site
    if site.family is None:  # no closed form updates it
        return data.chain[2].detach()
    event_dim = len(site.hmm.observation_dist.event_shape)
    logits = entries.log_prob(site.family, data.value, arguments, event_dim, data.missing)
    if site.observation_mask is not None:
        logits = scale_and_mask(logits, mask=site.observation_mask)
    logits = observation.restrict(logits, site.hmm.allowed_states)
    steps = data.value.shape[data.value.dim() - event_dim - 1]
    return logits.expand(data.batch_shape + (steps, data.chain[2].shape[-1]))


def chain_of(
    data: SiteData, arguments: Arguments | None = None
) -> tuple[Arguments, tuple[Tensor, Tensor, Tensor]]:
    """The arguments of a site, and the kernels' logits at them.

    :param arguments: None for those at which the site was read, whose densities are known.
    """
    if arguments is None and data.is_as_read:
        arguments = data.arguments
        initial, transition, logits = (each.detach() for each in data.chain)
    else:
        arguments = data.arguments if arguments is None else arguments
        initial, transition = data.site.chain.logits(arguments)
        logits = observation_logits(data, arguments)
    return arguments, (initial, transition, logits)


def take_expectations(data: SiteData, arguments: Arguments | None = None) -> Expected:
    """The E-step of one site.

    :param arguments: None for those at which the site was read, whose densities are known.
    """
    arguments, chain = chain_of(data, arguments)
    return Expected(data, arguments, data.site.chain.expectations(chain))


def read_log_probs(sites: dict[str, Site]) -> dict[str, Tensor]:
    """The weighted log-likelihood of every sequence, from the distributions' own ``log_prob``.

    For a RegimeHMM it is float64, before rounding to the dtype of the data.
    """
    return {
        name: scale_and_mask(_log_prob(site.hmm)(site.value), site.scale, site.mask)
        for name, site in sites.items()
    }


def _log_prob(hmm: RegimeHMM | TupleChain) -> Callable[[Tensor], Tensor]:
    """A subclass may have a density of its own, which its public method knows."""
    if type(hmm) is RegimeHMM:
        return hmm.log_likelihood
    return hmm.log_prob
