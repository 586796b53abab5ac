"""Checks of the arguments of :class:`.RegimeHMM`."""

from __future__ import annotations

import math
from numbers import Integral
from operator import index

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.kernels import ops

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

#: The remedy at the end of an error about shapes, for the most likely mistake.
TIME_SLIP = (
    "; dimension -3 of the transitions and dimension -2 of observation_dist.batch_shape are always "
    "time: for a batch that is constant in time, use .unsqueeze(-3) and .unsqueeze(-2)"
)


def positive_integer(name: str, value: int) -> int:
    """Check and convert a value to int; NumPy integers and sizes (tensors under jit) are valid."""
    if isinstance(value, Tensor):
        is_integer = value.dim() == 0 and value.dtype in _INTEGERS
    else:
        is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    # Unlike int(), index() does not warn under torch.jit.trace.
    if not is_integer or index(value) < 1:
        raise ValueError(f"expected {name} to be a positive integer, got {value!r}")
    return index(value)


def dense(name: str, value: Tensor) -> None:
    """Raise for sparse and other layouts for which torch lacks the operations."""
    if value.layout is not torch.strided:
        raise ValueError(
            f"expected {name} to be a dense tensor, got layout {value.layout}; use .to_dense()"
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
    dense(chosen, value)
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
    if name.endswith("logits") and not math.isnan(normalised.detach().sum().item()):
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


def agree_on_num_steps(
    duration: int | None, transition_slices: int, observation_steps: tuple[int, ...]
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
