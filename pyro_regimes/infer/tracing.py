"""Traces one run of a model, with one tensor for each parameter, and reads its HMM sites."""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple, cast

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.hmm import DiscreteHMM, HiddenMarkovModel
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to

from pyro_regimes import chain, emissions
from pyro_regimes.distributions import RegimeHMM, observation
from pyro_regimes.emissions.base import Argument, Family
from pyro_regimes.infer.handing import HandOut


class Slot(NamedTuple):
    """One argument of one site in one run: a tensor that may hold parameters."""

    site: str
    argument: Argument
    value: Tensor

    @property
    def name(self) -> str:
        """The argument's name in the call of the distribution."""
        return self.argument.name

    @property
    def label(self) -> str:
        """The name of the slot in messages."""
        return f"{self.site}.{self.name}"

    @property
    def event_dim(self) -> int:
        """The number of dims of a block."""
        return self.argument.event_dim

    @property
    def lead(self) -> torch.Size:
        """The shape of its blocks."""
        return self.value.shape[: self.value.dim() - self.event_dim]


class Site(NamedTuple):
    """An observed RegimeHMM site."""

    name: str
    hmm: RegimeHMM
    value: Tensor
    scale: Tensor | float  #: scale of the log-likelihood, from ``poutine.scale`` or plates
    mask: Tensor | bool | None  #: mask of the sequences that count
    family: Family | None  #: the family of its observation distribution
    base: Distribution  #: the observation distribution without wrappers
    observation_mask: Tensor | bool | None  #: mask of the observations that count, ``(..., T, K)``
    slots: dict[str, Slot]  #: by the argument's name

    def densities(self) -> Tensor:
        """The log density of each observation in each state, ``(..., T, K)``; unchecked."""
        hmm = self.hmm
        return observation.log_prob(hmm.observation_dist, hmm._without_padding(self.value)[0], True)

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The values of its slots, by the argument's name."""
        return {name: slot.value for name, slot in self.slots.items()}

    @property
    def varies(self) -> bool:
        """Whether the observation distribution varies in time; a mask alone may."""
        if self.family is None:
            shape = self.hmm.observation_dist.batch_shape
            return len(shape) > 1 and shape[-2] > 1
        for slot in self.slots.values():
            if slot.argument in self.family.arguments:
                own = num_own_dims(slot.argument, self)
                if len(slot.lead) >= own and slot.lead[len(slot.lead) - own] > 1:
                    return True
        return False


def num_own_dims(argument: Argument, site: Site) -> int:
    """The number of dims of an argument's blocks besides the batch: time, state, event."""
    event = len(site.hmm.observation_dist.event_shape) if argument.elementwise else 0
    return argument.num_own_dims + event


class Latent(NamedTuple):
    """A latent site of the model whose value is a point from the guide."""

    name: str
    prior: Distribution
    value: Tensor
    log_prob: Tensor  #: log-probability of the value under the prior, with scale and mask: a scalar
    scale: Tensor | float
    mask: Tensor | bool | None


class Run(NamedTuple):
    """The result of one run of the model."""

    params: dict[str, Tensor]  #: the constrained value of each parameter that was read
    sites: dict[str, Site]
    latents: dict[str, Latent]
    others: dict[str, Tensor]  #: the log-probability of every other site, a scalar
    is_subsampled: bool  #: whether the run used only some of the data
    plate_sizes: dict[str, int]  #: the full size of each plate

    @property
    def slots(self) -> list[Slot]:
        """The arguments of all sites."""
        return [slot for site in self.sites.values() for slot in site.slots.values()]

    def log_priors(self) -> float:
        """The log-probability of all sites without a hidden path."""
        values = [each.log_prob for each in self.latents.values()] + list(self.others.values())
        return sum(float(value) for value in values)


