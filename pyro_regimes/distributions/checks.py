"""Checks of the arguments of :class:`.RegimeHMM`."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from operator import index
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes.caller import levels_to_the_caller
from pyro_regimes.kernels import ops
from pyro_regimes.messages import shown

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PROBS_TOLERANCE = 1e-6  #: of the sum of a row of probabilities
_FEW = 256  #: numbers that Python may look at
_METACLASS = str(inspect.getsourcefile(type(TorchDistribution)))  #: whose call makes a distribution
_LARGEST_SIZE = 2**63 - 1  #: the largest size of a tensor

#: The remedy at the end of an error about shapes, for the most likely mistake.
TIME_SLIP = (
    "; dimension -3 of the transitions and dimension -2 of observation_dist.batch_shape are always "
    "time: for a batch that is constant in time, use .unsqueeze(-3) and .unsqueeze(-2)"
)


_AT_RANDOM_POINT: ContextVar[bool] = ContextVar("at_random_point", default=False)


@contextmanager
def at_random_point() -> Iterator[None]:
    """Values are random, so warnings about what they look like are left out."""
    token = _AT_RANDOM_POINT.set(True)
    try:
        yield
    finally:
        _AT_RANDOM_POINT.reset(token)


def positive_integer(name: str, value: int) -> int:
    """Check and convert a value to int; NumPy integers and sizes (tensors under jit) are valid."""
    if isinstance(value, Tensor):
        is_integer = value.dim() == 0 and value.dtype in INTEGERS and value.device.type != "meta"
    else:
        is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    # Unlike int(), index() does not warn under torch.jit.trace.
    if not is_integer or index(value) < 1:
        raise ValueError(f"expected {name} to be a positive integer, got {shown(value)}")
    if index(value) > _LARGEST_SIZE:
        raise ValueError(
            f"expected {name} to be a positive integer, at most {_LARGEST_SIZE}, got {shown(value)}"
        )
    return index(value)


def plain(name: str, value: Tensor) -> None:
    """Raise for layouts and dtypes for which torch lacks the operations."""
    if value.layout is not torch.strided:
        raise ValueError(
            f"expected {name} to be a dense tensor, got layout {value.layout}; use .to_dense()"
        )
    if value.is_quantized or (value.is_floating_point() and value.dtype not in _FLOATS):
        remedy = ".dequantize()" if value.is_quantized else ".float()"
        raise ValueError(
            f"expected {name} to hold float16, bfloat16, float32 or float64, got dtype "
            f"{value.dtype}; use {remedy}"
        )


def has_values(name: str, value: Tensor) -> None:
    """Raise for a tensor on the device "meta", which has a shape and no values."""
    if value.is_meta:
        raise ValueError(
            f"expected {name} to hold values, got a tensor of shape {tuple(value.shape)} on the "
            "device meta, which has none: create it on the device of the data"
        )


def parameters_have_values(observation_dist: Distribution) -> None:
    """Raise for an observation distribution whose parameters are on the device "meta"."""
    base: Any = observation_dist
    while base is not None:
        for name, value in vars(base).items():
            if isinstance(value, Tensor) and value.is_meta:
                has_values(f"the {name} of observation_dist", value)
        base = getattr(base, "base_dist", None)


def on_device(device: torch.device, value: Tensor) -> None:
    """Raise for a value on another device than that of the arguments."""
    if value.device != device:
        raise ValueError(
            f"expected value on the device of the arguments, {device}, got a value of "
            f"shape {tuple(value.shape)} on {value.device}; use value.to({str(device)!r})"
        )


def one_of(
    name: str, logits: Tensor | None, probs: Tensor | None, event_shape: torch.Size
) -> tuple[str, Tensor]:
    """The name and the value of the given one of logits and probs."""
    if (logits is None) == (probs is None):
        came = "neither" if logits is None else "both"
        raise ValueError(f"expected exactly one of {name}_logits and {name}_probs, got {came}")
    chosen, value = (f"{name}_logits", logits) if probs is None else (f"{name}_probs", probs)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected {chosen} to be a floating point tensor, got {came}")
    plain(chosen, value)
    if value.shape[-len(event_shape) :] != event_shape:
        raise ValueError(
            f"expected {chosen} to end in {tuple(event_shape)}, as observation_dist has "
            f"{event_shape[0]} states, got shape {tuple(value.shape)}"
        )
    return chosen, value


def rows(name: str, value: Tensor, normalised: Tensor) -> None:
    """Raise for rows, along the last dim, that are not distributions over states.

    :param normalised: the normalised rows, which are NaN for invalid logits.
    """
    has_values(name, value)
    if name.endswith("logits") and not math.isnan(normalised.detach().sum().item()):
        return
    if name.endswith("probs") and _are_on_simplex(value.detach()):
        return
    if name.endswith("probs"):
        good, expected = constraints.simplex.check(value), "be non-negative and sum to 1"
    else:
        good, expected = value.logsumexp(-1).isfinite(), "hold a finite entry, and no NaN or inf"
    if not good.all():
        bad = value[~good][0]
        raise ValueError(
            f"expected the rows of {name} to {expected}, got {bad.tolist()} of sum {bad.sum():.7g}"
        )


def _are_on_simplex(probs: Tensor) -> bool:
    """Whether all rows are, for a few rows on the CPU; False where that is not known.

    Python looks at some numbers sooner than tensor operations do.
    """
    if not probs.is_cpu or not 0 < probs.numel() <= _FEW or not ops.can_be_seen(probs):
        return False
    rows = probs.reshape(-1, probs.shape[-1]).tolist()
    return all(min(row) >= 0 and abs(sum(row) - 1) < _PROBS_TOLERANCE for row in rows)


def logits_not_probs(initial: Tensor, transition: Tensor) -> None:
    """Warn if all rows of both logits look like probabilities.

    Normalised log-probabilities cannot look like this, and other logits hardly ever do. Only
    tensors on the CPU are checked, which needs no transfer. For almost all logits one row suffices.
    """
    if _AT_RANDOM_POINT.get():
        return  # where EM runs a model to see what its parameters are
    if not initial.is_cpu or not transition.is_cpu or not initial.numel():
        return
    if initial.shape[-1] == 1 or not ops.can_be_seen(initial, transition):
        return
    row = initial
    while row.dim() > 1:
        row = row[0]
    if not abs(sum(row.tolist()) - 1) <= _PROBS_TOLERANCE:
        return
    for value in (initial.detach(), transition.detach()):
        if bool((value < 0).any()) or bool(((value.sum(-1) - 1).abs() > _PROBS_TOLERANCE).any()):
            return
    warnings.warn(
        "initial_logits and transition_logits are non-negative and their rows sum to 1, as those "
        "of probabilities do, but they are read as logits: if they are probabilities, pass them by "
        "name, RegimeHMM(initial_probs=..., transition_probs=..., observation_dist=...)",
        UserWarning,
        stacklevel=levels_to_the_caller(_METACLASS),
    )


def allowed_states(
    allowed: Tensor, num_states: int, lengths: Tensor | None, is_checked: bool
) -> Tensor:
    """The states that each time may have, ``(..., 1 or T, K)``.

    :param is_checked: whether to check that each step within the lengths has one.
    """
    if not isinstance(allowed, Tensor) or allowed.dtype is not torch.bool:
        came = f"dtype {allowed.dtype}" if isinstance(allowed, Tensor) else type(allowed).__name__
        raise ValueError(
            f"expected allowed_states to be a bool tensor, got {came}; known states become one by "
            "torch.nn.functional.one_hot(states, K).bool()"
        )
    if not allowed.dim() or allowed.shape[-1] != num_states:
        raise ValueError(
            f"expected allowed_states to end in ({num_states},), as observation_dist has "
            f"{num_states} states, got shape {tuple(allowed.shape)}"
        )
    if allowed.dim() == 1:
        allowed = allowed.unsqueeze(-2)
    if is_checked:
        none = ~allowed.any(-1)
        if lengths is not None:
            time = torch.arange(allowed.shape[-2], device=lengths.device)
            none = none & (time < lengths.unsqueeze(-1))
        if bool(none.any()):
            where = tuple(none.nonzero()[0].tolist())
            raise ValueError(
                f"expected allowed_states to allow a state at every step, got none at {where}"
            )
    return allowed


def packing(packed_lengths: Tensor | None, lengths: Tensor | None) -> ops.Packing | None:
    """How packed sequences follow one another; None if none are given."""
    if packed_lengths is None:
        return None
    if lengths is not None:
        raise ValueError(
            "expected one of lengths, of padded sequences, and packed_lengths, of sequences that "
            "follow one another without padding, got both"
        )
    return ops.Packing(packed_lengths)


def agree_on_num_steps(
    duration: int | None,
    transition_slices: int,
    observation_steps: tuple[int, ...],
    allowed_steps: tuple[int, ...] = (),
    gaps: tuple[int, ...] = (),
    packed_steps: int | None = None,
) -> int | None:
    """T, on which all arguments that determine it must agree; None if none does."""
    found = {}
    if duration is not None:
        found["duration"] = positive_integer("duration", duration)
    if transition_slices != 1:
        slices = index(transition_slices)
        found["the time slices of the transitions (dimension -3) plus 1"] = slices + 1
    if observation_steps not in ((), (1,)):
        found["dimension -2 of observation_dist.batch_shape"] = index(observation_steps[0])
    if allowed_steps not in ((), (1,)):
        found["dimension -2 of allowed_states"] = index(allowed_steps[0])
    if gaps:
        found["the last dimension of gaps plus 1"] = index(gaps[0]) + 1
    if packed_steps is not None:
        found["the sum of packed_lengths"] = packed_steps
    if len(set(found.values())) > 1:
        came = ", ".join(f"{size} from {name}" for name, size in found.items())
        raise ValueError(f"expected equal numbers of time steps, got {came}{TIME_SLIP}")
    return next(iter(found.values()), None)


def broadcast_batches(**batch_shapes: torch.Size) -> torch.Size:
    """The common batch shape of the named arguments."""
    try:
        return ops.broadcast(*batch_shapes.values())
    except RuntimeError as error:
        came = ", ".join(f"{name} {tuple(shape)}" for name, shape in batch_shapes.items())
        raise ValueError(f"expected batch shapes that broadcast, got {came}{TIME_SLIP}") from error
