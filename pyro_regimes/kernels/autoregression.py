r"""Hamilton's switching autoregression as one function of its parameters.

.. math::
    \log b_t(q_{t-p}, \dots, q_t) = \log N\Bigl(x_t - \sum_j \phi_{kj} x_{t-j};
    \mu_k - \sum_j \phi_{kj} \mu_{q_{t-j}}, \sigma_k^2\Bigr), \quad k = q_t.

The compiled kernel makes the densities from products of few exponentials
(:mod:`.cpu.lagged_emissions`) and never has all of them in memory. Where it does not apply, the
functions compose :func:`log_densities` and :mod:`.lagged`. So do second derivatives, and those of
expectations.

Tensors are ``initial_logits`` and ``transition_logits`` as in :mod:`.lagged`, ``series``
``(N or 1, p + T)``, which begins with the p rows before the first, ``loc`` ``(N or 1, K)``,
``coefficients`` ``(N or 1, 1 or K, p)`` and ``scale`` ``(N or 1, 1 or K)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import lagged, lagged_kernel, lagged_reference
from pyro_regimes.observed import lagged_normal


def _rows(series: Tensor, order: int) -> Tensor:
    """Each observation with the p before it, the latest first, ``(..., T, p + 1)``."""
    return series.unfold(-1, order + 1, 1).flip(-1)


def log_densities(series: Tensor, loc: Tensor, coefficients: Tensor, scale: Tensor) -> Tensor:
    """The log-density of each row with each tuple of states, ``(..., T, S)``."""
    rows = _rows(series, coefficients.shape[-1])
    return lagged_normal.log_density(rows, loc, coefficients, scale)


def _split(num_states: int, order: int) -> tuple[int, int]:
    """The lanes L and H of the two factors of a density."""
    older = order // 2
    return num_states ** (order + 1 - older), num_states ** (older + 1)


def _is_served(*given: Tensor) -> bool:
    if not lagged_kernel.is_served(*given):
        return False
    from pyro_regimes.kernels.cpu import lagged_sweep

    num_states, num_tuples = given[1].shape[-1], given[0].shape[-1]
    return lagged_sweep.is_served(num_states, num_tuples) and all(map(len, given))


def _run(
    given: tuple[Tensor, ...], num_probs: int, *, filtered: bool = False, smoothed: bool = False
) -> tuple[Tensor, ...]:
    """Log-likelihood, filtered and smoothed probabilities (empty unless wanted), transitions.

    :param num_probs: S, or K for the probabilities of the last states of tuples.
    """
    from pyro_regimes.kernels.cpu import lagged_sweep
    from pyro_regimes.kernels.cpu.jit import spread

    plain = [each.detach().contiguous() for each in given]
    transition = lagged_reference.steps_of(plain[1])
    num_states, order = transition.shape[-1], plain[4].shape[-1]
    num_sequences, num_steps = max(map(len, plain)), plain[2].shape[-1] - order
    series = plain[2].expand(num_sequences, -1)
    found = lagged_kernel.allocate(series, transition, (num_steps, num_probs), filtered, smoothed)
    exact = torch.zeros(num_sequences, dtype=torch.bool, device="cpu")
    sweep = lagged_sweep.sweep(num_states, plain[0].shape[-1], *_split(num_states, order))
    initial, _, _, *normal = (each.numpy() for each in plain)
    arrays = (initial, transition.numpy(), series.contiguous().numpy(), tuple(normal))
    out = [each.numpy() for each in (*found, exact)]
    varies = True if transition.shape[1] > 1 else None
    spread(
        lambda first, last: sweep(*arrays, varies, first, last, *out),
        num_sequences,
        1 + lagged_kernel.GRAIN // (num_steps * len(plain[0][0])),
    )
    if not bool(exact.all()):
        redo = ~exact
        parts = (plain[0], transition, series, *plain[3:])
        again = [each[redo] if len(each) == num_sequences else each for each in parts]
        chain = (*again[:2], log_densities(*again[2:]))
        other = lagged_kernel.run(chain, filtered=filtered, smoothed=smoothed)
        for mine, value, wanted in zip(found, other, (True, filtered, smoothed, smoothed)):
            if wanted and value.dim() == 3 and num_probs == num_states:
                value = _last(value, num_states)
            if wanted:
                mine[redo] = value
    return (*found[:3], found[3] if plain[1].dim() > 3 else found[3].squeeze(1))


def _last(probs: Tensor, num_states: int) -> Tensor:
    """Probabilities of the last states of tuples."""
    return probs.unflatten(-1, (-1, num_states)).sum(-2)


class _LogLikelihood(Function):
    """The log-likelihood with its derivatives."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        value, _, smoothed, moved = _run(given, given[0].shape[-1], smoothed=True)
        ctx.save_for_backward(*given, smoothed, moved)
        return value

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        *given, smoothed, moved = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives may follow
            value = (weight * lagged.log_likelihood(*_composed(given))).sum()
            wanted = [each for each in given if each.requires_grad]
            found = iter(torch.autograd.grad(value, wanted, create_graph=True))
            return tuple(next(found) if each.requires_grad else None for each in given)
        first = lagged.of_log_likelihood(weight, given, smoothed[:, :1], moved)
        leaves = [
            each.detach().requires_grad_(needed)
            for each, needed in zip(given[2:], ctx.needs_input_grad[2:], strict=True)
        ]
        wanted = [each for each in leaves if each.requires_grad]
        if not wanted:
            return (*first[:2], None, None, None, None)
        with torch.enable_grad():
            found = iter(torch.autograd.grad(_tangent(weight, smoothed, *leaves), wanted))
        return (*first[:2], *(next(found) if each.requires_grad else None for each in leaves))


