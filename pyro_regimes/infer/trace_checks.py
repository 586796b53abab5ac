"""Checks of a traced model, and messages that say what to change in it."""

from __future__ import annotations

import math
from itertools import zip_longest
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


def check_data(name: str, node: Any) -> None:
    """Check that the data of an HMM site are a tensor, and its scale and mask those of sequences.

    :raises ValueError: if they are not, with the remedy.
    """
    if not isinstance(node["value"], Tensor):
        raise ValueError(
            f"expected the data of site {name!r} to be a tensor, got "
            f"{type(node['value']).__name__}: use torch.as_tensor(...)"
        )
    shape = None
    for kind in ("scale", "mask"):
        if isinstance(node[kind], Tensor) and node[kind].dim():
            shape = _hmm_shape(node) if shape is None else shape
            if not _broadcasts_to(node[kind].shape, shape):
                raise ValueError(_weight_message(name, kind, node[kind], shape))


def check_shapes(trace: Any) -> None:
    """Raise for a batch dim without a plate, as ``Trace_ELBO`` does under validation."""
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        shape = node["log_prob"].shape if "log_prob" in node else _hmm_shape(node)
        if not shape and not node["cond_indep_stack"]:
            continue  # no batch, and no plate
        own = torch.Size(size or 1 for size in shape)  # Pyro has no plate of size 0
        checked: Any = dict(node, log_prob=torch.empty((), device="cpu").expand(own))
        try:
            check_site_shape(checked, cast(int, math.inf))
        except ValueError as error:
            raise ValueError(_shape_message(name, node, shape)) from error
        if "log_prob" not in node and not _broadcasts_to(node["fn"].batch_shape, shape):
            raise ValueError(
                f"expected the data of site {name!r} to have a batch shape that broadcasts with "
                f"that of its distribution, {tuple(node['fn'].batch_shape)}, got {tuple(shape)}"
            )


def _hmm_shape(node: Any) -> torch.Size:
    """The shape of an HMM site's log density without its scale and mask, not computing it."""
    fn, value = node["fn"], node["value"]
    shape = value.shape[: max(0, value.dim() - fn.event_dim)]
    try:
        return ops.broadcast(fn.batch_shape, shape)
    except RuntimeError:
        return shape  # the value may have batch dims that the distribution lacks


def _broadcasts_to(own: torch.Size, shape: torch.Size) -> bool:
    """Whether a shape broadcasts to another, up to leading dims of size 1."""
    return all(
        one in (1, size) for one, size in zip_longest(reversed(own), reversed(shape), fillvalue=1)
    )


def _weight_message(name: str, kind: str, given: Tensor, shape: torch.Size) -> str:
    """The error message for a scale or a mask that is not one of whole sequences."""
    message = (
        f"expected the {kind} of site {name!r} (poutine.{kind}) to broadcast to "
        f"{tuple(shape)}, one value for each sequence, got shape {tuple(given.shape)}: "
    )
    if kind == "scale":
        return (
            f"{message}a RegimeHMM has one log-density for a whole sequence, and no weights of "
            "time steps; to leave steps out, use observation_dist.mask(...)"
        )
    return (
        f"{message}to leave out time steps, mask the observation distribution, "
        "observation_dist.mask(mask.unsqueeze(-1)) for a mask of shape (..., T)"
    )


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


def nan_message(label: str, value: Tensor) -> str:
    """The message about an argument of a distribution that is NaN."""
    where = value.isnan().nonzero()
    return (
        f"expected {label} to be numbers, got NaN in {len(where)} of {value.numel()} entries, "
        f"first at {where[0].tolist()} of shape {tuple(value.shape)}: covariates may not be "
        "missing, so leave these rows out or fill them in (NaN in observations alone is missing, "
        'with missing="marginalise"), and parameters need starts within their constraints'
    )


def clearer_about_nan(error: ValueError) -> ValueError:
    """Replace torch's error about an invalid argument of a distribution if that is NaN.

    Torch prints the argument, in which NaN may be left out. It is a local of the frame that raised.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    known = {} if frame is None else frame.tb_frame.f_locals
    value, name, whose = known.get("value"), known.get("param"), known.get("self")
    if not (isinstance(value, Tensor) and isinstance(name, str) and "Expected param" in str(error)):
        return error
    if not bool(value.isnan().any()):
        return error
    return ValueError(nan_message(f"{name} of {type(whose).__name__}", value.detach()))


def check_arguments(arguments: dict[str, Tensor]) -> None:
    """Check that no argument of a site is NaN, where torch does not validate them.

    :param arguments: by label.
    """
    for label, value in arguments.items():
        if not ops.is_finite(value) and bool(value.isnan().any()):
            raise ValueError(nan_message(label, value.detach()))
