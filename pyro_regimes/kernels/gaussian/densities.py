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
compiled kernels (:mod:`.operators`), each under an :class:`torch.autograd.Function`. The
derivatives of the moments, for derivatives of higher order, are tensor code. The moments are of z
and not of :math:`x - \mu`: with an ill-conditioned covariance :math:`L^{-1} S L^{-\top}` would lose
twice the digits.

Independent series are the same with a diagonal L, kept as ``(..., D, 1)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import dispatch, transforms
from pyro_regimes.kernels.gaussian import formulas, operators
from pyro_regimes.kernels.gaussian.moments import Moments
from pyro_regimes.kernels.shapes import broadcast, flatten


def log_prob(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    r""":math:`\log N(x_t; \mu_k, L_k L_k^\top)` for all states; batch dims broadcast.

    :param value: ``(..., T, D)``.
    :param loc: ``(..., K or 1, D)``.
    :param factor: the lower Cholesky factor, ``(..., K or 1, D, D)``, whose entries above the
        diagonal are ignored; or standard deviations, ``(..., K or 1, D, 1)``.
    :return: ``(..., T, K)``.
    :raises ValueError: if D is not the same in all.
    """
    check_sizes(value, loc, factor)
    if not value.dtype == loc.dtype == factor.dtype:
        dtype = torch.promote_types(torch.promote_types(value.dtype, loc.dtype), factor.dtype)
        value, loc, factor = value.to(dtype), loc.to(dtype), factor.to(dtype)
    if not is_served(value, loc, factor):
        return formulas.log_prob(value, loc, factor)
    batch_shape = value.shape[:-2]
    if batch_shape != loc.shape[:-2] or batch_shape != factor.shape[:-3]:
        batch_shape = broadcast(batch_shape, loc.shape[:-2], factor.shape[:-3])
    num_steps = value.shape[-2]
    loc, factor = flatten(loc, 2, batch_shape), flatten(factor, 3, batch_shape)
    if len(loc) == len(factor) == 1:  # all sequences are alike: one long one
        density = _density(value.reshape(1, -1, value.shape[-1]), loc, factor)
        density = density.reshape(value.shape[:-1] + density.shape[-1:])
        return density.expand(batch_shape + (num_steps, density.shape[-1]))
    density = _density(flatten(value, 2, batch_shape), loc, factor)
    return density.reshape(batch_shape + density.shape[1:])


def check_sizes(value: Tensor, loc: Tensor, factor: Tensor) -> None:
    """Check that D is the same in all arguments, as the kernels do not.

    :raises ValueError: if it is not.
    """
    size = value.shape[-1]
    if not size == loc.shape[-1] == factor.shape[-2] or factor.shape[-1] not in (1, size):
        raise ValueError(
            f"expected loc to end in ({size},) and factor in ({size}, {size}) or ({size}, 1), as "
            f"value has observations of size {size}, got shapes {tuple(loc.shape)} and "
            f"{tuple(factor.shape)}"
        )


def _density(value: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    if transforms.is_plain(value, loc, factor):
        return operators.log_density(value, loc, factor)
    density: Tensor = transforms.apply(
        LogDensity, value, loc, factor, operator=operators.log_density_operator
    )
    return density


def is_served(*tensors: Tensor) -> bool:
    """Whether there is a kernel for these tensors."""
    return (
        tensors[0].dtype in (torch.float32, torch.float64)
        and all(tensor.device.type == "cpu" and tensor.numel() > 0 for tensor in tensors)
        and dispatch.choose(tensors[0]) in ("cpu", "")
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
        plain = transforms.is_plain(value, loc, factor)
        run = operators.log_density if plain else operators.log_density_operator
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
        z = formulas.whiten(value, loc, factor)
        turn = formulas.push_forward(z, loc, factor, of_value, of_loc, of_factor)
        change = -(z * turn).sum(-2)  # (N, K, T)
        if of_factor is not None:
            steepness = (formulas.diagonal(of_factor) / formulas.diagonal(factor)).sum(-1)
            change = change - steepness.unsqueeze(-1)
        return change.mT.expand(operators.log_density_like(value, loc, factor).shape)


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
        if transforms.is_batched(weights):
            to_loc, to_factor = _gradients_of_many(*given)
        elif transforms.is_plain(*given):
            to_loc, to_factor = _gradients(*given)
        else:  # the gradient will be differentiated in its turn
            to_loc, to_factor = _differentiable_gradients(*given)
        to_loc, to_factor = sum_to(to_loc, loc.shape), sum_to(to_factor, factor.shape)
    if needed[0]:
        z = formulas.whiten(value, loc, factor)  # (N, K, D, T)
        pull = formulas.solve_transposed(factor, z)
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
    """The gradients in tensor code, for batches of cotangents."""
    z = formulas.whiten(value, loc, factor)  # (N, K, D, T)
    share = weights.mT.unsqueeze(-2) * z
    to_loc = formulas.solve_transposed(factor, share.sum(-1, keepdim=True)).squeeze(-1)
    steepness = weights.sum(-2).unsqueeze(-1) / formulas.diagonal(factor)
    if formulas.is_full(factor):
        to_factor = formulas.solve_transposed(factor, share @ z.mT).tril()
        return to_loc, to_factor - torch.diag_embed(steepness)
    to_factor = formulas.solve_transposed(factor, (share * z).sum(-1, keepdim=True))
    return to_loc, to_factor - steepness.unsqueeze(-1)


def _differentiable_gradients(
    value: Tensor, weights: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    weight, first, second = transforms.apply(
        Moments, value, weights, loc, factor, operator=operators.moments_operator
    )
    solved = formulas.solve_transposed(factor, torch.cat([first.unsqueeze(-1), second], -1))
    to_loc, to_factor = solved[..., 0], solved[..., 1:]
    steepness = weight.unsqueeze(-1) / formulas.diagonal(factor)
    if formulas.is_full(factor):
        return to_loc, to_factor.tril() - torch.diag_embed(steepness)
    return to_loc, to_factor - steepness.unsqueeze(-1)


# A traced graph holds the operator without the function above it.
operators.log_density_operator.register_autograd(
    LogDensity.backward, setup_context=LogDensity.setup_context
)
