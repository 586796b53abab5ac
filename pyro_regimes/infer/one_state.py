"""Sites without a hidden path as chains of one state and one step, which EM reads as all others.

So a Gaussian likelihood beside the chain adds its statistics to a parameter that both have, and a
parameter of a Gaussian prior has the closed form of one of a likelihood, whose data are the values
that have this prior.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from pyro_regimes import chain, emissions
from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.normal import NORMAL
from pyro_regimes.infer.tracing import Latent, Run, Site, Slot

_FAMILIES: tuple[emissions.Family, ...] = (NORMAL, MULTIVARIATE_NORMAL)


def with_chains(run: Run, names: Collection[str] | None) -> Run:
    """The run with some of its Gaussian sites as chains: :attr:`.Run.sites`, :attr:`.Run.priors`.

    :param names: of these sites; None for all whose arguments depend on parameters.
    """
    if names is not None and not names or not (run.latents or run.plain):
        return run
    sites, others, priors = dict(run.sites), dict(run.others), {}
    for each in [*run.latents.values(), *run.plain.values()]:
        if names is not None and each.name not in names:
            continue
        site = None if names is None and not _depends(each) else _as_chain(each)
        if site is None:
            continue
        if each.name in run.latents:
            priors[each.name] = site
        elif names is not None or not run.is_subsampled:
            sites[each.name] = site
            del others[each.name]
    return run._replace(sites=sites, others=others, priors=priors)


def _depends(each: Latent) -> bool:
    """Whether arguments of a distribution are recorded by autograd."""
    given = vars(emissions.unwrap(each.prior).base).values()
    return any(isinstance(value, Tensor) and value.requires_grad for value in given)


def _as_chain(each: Latent) -> Site | None:
    """One chain for each element of a site's batch; None if its distribution is no Gaussian."""
    base, mask = emissions.unwrap(each.prior)
    family = emissions.find_family(base, len(base.event_shape))
    if family is None or family not in _FAMILIES:
        return None
    event_dim = len(base.event_shape)
    if each.value.numel() != (base.batch_shape + base.event_shape).numel():
        return None
    given = family.read(base)
    slots = {}
    for argument in family.arguments:
        if argument.name in given:
            value = _with_time_and_state(given[argument.name], argument.event_dim)
            slots[argument.name] = Slot(each.name, argument, value)
    distribution: Any = type(base)
    values = {name: slot.value for name, slot in slots.items()}
    one = torch.ones(1, dtype=each.value.dtype, device=each.value.device)
    hmm = RegimeHMM(
        initial_probs=one,
        transition_probs=one.unsqueeze(0),
        observation_dist=distribution(**values, validate_args=False),
        validate_args=False,
    )
    for name, value in hmm.arguments.items():
        slots[name] = Slot(each.name, chain.ARGUMENTS[name], value)
    value = each.value.expand(base.batch_shape + base.event_shape)
    value = value.unsqueeze(value.dim() - event_dim)
    inner = len(base.batch_shape) - len(each.prior.batch_shape)
    scale, *masks = (_over_batch(part, inner) for part in (each.scale, each.mask, mask))
    kept = [part for part in masks if part is not None]
    whole = None if not kept else kept[0] if len(kept) == 1 else kept[0] & kept[1]
    return Site(each.name, hmm, value, scale, whole, family, base, None, slots)


def _with_time_and_state(value: Tensor, event_dim: int) -> Tensor:
    at = value.dim() - event_dim
    return value.unsqueeze(at).unsqueeze(at)


def _over_batch(part: Any, inner: int) -> Any:
    """A weight of each element of a batch that ``to_event`` made ``inner`` dims smaller."""
    if isinstance(part, Tensor) and part.dim():
        return part[(...,) + (None,) * inner]
    return part
