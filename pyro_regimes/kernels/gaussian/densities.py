r"""Gaussian log densities of all states at once, differentiable.

.. math::
    \log N(x_t; \mu_k, L_k L_k^\top) =
        -\tfrac12 |z_{tk}|^2 - \sum_i \log L_{k,ii} - \tfrac D2 \log 2\pi, \qquad
    L_k z_{tk} = x_t - \mu_k.

Under cotangents :math:`w_{tk}` the derivatives are weighted moments of z. With
:math:`n_k = \sum_t w_{tk}`, :math:`s_k = \sum_t w_{tk} z_{tk}` and
:math:`S_k = \sum_t w_{tk} z_{tk} z_{tk}^\top`,

.. math::
    \partial \mu_k = L_k^{-\top} s_k, \qquad
    \partial L_k = \mathrm{tril}(L_k^{-\top} S_k) - n_k \,\mathrm{diag}(1 / L_{k,ii}), \qquad
    \partial x_t = -\sum_k w_{tk} L_k^{-\top} z_{tk},

since :math:`dz = -L^{-1}(d\mu + dL\, z)`. Both sums over time, the densities and the moments, are
compiled kernels (:mod:`.cpu.moments`) as custom operators, each under an
:class:`torch.autograd.Function`; the derivatives of the moments, for derivatives of higher order,
are tensor code. The moments are of z and not of :math:`x - \mu`: with an ill-conditioned covariance
:math:`L^{-1} S L^{-\top}` would lose twice the digits.

Independent series are the same with a diagonal L, kept as ``(..., D, 1)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import dispatch
from pyro_regimes.kernels.shapes import broadcast

_LOG_2_PI = math.log(2 * math.pi)


def log_prob(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    r""":math:`\log N(x_t; \mu_k, L_k L_k^\top)` for all states; batch dims broadcast.

    :param value: ``(..., T, D)``.
    :param loc: ``(..., K or 1, D)``.
    :param factor: the lower Cholesky factor, ``(..., K or 1, D, D)``, of which what is above the
        diagonal is not read; or standard deviations, ``(..., K or 1, D, 1)``.
    :return: ``(..., T, K)``.
    """
    if not value.dtype == loc.dtype == factor.dtype:
        dtype = torch.promote_types(torch.promote_types(value.dtype, loc.dtype), factor.dtype)
        value, loc, factor = value.to(dtype), loc.to(dtype), factor.to(dtype)
    if not is_served(value, loc, factor):
        return plain_log_prob(value, loc, factor)
    batch_shape = value.shape[:-2]
    if batch_shape != loc.shape[:-2] or batch_shape != factor.shape[:-3]:
        batch_shape = broadcast(batch_shape, loc.shape[:-2], factor.shape[:-3])
    num_steps, size = value.shape[-2:]
    loc, factor = flatten(loc, 2, batch_shape), flatten(factor, 3, batch_shape)
    if len(loc) == len(factor) == 1:  # all sequences are alike: one long one
        density = _density(value.reshape(1, -1, size), loc, factor)
        density = density.reshape(value.shape[:-1] + density.shape[-1:])
        return density.expand(batch_shape + (num_steps, density.shape[-1]))
    density = _density(flatten(value, 2, batch_shape), loc, factor)
    return density.reshape(batch_shape + density.shape[1:])


def log_prob_diagonal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r""":math:`\sum_d \log N(x_{td}; \mu_{kd}, \sigma_{kd}^2)` for all states; batch dims broadcast.

    :param value: ``(..., T, D)``.
    :param loc: ``(..., K or 1, D)``.
    :param scale: standard deviations, ``(..., K or 1, D or 1)``.
    :return: ``(..., T, K)``.
    """
    return log_prob(value, loc, scale.expand(scale.shape[:-1] + value.shape[-1:]).unsqueeze(-1))


def _density(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    if dispatch.is_plain(value, loc, factor):
        return log_density(value, loc, factor)
    density: Tensor = dispatch.apply(
        LogDensity, value, loc, factor, operator=log_density_operator
    )
    return density


def is_served(*tensors: Tensor) -> bool:
    """Whether there is a kernel for these tensors."""
    return (
        tensors[0].dtype in (torch.float32, torch.float64)
        and all(tensor.device.type == "cpu" and tensor.numel() > 0 for tensor in tensors)
        and dispatch.choose(tensors[0]) in ("cpu", "")
    )


def flatten(tensor: Tensor, event_dim: int, batch_shape: torch.Size) -> Tensor:
    """``(N, ...)``, or ``(1, ...)`` where it is shared by the whole batch."""
    batch = tensor.shape[: tensor.dim() - event_dim]
    event = tensor.shape[tensor.dim() - event_dim :]
    if batch.numel() == 1:
        return tensor.reshape((1,) + event)
    return tensor.expand(batch_shape + event).reshape((-1,) + event)


def _is_full(factor: Tensor) -> bool:
    return factor.shape[-1] == factor.shape[-2]


def _whiten(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """:math:`z`, ``(..., K, D, T)``."""
    deviation = (value.unsqueeze(-3) - loc.unsqueeze(-2)).mT  # (..., K, D, T)
    if not _is_full(factor):
        return deviation / factor
    return torch.linalg.solve_triangular(factor, deviation, upper=False)


def _solve_transposed(factor: Tensor, right: Tensor) -> Tensor:
    """:math:`L^{-\\top} R` for R ``(..., K, D, any)``."""
    if not _is_full(factor):
        return right / factor
    return torch.linalg.solve_triangular(factor.mT, right, upper=True)


def _diagonal(factor: Tensor) -> Tensor:
    """``(..., K, D)``"""
    return factor.diagonal(dim1=-2, dim2=-1) if _is_full(factor) else factor.squeeze(-1)


def plain_log_prob(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """The same in plain tensor code on any device, for any dtype.

    :param factor: ``(..., K or 1, D, D)``, or the diagonals ``(..., K or 1, D, 1)``.
    """
    squares = _whiten(value, loc, factor).square().sum(-2)  # (..., K, T)
    constant = _diagonal(factor).log().sum(-1) + 0.5 * value.shape[-1] * _LOG_2_PI
    return (-0.5 * squares - constant.unsqueeze(-1)).mT


def log_density(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """The densities of flat, plain tensors; see :class:`LogDensity`."""
    from pyro_regimes.kernels.cpu import densities

    loc, factor = loc.unsqueeze(1), factor.unsqueeze(1)
    if _is_full(factor):
        return densities.log_density_full(value, loc, factor)
    return densities.log_density_diagonal(value, loc, factor.squeeze(-1))


def _log_density_wanted(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """Within ``backend("reference")``, which a compiled graph learns when it runs, tensor code."""
    if not dispatch.is_reference_wanted():
        return log_density(value, loc, factor)
    density = plain_log_prob(value, loc, factor)
    return density.expand(_log_density_like(value, loc, factor).shape).contiguous()


def _moments_wanted(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Likewise."""
    if not dispatch.is_reference_wanted():
        return _moments(value, weights, loc, factor)
    z = _whiten(value, loc, factor)  # (N, K, D, T)
    share = weights.mT.unsqueeze(-2) * z
    second = share @ z.mT if _is_full(factor) else (share * z).sum(-1, keepdim=True)
    return weights.sum(-2), share.sum(-1), second


