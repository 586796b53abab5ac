"""The E-step on tensors: what an observed RegimeHMM holds besides its arguments, read once.

Between two runs of the model only the arguments of its sites change. :class:`SiteData` is the rest,
made ready, so that EM can iterate without running the model.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.emissions.update import Observed
from pyro_regimes.infer.grouping import batch_shape
from pyro_regimes.infer.stochastic import Averages, read_averages
from pyro_regimes.infer.tracing import Site
from pyro_regimes.kernels import ops

Arguments = dict[str, Tensor]


class SiteData(NamedTuple):
    """What of a site no step changes."""

    site: Site
    value: Tensor  #: ``(..., T, *event)``, finite wherever it does not count
    batch_shape: torch.Size
    dtype: torch.dtype  #: of its likelihood
    weight: Tensor | None  #: of each sequence, ``(...)``; None where all are 1
    chain: tuple[Tensor, Tensor, Tensor]  #: the kernels' logits at which the site was read

    @property
    def arguments(self) -> Arguments:
        """The arguments at which the site was read."""
        return {
            name: argument.value.detach().to(self.dtype)
            for name, argument in self.site.arguments.items()
        }

    def weigh(self, values: Tensor) -> Tensor:
        """Values of each sequence, times its weight; 0 where that is, whatever the value."""
        if self.weight is None:
            return values
        weight = self.weight.reshape(self.weight.shape + (1,) * (values.dim() - self.weight.dim()))
        return torch.where(weight == 0, 0.0, values * weight)


class Expected(NamedTuple):
    """A site, its arguments, and the expectations of its hidden paths at them."""

    data: SiteData
    arguments: Arguments
    expectations: ops.Expectations
    averages: Averages | None = None  #: with those of other minibatches, which count instead

    @property
    def batch_shape(self) -> torch.Size:
        """Of the statistics: averages are over all sequences, and have one dim of points."""
        return self.data.batch_shape if self.averages is None else torch.Size([1])

    def initial_counts(self) -> Tensor:
        """gamma at the first step, ``(..., K)``."""
        if self.averages is not None:
            return self.averages.initial.unsqueeze(0)
        return self.data.weigh(self.expectations.smoothed_probs[..., 0, :])

    def transition_counts(self) -> Tensor:
        """Summed xi, ``(..., 1 or T-1, K, K)``."""
        if self.averages is not None:
            return self.averages.moved.unsqueeze(0)
        moved = self.expectations.expected_transitions
        if moved.dim() == len(self.data.batch_shape) + 2:
            moved = moved.unsqueeze(-3)
        return self.data.weigh(moved)

    def observed(self) -> Observed:
        """The data of the site with the E-step's weights."""
        data, _, expectations, averages = self
        site = data.site
        event_shape = site.hmm.observation_dist.event_shape
        if averages is not None:
            return averages.as_data(event_shape)
        gamma = data.weigh(expectations.smoothed_probs)
        if site.observation_mask is not None:
            mask = torch.as_tensor(site.observation_mask, device=gamma.device).to(gamma.dtype)
            gamma = torch.where(mask == 0, 0.0, gamma * mask)
        event_dim = len(event_shape)
        value = data.value.to(gamma.dtype).unsqueeze(-1 - event_dim)  # (..., T, 1, *event)
        # As many batch dims as the weights have: a family tells the event's dims by the difference.
        value = value[(None,) * (gamma.dim() + event_dim - value.dim())]
        return Observed(value, gamma, site.varies)

    def average(self, old: Averages | None, share: float) -> Expected:
        """With the averages that this minibatch has moved."""
        observed = self.observed() if self.data.site.family is not None else None
        origin = None if old is None else old.origin
        new = read_averages(observed, self.initial_counts(), self.transition_counts(), origin)
        return self._replace(averages=new if old is None else old.mix(new, share))


def read_site(site: Site) -> SiteData:
    """Check the observed value as ``log_prob`` would, and make everything ready.

    :raises ValueError: if the value's shape, length or support does not fit.
    """
    hmm, mask = site.hmm, site.observation_mask
    initial_logits, transition_logits, logits, _ = hmm._chain(site.value)
    dtype = torch.promote_types(initial_logits.dtype, transition_logits.dtype)
    dtype = torch.promote_types(dtype, logits.dtype)
    value = hmm._without_padding(site.value)[0].detach()
    if isinstance(mask, Tensor):
        event_dim = len(hmm.observation_dist.event_shape)
        counted = mask.expand(torch.broadcast_shapes(mask.shape, logits.shape)).any(-1)
        value = torch.where(counted.reshape(counted.shape + (1,) * event_dim), value, 0.0)
    shape = batch_shape(site)
    weight = scale_and_mask(logits.new_ones(shape, dtype=dtype), site.scale, site.mask)
    return SiteData(
        site,
        value,
        shape,
        dtype,
        None if bool((weight == 1).all()) else weight,
        (initial_logits, transition_logits, logits),
    )


def observation_logits(data: SiteData, arguments: Arguments) -> Tensor:
    """log b_k(x_t) at the given arguments, ``(..., T, K)``."""
    site = data.site
    if site.family is None:  # no closed form reaches it
        return data.chain[2].detach()
    event_dim = len(site.hmm.observation_dist.event_shape)
    logits: Tensor = site.family.log_prob(data.value, arguments, event_dim)
    if site.observation_mask is not None:
        logits = scale_and_mask(logits, mask=site.observation_mask)
    steps = data.value.shape[data.value.dim() - event_dim - 1]
    return logits.expand(data.batch_shape + (steps, site.hmm.state_dim))


def chain_logits(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Normalised logits ``(..., K)`` and ``(..., 1 or T-1, K, K)`` of the chain."""
    initial, transition = (_chain_logits(arguments, name) for name in ("initial", "transition"))
    return initial, transition if transition.dim() > 2 else transition.unsqueeze(-3)


def _chain_logits(arguments: Arguments, name: str) -> Tensor:
    """Normalised logits of "initial" or "transition" probabilities."""
    probs = arguments.get(f"{name}_probs")
    if probs is None:
        return arguments[f"{name}_logits"].log_softmax(-1)
    return (probs / probs.sum(-1, keepdim=True)).log()


def take_expectations(data: SiteData, arguments: Arguments) -> Expected:
    """The E-step of one site."""
    expectations = ops.expectations(
        *chain_logits(arguments),
        observation_logits(data, arguments),
        data.site.hmm.lengths,
    )
    return Expected(data, arguments, expectations)


def read_log_probs(sites: dict[str, Site]) -> dict[str, Tensor]:
    """The weighted log-likelihood of every sequence, by the distributions' own ``log_prob``.

    Of a RegimeHMM itself it is float64, before ``log_prob`` rounds it to the dtype of the data.
    """
    return {
        name: scale_and_mask(_log_prob(site.hmm)(site.value), site.scale, site.mask)
        for name, site in sites.items()
    }


def _log_prob(hmm: RegimeHMM) -> Callable[[Tensor], Tensor]:
    return hmm._log_likelihood if type(hmm) is RegimeHMM else hmm.log_prob
