r"""Recursions of a chain whose observations depend on the current and on p lagged states.

A step costs :math:`K^{p+1}` operations; :mod:`.lagged_reference` has the recursion. Plain tensors
on the CPU use the compiled kernel (:mod:`.cpu.lagged`). Sequences that it reports, other devices
and function transforms use the reference. The first derivatives are the expectations, as in
:mod:`.autograd`; derivatives of these are those of the reference.

Tensors are ``initial_logits`` ``(N or 1, S)``, of the first tuple of states, ``transition_logits``
``(N or 1, K, K)`` and ``observation_logits`` ``(N, T, S)``, with :math:`S = K^{p+1}` and
:math:`p \ge 1`. They may hold -inf.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_regimes.kernels import dispatch, lagged_reference, transforms

_GRAIN = 20_000  # numbers that are worth a thread


def _has_kernel(*chain: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if transforms.are_transforms_active() or any(map(transforms.has_tangent, chain)):
        return False
    return dispatch.choose(chain[2]) == "cpu"


def _run(chain: tuple[Tensor, ...], *, filtered: bool, smoothed: bool) -> tuple[Tensor, ...]:
    """Log-likelihood, filtered and smoothed probabilities (empty unless wanted), transitions."""
    from pyro_regimes.kernels.cpu import lagged, lagged_vectors
    from pyro_regimes.kernels.cpu.jit import spread

    initial, transition, observation = (each.detach().contiguous() for each in chain)
    num_sequences, num_states = len(observation), transition.shape[-1]
    empty = observation.new_empty((0, 0, 0))
    found = (
        observation.new_empty(num_sequences),
        torch.empty_like(observation) if filtered else empty,
        torch.empty_like(observation) if smoothed else empty,
        observation.new_empty((num_sequences, num_states, num_states)),
    )
    exact = torch.zeros(num_sequences, dtype=torch.bool, device="cpu")
    given = [initial, transition, observation]
    if lagged_vectors.is_served(num_states, observation.shape[-1]):
        sweep = lagged_vectors.sweep(num_states, observation.shape[-1])
    else:
        sweep, peaks = lagged.sweep, observation.amax(-1)
        given += [(observation - peaks.unsqueeze(-1)).exp_(), peaks]
    arrays = [each.numpy() for each in given]
    out = [each.numpy() for each in (*found, exact)]
    grain = 1 + _GRAIN // max(1, observation[:1].numel())
    spread(lambda first, last: sweep(*arrays, first, last, *out), num_sequences, grain)
    if not bool(exact.all()):
        redo = ~exact
        parts = [each[redo] if len(each) == num_sequences else each for each in chain]
        again = [each.detach() for each in parts]
        found[0][redo], gamma, moved = lagged_reference.expectations(*again)
        if filtered:
            found[1][redo] = lagged_reference.filter_probs(*again)
        if smoothed:
            found[2][redo], found[3][redo] = gamma, moved
    return found


class _Expectations(Function):
    """The E-step with its derivatives."""

    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, observation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        chain = (initial, transition, observation)
        value, _, smoothed, moved = _run(chain, filtered=False, smoothed=True)
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
            gamma = of_value[:, None, None] * smoothed
            total = [
                gamma[:, 0].sum_to_size(chain[0].shape),
                (of_value[:, None, None] * moved).sum_to_size(chain[1].shape),
                gamma,
            ]
        if of_smoothed is not None or of_moved is not None:
            along = (
                torch.zeros_like(moved[:, 0, 0]),
                torch.zeros_like(smoothed) if of_smoothed is None else of_smoothed,
                torch.zeros_like(moved) if of_moved is None else of_moved,
            )
            more = torch.func.vjp(lagged_reference.expectations, *chain)[1](along)
            total = [one + other for one, other in zip(total, more)] if total else list(more)
        return tuple(total) if total else (None, None, None)


def expectations(
    initial: Tensor, transition: Tensor, observation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood ``(N,)``, smoothed probabilities ``(N, T, S)``, transitions ``(N, K, K)``.

    They are float64 and differentiable.
    """
    chain = (initial.double(), transition.double(), observation.double())
    if not _has_kernel(*chain):
        return lagged_reference.expectations(*chain)
    found: tuple[Tensor, Tensor, Tensor] = _Expectations.apply(*chain)
    return found


def log_likelihood(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """The sum over all paths, ``(N,)``, float64; with expectations where a gradient may come."""
    chain = (initial.double(), transition.double(), observation.double())
    if not _has_kernel(*chain):
        return lagged_reference.log_likelihood(*chain)
    if torch.is_grad_enabled() and any(each.requires_grad for each in chain):
        value: Tensor = _Expectations.apply(*chain)[0]
        return value
    return _run(chain, filtered=False, smoothed=False)[0]


def filter_probs(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """Probabilities of each tuple given the data up to t, ``(N, T, S)``, float64."""
    chain = (initial.double(), transition.double(), observation.double())
    if not _has_kernel(*chain) or any(each.requires_grad for each in chain):
        return lagged_reference.filter_probs(*chain)
    return _run(chain, filtered=True, smoothed=False)[1]
