"""The compiled Gaussian kernels as custom operators, opaque to torch.

Tensors are flat: ``(N or 1, T, D)``, ``(N or 1, K or 1, D)`` and ``(N or 1, K or 1, D, D or 1)``;
weights are ``(N, T, K)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_regimes.kernels import dispatch, transforms
from pyro_regimes.kernels.gaussian import formulas


def log_density(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """The densities of flat, plain tensors; see :class:`LogDensity`."""
    from pyro_regimes.kernels.cpu import densities

    loc, factor = loc.unsqueeze(1), factor.unsqueeze(1)
    if formulas.is_full(factor):
        return densities.log_density_full(value, loc, factor)
    return densities.log_density_diagonal(value, loc, factor.squeeze(-1))


def _log_density_wanted(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """Log densities by the kernel, or by tensor code within ``backend("reference")``."""
    if not dispatch.is_reference_wanted():
        return log_density(value, loc, factor)
    density = formulas.log_prob(value, loc, factor)
    return density.expand(log_density_like(value, loc, factor).shape).contiguous()


def _moments_wanted(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments by the kernel, or by tensor code within ``backend("reference")``."""
    if not dispatch.is_reference_wanted():
        return moments(value, weights, loc, factor)
    z = formulas.whiten(value, loc, factor)  # (N, K, D, T)
    share = weights.mT.unsqueeze(-2) * z
    second = share @ z.mT if formulas.is_full(factor) else (share * z).sum(-1, keepdim=True)
    return weights.sum(-2), share.sum(-1), second


def log_density_like(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """An empty tensor in the shape of the log densities, ``(N, T, K)``, for tracing."""
    count = max(value.shape[0], loc.shape[0], factor.shape[0])
    num_states = max(loc.shape[1], factor.shape[1])
    return value.new_empty((count, value.shape[1], num_states))


def moments(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted moments of whitened observations by the compiled kernel."""
    from pyro_regimes.kernels.cpu import moments

    loc, factor = loc.unsqueeze(1), factor.unsqueeze(1)
    if formulas.is_full(factor):
        weight, first, second = moments.moments_full(value, weights, loc, factor)
    else:
        scale = factor.squeeze(-1)
        weight, first, second = moments.moments_diagonal(value, weights, loc, scale)
        second = second.unsqueeze(-1)
    dtype = weights.dtype
    return weight.to(dtype), first.to(dtype), second.to(dtype)


def _moments_like(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (weights.shape[0], weights.shape[2])
    return (
        weights.new_empty(sizes),
        weights.new_empty(sizes + value.shape[2:]),
        weights.new_empty(sizes + factor.shape[2:]),
    )


def _define(name: str, arguments: str, returns: str, run: Any, like: Any) -> Any:
    """Register an operator with the shapes of its results, and with vmap as a larger batch."""
    operator = torch.library.custom_op(
        f"pyro_regimes::{name}",
        transforms.without_tangents(run),
        mutates_args=(),
        schema=f"({arguments}) -> {returns}",
    )
    operator.register_fake(like)

    @operator.register_vmap
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> Any:
        size = info.batch_size
        moved = [
            arg.unsqueeze(0) if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims)
        ]  # each (1 or size, 1 or count, ...)
        count = max(arg.shape[1] for arg in moved)

        def flat(arg: Tensor) -> Tensor:
            if arg.shape[0] == arg.shape[1] == 1:  # shared by all sequences, also under vmap
                return arg.squeeze(0)
            return arg.expand((size, count) + arg.shape[2:]).flatten(0, 1)

        wanted = (size, count)
        found = operator(*map(flat, moved))
        if isinstance(found, Tensor):
            return found.unflatten(0, wanted), 0
        return tuple(each.unflatten(0, wanted) for each in found), (0,) * len(found)

    return operator


log_density_operator = _define(
    "gaussian_log_density",
    "Tensor value, Tensor loc, Tensor factor",
    "Tensor",
    _log_density_wanted,
    log_density_like,
)
moments_operator = _define(
    "gaussian_moments",
    "Tensor value, Tensor weights, Tensor loc, Tensor factor",
    "(Tensor, Tensor, Tensor)",
    _moments_wanted,
    _moments_like,
)
