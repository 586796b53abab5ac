"""One run of a model with one tensor for each parameter name, and what its HMM sites hold."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints, transform_to

from pyro_regimes import emissions
from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.infer.isolation import PYRO_LOCK as PYRO_LOCK  # noqa: F401


class HandOut(Messenger):
    """Give every read of a ``pyro.param`` of one name the same leaf tensor.

    Pyro computes a new constrained tensor at each read, so that nothing tells two reads of one
    parameter apart from two parameters.

    :param values: constrained values to hand out; other parameters come from the store.
    :param connected: whether these keep the graph to the store's unconstrained tensors.
    """

    def __init__(
        self, values: dict[str, Tensor] | None = None, connected: bool = False
    ) -> None:
        super().__init__()
        self.values = dict(values or {})
        self._connected = connected

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
        elif msg["name"] not in pyro.get_param_store() and len(msg["args"]) > 1:
            # The store would share the memory of the caller's start, and EM writes in place. It
            # has to share a module's weights, so that the module sees what is learned.
            name, start, *rest = msg["args"]
            start = start() if callable(start) else start
            if isinstance(start, Tensor) and not isinstance(start, torch.nn.Parameter):
                start = start.detach().clone()
            msg["args"] = (name, start, *rest)

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        if msg["name"] not in self.values:
            given = msg["value"]
            # A copy: an unconstrained value is the store's leaf itself, which EM will overwrite.
            if self._connected:
                value = given.clone()
            else:
                value = given.detach().clone().requires_grad_(torch.is_grad_enabled())
            # A module that has just made the parameter asks for it.
            value.unconstrained = getattr(given, "unconstrained", None)
            self.values[msg["name"]] = msg["value"] = value


class Argument(NamedTuple):
    """A tensor that a site's log-likelihood depends on, and that may hold parameters."""

    site: str
    name: str  #: as the caller of the distribution named it
    value: Tensor
    event_dim: int  #: the dims of a block, which moves as one

    @property
    def label(self) -> str:
        return f"{self.site}.{self.name}"

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
    family: ModuleType | None  #: of :mod:`pyro_regimes.emissions`
    base: Distribution  #: the observation distribution without what is wrapped around it
    observation_mask: Tensor | bool | None  #: which observations count, ``(..., T, K)``
    arguments: dict[str, Argument]

    @property
    def varies(self) -> bool:
        """Whether the observation distribution varies in time."""
        shape = self.hmm.observation_dist.batch_shape
        return len(shape) > 1 and shape[-2] > 1


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
    if guide is None:
        trace = poutine.trace(handed(model)).get_trace(*args, **kwargs)
    else:
        placed = poutine.trace(handed(guide)).get_trace(*args, **kwargs)
        _check_points(placed)
        replayed = poutine.replay(handed(model), trace=placed)
        trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    _check_store(handed.values)
    sites, latents = {}, []
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        if node["is_observed"]:
            site = _read_site(name, node)
            if site is not None:
                sites[name] = site
        elif guide is None or name not in placed:
            raise ValueError(
                f"expected every sample site to be observed, got the latent site {name!r}: EM "
                "maximises over parameters, so condition on a value, make it a pyro.param, or "
                "give EM a guide that puts a point there, as AutoDelta does"
            )
        else:
            latents.append(name)
    if not sites:
        names = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
        raise ValueError(f"expected an observed RegimeHMM site in the model, got sites {names}")
    trace.compute_log_prob(lambda name, node: name not in sites)
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
    return Run(handed.values, sites, found, others, _is_subsampled(trace))


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


def _is_subsampled(trace: Any) -> bool:
    """Whether a plate holds only some of its elements."""
    plates = [node["fn"] for node in trace.nodes.values() if site_is_subsample(node)]
    return any(plate.subsample_size not in (None, plate.size) for plate in plates)


def read_hmm(node: Any) -> RegimeHMM | None:
    """The RegimeHMM of a site, without what is wrapped around it; None if it holds another."""
    hmm = node["fn"]
    while isinstance(hmm, (Independent, ExpandedDistribution, MaskedDistribution)):
        hmm = hmm.base_dist
    return hmm if isinstance(hmm, RegimeHMM) else None


def _mask_of(node: Any) -> Tensor | bool | None:
    """Of the site and of the distribution, together."""
    hmm, mask = node["fn"], node["mask"]
    while isinstance(hmm, (Independent, ExpandedDistribution, MaskedDistribution)):
        if isinstance(hmm, MaskedDistribution):
            mask = hmm._mask if mask is None else mask & hmm._mask
        hmm = hmm.base_dist
    return mask


def _read_site(name: str, node: Any) -> Site | None:
    """What EM asks of an observed RegimeHMM; None if the site holds another distribution."""
    hmm, mask = read_hmm(node), _mask_of(node)
    if hmm is None:
        return None
    tensors = {kind: (value, 1) for kind, value in hmm.arguments.items()}
    base, observation_mask = emissions.unwrap(hmm.observation_dist)
    family = emissions.find_family(base)
    if family is not None:
        event_dims = {update.argument: update.event_dim for update in family.UPDATES}
        for key, value in family.arguments(base).items():
            tensors[key] = value, event_dims[key]
    arguments = {
        key: Argument(name, key, value, event_dim) for key, (value, event_dim) in tensors.items()
    }
    return Site(
        name, hmm, node["value"], node["scale"], mask, family, base, observation_mask, arguments
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
