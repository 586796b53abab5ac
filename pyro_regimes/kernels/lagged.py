r"""Recursions of a chain whose observations depend on the current and on p lagged states.

A step costs :math:`K^{p+1}` operations; :mod:`.lagged_reference` has the recursion. Plain tensors
on the CPU use a compiled kernel (:mod:`.lagged_kernel`), other devices and function transforms the
reference. The first derivatives are the expectations, as in :mod:`.autograd`; derivatives of these
are those of the reference.

Tensors are ``initial_logits`` ``(N or 1, S)``, of the first tuple of states, ``transition_logits``
``(N or 1, K, K)``, or ``(N or 1, 1 or T-1, K, K)``, and ``observation_logits`` ``(N, T, S)``, with
:math:`S = K^{p+1}` and :math:`p \ge 1`. They may hold -inf. With a dim of time, slice t of the
transitions leads from the last state of step t to that of step t + 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import lagged_kernel, lagged_reference
from pyro_regimes.kernels.lagged_kernel import is_served


class _Expectations(Function):
    """The E-step with its derivatives."""

    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, observation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        chain = (initial, transition, observation)
        value, _, smoothed, moved = lagged_kernel.run(chain, smoothed=True)
        ctx.save_for_backward(*chain, smoothed, moved)
        ctx.set_materialize_grads(False)
        return value, smoothed, moved

    @staticmethod
    def backward(
        ctx: Any, of_value: Tensor | None, of_smoothed: Tensor | None, of_moved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *chain, smoothed, moved = ctx.saved_tensors
        total: list[Tensor] = []
        if of_value is not None:
            total = of_log_likelihood(of_value, chain, smoothed, moved)
        if of_smoothed is not None or of_moved is not None:
            along = (
                torch.zeros_like(smoothed[:, 0, 0]),
                torch.zeros_like(smoothed) if of_smoothed is None else of_smoothed,
                torch.zeros_like(moved) if of_moved is None else of_moved,
            )
            more = torch.func.vjp(lagged_reference.expectations, *chain)[1](along)
            total = [one + other for one, other in zip(total, more)] if total else list(more)
        return tuple(total) if total else (None, None, None)


def of_log_likelihood(
    weight: Tensor, chain: list[Tensor], smoothed: Tensor, moved: Tensor
) -> list[Tensor]:
    """The gradient of the weighted sum of the log-likelihoods: weighted expectations."""
    gamma = weight[:, None, None] * smoothed
    transition = chain[1]
    return [
        gamma[:, 0].sum_to_size(chain[0].shape),
        (weight.view((-1,) + (1,) * (moved.dim() - 1)) * moved).sum_to_size(transition.shape),
        gamma,
    ]


def expectations(
    initial: Tensor, transition: Tensor, observation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood ``(N,)``, smoothed probabilities ``(N, T, S)``, transitions ``(N, K, K)``.

    Transitions have a dim of time where ``transition`` has one. All are float64 and
    differentiable.
    """
    chain = (initial.double(), transition.double(), observation.double())
    if not is_served(*chain):
        return lagged_reference.expectations(*chain)
    found: tuple[Tensor, Tensor, Tensor] = _Expectations.apply(*chain)
    return found


def log_likelihood(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """The sum over all paths, ``(N,)``, float64; with expectations where a gradient may come."""
    chain = (initial.double(), transition.double(), observation.double())
    if not is_served(*chain):
        return lagged_reference.log_likelihood(*chain)
    if torch.is_grad_enabled() and any(each.requires_grad for each in chain):
        value: Tensor = _Expectations.apply(*chain)[0]
        return value
    return lagged_kernel.run(chain)[0]


def filter_probs(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """Probabilities of each tuple given the data up to t, ``(N, T, S)``, float64."""
    chain = (initial.double(), transition.double(), observation.double())
    if not is_served(*chain) or any(each.requires_grad for each in chain):
        return lagged_reference.filter_probs(*chain)
    return lagged_kernel.run(chain, filtered=True)[1]


def viterbi(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """The tuples of the most likely path, LongTensor ``(N, T)``; of equals, as the reference."""
    chain = (initial.double(), transition.double(), observation.double())
    if not is_served(*chain):
        return lagged_reference.viterbi(*chain)
    return lagged_kernel.viterbi(*chain)
