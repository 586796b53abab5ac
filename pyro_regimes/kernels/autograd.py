r"""The compiled kernels as operators that torch can differentiate, transform and compile.

Each kernel call is a custom operator, opaque to torch: ``torch.compile`` and ``torch.jit.trace``
keep it as one node. Over it lies an :class:`torch.autograd.Function`. The first derivatives are the
kernel's own expectations (Fisher's identity),

.. math::
    \partial \log p / \partial b_t(k) = \gamma_t(k), \qquad
    \partial \log p / \partial A_{ij} = \xi(i, j), \qquad
    \partial \log p / \partial \pi_k = \gamma_1(k).

Those of gamma and xi are a second operator, the tangent recursion: the Hessian is symmetric, so the
product of a cotangent of (gamma, xi) with their Jacobian is their derivative along it. Derivatives
of higher order go through the reference.

Tensors are flat here: ``(N or 1, K)``, ``(N or 1, 1 or T-1, K, K)``, ``(N, T, K)`` and ``(N,)``, of
float32 or float64. ``name`` is that of the kernel, or empty for the device's own.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import dispatch, reference

_CHAIN = "Tensor initial, Tensor transition, Tensor observation, Tensor? lengths"


def _log_likelihood(
    initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
) -> Tensor:
    kernel = dispatch.kernel(name, observation.device)
    value: Tensor = kernel.log_likelihood(initial, transition, observation, lengths)
    return value.to(observation.dtype)


def _expectations(
    initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = dispatch.kernel(name, observation.device)
    value, smoothed, moved = kernel.expectations(initial, transition, observation, lengths)
    return value.to(observation.dtype), smoothed, moved


def _tangent(
    initial: Tensor,
    transition: Tensor,
    observation: Tensor,
    lengths: Tensor | None,
    along_transition: Tensor,
    along_observation: Tensor,
    name: str,
) -> tuple[Tensor, Tensor]:
    chain = (initial, transition, observation, lengths)
    smoothed, moved = dispatch.kernel(name, observation.device).tangent(
        *chain, along_transition, along_observation
    )
    return smoothed, moved


def _value_like(initial: Tensor, transition: Tensor, observation: Tensor, *rest: Any) -> Tensor:
    return observation.new_empty(observation.shape[:1])


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
    """Register an operator, with the shapes it returns and with vmap as a longer batch."""
    schema = f"({arguments}, str name) -> {returns}"
    operator = torch.library.custom_op(
        f"pyro_regimes::{name}", run, mutates_args=(), schema=schema
    )
    operator.register_fake(like)

    @operator.register_vmap
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        observation, dim = args[2], in_dims[2]
        count = observation.shape[0 if dim is None or dim > 0 else 1]

        def flat(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor) or (dim is None and len(argument) == 1 < count):
                return argument  # shared by all sequences, and by all of vmap's
            moved = argument.unsqueeze(0) if dim is None else argument.movedim(dim, 0)
            return moved.expand((size, count) + moved.shape[2:]).flatten(0, 1)

        found = operator(*map(flat, args, in_dims))
        if isinstance(found, Tensor):
            return found.unflatten(0, (size, count)), 0
        return tuple(each.unflatten(0, (size, count)) for each in found), (0,) * len(found)

    return operator


log_likelihood_operator = _define(
    "log_likelihood", _CHAIN, "Tensor", _log_likelihood, _value_like
)
expectations_operator = _define(
    "expectations", _CHAIN, "(Tensor, Tensor, Tensor)", _expectations, _expectations_like
)
tangent_operator = _define(
    "tangent",
    f"{_CHAIN}, Tensor along_transition, Tensor along_observation",
    "(Tensor, Tensor)",
    _tangent,
    _posterior_like,
)


class Expectations(Function):
    """The E-step with its derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        # An operator takes longer to call than a short kernel to run.
        plain = dispatch.is_plain(initial, transition, observation, lengths)
        run = _expectations if plain else expectations_operator
        found: tuple[Tensor, Tensor, Tensor] = run(initial, transition, observation, lengths, name)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        *chain, ctx.name = inputs
        ctx.save_for_backward(*chain, output[1], output[2])

    @staticmethod
    def backward(
        ctx: Any, of_value: Tensor | None, of_smoothed: Tensor | None, of_moved: Tensor | None
    ) -> tuple[Any, ...]:
        initial, transition, observation, lengths, smoothed, moved = ctx.saved_tensors
        to_smoothed = to_moved = None
        if of_value is not None:
            to_smoothed = of_value[:, None, None] * smoothed
            to_moved = of_value[:, None, None, None] * moved
        if of_smoothed is not None or of_moved is not None:
            more_smoothed, more_moved = Tangent.apply(
                initial,
                transition,
                observation,
                lengths,
                torch.zeros_like(moved) if of_moved is None else of_moved,
                torch.zeros_like(smoothed) if of_smoothed is None else of_smoothed,
                ctx.name,
            )
            to_smoothed = more_smoothed if to_smoothed is None else to_smoothed + more_smoothed
            to_moved = more_moved if to_moved is None else to_moved + more_moved
        if to_smoothed is None or to_moved is None:
            return None, None, None, None, None
        to_initial = to_smoothed[:, 0].sum_to_size(initial.shape)
        return to_initial, to_moved.sum_to_size(transition.shape), to_smoothed, None, None