def _composed(given: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of :mod:`.lagged`."""
    density = log_densities(*given[2:])
    return given[0], given[1], density.expand(max(map(len, given)), -1, -1)


def _tangent(
    weight: Tensor,
    gamma: Tensor,
    series: Tensor,
    loc: Tensor,
    coefficients: Tensor,
    scale: Tensor,
) -> Tensor:
    """A number with the gradient of the weighted sum of gamma times the log-densities."""
    from pyro_regimes.kernels.cpu import lagged_gradient
    from pyro_regimes.kernels.cpu.jit import spread

    num_states, order = loc.shape[-1], coefficients.shape[-1]
    level = loc[..., :1].detach()  # as in lagged_normal.log_density
    ahead = lagged_normal.regressions(_rows(series - level, order), coefficients)
    centre = lagged_normal.centre(loc - level, coefficients)  # (N, S)
    scales = lagged_normal.per_tuple(scale, num_states, order)  # (N, S)
    along = [gamma.new_empty((len(gamma), *ahead.shape[1:]))]
    along += [gamma.new_empty((len(gamma), gamma.shape[-1])) for _ in range(2)]
    plain = [each.detach().contiguous().numpy() for each in (gamma, ahead, centre, scales, weight)]
    out = [each.numpy() for each in along]
    grain = 1 + lagged_kernel.GRAIN // gamma[0].numel()
    task = lagged_gradient.accumulate(num_states, gamma.shape[-1])
    spread(lambda first, last: task(*plain, first, last, *out), len(gamma), grain)
    pairs = zip((ahead, centre, scales), along, strict=True)
    return torch.stack([(each * one).sum() for each, one in pairs]).sum()


def log_likelihood(*given: Tensor) -> Tensor:
    """The log-likelihood of the T rows, ``(N,)``, float64 and differentiable.

    :param given: the tensors of this module.
    """
    wide = tuple(each.double() for each in given)
    if not _is_served(*wide):
        return lagged.log_likelihood(*_composed(wide))
    if torch.is_grad_enabled() and any(each.requires_grad for each in wide):
        value: Tensor = _LogLikelihood.apply(*wide)
        return value
    return _run(wide, 0)[0]


def expectations(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood, smoothed probabilities ``(N, T, S)``, and transitions, as :mod:`.lagged`."""
    wide = tuple(each.double() for each in given)
    if not _is_served(*wide) or _may_need_gradient(*wide):
        return lagged.expectations(*_composed(wide))
    value, _, smoothed, moved = _run(wide, wide[0].shape[-1], smoothed=True)
    return value, smoothed, moved


def posterior(*given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihood, probabilities of the last states of tuples, and transitions.

    :return: ``(N,)``, filtered and smoothed probabilities ``(N, T, K)``, and transitions.
    """
    wide = tuple(each.double() for each in given)
    num_states = wide[1].shape[-1]
    if _is_served(*wide) and not _may_need_gradient(*wide):
        value, filtered, smoothed, moved = _run(wide, num_states, filtered=True, smoothed=True)
        return value, filtered, smoothed, moved
    chain = _composed(wide)
    value, smoothed, moved = lagged.expectations(*chain)
    filtered = lagged.filter_probs(*chain)
    return value, _last(filtered, num_states), _last(smoothed, num_states), moved


def _may_need_gradient(*given: Tensor) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in given)