def _log_density_like(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    count = max(value.shape[0], loc.shape[0], factor.shape[0])
    num_states = max(loc.shape[1], factor.shape[1])
    return value.new_empty((count, value.shape[1], num_states))


def _moments(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from pyro_regimes.kernels.cpu import moments

    loc, factor = loc.unsqueeze(1), factor.unsqueeze(1)
    if _is_full(factor):
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
    """Register an operator, with the shapes it returns and with vmap as a longer batch."""
    operator = torch.library.custom_op(
        f"pyro_regimes::{name}",
        dispatch.without_tangents(run),
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
            if arg.shape[0] == arg.shape[1] == 1:  # shared by all sequences, and by all of vmap's
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
    _log_density_like,
)
moments_operator = _define(
    "gaussian_moments",
    "Tensor value, Tensor weights, Tensor loc, Tensor factor",
    "(Tensor, Tensor, Tensor)",
    _moments_wanted,
    _moments_like,
)


def sum_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """``gradient.sum_to_size(shape)``, or itself."""
    return gradient if gradient.shape == shape else gradient.sum_to_size(shape)


class LogDensity(Function):
    """Log densities ``(N, T, K)`` with their derivatives.

    Tensors are flat here: ``(N or 1, T, D)``, ``(N or 1, K or 1, D)`` and
    ``(N or 1, K or 1, D, D or 1)``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
        # An operator takes longer to call than a short kernel to run.
        run = log_density if dispatch.is_plain(value, loc, factor) else log_density_operator
        density: Tensor = run(value, loc, factor)
        return density

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        if hasattr(ctx, "save_for_forward"):  # an operator's context has no forward mode
            ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, weights: Tensor | None) -> tuple[Any, ...]:
        if weights is None:
            return None, None, None
        value, loc, factor = ctx.saved_tensors
        return pull_back(value, weights, loc, factor, ctx.needs_input_grad)

    @staticmethod
    def jvp(
        ctx: Any, of_value: Tensor | None, of_loc: Tensor | None, of_factor: Tensor | None
    ) -> Tensor:
        value, loc, factor = ctx.saved_tensors
        z = _whiten(value, loc, factor)
        turn = _push_forward(z, loc, factor, of_value, of_loc, of_factor)
        change = -(z * turn).sum(-2)  # (N, K, T)
        if of_factor is not None:
            steepness = (_diagonal(of_factor) / _diagonal(factor)).sum(-1)
            change = change - steepness.unsqueeze(-1)
        return change.mT.expand(_log_density_like(value, loc, factor).shape)


def _push_forward(
    z: Tensor,
    loc: Tensor,
    factor: Tensor,
    of_value: Tensor | None,
    of_loc: Tensor | None,
    of_factor: Tensor | None,
) -> Tensor:
    """The tangent of z, ``(N, K, D, T)``: :math:`L^{-1} (dx - d\\mu - dL\\, z)`."""
    turn = torch.zeros_like(z)
    if of_value is not None:
        turn = turn + of_value.unsqueeze(-3).mT
    if of_loc is not None:
        turn = turn - of_loc.unsqueeze(-1)
    if of_factor is not None:
        turn = turn - (of_factor.tril() @ z if _is_full(factor) else of_factor * z)
    if not _is_full(factor):
        return turn / factor
    return torch.linalg.solve_triangular(factor, turn, upper=False)


def pull_back(
    value: Tensor,
    weights: Tensor,
    loc: Tensor,
    factor: Tensor,
    needed: tuple[bool, ...] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Derivatives of the log densities, flat as in :class:`LogDensity`, under cotangents.

    :param weights: the cotangents, ``(N, T, K)``.
    :param needed: whether those of value, loc and factor are.
    """
    to_value = to_loc = to_factor = None
    if needed[1] or needed[2]:
        given = (value, weights, loc, factor)
        if dispatch.is_batched(weights):
            to_loc, to_factor = _gradients_of_many(*given)
        elif dispatch.is_plain(*given):
            to_loc, to_factor = _gradients(*given)
        else:  # the gradient will be differentiated in its turn
            to_loc, to_factor = _differentiable_gradients(*given)
        to_loc, to_factor = sum_to(to_loc, loc.shape), sum_to(to_factor, factor.shape)
    if needed[0]:
        pull = _solve_transposed(factor, _whiten(value, loc, factor))  # (N, K, D, T)
        share = weights.mT.unsqueeze(-2)
        pulled = torch.where(share == 0, 0.0, share * pull)  # where it overflows too
        to_value = -pulled.sum(-3).mT.sum_to_size(value.shape)
    return to_value, to_loc, to_factor


def _gradients(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    from pyro_regimes.kernels.cpu import density_gradient

    return density_gradient.gradients(value, weights, loc, factor)


def _gradients_of_many(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """In tensor code, for cotangents that are many at a time."""
    z = _whiten(value, loc, factor)  # (N, K, D, T)
    share = weights.mT.unsqueeze(-2) * z
    to_loc = _solve_transposed(factor, share.sum(-1, keepdim=True)).squeeze(-1)
    steepness = weights.sum(-2).unsqueeze(-1) / _diagonal(factor)
    if _is_full(factor):
        to_factor = _solve_transposed(factor, share @ z.mT).tril()
        return to_loc, to_factor - torch.diag_embed(steepness)
    to_factor = _solve_transposed(factor, (share * z).sum(-1, keepdim=True))
    return to_loc, to_factor - steepness.unsqueeze(-1)


def _differentiable_gradients(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    weight, first, second = dispatch.apply(
        Moments, value, weights, loc, factor, operator=moments_operator
    )
    solved = _solve_transposed(factor, torch.cat([first.unsqueeze(-1), second], -1))
    to_loc, to_factor = solved[..., 0], solved[..., 1:]
    steepness = weight.unsqueeze(-1) / _diagonal(factor)
    if _is_full(factor):
        return to_loc, to_factor.tril() - torch.diag_embed(steepness)
    return to_loc, to_factor - steepness.unsqueeze(-1)


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
        plain = dispatch.is_plain(value, weights, loc, factor)
        run = _moments if plain else moments_operator
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
        z = _whiten(value, loc, factor)  # (N, K, D, T)
        turn = _push_forward(z, loc, factor, of_value, of_loc, of_factor)
        share = weights.mT.unsqueeze(-2)  # (N, K, 1, T)
        more = torch.zeros_like(share) if of_weights is None else of_weights.mT.unsqueeze(-2)
        first = more * z + share * turn
        if _is_full(factor):
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
        z = _whiten(value, loc, factor)  # (N, K, D, T)
        twice = (of_second + of_second.mT) @ z if _is_full(factor) else 2 * of_second * z
        along = of_first.unsqueeze(-1)  # (N, K, D, 1)
        to_weights = of_weight.unsqueeze(-1) + ((along + 0.5 * twice) * z).sum(-2)  # (N, K, T)
        to_z = weights.mT.unsqueeze(-2) * (along + twice)
        to_deviation = _solve_transposed(factor, to_z)
        to_value = to_deviation.sum(-3).mT.sum_to_size(value.shape)
        to_loc = -to_deviation.sum(-1).sum_to_size(loc.shape)
        if _is_full(factor):
            to_factor = -(to_deviation @ z.mT).tril()
        else:
            to_factor = -(to_deviation * z).sum(-1, keepdim=True)
        return to_value, to_weights.mT, to_loc, to_factor.sum_to_size(factor.shape)


# A traced graph holds the operators without the functions above them.
for _operator, _function in ((log_density_operator, LogDensity), (moments_operator, Moments)):
    _operator.register_autograd(_function.backward, setup_context=_function.setup_context)


def without_time(argument: Tensor, event_dim: int) -> Tensor:
    """``(..., 1, K, *event)`` without the dim of size 1, or as much of it as there is.

    :param event_dim: the number of dims of state and event, which come back at the least.
    """
    if argument.dim() < event_dim:
        return argument.reshape((1,) * (event_dim - argument.dim()) + argument.shape)
    return argument if argument.dim() == event_dim else argument.squeeze(-1 - event_dim)
