"""Reads the nodes of a trace: their RegimeHMM, weights, and the blocks of arguments."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_regimes import emissions
from pyro_regimes.distributions import RegimeHMM, SwitchingAutoregression
from pyro_regimes.emissions.base import Argument
from pyro_regimes.infer.tuple_chain import TupleChain


def read_hmm(node: Any) -> RegimeHMM | None:
    """The RegimeHMM of a site, without wrappers; None for another distribution.

    Types are matched exactly, as a subclass may override the density.
    """
    found = read_chain(node)
    return found if isinstance(found, RegimeHMM) else None


def read_chain(node: Any) -> RegimeHMM | TupleChain | None:
    """As :func:`read_hmm`, or the chain of an autoregression."""
    found = node["fn"]
    while type(found) in emissions.WRAPPERS:
        found = found.base_dist
    if type(found) is SwitchingAutoregression:
        return TupleChain(found)
    return found if type(found) is RegimeHMM else None


def weights_of(node: Any) -> tuple[Tensor | float, Tensor | bool | None]:
    """The scale of each sequence, and the combined mask of the site and of the distribution."""
    hmm, scale, mask = node["fn"], node["scale"], node["mask"]
    while type(hmm) in emissions.WRAPPERS:
        if type(hmm) is MaskedDistribution:
            mask = hmm._mask if mask is None else mask & hmm._mask
        elif isinstance(hmm, Independent):
            own = (None,) * hmm.reinterpreted_batch_ndims
            scale, mask = (
                each[(...,) + own] if isinstance(each, Tensor) and each.dim() else each
                for each in (scale, mask)
            )
        hmm = hmm.base_dist
    if isinstance(scale, Tensor) or isinstance(mask, Tensor):
        value_dim = node["value"].dim() - hmm.event_dim
        num_dims = max(len(hmm.batch_shape), value_dim)
        scale, mask = (_without_leading(each, num_dims) for each in (scale, mask))
    return scale, mask


def _without_leading(weight: Any, num_dims: int) -> Any:
    """A tensor without the leading dims of size 1 that a batch of so many dims lacks."""
    while isinstance(weight, Tensor) and weight.dim() > num_dims and weight.shape[0] == 1:
        weight = weight.squeeze(0)
    return weight


def whole_blocks(argument: Argument, value: Tensor, event_shape: torch.Size) -> Tensor:
    """An argument's value with a block for each element of an observation; one if constant in time.

    Wrappers of a distribution may have expanded the one, and not the other.
    """
    block = value.shape[value.dim() - argument.event_dim :]
    if argument.elementwise:
        block = event_shape + block
    lead = value.dim() - len(block)
    if lead >= 0 and value.shape[lead:] != block:
        value = value.expand(value.shape[:lead] + block)
    time = lead - argument.num_own_dims
    if time >= 0 and value.shape[time] > 1 and value.stride(time) == 0:
        value = value.narrow(time, 0, 1)
    return value
