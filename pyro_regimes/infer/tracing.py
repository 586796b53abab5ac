"""Traces one run of a model, with one tensor for each parameter, and reads its HMM sites."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to

from pyro_regimes import chain, emissions
from pyro_regimes.distributions import RegimeHMM, observation, values
from pyro_regimes.emissions.base import Argument, Family
from pyro_regimes.emissions.lagged_normal import LAGGED_NORMAL
from pyro_regimes.infer.handing import HandOut
from pyro_regimes.infer.hidden_chain import HiddenChain, MarkovChain
from pyro_regimes.infer.nodes import read_chain, weights_of, whole_blocks
from pyro_regimes.infer.subsampling import is_subsampled
from pyro_regimes.infer.trace_checks import (
    check_data,
    check_points,
    check_shapes,
    check_store,
    clearer_about_nan,
    no_site_message,
)
from pyro_regimes.infer.tuple_chain import TupleChain


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
    """An observed site of a RegimeHMM, or of a SwitchingAutoregression."""

    name: str
    hmm: RegimeHMM | TupleChain
    value: Tensor
    scale: Tensor | float  #: scale of the log-likelihood, from ``poutine.scale`` or plates
    mask: Tensor | bool | None  #: mask of the sequences that count
    family: Family | None  #: the family of its observation distribution
    base: Distribution  #: the observation distribution without wrappers
    observation_mask: Tensor | bool | None  #: mask of the observations that count, ``(..., T, K)``
    slots: dict[str, Slot]  #: by the argument's name

    @property
    def chain(self) -> HiddenChain:
        """The hidden chain."""
        return MarkovChain(self.hmm) if isinstance(self.hmm, RegimeHMM) else self.hmm

    def densities(self) -> Tensor:
        """The log density of each observation in each state, ``(..., T, K)``; unchecked."""
        hmm = self.hmm
        value, _ = values.without_padding(self.value, hmm.lengths, hmm.event_dim)
        value, missing = values.fill_missing(value, hmm.observation_dist, hmm.missing)
        return observation.log_prob(hmm.observation_dist, value, True, missing)

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
    """A site without a hidden path: a latent one, at a point from the guide, or an observed one."""

    name: str
    prior: Distribution  #: the distribution of the value
    value: Tensor
    log_prob: Tensor  #: log-probability of the value, with scale and mask: a scalar
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
    plain: dict[str, Latent]  #: the observed sites of ``others``
    #: latent sites whose priors depend on parameters, as chains of one state (:mod:`.one_state`)
    priors: dict[str, Site] = {}

    @property
    def chains(self) -> dict[str, Site]:
        """Everything that has slots."""
        return self.sites | self.priors if self.priors else self.sites

    @property
    def slots(self) -> list[Slot]:
        """The arguments of all sites."""
        return [slot for site in self.chains.values() for slot in site.slots.values()]

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
    check_store(handed.values)
    sites, latents = _sort_sites(trace, placed, handed)
    if guide is not None:
        check_model_guide_match(trace, placed)
    if not sites:
        raise ValueError(no_site_message(trace))
    with handed.substitution():
        trace.compute_log_prob(lambda name, node: name not in sites)
    check_shapes(trace)
    if guide is not None:
        placed.compute_log_prob()
        check_shapes(placed)
    others = {
        name: node["log_prob_sum"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and name not in sites and not site_is_subsample(node)
    }
    found = {name: _read_plain(name, trace.nodes[name]) for name in latents}
    others = {name: value for name, value in others.items() if name not in found}
    plain = {name: _read_plain(name, trace.nodes[name]) for name in others}
    plates: dict[str, Any] = {
        name: node["fn"] for name, node in trace.nodes.items() if site_is_subsample(node)
    }
    sizes = {name: int(plate.size) for name, plate in plates.items()}
    return Run(handed.values, sites, found, others, is_subsampled(trace), sizes, plain)


def _sort_sites(trace: Any, placed: Any, handed: HandOut) -> tuple[dict[str, Site], list[str]]:
    """The observed RegimeHMM sites, and the names of latent sites.

    :param placed: the trace of the guide.
    :raises ValueError: if there is a latent site without a point.
    """
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
    return sites, latents


def _read_plain(name: str, node: Any) -> Latent:
    return Latent(
        name, node["fn"], node["value"], node["log_prob_sum"], node["scale"], node["mask"]
    )


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
    try:
        if guide is None:
            return poutine.trace(handed(model)).get_trace(*args, **kwargs), poutine.Trace()
        placed: Any = poutine.trace(handed(guide)).get_trace(*args, **kwargs)
        check_points(placed)
        replayed = poutine.replay(handed(model), trace=placed)
        return poutine.trace(replayed).get_trace(*args, **kwargs), placed
    except ValueError as error:
        clearer = clearer_about_nan(error)
        if clearer is error:
            raise
        raise clearer from error


def _read_site(name: str, node: Any, handed: HandOut) -> Site | None:
    """Read an observed site with a hidden chain; None if it has another distribution."""
    hmm = read_chain(node)
    if hmm is None:
        return None
    check_data(name, node)
    given = {chain.ARGUMENTS[key]: value for key, value in hmm.arguments.items()}
    base, observation_mask = emissions.unwrap(hmm.observation_dist)
    family = emissions.find_family(base, len(hmm.observation_dist.event_shape))
    if isinstance(hmm, TupleChain):
        family = LAGGED_NORMAL
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
            value = whole_blocks(argument, value, event_shape)
        slots[argument.name] = Slot(name, argument, value)
    value, (scale, mask) = node["value"], weights_of(node)
    if not (value.is_floating_point() or value.is_complex()):
        value = value.long()  # as RegimeHMM does
    if isinstance(hmm, TupleChain):
        value = hmm.rows(value)
    return Site(name, hmm, value, scale, mask, family, base, observation_mask, slots)


def write_parameter(name: str, value: Tensor) -> None:
    """Set a parameter in place, so that the store's leaf and its optimiser state are kept."""
    store = pyro.get_param_store()
    unconstrained = dict(store.named_parameters())[name]
    with torch.no_grad():
        unconstrained.copy_(transform_to(constraint_of(name)).inv(value))


def constraint_of(name: str) -> constraints.Constraint:
    """The constraint in the store, which may differ from that in a trace."""
    return pyro.get_param_store()._constraints[name]