class Tangent(Function):
    """The derivative of gamma and xi along a direction; its own derivatives by the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        initial: Tensor,
        transition: Tensor,
        observation: Tensor,
        lengths: Tensor | None,
        along_transition: Tensor,
        along_observation: Tensor,
        name: str,
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = tangent_operator(
            initial, transition, observation, lengths, along_transition, along_observation, name
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:-1])

    @staticmethod
    def backward(ctx: Any, of_smoothed: Tensor, of_moved: Tensor) -> tuple[Any, ...]:
        initial, transition, observation, lengths, *along = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that the gradient in one does not run on through how it depends on another.
            inputs = [
                each.view_as(each) if each.requires_grad else each.detach().requires_grad_()
                for each in (initial, transition, observation, *along)
            ]
            # One A for each sequence, as xi is each sequence's own.
            wide = inputs[1].expand(observation.shape[:1] + transition.shape[1:])
            value = reference.log_likelihood(inputs[0], wide, inputs[2], lengths).sum()
            moved, smoothed = torch.autograd.grad(
                value, (wide, inputs[2]), create_graph=True, materialize_grads=True
            )
            score = (moved * inputs[3]).sum() + (smoothed * inputs[4]).sum()
            moved, smoothed = torch.autograd.grad(
                score, (wide, inputs[2]), create_graph=True, materialize_grads=True
            )
            total = (moved * of_moved).sum() + (smoothed * of_smoothed).sum()
            gradients = torch.autograd.grad(
                total, inputs, create_graph=again, materialize_grads=True
            )
        return (*gradients[:3], None, *gradients[3:], None)


def log_likelihood(
    initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
) -> Tensor:
    """:math:`\\log p(x)`, ``(N,)``; where a gradient may come, with expectations at hand."""
    chain = (initial, transition, observation)
    recorded = torch.jit.is_tracing()  # to be differentiated later, perhaps
    if recorded or torch.is_grad_enabled() and any(map(_may_be_differentiated, chain)):
        value: Tensor = dispatch.apply(Expectations, *chain, lengths, name)[0]
        return value
    value = log_likelihood_operator(*chain, lengths, name)
    return value


def _may_be_differentiated(tensor: Tensor) -> bool:
    if tensor.requires_grad or torch.compiler.is_compiling():
        return tensor.requires_grad
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


# A traced graph holds the operators without the functions above them.
for _operator, _function in (
    (expectations_operator, Expectations),
    (tangent_operator, Tangent),
):
    _operator.register_autograd(_function.backward, setup_context=_function.setup_context)
