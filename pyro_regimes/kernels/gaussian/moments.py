"""Weighted moments of the whitened observations, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import transforms
from pyro_regimes.kernels.gaussian import formulas, operators


class Moments(Function):
    """n ``(N, K)``, s ``(N, K, D)`` and S ``(N, K, D, D or 1)`` of z.

    Its derivatives, under cotangents a, b and C, are

    .. math::
        \\partial w_t = a + b^\\top z_t + z_t^\\top C z_t, \\qquad
        \\partial z_t = w_t (b + (C + C^\\top) z_t).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        plain = transforms.is_plain(value, weights, loc, factor)
        run = operators.moments if plain else operators.moments_operator
        found: tuple[Tensor, Tensor, Tensor] = run(value, weights, loc, factor)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)
        if hasattr(ctx, "save_for_forward"):
            ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, weights, loc, factor = ctx.saved_tensors
        of_value, of_weights, of_loc, of_factor = tangents
        z = formulas.whiten(value, loc, factor)  # (N, K, D, T)
        turn = formulas.push_forward(z, loc, factor, of_value, of_loc, of_factor)
        share = weights.mT.unsqueeze(-2)  # (N, K, 1, T)
        more = torch.zeros_like(share) if of_weights is None else of_weights.mT.unsqueeze(-2)
        first = more * z + share * turn
        if formulas.is_full(factor):
            half = (share * turn) @ z.mT
            second = (more * z) @ z.mT + half + half.mT
        else:
            second = ((more * z + 2 * share * turn) * z).sum(-1, keepdim=True)
        return more.squeeze(-2).sum(-1), first.sum(-1), second

    @staticmethod
    def backward(
        ctx: Any, of_weight: Tensor, of_first: Tensor, of_second: Tensor
    ) -> tuple[Any, ...]:
        value, weights, loc, factor = ctx.saved_tensors
        z = formulas.whiten(value, loc, factor)  # (N, K, D, T)
        twice = (of_second + of_second.mT) @ z if formulas.is_full(factor) else 2 * of_second * z
        along = of_first.unsqueeze(-1)  # (N, K, D, 1)
        to_weights = of_weight.unsqueeze(-1) + ((along + 0.5 * twice) * z).sum(-2)  # (N, K, T)
        to_z = weights.mT.unsqueeze(-2) * (along + twice)
        to_deviation = formulas.solve_transposed(factor, to_z)
        to_value = to_deviation.sum(-3).mT.sum_to_size(value.shape)
        to_loc = -to_deviation.sum(-1).sum_to_size(loc.shape)
        if formulas.is_full(factor):
            to_factor = -(to_deviation @ z.mT).tril()
        else:
            to_factor = -(to_deviation * z).sum(-1, keepdim=True)
        return to_value, to_weights.mT, to_loc, to_factor.sum_to_size(factor.shape)


# A traced graph holds the operator without the function above it.
operators.moments_operator.register_autograd(Moments.backward, setup_context=Moments.setup_context)
