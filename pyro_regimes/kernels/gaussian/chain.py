r"""The log-likelihood of a chain with Gaussian observations, as one function of its parameters.

It computes the same as :func:`.densities.log_prob` followed by :func:`.autograd.log_likelihood`. On
a short series the operations between the two, and between their derivatives, would take as long as
the recursion. Here the weights from the E-step go directly to the moments of the Gaussian.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import autograd, dispatch, transforms
from pyro_regimes.kernels.arguments import check_lengths
from pyro_regimes.kernels.gaussian import densities, operators
from pyro_regimes.kernels.shapes import broadcast, flatten

_EVENT_DIMS = (1, 3, 2, 2, 3)  # of the initial and transition logits, value, loc and factor


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    value: Tensor,
    loc: Tensor,
    factor: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    r""":math:`\log p(x)` with :math:`b_k(x_t) = N(x_t; \mu_k, L_k L_k^\top)`; batch dims broadcast.

    Call it only if :func:`is_served` is true.

    :param initial_logits: ``(..., K)``.
    :param transition_logits: ``(..., 1 or T-1, K, K)``.
    :param value: ``(..., T, D)``.
    :param loc: ``(..., K or 1, D)``.
    :param factor: the lower Cholesky factor ``(..., K or 1, D, D)``, or standard deviations
        ``(..., K or 1, D, 1)``.
    :param lengths: ``(...)``.
    :return: ``(...)``, float64.
    :raises ValueError: if a length is not from 1 to T.
    """
    tensors = (initial_logits, transition_logits, value, loc, factor)
    shapes = [each.shape[: each.dim() - dim] for each, dim in zip(tensors, _EVENT_DIMS)]
    batch_shape = broadcast(*shapes, *([] if lengths is None else [lengths.shape]))
    flat = [flatten(*each, batch_shape) for each in zip(tensors, _EVENT_DIMS)]
    if lengths is not None:
        check_lengths(lengths, value.shape[-2])
        lengths = lengths.expand(batch_shape).reshape(-1)
    found: Tensor
    if transforms.is_plain(*flat, lengths):
        initial, transition, *gaussian = flat
        density = _density(batch_shape.numel(), *gaussian)
        kernel = dispatch.kernel("cpu", density.device)
        found = kernel.log_likelihood(initial, transition, density, lengths)
    else:
        found = transforms.apply(LogLikelihood, *flat, lengths, batch_shape.numel())
    return found.reshape(batch_shape)


def _density(count: int, value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """The densities of so many sequences."""
    density = operators.log_density(value, loc, factor)
    return density.expand((count,) + density.shape[1:])


def is_served(lengths: Tensor | None, *tensors: Tensor) -> bool:
    """Whether there are kernels, and no transform is active.

    :func:`torch.jit.trace` records the function as one node with a fixed number of sequences.
    There it serves a single sequence without batch dims, if a gradient may be required.
    """
    if not all(each.dtype is tensors[0].dtype for each in tensors):
        return False
    if torch.jit.is_tracing():
        if lengths is not None or [each.dim() for each in tensors] != list(_EVENT_DIMS):
            return False
        if not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors)):
            return False
        is_plain = transforms.is_untransformed
    else:
        is_plain = transforms.is_plain
    with torch.no_grad():
        return densities.is_served(*tensors) and is_plain(*tensors, lengths)


class LogLikelihood(Function):
    """The log-likelihood ``(N,)`` with derivatives, for flat tensors ``(N or 1, ...)``.

    It does not support transforms and forward mode, which :func:`is_served` excludes.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        initial, transition, value, loc, factor, lengths, count = args
        density = _density(count, value, loc, factor)
        kernel = dispatch.kernel("cpu", value.device)
        found, smoothed, moved = kernel.expectations(initial, transition, density, lengths)
        ctx.save_for_backward(initial, transition, value, loc, factor, lengths, smoothed, moved)
        log_likelihood: Tensor = found
        return log_likelihood

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        initial, transition, value, loc, factor, lengths, smoothed, moved = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated
            return (*_differentiable_gradients(ctx, cotangent), None, None)
        # The cotangent is float64, whatever the arguments are.
        weights = (cotangent[:, None, None] * smoothed).to(value.dtype)
        moved = (cotangent[:, None, None, None] * moved).to(value.dtype)
        return (
            densities.sum_to(weights[:, 0], initial.shape),
            densities.sum_to(moved, transition.shape),
            *densities.pull_back(value, weights, loc, factor, ctx.needs_input_grad[2:5]),
            None,
            None,
        )


def _differentiable_gradients(ctx: Any, cotangent: Tensor) -> list[Tensor | None]:
    """The gradients by composition of the same functions, for higher derivatives."""
    *given, lengths, smoothed, _ = ctx.saved_tensors
    # Views, so that the gradient in one does not run on through how it depends on another.
    inputs = [each.view_as(each) for each in given]
    initial, transition, value, loc, factor = inputs
    density = densities.LogDensity.apply(value, loc, factor).expand(smoothed.shape)
    found = autograd.Expectations.apply(initial, transition, density, lengths, "cpu")[0]
    wanted = [each for each in inputs if each.requires_grad]
    gradients = iter(torch.autograd.grad(found, wanted, cotangent, create_graph=True))
    return [next(gradients) if each.requires_grad else None for each in inputs]
