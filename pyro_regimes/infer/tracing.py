"""One run of a model with one tensor for each parameter name, and what its HMM sites hold."""

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
        """The argument's name, as the caller of the distribution gave it."""
        return self.argument.name

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.site}.{self.name}"

    @property
    def event_dim(self) -> int:
        """The dims of a block."""
        return self.argument.event_dim

    @property
    def lead(self) -> torch.Size:
        """The shape of its blocks."""
        return self.value.shape[: self.value.dim() - self.event_dim]


class Site(NamedTuple):
    """An observed RegimeHMM."""

    name: str
    hmm: RegimeHMM
    value: Tensor
    scale: Tensor | float  #: of the log-likelihood, from ``poutine.scale`` or plates
    mask: Tensor | bool | None  #: which sequences count
    family: Family | None  #: of its observation distribution
    base: Distribution  #: the observation distribution without what is wrapped around it
    observation_mask: Tensor | bool | None  #: which observations count, ``(..., T, K)``
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
        """Whether the observation distribution varies in time."""
        shape = self.hmm.observation_dist.batch_shape
        return len(shape) > 1 and shape[-2] > 1


def num_own_dims(argument: Argument, site: Site) -> int:
    """How many dims of an argument's blocks are not the site's batch: time, state, event."""
    event = len(site.hmm.observation_dist.event_shape) if argument.elementwise else 0
    return argument.num_own_dims + event


class Latent(NamedTuple):
    """A site of the model at which the guide has put a point."""

    name: str
    prior: Distribution
    value: Tensor
    log_prob: Tensor  #: of the value under the prior, with its scale and mask: a scalar
    scale: Tensor | float
    mask: Tensor | bool | None


class Run(NamedTuple):
    """What one run of the model showed."""

    params: dict[str, Tensor]  #: the constrained value of each parameter that was read
    sites: dict[str, Site]
    latents: dict[str, Latent]
    others: dict[str, Tensor]  #: the log-probability of every other site, a scalar
    is_subsampled: bool  #: whether it saw only some of the data
    plate_sizes: dict[str, int]  #: the full size of each plate

    @property
    def slots(self) -> list[Slot]:
        """The arguments of all sites."""
        return [slot for site in self.sites.values() for slot in site.slots.values()]

    def log_priors(self) -> float:
        """The log-probability of all that has no hidden path."""
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
    """Trace the model once, under the caller's lock; where there is a guide, at its point.

    :param values: constrained values for some parameters, in place of the store's.
    :param guide: puts a point (a Delta) at every latent site, as ``AutoDelta`` does.
    :param connected: whether the graph reaches the store's unconstrained tensors.
    :raises ValueError: if it has no observed RegimeHMM, or a latent site without a point.
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
                "give EM a guide that puts a point there, as AutoDelta does"
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
    """What is said of a model that observes no RegimeHMM."""
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
                f"{start} {name!r}, a {type(base).__name__}: a subclass may have a density of its "
                "own, so SVI or NUTS can fit it, and EM cannot"
            )
        if not node["is_observed"] or not isinstance(base, HiddenMarkovModel):
            continue
        start += f" {name!r}, a {type(base).__name__}"
        if not isinstance(base, DiscreteHMM):
            return f"{start}, whose hidden state is not discrete: SVI or NUTS can fit it"
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
    """The trace of the model at the guide's points, and that of the guide, empty without one.

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
    """Refuse a guide that has a distribution where EM needs a point."""
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"] or site_is_subsample(node):
            continue
        base = emissions.unwrap(node["fn"]).base
        if not isinstance(base, Delta):
            raise ValueError(
                "expected the guide to put a point (a Delta) at every latent site, as AutoDelta "
                f"does, got {type(base).__name__} at {name!r}"
            )


def _check_shapes(trace: Any) -> None:
    """Refuse a batch that no plate declares, as ``Trace_ELBO`` does under validation."""
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
    """The shape of a site's log density. That of an HMM is not computed here."""
    if "log_prob" in node:
        return node["log_prob"].shape
    fn, value = node["fn"], node["value"]
    parts = [fn.batch_shape, value.shape[: max(0, value.dim() - fn.event_dim)]]
    parts += [each.shape for each in (node["scale"], node["mask"]) if isinstance(each, Tensor)]
    try:
        return torch.broadcast_shapes(*parts)
    except RuntimeError:
        return parts[1]  # a batch of the value that is not one of the distribution


def _shape_message(name: str, node: Any, shape: torch.Size) -> str:
    """What is said of a batch outside every plate."""
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
    """Whether some plate holds only some of its elements."""
    plates = [node for node in trace.nodes.values() if site_is_subsample(node)]
    return any(not _is_whole(node["fn"].size, node["value"]) for node in plates)


def _is_whole(size: int, subsample: Any) -> bool:
    """Whether a plate's subsample is all of its elements, in any order.

    The subsample is asked and not ``subsample_size``, which Pyro leaves empty where a caller gave
    ``subsample``. That need not be indices: Pyro takes "anything supporting len()".
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
    """The RegimeHMM of a site, without what is wrapped around it; None if it holds another.

    Types are matched exactly: a subclass may have a density of its own.
    """
    hmm = node["fn"]
    while type(hmm) in emissions.WRAPPERS:
        hmm = hmm.base_dist
    return hmm if type(hmm) is RegimeHMM else None


def _mask_of(node: Any) -> Tensor | bool | None:
    """Of the site and of the distribution, together."""
    hmm, mask = node["fn"], node["mask"]
    while type(hmm) in emissions.WRAPPERS:
        if type(hmm) is MaskedDistribution:
            mask = hmm._mask if mask is None else mask & hmm._mask
        hmm = hmm.base_dist
    return mask


def _read_site(name: str, node: Any, handed: HandOut) -> Site | None:
    """What EM asks of an observed RegimeHMM; None if the site holds another distribution."""
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
    slots = {
        argument.name: Slot(name, argument, handed.resolve(value))
        for argument, value in given.items()
    }
    return Site(
        name, hmm, node["value"], node["scale"], mask, family, base, observation_mask, slots
    )


def write_parameter(name: str, value: Tensor) -> None:
    """Set a parameter in place, so that the store's leaf, and an optimiser's state of it, stay."""
    store = pyro.get_param_store()
    unconstrained = dict(store.named_parameters())[name]
    with torch.no_grad():
        unconstrained.copy_(transform_to(constraint_of(name)).inv(value))


def constraint_of(name: str) -> constraints.Constraint:
    """The constraint that the store keeps; what a trace reports is not always it."""
    return pyro.get_param_store()._constraints[name]
