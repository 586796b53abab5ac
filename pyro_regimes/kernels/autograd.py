r"""Derivatives of the compiled kernels, for autograd, function transforms and compilation.

Each kernel call is a custom operator (:mod:`.operators`) under an
:class:`torch.autograd.Function`. The first derivatives are the kernel's own expectations (Fisher's
identity),

.. math::
    \partial \log p / \partial b_t(k) = \gamma_t(k), \qquad
    \partial \log p / \partial A_{ij} = \xi(i, j), \qquad
    \partial \log p / \partial \pi_k = \gamma_1(k).

Derivatives of gamma and xi are computed by a second operator, the tangent recursion. The Hessian is
symmetric, so the product of a cotangent of (gamma, xi) with their Jacobian is their derivative
along it. Forward mode uses the same operator. Derivatives of higher order use the reference.

Tensors are flat: ``(N or 1, K)``, ``(N or 1, 1 or T-1, K, K)``, ``(N, T, K)`` and ``(N,)``, in
float32 or float64; the log-likelihood is float64. ``name`` is the name of the kernel, or empty for
that of the device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import operators, reference, transforms


class Expectations(Function):
    """The E-step with its derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        # An operator takes longer to call than a short kernel to run.
        plain = transforms.is_plain(initial, transition, observation, lengths)
        run = operators.run_expectations if plain else operators.expectations_operator
        found: tuple[Tensor, Tensor, Tensor] = run(initial, transition, observation, lengths, name)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        *chain, ctx.name = inputs
        ctx.save_for_backward(*chain, output[1], output[2])
        if hasattr(ctx, "save_for_forward"):  # an operator's context has no forward mode
            ctx.save_for_forward(*chain, output[1], output[2])

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
        # A cotangent of the value is float64, whatever the logits are.
        to_initial = to_smoothed[:, 0].sum_to_size(initial.shape).to(initial.dtype)
        to_transition = to_moved.sum_to_size(transition.shape).to(transition.dtype)
        return to_initial, to_transition, to_smoothed.to(observation.dtype), None, None

    @staticmethod
    def jvp(
        ctx: Any,
        of_initial: Tensor | None,
        of_transition: Tensor | None,
        of_observation: Tensor | None,
        *rest: None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        initial, transition, observation, lengths, smoothed, moved = ctx.saved_tensors
        along_transition = _like(of_transition, moved)
        along_observation = _like(of_observation, smoothed)
        if of_initial is not None:  # a first logit counts as one of the first observation
            first = along_observation[:, :1] + of_initial.unsqueeze(1)
            along_observation = torch.cat([first, along_observation[:, 1:]], 1)
        more_smoothed, more_moved = Tangent.apply(
            initial, transition, observation, lengths, along_transition, along_observation, ctx.name
        )
        value = _weighted(smoothed, along_observation) + _weighted(moved, along_transition)
        return value, more_smoothed, more_moved


def _like(tangent: Tensor | None, other: Tensor) -> Tensor:
    """A tangent of the other's shape and dtype; None is 0."""
    return torch.zeros_like(other) if tangent is None else tangent.to(other.dtype).expand_as(other)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """The sum for each sequence, float64; a value of weight 0 may be anything."""
    return torch.where(weights == 0, 0.0, weights.double() * values).flatten(1).sum(-1)


def _score(
    initial: Tensor,
    wide: Tensor,
    observation: Tensor,
    along_transition: Tensor,
    along_observation: Tensor,
    lengths: Tensor | None,
) -> Tensor:
    """The expected score along a direction, summed over sequences, by the reference.

    :param wide: the transitions, one A for each sequence, as xi is each sequence's own.
    """

    def value(wide: Tensor, observation: Tensor) -> Tensor:
        return reference.log_likelihood(initial, wide, observation, lengths).sum()

    moved, smoothed = torch.func.grad(value, argnums=(0, 1))(wide, observation)
    return (_weighted(moved, along_transition) + _weighted(smoothed, along_observation)).sum()


def _tangent_by_reference(
    initial: Tensor,
    transition: Tensor,
    observation: Tensor,
    along_transition: Tensor,
    along_observation: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What :class:`Tangent` computes, differentiable any number of times in reverse mode.

    It is the gradient of the expected score, as the Hessian is symmetric.
    """
    wide = transition.expand_as(along_transition)
    along = (along_transition, along_observation)
    moved, smoothed = torch.func.grad(_score, argnums=(1, 2))(
        initial, wide, observation, *along, lengths
    )
    return smoothed, moved


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
        found: tuple[Tensor, Tensor] = operators.tangent_operator(
            initial, transition, observation, lengths, along_transition, along_observation, name
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:-1])
        if hasattr(ctx, "save_for_forward"):
            ctx.save_for_forward(*inputs[:-1])

    @staticmethod
    def backward(ctx: Any, of_smoothed: Tensor, of_moved: Tensor) -> tuple[Any, ...]:
        initial, transition, observation, lengths, *along = ctx.saved_tensors
        again = partial(_tangent_by_reference, lengths=lengths)
        pull_back = torch.func.vjp(again, initial, transition, observation, *along)[1]
        gradients = pull_back((of_smoothed, of_moved))
        return (*gradients[:3], None, *gradients[3:], None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        # In reverse mode, as torch has no forward mode within forward mode.
        initial, transition, observation, lengths, *along = ctx.saved_tensors
        wide = transition.expand_as(along[0])
        turns = [_like(turn, part) for turn, part in zip(tangents, (initial, wide, observation))]
        turns_along = [_like(turn, part) for turn, part in zip(tangents[4:], along)]

        def slope(initial: Tensor, wide: Tensor, observation: Tensor) -> Tensor:
            gradient = torch.func.grad(_score, argnums=(0, 1, 2))(
                initial, wide, observation, along[0], along[1], lengths
            )
            return torch.stack([_weighted(*each).sum() for each in zip(gradient, turns)]).sum()

        moved, smoothed = torch.func.grad(slope, argnums=(1, 2))(initial, wide, observation)
        more_smoothed, more_moved = _tangent_by_reference(
            initial, transition, observation, turns_along[0], turns_along[1], lengths
        )
        return smoothed + more_smoothed, moved + more_moved


def expectations(
    initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood, gamma and xi, which are differentiable."""
    args = (initial, transition, observation, lengths, name)
    found: tuple[Tensor, Tensor, Tensor] = transforms.apply(
        Expectations, *args, operator=operators.expectations_operator
    )
    return found


def log_likelihood(
    initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor | None, name: str
) -> Tensor:
    """:math:`\\log p(x)`, ``(N,)``; where a gradient may come, with expectations at hand."""
    chain = (initial, transition, observation)
    recorded = torch.jit.is_tracing()  # to be differentiated later, perhaps
    if recorded or torch.is_grad_enabled() and any(map(_may_be_differentiated, chain)):
        value: Tensor = expectations(*chain, lengths, name)[0]
        return value
    value = operators.log_likelihood_operator(*chain, lengths, name)
    return value


def _may_be_differentiated(tensor: Tensor) -> bool:
    if tensor.requires_grad or torch.compiler.is_compiling():
        return tensor.requires_grad
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return transforms.has_tangent(tensor)


# A traced graph holds the operators without the functions above them.
for _operator, _function in (
    (operators.expectations_operator, Expectations),
    (operators.tangent_operator, Tangent),
):
    _operator.register_autograd(_function.backward, setup_context=_function.setup_context)
