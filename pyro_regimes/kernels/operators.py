"""The compiled kernels as custom operators, opaque to torch.

``torch.compile`` and ``torch.jit.trace`` keep an operator as one node. :mod:`.autograd` defines
their derivatives and describes their arguments.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from pyro_regimes.kernels import dispatch, transforms

_CHAIN = "Tensor initial, Tensor transition, Tensor observation, Tensor? lengths"


def run_log_likelihood(
    initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
) -> Tensor:
    """The log-likelihood ``(N,)`` by the kernel of that name."""
    kernel = dispatch.kernel(name, observation.device)
    value: Tensor = kernel.log_likelihood(initial, transition, observation, lengths)
    return value


def run_expectations(
    initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The log-likelihood, the smoothed probabilities and the expected transitions."""
    kernel = dispatch.kernel(name, observation.device)
    value, smoothed, moved = kernel.expectations(initial, transition, observation, lengths)
    return value, smoothed, moved


def run_tangent(
    initial: Tensor,
    transition: Tensor,
    observation: Tensor,
    lengths: Tensor | None,
    along_transition: Tensor,
    along_observation: Tensor,
    name: str,
) -> tuple[Tensor, Tensor]:
    """The directional derivatives of smoothed probabilities and expected transitions."""
    chain = (initial, transition, observation, lengths)
    smoothed, moved = dispatch.kernel(name, observation.device).tangent(
        *chain, along_transition, along_observation
    )
    return smoothed, moved


def _value_like(initial: Tensor, transition: Tensor, observation: Tensor, *rest: Any) -> Tensor:
    return observation.new_empty(observation.shape[:1], dtype=torch.float64)


def _posterior_like(
    initial: Tensor, transition: Tensor, observation: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    moved = observation.new_empty(observation.shape[:1] + transition.shape[1:])
    return observation.new_empty(observation.shape), moved


def _expectations_like(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (_value_like(*args), *_posterior_like(*args))


def _define(
    name: str,
    arguments: str,
    returns: str,
    run: Callable[..., Any],
    like: Callable[..., Any],
) -> Any:
    """Register an operator with the shapes of its results, and with vmap as a larger batch."""
    schema = f"({arguments}, str name) -> {returns}"
    operator = torch.library.custom_op(
        f"pyro_regimes::{name}", transforms.without_tangents(run), mutates_args=(), schema=schema
    )
    operator.register_fake(like)

    @operator.register_vmap
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        observation, dim = args[2], in_dims[2]
        count = observation.shape[0 if dim is None or dim > 0 else 1]

        def flat(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor) or (dim is None and len(argument) == 1 < count):
                return argument  # shared by all sequences, also under vmap
            moved = argument.unsqueeze(0) if dim is None else argument.movedim(dim, 0)
            return moved.expand((size, count) + moved.shape[2:]).flatten(0, 1)

        found = operator(*map(flat, args, in_dims))
        if isinstance(found, Tensor):
            return found.unflatten(0, (size, count)), 0
        return tuple(each.unflatten(0, (size, count)) for each in found), (0,) * len(found)

    return operator


log_likelihood_operator = _define(
    "log_likelihood", _CHAIN, "Tensor", run_log_likelihood, _value_like
)
expectations_operator = _define(
    "expectations", _CHAIN, "(Tensor, Tensor, Tensor)", run_expectations, _expectations_like
)
tangent_operator = _define(
    "tangent",
    f"{_CHAIN}, Tensor along_transition, Tensor along_observation",
    "(Tensor, Tensor)",
    run_tangent,
    _posterior_like,
)