def run_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: dict[str, Tensor] | None = None,
    *,
    guide: Callable[..., Any] | None = None,
    connected: bool = False,
) -> Run:
    """Trace the model once, at the point of the guide if there is one. The caller holds the lock.

    :param values: constrained values for some parameters, instead of those of the store.
    :param guide: a guide with a point (a Delta) at every latent site, such as ``AutoDelta``.
    :param connected: whether the graph reaches the store's unconstrained tensors.
    :raises ValueError: if there is no observed RegimeHMM, or a latent site without a point.
    """
    handed = HandOut(values, connected)
    trace, placed = trace_model(model, guide, args, kwargs, handed)
    _check_store(handed.values)
    sites, latents = {}, []
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        if node["is_observed"]:
            site = _read_site(name, node, handed)
            if site is not None:
                sites[name] = site
        elif name not in placed:
            raise ValueError(
                f"expected every sample site to be observed, got the latent site {name!r}: EM "
                "maximises over parameters, so condition on a value, make it a pyro.param, or "
                "pass a guide with a point there, such as AutoDelta"
            )
        else:
            latents.append(name)
    if guide is not None and is_validation_enabled():
        check_model_guide_match(trace, placed)
    if not sites:
        raise ValueError(_no_site_message(trace))
    with handed.substitution():
        trace.compute_log_prob(lambda name, node: name not in sites)
    if is_validation_enabled():
        _check_shapes(trace)
        if guide is not None:
            placed.compute_log_prob()
            _check_shapes(placed)
    others = {
        name: node["log_prob_sum"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and name not in sites and not site_is_subsample(node)
    }
    found = {}
    for name in latents:
        latent: Any = trace.nodes[name]
        found[name] = Latent(
            name, latent["fn"], latent["value"], others.pop(name), latent["scale"], latent["mask"]
        )
    plates: dict[str, Any] = {
        name: node["fn"] for name, node in trace.nodes.items() if site_is_subsample(node)
    }
    sizes = {name: int(plate.size) for name, plate in plates.items()}
    return Run(handed.values, sites, found, others, _is_subsampled(trace), sizes)


def _no_site_message(trace: Any) -> str:
    """The error message for a model that observes no RegimeHMM."""
    start = "expected an observed RegimeHMM site in the model, got"
    names = [
        name
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    ]
    for name in names:
        node = trace.nodes[name]
        base = emissions.unwrap(node["fn"]).base
        if node["is_observed"] and isinstance(base, RegimeHMM):
            return (
                f"{start} {name!r}, a {type(base).__name__}: EM does not support "
                "subclasses, which may override the density; use SVI or NUTS"
            )
        if not node["is_observed"] or not isinstance(base, HiddenMarkovModel):
            continue
        start += f" {name!r}, a {type(base).__name__}"
        if not isinstance(base, DiscreteHMM):
            return f"{start}, whose hidden state is not discrete; use SVI or NUTS"
        return (
            f"{start}: it makes one transition before its first observation, so it is "
            "RegimeHMM(first.log(), transition_logits, observation_dist), first = "
            "initial_logits.softmax(-1) @ transition_logits.softmax(-1), where transitions do not "
            "vary in time (see docs/coming_from.md)"
        )
    return f"{start} sites {names}"


def trace_model(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    handed: HandOut,
) -> tuple[Any, Any]:
    """The trace of the model at the guide's points, and that of the guide, empty without a guide.

    :raises ValueError: if the guide has a latent site without a point.
    """
    if guide is None:
        return poutine.trace(handed(model)).get_trace(*args, **kwargs), poutine.Trace()
    placed: Any = poutine.trace(handed(guide)).get_trace(*args, **kwargs)
    _check_points(placed)
    replayed = poutine.replay(handed(model), trace=placed)
    return poutine.trace(replayed).get_trace(*args, **kwargs), placed


def _check_store(params: dict[str, Tensor]) -> None:
    store = pyro.get_param_store()
    missing = [name for name in params if name not in store]
    if missing:
        raise ValueError(
            f"expected parameters in Pyro's parameter store, got {missing}, which a module keeps "
            "to itself (the setting module_local_params)"
        )


def _check_points(trace: Any) -> None:
    """Check that every latent site of the guide is a point, which EM requires."""
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"] or site_is_subsample(node):
            continue
        base = emissions.unwrap(node["fn"]).base
        if not isinstance(base, Delta):
            raise ValueError(
                "expected guide to put a point (a Delta) at every latent site, as AutoDelta "
                f"does, got {type(base).__name__} at {name!r}"
            )


def _check_shapes(trace: Any) -> None:
    """Raise for a batch dim without a plate, as ``Trace_ELBO`` does under validation."""
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        shape = _log_prob_shape(node)
        checked: Any = dict(node, log_prob=torch.empty((), device="cpu").expand(shape))
        try:
            check_site_shape(checked, cast(int, math.inf))
        except ValueError as error:
            raise ValueError(_shape_message(name, node, shape)) from error


def _log_prob_shape(node: Any) -> torch.Size:
    """The shape of a site's log density, without computing that of an HMM."""
    if "log_prob" in node:
        return node["log_prob"].shape
    fn, value = node["fn"], node["value"]
    parts = [fn.batch_shape, value.shape[: max(0, value.dim() - fn.event_dim)]]
    parts += [each.shape for each in (node["scale"], node["mask"]) if isinstance(each, Tensor)]
    try:
        return torch.broadcast_shapes(*parts)
    except RuntimeError:
        return parts[1]  # the value may have batch dims that the distribution lacks


def _shape_message(name: str, node: Any, shape: torch.Size) -> str:
    """The error message for a batch dim without a plate."""
    plates = {frame.name: frame.size for frame in node["cond_indep_stack"] if frame.vectorized}
    message = (
        f"expected a plate for every batch dim of site {name!r}, got log-densities of shape "
        f"{tuple(shape)} within plates {plates}: put sequences, restarts and other independent "
        "values under a pyro.plate"
    )
    if read_hmm(node) is None:
        return f"{message}, or make them one value with .to_event(...)"
    return (
        f"{message}; make the series of one observation one value, with .to_event(1) of the "
        "observation distribution; and give a single series as (T,), not as (T, 1)"
    )


def _is_subsampled(trace: Any) -> bool:
    """Whether some plate is subsampled."""
    plates = [node for node in trace.nodes.values() if site_is_subsample(node)]
    return any(not _is_whole(node["fn"].size, node["value"]) for node in plates)


def _is_whole(size: int, subsample: Any) -> bool:
    """Whether a plate's subsample contains all of its elements, in any order.

    This checks the subsample, because Pyro leaves ``subsample_size`` empty if the caller passes
    ``subsample``. The subsample need not be indices: Pyro accepts "anything supporting len()".
    """
    if len(subsample) < size:
        return False
    if isinstance(subsample, Tensor):
        if subsample.dim() != 1 or subsample.is_floating_point():
            return True  # the data themselves
        everything = torch.arange(size, device=subsample.device)
        return torch.equal(subsample, everything) or len(subsample.unique()) == size
    indices = np.asarray(subsample)
    return indices.ndim != 1 or indices.dtype.kind not in "iu" or len(np.unique(indices)) == size


def read_hmm(node: Any) -> RegimeHMM | None:
    """The RegimeHMM of a site, without wrappers; None for another distribution.

    Types are matched exactly, as a subclass may override the density.
    """
    hmm = node["fn"]
    while type(hmm) in emissions.WRAPPERS:
        hmm = hmm.base_dist
    return hmm if type(hmm) is RegimeHMM else None


def _mask_of(node: Any) -> Tensor | bool | None:
    """The combined mask of the site and of the distribution."""
    hmm, mask = node["fn"], node["mask"]
    while type(hmm) in emissions.WRAPPERS:
        if type(hmm) is MaskedDistribution:
            mask = hmm._mask if mask is None else mask & hmm._mask
        hmm = hmm.base_dist
    return mask


def _read_site(name: str, node: Any, handed: HandOut) -> Site | None:
    """Read an observed RegimeHMM site; None if the site has another distribution."""
    hmm, mask = read_hmm(node), _mask_of(node)
    if hmm is None:
        return None
    if not isinstance(node["value"], Tensor):
        hmm._check_shape(node["value"])  # raises
    given = {chain.ARGUMENTS[key]: value for key, value in hmm.arguments.items()}
    base, observation_mask = emissions.unwrap(hmm.observation_dist)
    family = emissions.find_family(base, len(hmm.observation_dist.event_shape))
    if family is not None:
        values = family.read(base)
        unknown = set(values) - {each.name for each in family.arguments}
        if unknown:
            raise ValueError(
                f"expected {type(family).__name__}.read to return values of its arguments "
                f"{[each.name for each in family.arguments]}, got {sorted(unknown)} too: add "
                "emissions.without_update(name) to the arguments for what EM does not set"
            )
        given |= {each: values[each.name] for each in family.arguments if each.name in values}
    event_shape = hmm.observation_dist.event_shape
    slots = {}
    for argument, value in given.items():
        value = handed.resolve(value)
        if argument not in chain.ARGUMENTS.values():
            value = _whole(argument, value, event_shape)
        slots[argument.name] = Slot(name, argument, value)
    return Site(
        name, hmm, node["value"], node["scale"], mask, family, base, observation_mask, slots
    )


def _whole(argument: Argument, value: Tensor, event_shape: torch.Size) -> Tensor:
    """An argument's value with a block for each element of an observation, and for time if it
    varies: wrappers of a distribution may have expanded the one, and not the other.
    """
    block = value.shape[value.dim() - argument.event_dim :]
    if argument.elementwise:
        block = event_shape + block
    lead = value.dim() - len(block)
    if lead >= 0 and value.shape[lead:] != block:
        value = value.expand(value.shape[:lead] + block)
    time = lead - 2
    if time >= 0 and value.shape[time] > 1 and value.stride(time) == 0:
        value = value.narrow(time, 0, 1)
    return value


def write_parameter(name: str, value: Tensor) -> None:
    """Set a parameter in place, so that the store's leaf and its optimiser state are kept."""
    store = pyro.get_param_store()
    unconstrained = dict(store.named_parameters())[name]
    with torch.no_grad():
        unconstrained.copy_(transform_to(constraint_of(name)).inv(value))


def constraint_of(name: str) -> constraints.Constraint:
    """The constraint in the store, which may differ from that in a trace."""
    return pyro.get_param_store()._constraints[name]
