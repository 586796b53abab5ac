"""Checks of a traced model, and messages that say what to change in it."""

from __future__ import annotations

import math
from typing import Any, cast

import pyro
import torch
from pyro.distributions import Delta
from pyro.distributions.hmm import DiscreteHMM, HiddenMarkovModel
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor

from pyro_regimes import emissions
from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.kernels import ops


def check_store(params: dict[str, Tensor]) -> None:
    """Check that every parameter that was read is in Pyro's store."""
    store = pyro.get_param_store()
    missing = [name for name in params if name not in store]
    if missing:
        raise ValueError(
            f"expected parameters in Pyro's parameter store, got {missing}, which a module keeps "
            "to itself (the setting module_local_params)"
        )


def check_points(trace: Any) -> None:
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


def check_shapes(trace: Any) -> None:
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
        return ops.broadcast(*parts)
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
    if type(emissions.unwrap(node["fn"]).base) is not RegimeHMM:
        return f"{message}, or make them one value with .to_event(...)"
    return (
        f"{message}; make the series of one observation one value, with .to_event(1) of the "
        "observation distribution; and give a single series as (T,), not as (T, 1)"
    )


def no_site_message(trace: Any) -> str:
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
